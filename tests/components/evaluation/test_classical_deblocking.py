"""Filters against JPEG's blocks agree with their formulas and raise the figures of compressed photographs."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from components.evaluation.classical import choose_classical
from components.evaluation.classical.candidates import DEBLOCKING
from components.evaluation.classical.deblocking import bilateral, shifted_jpeg
from components.evaluation.metrics import jpeg_quality

pytestmark = pytest.mark.unit

COFFEE = (skimage.data.coffee().transpose(2, 0, 1) / 255).astype(np.float32)
CLEAN = COFFEE[:, 80:176, 180:292]


def through_jpeg(image: np.ndarray, quality: int, **options: int) -> np.ndarray:
    levels = np.round(255 * image).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels.transpose(1, 2, 0).squeeze()).save(file, "JPEG", quality=quality, **options)
    return np.array(Image.open(file)).reshape(*image.shape[1:], -1).transpose(2, 0, 1).astype(np.float32) / 255


def figures(image: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    pair = [torch.from_numpy(np.ascontiguousarray(x))[None] for x in (image, clean)]
    return {key: value.item() for key, value in jpeg_quality(*pair).items()}


@pytest.mark.parametrize("channels", [1, 3])
def test_shifted_jpeg_is_the_mean_over_the_grids(channels: int) -> None:
    image = CLEAN[:channels, :32, :40]
    total = np.zeros((channels, 32, 40))
    for top in range(1, 9):
        for left in range(1, 9):
            framed = np.pad(image, ((0, 0), (top, 8), (left, 8)), mode="symmetric")
            total += through_jpeg(framed, 20, subsampling=0)[:, top : top + 32, left : left + 40]
    np.testing.assert_allclose(shifted_jpeg(image, 20), total / 64, atol=1e-6)


def test_shifted_jpeg_has_no_grid_of_its_own() -> None:
    """The image, cut out some pixels further on, gives the same but near its border."""
    whole = shifted_jpeg(CLEAN, 15)[:, 3:, 5:]
    cut = shifted_jpeg(CLEAN[:, 3:, 5:], 15)
    inside = (slice(None), slice(8, -8), slice(8, -8))
    np.testing.assert_array_equal(cut[inside], whole[inside])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_bilateral_filter_is_its_formula(channels: int) -> None:
    image = CLEAN[:channels, 30:39, 40:52].astype(np.float64)
    expected = np.zeros_like(image)
    framed = np.pad(image, ((0, 0), (4, 4), (4, 4)), mode="symmetric")
    for row, column in np.ndindex(9, 12):
        centre, weight_sum = image[:, row, column], 0.0
        for down in range(-4, 5):
            for right in range(-4, 5):
                neighbour = framed[:, row + down + 4, column + right + 4]
                contrast = float(((neighbour - centre) ** 2).sum())
                weight = math.exp(-contrast / (2 * 0.1**2) - (down**2 + right**2) / (2 * 2.0**2))
                weight_sum += weight
                expected[:, row, column] += weight * neighbour
        expected[:, row, column] /= weight_sum
    np.testing.assert_allclose(bilateral(image, sigma_color=0.1, sigma_spatial=2.0), expected, atol=1e-12)


@pytest.mark.parametrize("quality", [10, 30])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_choice_raises_all_figures_on_another_crop(channels: int, quality: int) -> None:
    others = [COFFEE[:channels, 200:296, x : x + 96] for x in (100, 300)]
    pairs = [(through_jpeg(image, quality), image) for image in others]
    chosen, _ = choose_classical(pairs, candidates=DEBLOCKING, num_workers=2)
    clean = CLEAN[:channels]
    degraded = through_jpeg(clean, quality)
    before, after = figures(degraded, clean), figures(chosen(degraded), clean)
    assert after["psnr"] > before["psnr"] + 0.3
    assert after["ssim"] > before["ssim"]
    assert after["psnr_b"] > before["psnr_b"] + 0.5


def test_the_choice_for_clean_images_is_to_leave_them() -> None:
    assert choose_classical([(CLEAN, CLEAN)], candidates=DEBLOCKING)[0].name == "identity"
