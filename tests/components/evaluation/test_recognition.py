"""The classifier without a network learns directions and colours, and says how sure it is."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.measure import block_reduce
from sklearn.linear_model import LogisticRegression

from components.evaluation.recognition import PENALTY, describe, fit

pytestmark = pytest.mark.unit


def stripes(count: int, num_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy grey stripes of random phase; the class is their direction."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % num_classes
    angles = np.pi * labels / num_classes
    rows, columns = np.mgrid[:32, :32]
    along = np.cos(angles)[:, None, None] * rows + np.sin(angles)[:, None, None] * columns
    waves = 0.5 + 0.3 * np.sin(along + generator.uniform(0, 6, (count, 1, 1)))
    noise = 0.05 * generator.standard_normal((count, 3, 32, 32))
    return (waves[:, None] + noise).clip(0, 1).astype(np.float32), labels


def test_stripes_of_other_images_are_told_apart_by_their_direction() -> None:
    model = fit(*stripes(80, 4))
    others, labels = stripes(40, 4, seed=1)
    assert model.top1(others, labels) == 1
    assert model.top1(others, (labels + 1) % 4) == 0
    turned = np.rot90(others, axes=(2, 3))  # by half of the circle of directions
    assert model.top1(turned, (labels + 2) % 4) == 1


def test_flat_images_are_told_apart_by_their_colour() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = np.full((60, 3, 32, 32), 0.3, dtype=np.float32)
    images[np.arange(60), labels] += generator.uniform(0.3, 0.5, (60, 1, 1)).astype(np.float32)
    assert fit(images[:30], labels[:30]).top1(images[30:], labels[30:]) == 1


def test_the_description_is_gradients_whatever_their_strength_and_the_means_of_the_cells() -> None:
    images, _ = stripes(4, 4)
    described = describe(images)
    assert (described.shape, described.dtype) == ((4, 372), np.float32)
    colours = [block_reduce(image, (1, 8, 8), np.mean).ravel() for image in images]
    np.testing.assert_allclose(described[:, 324:], colours, atol=1e-6)
    fainter = describe(0.5 * images + 0.1)
    np.testing.assert_allclose(fainter[:, :324], described[:, :324], atol=1e-3)
    assert np.abs(described[0, :324] - described[1, :324]).max() > 0.1


def test_scores_are_the_logarithms_of_the_probabilities_of_logistic_regression() -> None:
    images, labels = stripes(60, 3)
    scores = fit(images, labels)(images[:7])
    expected = LogisticRegression(C=PENALTY).fit(describe(images), labels).predict_proba(describe(images[:7]))
    np.testing.assert_allclose(np.exp(scores), expected, atol=1e-3)


def test_classes_without_images_are_never_chosen() -> None:
    images, labels = stripes(40, 2)
    scores = fit(images, 1 + 2 * labels, num_classes=5)(images)  # of classes 1 and 3
    assert scores.shape == (40, 5)
    assert np.isneginf(scores[:, [0, 2, 4]]).all()
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1)
    np.testing.assert_array_equal(scores.argmax(axis=1), 1 + 2 * labels)
    assert fit(images, 1 + 2 * labels)(images).shape == (40, 4)


def test_a_cap_trains_on_a_seeded_draw() -> None:
    images, labels = stripes(60, 3)
    chosen = np.random.default_rng(5).choice(60, size=20, replace=False)
    expected = fit(images[chosen], labels[chosen])(images)
    np.testing.assert_array_equal(fit(images, labels, cap=20, seed=5)(images), expected)
    assert np.abs(fit(images, labels, cap=20, seed=6)(images) - expected).max() > 1e-3
    np.testing.assert_array_equal(fit(images, labels, cap=60, seed=5)(images), fit(images, labels)(images))


def test_what_cannot_be_learnt_from_is_refused() -> None:
    images, labels = stripes(6, 3)
    with pytest.raises(ValueError, match=r"images \(6, 3, 16, 32\): give \(N, 3, 32, 32\)"):
        fit(images[:, :, :16], labels)
    with pytest.raises(ValueError, match="give an integer for each image"):
        fit(images, labels[:5])
    with pytest.raises(ValueError, match="give an integer for each image"):
        fit(images, labels.astype(np.float32))
    with pytest.raises(ValueError, match="give at least two"):
        fit(images, np.zeros(6, dtype=np.int64))
    with pytest.raises(ValueError, match=r"use 0\.\.1"):
        fit(images, labels, num_classes=2)
    with pytest.raises(ValueError, match=r"labels -1\.\.1"):
        fit(images, labels - 1)
