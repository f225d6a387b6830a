"""Resampling is MATLAB's: its weights, its border, and Pillow's values away from the border."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from components.degradations.resampling import Bicubic, bicubic_upsample, cubic, imresize

pytestmark = pytest.mark.unit


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).uniform(size=shape).astype(np.float32)


def by_pillow(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.stack(
        [np.asarray(Image.fromarray(each).resize((width, height), Image.Resampling.BICUBIC)) for each in image]
    )


def test_the_kernel_interpolates_and_its_integer_shifts_sum_to_one() -> None:
    np.testing.assert_allclose(cubic(np.array([-2.5, -2, -1, 0, 1, 2, 3])), [0, 0, 0, 1, 0, 0, 0], atol=1e-15)
    assert cubic(np.array(0.5)) == 0.5625  # 9/16, the known weight halfway
    shifts = np.linspace(0, 1, 11)[:, None] + np.arange(-2, 3)
    np.testing.assert_allclose(cubic(shifts).sum(axis=1), 1, atol=1e-14)


def test_halving_has_matlabs_eight_weights() -> None:
    """cubic(d / 2) / 2 by hand at d = 0.5, 1.5, 2.5, 3.5, in 256ths."""
    weights = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256
    response = imresize(np.eye(24), down=2)  # (12, 12): rows and columns weighted alike
    matrix = np.zeros((12, 24))
    for number in range(2, 10):
        matrix[number, 2 * number - 3 : 2 * number + 5] = weights
    np.testing.assert_allclose(response[2:10, 2:10], (matrix @ matrix.T)[2:10, 2:10], atol=1e-14)
    image = picture(24, 24).astype(np.float64)
    np.testing.assert_allclose(imresize(image, down=2)[2:10, 2:10], (matrix @ image @ matrix.T)[2:10, 2:10], atol=1e-14)


def test_the_border_is_mirrored_with_its_pixel_twice() -> None:
    """The first of a halved row by hand: weights of the pixels -3 .. 4, of which -1 is 0, -2 is 1, -3 is 2."""
    row = picture(1, 9).astype(np.float64)
    folded = np.array([111 + 29, 111 - 9, 29 - 3, -9, -3]) / 256
    assert imresize(row, down=2)[0, 0] == pytest.approx(folded @ row[0, :5], abs=1e-14)


@pytest.mark.parametrize("shape", [(3, 36, 48), (2, 48, 60), (1, 31, 45)])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_shrinking_agrees_with_pillow_away_from_the_border(shape: tuple[int, ...], scale: int) -> None:
    channels, height, width = shape
    image = picture(channels, height - height % scale, width - width % scale)
    small = imresize(image, down=scale)
    assert small.shape == (channels, height // scale, width // scale)
    assert small.dtype == np.float32
    expected = by_pillow(image, height // scale, width // scale)
    np.testing.assert_allclose(small[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], atol=1e-6)


@pytest.mark.parametrize("scale", [2, 3, 4, 5])
def test_enlarging_agrees_with_pillow_away_from_the_border(scale: int) -> None:
    image, away = picture(3, 11, 14), 2 * scale
    large = bicubic_upsample(image, scale)
    assert large.shape == (3, 11 * scale, 14 * scale)
    expected = by_pillow(image, 11 * scale, 14 * scale)
    np.testing.assert_allclose(large[:, away:-away, away:-away], expected[:, away:-away, away:-away], atol=1e-6)


@pytest.mark.parametrize(("up", "down"), [(1, 2), (1, 3), (2, 1), (3, 1), (2, 3), (3, 2)])
def test_sizes_are_rounded_up_and_constants_stay_to_the_border(up: int, down: int) -> None:
    resized = imresize(np.full((7, 10), 0.3), up, down)
    assert resized.shape == (-(-7 * up // down), -(-10 * up // down))
    np.testing.assert_allclose(resized, 0.3, atol=1e-14)


@pytest.mark.parametrize(("up", "down"), [(2, 1), (3, 1), (1, 2), (1, 3), (1, 4)])
def test_a_ramp_stays_a_ramp_without_a_shift(up: int, down: int) -> None:
    resized = imresize(np.tile(np.arange(48.0), (4, 1)), up, down)[0]
    expected = (np.arange(resized.size) + 0.5) * down / up - 0.5
    np.testing.assert_allclose(resized[8:-8] if up > 1 else resized[3:-3], expected[8:-8] if up > 1 else expected[3:-3])


def test_quarter_turns_and_resampling_commute() -> None:
    image = picture(3, 24, 24)
    turned = imresize(np.rot90(image, axes=(1, 2)), down=3)
    np.testing.assert_allclose(turned, np.rot90(imresize(image, down=3), axes=(1, 2)), atol=1e-6)


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 6])
def test_a_crop_comes_out_as_the_inside_of_the_whole_image(scale: int) -> None:
    degradation, whole = Bicubic(scale), picture(3, 24 * scale, 20 * scale)
    top, left, side = 5 * scale, 7 * scale, 6 * scale
    margin = degradation.margin
    crop = whole[:, top - margin : top + side + margin, left - margin : left + side + margin]
    small = degradation(crop, np.random.default_rng(0))
    assert small.shape == (3, 6, 6)
    np.testing.assert_allclose(small, imresize(whole, down=scale)[:, 5:11, 7:13], atol=1e-6)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_whole_image_padded_with_its_mirror_image_comes_out_as_imresize(scale: int) -> None:
    image, degradation = picture(3, 8 * scale, 9 * scale), Bicubic(scale)
    around = (degradation.margin, degradation.margin)
    small = degradation(np.pad(image, ((0, 0), around, around), mode="symmetric"), np.random.default_rng(0))
    np.testing.assert_allclose(small, imresize(image, down=scale), atol=1e-6)


def test_rounded_images_are_those_of_8_bit_files_and_others_overshoot() -> None:
    crop = np.kron(np.rint(picture(3, 6, 6)), np.ones((4, 4), dtype=np.float32))  # black and white squares
    exact, rounded = (Bicubic(2, rounded)(crop, np.random.default_rng(0)) for rounded in (False, True))
    assert exact.min() < 0
    assert exact.max() > 1
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, np.clip(exact, 0, 1), atol=0.5 / 255 + 1e-6)
    file = (rounded * 255).round().astype(np.uint8)
    np.testing.assert_array_equal(file.astype(np.float32) / np.float32(255), rounded)


@pytest.mark.parametrize("scale", [0, -2, 2.5, 17])
def test_an_impossible_scale_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"scale {scale}: use an integer from 1 to 16")):
        Bicubic(scale)  # type: ignore[arg-type]


@pytest.mark.parametrize(("height", "width"), [(9, 8), (8, 7), (0, 8)])
def test_a_size_that_is_no_multiple_of_the_scale_is_refused_by_name(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"{height} x {width} pixels .+ cut the image to multiples of 2"):
        Bicubic(2)(picture(1, height + 8, width + 8), np.random.default_rng(0))


def test_imresize_refuses_fractions_and_8_bit_images() -> None:
    with pytest.raises(ValueError, match=r"scale 0.5 / 1: use positive integers"):
        imresize(picture(8, 8), up=0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="uint8: give a floating point image"):
        imresize(np.zeros((8, 8), dtype=np.uint8), down=2)
