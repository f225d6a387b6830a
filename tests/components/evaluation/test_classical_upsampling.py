"""Up-sampling is its kernel evaluated at the centres of the pixels, in mirrored images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import skimage.data

from components.evaluation.classical import super_resolution_candidates
from components.evaluation.classical.upsampling import upsample

pytestmark = pytest.mark.unit

COFFEE = (skimage.data.coffee().transpose(2, 0, 1) / 255).astype(np.float32)


def triangle(x: float) -> float:
    return max(1 - abs(x), 0)


def keys(x: float, a: float = -0.5) -> float:
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0


def lanczos(x: float) -> float:
    return float(np.sinc(x) * np.sinc(x / 3)) if abs(x) < 3 else 0


KERNELS = {"bilinear": triangle, "bicubic": keys, "lanczos": lanczos}


def weights(length: int, scale: int, kernel: str) -> np.ndarray:
    """(scale length, length): what each pixel of a line adds to each of the up-sampled line."""
    matrix = np.zeros((scale * length, length))
    for i in range(scale * length):
        place = (i + 0.5) / scale - 0.5
        neighbours = range(math.floor(place) - 3, math.floor(place) + 5)
        values = [KERNELS[kernel](place - j) for j in neighbours]
        for j, value in zip(neighbours, values, strict=True):
            mirrored = j % (2 * length)
            matrix[i, min(mirrored, 2 * length - 1 - mirrored)] += value / sum(values)
    return matrix


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(9, 14), (3, 2)])
def test_interpolation_is_the_sum_over_the_kernel(kernel: str, scale: int, size: tuple[int, int]) -> None:
    image = COFFEE[:, 100 : 100 + size[0], 200 : 200 + size[1]]
    expected = weights(size[0], scale, kernel) @ image @ weights(size[1], scale, kernel).T
    np.testing.assert_allclose(upsample(image, scale, kernel), expected, atol=1e-5)


def test_the_nearest_pixel_is_repeated() -> None:
    image = COFFEE[:, 100:107, 200:211]
    np.testing.assert_array_equal(upsample(image, 3, "nearest"), image.repeat(3, axis=1).repeat(3, axis=2))


@pytest.mark.parametrize("candidate", super_resolution_candidates(3), ids=lambda c: c.settings["kernel"])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turning_before_or_after_is_the_same(candidate: object, turns: int) -> None:
    assert callable(candidate)
    image = COFFEE[:, 100:117, 200:211]
    turned = candidate(np.rot90(image, turns, axes=(1, 2)))
    np.testing.assert_allclose(turned, np.rot90(candidate(image), turns, axes=(1, 2)), atol=1e-6)


def test_the_candidates_are_the_four_kernels_at_the_scale() -> None:
    candidates = super_resolution_candidates(4)
    assert [c.settings["kernel"] for c in candidates] == ["nearest", "bilinear", "bicubic", "lanczos"]
    assert {c(COFFEE[:1, :5, :6]).shape for c in candidates} == {(1, 20, 24)}


@pytest.mark.parametrize("scale", [0, -2, 1.5])
def test_a_scale_that_is_no_whole_number_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=f"scale {scale}: use a whole number"):
        upsample(COFFEE[:, :8, :8], scale, "bicubic")  # type: ignore[arg-type]


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel 'cubic': use one of nearest, bilinear, bicubic, lanczos"):
        upsample(COFFEE[:, :8, :8], 2, "cubic")
