"""Inpainting keeps what is known and fulfils its equation in every missing pixel."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio

from components.evaluation.classical import ClassicalBaseline
from components.evaluation.classical.candidates import INPAINTING
from components.evaluation.classical.inpainting import biharmonic, harmonic, mean_fill

pytestmark = pytest.mark.unit

COFFEE = (skimage.data.coffee().transpose(2, 0, 1) / 255).astype(np.float32)
METHODS = [mean_fill, harmonic, biharmonic]


def masks(height: int, width: int) -> dict[str, np.ndarray]:
    scattered = np.random.default_rng(0).random((height, width)) < 0.4
    block, corner = np.zeros((2, height, width), dtype=bool)
    block[5:15, 8:21] = True
    corner[:7, :9] = corner[-4:] = True
    return {"scattered": scattered, "block": block, "corner": corner, "all but one": np.arange(height * width) != 300}


def holed(image: np.ndarray, missing: np.ndarray, fill: float = 0) -> np.ndarray:
    missing = missing.reshape(image.shape[1:])
    return np.concatenate([np.where(missing, np.float32(fill), image), missing[None].astype(np.float32)])


@pytest.mark.parametrize("name", masks(25, 33))
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("method", [c.name for c in INPAINTING])
def test_what_is_known_is_kept_and_what_is_missing_has_no_say(method: str, channels: int, name: str) -> None:
    image = COFFEE[:channels, 100:125, 200:233]
    missing = masks(25, 33)[name]
    restored = ClassicalBaseline(method)(holed(image, missing))
    known = ~missing.reshape(25, 33)
    assert restored.shape == image.shape
    np.testing.assert_array_equal(restored[:, known], image[:, known])
    # scikit-image does look at the range of all values.
    other = 0.3 if method == "biharmonic" else 9.0
    np.testing.assert_allclose(ClassicalBaseline(method)(holed(image, missing, fill=other)), restored, atol=1e-6)


@pytest.mark.parametrize("name", masks(25, 33))
def test_every_missing_pixel_is_the_mean_of_its_neighbours(name: str) -> None:
    image = COFFEE[:, 100:125, 200:233]
    missing = masks(25, 33)[name].reshape(25, 33)
    restored = harmonic(holed(image, missing))
    for row, column in np.argwhere(missing):
        neighbours = [
            restored[:, r, c]
            for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
            if 0 <= r < 25 and 0 <= c < 33
        ]
        np.testing.assert_allclose(restored[:, row, column], np.mean(neighbours, axis=0), atol=1e-6)


def test_the_biharmonic_equation_holds_inside_and_a_paraboloid_is_continued() -> None:
    rows, columns = np.mgrid[:24, :30].astype(np.float32)
    bowl = ((rows - 10) ** 2 - (columns - 12) ** 2 + 400)[None] / 800  # its Laplacian is 0, its values are between
    missing = np.zeros((24, 30), dtype=bool)
    missing[8:14, 9:18] = True
    np.testing.assert_allclose(biharmonic(holed(bowl, missing)), bowl, atol=1e-4)
    restored = biharmonic(holed(COFFEE[:1, 100:124, 200:230], missing))[0]
    twice = ndimage.laplace(ndimage.laplace(restored.astype(np.float64)))
    np.testing.assert_allclose(twice[missing], 0, atol=1e-5)


def test_the_mean_of_each_channel_is_filled_in() -> None:
    image = COFFEE[:, 100:110, 200:212]
    missing = masks(25, 33)["scattered"][:10, :12]
    restored = mean_fill(holed(image, missing))
    for channel, filled in zip(image, restored, strict=True):
        np.testing.assert_allclose(filled[missing], channel[~missing].mean(), atol=1e-6)


def test_smoother_methods_restore_scattered_pixels_better() -> None:
    clean = COFFEE[:, 80:144, 180:260]
    missing = np.random.default_rng(1).random(clean.shape[1:]) < 0.25
    mean, laplace, twice = (
        peak_signal_noise_ratio(clean, np.clip(method(holed(clean, missing)), 0, 1).astype(np.float32), data_range=1)
        for method in METHODS
    )
    assert mean + 6 < laplace < twice


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_an_image_without_holes_comes_back_and_one_without_anything_else_is_refused(method: object) -> None:
    assert callable(method)
    image = COFFEE[:, 100:112, 200:212]
    np.testing.assert_array_equal(method(holed(image, np.zeros((12, 12), dtype=bool))), image)
    with pytest.raises(ValueError, match="nothing is known"):
        method(holed(image, np.ones((12, 12), dtype=bool)))
