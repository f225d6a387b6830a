"""The artifacts are JPEG's: its quantisation, its halved chroma, and its grid where a crop of a coded image has it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import fft, ndimage

from components.degradations.jpeg import JPEG, coded

pytestmark = pytest.mark.unit

# The luma table of the standard (ITU-T T.81, Annex K), its first row; at quality 25 libjpeg takes it twice.
FIRST_ROW = np.array([16, 11, 10, 16, 24, 40, 51, 61])


def photograph(channels: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((channels, height, width))
    smooth = ndimage.gaussian_filter(noise, (0, 3, 3), mode="wrap") * 1.2
    return (0.5 + 0.5 * np.tanh(smooth) + 0.02 * noise).clip(0.05, 0.95).astype(np.float32)


def test_the_values_are_8_bit_and_near_the_image_at_high_quality() -> None:
    for channels in (1, 3):
        clean = photograph(channels, 40, 52)
        degraded = JPEG((100, 100))(clean, np.random.default_rng(0))
        assert degraded.shape == clean.shape
        assert degraded.dtype == np.float32
        np.testing.assert_array_equal(degraded, np.rint(degraded * 255).astype(np.float32) / np.float32(255))
    grey = photograph(1, 40, 52)
    assert np.abs(JPEG((100, 100))(grey, np.random.default_rng(0)) - grey).max() < 3 / 255


def test_the_degraded_image_is_what_a_saved_file_reads_back_as(tmp_path: Path) -> None:
    clean = photograph(3, 37, 50)
    pixels = np.rint(clean * 255).astype(np.uint8).transpose(1, 2, 0)
    Image.fromarray(pixels).save(tmp_path / "saved.jpg", quality=30)  # 4:2:0 is Pillow's default
    expected = np.asarray(Image.open(tmp_path / "saved.jpg")).transpose(2, 0, 1)
    degraded = JPEG((30, 30))(clean, np.random.default_rng(0))
    np.testing.assert_array_equal(np.rint(degraded * 255), expected)


def test_the_cosine_coefficients_of_the_blocks_are_multiples_of_the_standards_table() -> None:
    degraded = JPEG((25, 25))(photograph(1, 64, 64), np.random.default_rng(0))[0] * 255 - 128
    blocks = degraded.reshape(8, 8, 8, 8).swapaxes(1, 2)  # (8, 8, 8, 8): block row, block column, row, column
    inside = (np.abs(blocks) < 126).all(axis=(2, 3))  # clipping would change coefficients
    coefficients = fft.dctn(blocks, axes=(2, 3), norm="ortho")[inside][:, 0]  # the first row of each block
    steps = coefficients / (2 * FIRST_ROW)
    assert inside.sum() > 30
    assert (np.rint(steps) != 0).sum(axis=0)[:3].min() > 10
    assert np.abs(steps - np.rint(steps)).max() < 0.08  # pixels are rounded: coefficients are off by some tenths


def test_without_a_random_grid_the_first_block_begins_at_the_first_pixel() -> None:
    degraded = JPEG((3, 3))(photograph(1, 64, 64), np.random.default_rng(0))[0]
    jumps = np.abs(np.diff(degraded, axis=1)).mean(axis=0)  # (63,)
    borders = np.arange(63) % 8 == 7
    assert JPEG((3, 3)).margin == 0
    assert jumps[borders].mean() > 3 * jumps[~borders].mean()


def test_the_chroma_is_halved_and_the_luma_is_not() -> None:
    columns = np.arange(32) % 2 == 0
    chroma = np.where(
        columns, np.array([0.8, 0.35, 0.5])[:, None], np.array([0.2, 0.65, 0.5])[:, None]
    )  # of equal luma
    luma = np.where(columns, 0.7, 0.3)
    red_blue = JPEG((100, 100))(np.tile(chroma[:, None], (1, 32, 1)).astype(np.float32), np.random.default_rng(0))
    bright_dark = JPEG((100, 100))(np.tile(luma, (3, 32, 1)).astype(np.float32), np.random.default_rng(0))
    assert np.abs(np.diff(red_blue[0], axis=1)).mean() < 0.1  # was 0.6
    assert np.abs(np.diff(bright_dark[0], axis=1)).mean() > 0.38  # was 0.4


def test_the_quality_is_drawn_from_all_integers_of_the_range() -> None:
    clean = photograph(1, 24, 24)
    seen = {JPEG((20, 23))(clean, np.random.default_rng(seed)).tobytes() for seed in range(60)}
    fixed = {JPEG((each, each))(clean, np.random.default_rng(0)).tobytes() for each in (20, 21, 22, 23)}
    assert len(fixed) == 4
    assert seen == fixed


@pytest.mark.parametrize("channels", [1, 3])
def test_with_a_random_grid_a_crop_is_exactly_that_of_a_coded_image(channels: int) -> None:
    """Searched for among the 256 places that the grid can have in the large image."""
    whole = photograph(channels, 112, 112)
    pixels = np.rint(whole * 255).astype(np.uint8)
    top, left, side = 40, 45, 24
    degradation, places = JPEG((8, 8), random_grid=True), []
    assert degradation.margin == 16
    all_coded = {
        (row, column): coded(pixels[:, row:, column:], 8)[:, top - row :, left - column :][:, :side, :side]
        for row in range(16)
        for column in range(16)
    }
    for seed in range(40):
        crop = whole[:, top - 16 : top + side + 16, left - 16 : left + side + 16]
        degraded = np.rint(degradation(crop, np.random.default_rng(seed)) * 255)
        assert degraded.shape == (channels, side, side)
        places.append({place for place, expected in all_coded.items() if np.array_equal(degraded, expected)})
    assert all(len(place) == (1 if channels == 3 else 4) for place in places)  # luma blocks repeat after 8
    assert len(set(map(frozenset, places))) > 25
    if channels == 3:
        rows, columns = (sorted(next(iter(place))[axis] for place in places) for axis in (0, 1))
        assert len(set(rows)) > 10 < len(set(columns))  # of 16


def test_equal_generators_give_equal_bytes() -> None:
    clean = photograph(3, 64, 64)
    first, again, other = (JPEG((5, 50), True)(clean, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first.tobytes() == again.tobytes() != other.tobytes()
    assert first.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("quality", [(0, 50), (60, 40), (50, 101), (10.5, 20)])
def test_an_impossible_quality_is_refused(quality: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"quality {quality[0]}..{quality[1]}: use integers with 1 <= low")):
        JPEG(quality)


def test_an_image_of_two_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image \(2, 8, 8\): JPEG needs"):
        JPEG((50, 50))(np.zeros((2, 8, 8), dtype=np.float32), np.random.default_rng(0))
