"""An image of another size becomes one of the size of training; the likeliest class is the first."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from components.inference.labels import likeliest, to_trained_size

pytestmark = pytest.mark.unit

IMAGE = np.random.default_rng(0).random((3, 90, 120)).astype(np.float32)


@pytest.mark.parametrize("size", [None, (90, 120)])
def test_an_image_of_the_size_of_training_is_unchanged(size: tuple[int, int] | None) -> None:
    assert to_trained_size(IMAGE, size) is IMAGE


@pytest.mark.parametrize(
    ("size", "sides", "box"),
    [
        ((30, 30), (30, 40), (5, 0, 35, 30)),
        ((32, 32), (32, 43), (5, 0, 37, 32)),
        ((45, 30), (45, 60), (15, 0, 45, 45)),
        ((30, 60), (45, 60), (0, 7, 60, 37)),
    ],
)
def test_it_is_resized_to_cover_that_size_and_its_centre_is_kept(
    size: tuple[int, int], sides: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    """The oracle is Pillow's antialiased bilinear interpolation."""
    resized = [Image.fromarray(channel).resize(sides[::-1], Image.Resampling.BILINEAR).crop(box) for channel in IMAGE]
    found = to_trained_size(IMAGE, size)
    assert found.shape == (3, *size)
    assert np.abs(found - np.stack([np.asarray(channel) for channel in resized])).max() < 1e-4


@pytest.mark.parametrize("side", [1, 2, 31, 33, 300])
def test_every_size_becomes_that_of_training(side: int) -> None:
    assert to_trained_size(np.full((3, side, 7), 0.5, dtype=np.float32), (32, 32)).shape == (3, 32, 32)


def test_classes_are_sorted_by_their_probability() -> None:
    scores = np.array([[0.0, 2.0, 2.0, -300.0], [900.0, 1.0, 2.0, 3.0]], dtype=np.float32)
    classes, probabilities = likeliest(scores, 3)
    assert classes.tolist() == [[1, 2, 0], [0, 3, 2]]
    assert probabilities == pytest.approx(np.take_along_axis(softmax(scores.astype(float), axis=1), classes, axis=1))
    assert likeliest(scores, 9)[0].shape == (2, 4)
