"""Deblurring solves the equations it states, does not ring at the border and finds the width of a Gaussian."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio

from components.evaluation.classical import ClassicalBaseline, choose_classical
from components.evaluation.classical.candidates import DEBLURRING
from components.evaluation.classical.deblurring import richardson_lucy, unsharp_mask, wiener

pytestmark = pytest.mark.unit

COFFEE = (skimage.data.coffee().transpose(2, 0, 1) / 255).astype(np.float32)


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return np.stack([ndimage.gaussian_filter(channel, sigma) for channel in image])


def blurred_crop(sigma: float, top: int = 80, left: int = 180, side: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """(blurred, clean), cut out of a larger image and in 8 bits: what is beyond the border is not its mirror image."""
    around = COFFEE[:, top - 20 : top + side + 20, left - 20 : left + side + 20]
    degraded = np.round(255 * blurred(around, sigma)) / 255
    inside = (slice(None), slice(20, -20), slice(20, -20))
    return degraded[inside].astype(np.float32), around[inside]


def dense(operator: object, height: int, width: int) -> np.ndarray:
    """The matrix of a linear map of images, column by column."""
    assert callable(operator)
    units = np.eye(height * width).reshape(-1, height, width)
    return np.stack([operator(unit).ravel() for unit in units], axis=1)


@pytest.mark.parametrize("noise", [0.0001, 0.01, 0.5])
@pytest.mark.parametrize("sigma", [0.7, 1.5, 4.0])  # the last one reaches over the whole image, and back
def test_wiener_solves_the_least_squares_problem(sigma: float, noise: float) -> None:
    image = COFFEE[:2, 100:109, 200:213].astype(np.float64)
    gaussian = dense(lambda x: ndimage.gaussian_filter(x, sigma), 9, 13)
    laplacian = dense(ndimage.laplace, 9, 13)
    normal = gaussian.T @ gaussian + noise * laplacian.T @ laplacian
    expected = [np.linalg.solve(normal, gaussian.T @ channel.ravel()).reshape(9, 13) for channel in image]
    np.testing.assert_allclose(wiener(image, sigma, noise), expected, atol=1e-7)


def test_wiener_without_noise_undoes_a_mirrored_blur() -> None:
    clean = COFFEE[:, 50:83, 60:107].astype(np.float64)
    np.testing.assert_allclose(wiener(blurred(clean, 0.8), sigma=0.8, noise=0), clean, atol=1e-9)


@pytest.mark.parametrize("iterations", [1, 4])
def test_richardson_lucy_is_its_formula_with_a_matrix(iterations: int) -> None:
    image = COFFEE[:1, 100:110, 200:212].astype(np.float64)
    matrix = dense(lambda x: ndimage.gaussian_filter(x, 1.3), 10, 12)
    seen = image.ravel()
    expected = seen.copy()
    for _ in range(iterations):
        expected *= matrix.T @ (seen / (matrix @ expected))
    np.testing.assert_allclose(richardson_lucy(image, 1.3, iterations).ravel(), expected, rtol=1e-10)


def test_richardson_lucy_keeps_the_light_of_each_channel_and_makes_what_was_seen_likelier() -> None:
    image, _ = blurred_crop(1.6)
    image = image.astype(np.float64)
    restored = richardson_lucy(image, 1.6, 20)
    np.testing.assert_allclose(restored.sum(axis=(1, 2)), image.sum(axis=(1, 2)), rtol=1e-6)

    def likelihood(candidate: np.ndarray) -> float:
        expected = blurred(candidate, 1.6)
        return float((image * np.log(expected) - expected).sum())

    likelihoods = [likelihood(richardson_lucy(image, 1.6, n)) for n in (0, 1, 5, 20)]
    assert likelihoods == sorted(set(likelihoods))


def test_the_unsharp_mask_is_its_formula() -> None:
    image = COFFEE[:, 100:140, 200:230]
    expected = image + 0.6 * (image - blurred(image, 2.0))
    np.testing.assert_allclose(unsharp_mask(image, radius=2.0, amount=0.6), expected, atol=1e-5)


@pytest.mark.parametrize(
    "method",
    [
        ClassicalBaseline("wiener", {"sigma": 1.6, "noise": 0.001}),
        ClassicalBaseline("richardson_lucy", {"sigma": 1.6, "iterations": 20}),
        ClassicalBaseline("unsharp_mask", {"radius": 2.0, "amount": 1.0}),
    ],
    ids=lambda method: method.name,
)
def test_nothing_rings_at_the_border(method: ClassicalBaseline) -> None:
    degraded, clean = blurred_crop(1.6)
    before, after = (np.square(image - clean).mean(axis=0) for image in (degraded, method(degraded)))
    band = np.ones((96, 96), dtype=bool)
    band[8:-8, 8:-8] = False
    assert after[~band].mean() < 0.8 * before[~band].mean()
    assert after[band].mean() < 0.9 * before[band].mean()


@pytest.mark.parametrize("sigma", [1.2, 2.0])
def test_the_choice_for_a_gaussian_blur_has_its_width_and_serves_on_another_crop(sigma: float) -> None:
    pairs = [blurred_crop(sigma, left=left) for left in (60, 300)]
    chosen, _ = choose_classical(pairs, candidates=DEBLURRING, num_workers=2)
    assert chosen.settings["sigma"] == sigma
    degraded, clean = blurred_crop(sigma)
    before, after = (
        peak_signal_noise_ratio(clean, np.clip(x, 0, 1), data_range=1) for x in (degraded, chosen(degraded))
    )
    assert after > before + 2


def test_the_choice_for_sharp_images_is_to_leave_them() -> None:
    clean = COFFEE[:, 60:124, 150:214]
    assert choose_classical([(clean, clean)], candidates=DEBLURRING)[0].name == "identity"
