"""Holes cover the share they should, look like boxes, strokes and words, and leave the other pixels alone."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from PIL import ImageFont
from scipy import ndimage

from components.degradations.holes import (
    FONT_SIZES,
    NEAR,
    SCALES,
    WORDS,
    GivenHoles,
    Holes,
    filled,
    render_strokes,
    with_holes,
)

pytestmark = pytest.mark.unit

KINDS = ("boxes", "strokes", "text")


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(size=shape).astype(np.float32)


def holes(kind: str, low: float, high: float | None = None) -> Holes:
    return Holes(kind, (low, low if high is None else high))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_known_pixels_are_untouched_missing_ones_have_no_part_and_the_mask_comes_last(kind: str, channels: int) -> None:
    clean = picture(channels, 60, 80)
    degraded = holes(kind, 0.3)(clean, np.random.default_rng(2))
    mask = holes(kind, 0.3).mask(60, 80, np.random.default_rng(2))
    assert degraded.shape == (channels + 1, 60, 80)
    assert degraded.dtype == np.float32
    assert 0.05 < mask.mean() < 0.7
    np.testing.assert_array_equal(degraded[-1], np.where(mask, 1, 0))
    np.testing.assert_array_equal(degraded[:-1, ~mask], clean[:, ~mask])
    otherwise = np.where(mask, 0.9, clean).astype(np.float32)
    np.testing.assert_array_equal(holes(kind, 0.3)(otherwise, np.random.default_rng(2)), degraded)


def test_a_hole_is_filled_with_the_nearest_weighted_means_of_what_is_known() -> None:
    random = np.random.default_rng(0)
    clean = random.random((2, 21, 25)).astype(np.float32)
    mask = random.random((21, 25)) < 0.3
    mask[5:16, 4:15] = True
    guess = filled(clean, mask)
    rows, columns = np.mgrid[:21, :25]
    for row, column in zip(*np.nonzero(mask), strict=True):
        for scale in SCALES:  # by hand: Gaussian weights within a square of 2 standard deviations
            reach = int(2 * scale + 0.5)
            near = (abs(rows - row) <= reach) & (abs(columns - column) <= reach)
            weights = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * scale**2)) * near
            total = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * scale**2)).sum() ** 2
            weights = weights / total * ~mask
            if weights.sum() > NEAR:
                break
        expected = (clean * weights).sum(axis=(1, 2)) / weights.sum()
        np.testing.assert_allclose(guess[:, row, column], expected, atol=1e-5)


def test_filling_is_exact_on_a_plain_image_turns_with_it_and_bears_the_extremes() -> None:
    plain, mask = np.full((3, 30, 30), 0.3, np.float32), np.random.default_rng(0).random((30, 30)) < 0.9
    np.testing.assert_allclose(filled(plain, mask), 0.3, atol=1e-6)
    image = picture(3, 30, 30)
    turned = filled(np.rot90(image, 1, (1, 2)), np.rot90(mask))
    np.testing.assert_allclose(turned, np.rot90(filled(image, mask), 1, (1, 2)), atol=1e-6)
    assert (filled(image, np.ones((30, 30), dtype=bool)) == 0.5).all()
    np.testing.assert_array_equal(filled(image, np.zeros((30, 30), dtype=bool)), image)
    lone = np.ones((200, 200), dtype=bool)
    lone[0, 0] = False  # one known pixel: nothing else is near it, and all are it
    np.testing.assert_allclose(filled(np.full((1, 200, 200), 0.7, np.float32), lone), 0.7, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.05, 0.25, 0.6])
def test_the_mean_share_of_missing_pixels_is_the_one_asked_for(kind: str, share: float) -> None:
    shares = [holes(kind, share).mask(96, 112, np.random.default_rng(seed)).mean() for seed in range(400)]
    error = np.std(shares) / math.sqrt(400)
    assert abs(np.mean(shares) - share) < 4 * error < 0.2 * share


@pytest.mark.parametrize(("kind", "number"), [("boxes", 16_000), ("strokes", 6_000), ("text", 6_000)])
def test_an_image_of_one_pixel_is_missing_as_often_as_it_should(kind: str, number: int) -> None:
    """All of its holes begin outside of it, or at it."""
    generator = np.random.default_rng(0)
    missing = np.mean([holes(kind, 0.5).mask(1, 1, generator)[0, 0] for _ in range(number)])
    assert missing == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(number))


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_image_has_its_share_and_images_take_theirs_from_all_of_the_range(kind: str) -> None:
    shares = [holes(kind, 0.1, 0.4).mask(256, 256, np.random.default_rng(seed)).mean() for seed in range(50)]
    assert 0.05 < min(shares) < 0.16
    assert 0.34 < max(shares) < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_patch_has_the_statistics_of_a_crop_of_a_large_image(kind: str) -> None:
    patches = [holes(kind, 0.2).mask(24, 24, np.random.default_rng(seed)) for seed in range(800)]
    images = [holes(kind, 0.2).mask(150, 250, np.random.default_rng(10_000 + seed)) for seed in range(400)]
    crops = [image[60:84, left : left + 24] for image in images for left in (50, 180)]
    for statistic in (np.mean, lambda mask: mask.any(), lambda mask: np.mean(mask[:-8] & mask[8:])):
        first, second = ([float(statistic(mask)) for mask in masks] for masks in (patches, crops))
        error = math.hypot(np.std(first), np.std(second)) / math.sqrt(800)
        assert abs(np.mean(first) - np.mean(second)) < 4 * error
    everywhere = np.mean(patches, axis=0)
    for border in (everywhere[0], everywhere[-1], everywhere[:, 0], everywhere[:, -1]):
        assert border.mean() == pytest.approx(everywhere[6:-6, 6:-6].mean(), abs=0.04)


def lone_holes(kind: str, share: float, images: int = 40) -> list[np.ndarray]:
    """The connected holes of sparse masks that do not touch the border, cut out; words count as one hole."""
    lone = []
    for seed in range(images):
        mask = holes(kind, share).mask(200, 200, np.random.default_rng(seed))
        joined = ndimage.binary_dilation(mask, np.ones((3, 15))) if kind == "text" else mask
        labels, _ = ndimage.label(joined, np.ones((3, 3)))
        for rows, columns in ndimage.find_objects(labels):
            if rows.start and columns.start and rows.stop < 200 and columns.stop < 200:
                hole = mask[rows, columns]
                lone.append(hole[hole.any(axis=1)][:, slice(*np.flatnonzero(hole.any(axis=0))[[0, -1]] + (0, 1))])
    return lone


def test_boxes_are_full_rectangles_of_all_sizes() -> None:
    boxes = [hole for hole in lone_holes("boxes", 0.005) if hole.all()]
    sides = np.array([hole.shape for hole in boxes])
    assert len(boxes) > 0.9 * len(lone_holes("boxes", 0.005)) > 10
    assert sides.min() >= 6
    assert sides.max() <= 30
    assert sides.max() - sides.min() > 15


def test_strokes_are_as_wide_as_a_brush_and_much_longer() -> None:
    strokes = lone_holes("strokes", 0.01)
    assert len(strokes) > 5
    for stroke in strokes:
        half_width = ndimage.distance_transform_edt(np.pad(stroke, 1)).max()
        assert 1.5 < half_width < 12  # 2 to 6, and more where a stroke meets itself
        assert stroke.sum() > 3 * half_width**2
        assert max(stroke.shape) > 2 * half_width


def test_text_holes_are_the_words_in_pillows_font() -> None:
    """Every word drawn by the font itself, without ImageDraw."""
    drawn = []
    for word in WORDS:
        for size in FONT_SIZES:
            pixels = ImageFont.load_default(size).getmask(word, mode="1")
            mask = np.array(pixels, dtype=np.uint8).reshape(pixels.size[::-1]) > 0
            rows, columns = (np.flatnonzero(mask.any(axis=axis))[[0, -1]] for axis in (1, 0))
            drawn.append(mask[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1])
    found = [any(np.array_equal(hole, word) for word in drawn) for hole in lone_holes("text", 0.003, 120)]
    assert len(found) > 10
    assert np.mean(found) > 0.6  # the others met another word


def on_a_segment(row: float, column: float, start: complex, end: complex, half_width: float) -> bool:
    way = end - start
    from_start = complex(row, column) - start
    along = from_start / way if way else 0j
    nearest = start + min(max(along.real, 0), 1) * way
    return abs(complex(row, column) - nearest) <= half_width


@pytest.mark.parametrize(("height", "width"), [(30, 43), (1, 9), (25, 25)])
def test_rendering_strokes_agrees_with_distances_pixel_by_pixel(height: int, width: int) -> None:
    generator = np.random.default_rng(height)
    starts, ends = generator.uniform(-10, 50, (2, 300, 2))
    starts[:100], ends[:100] = generator.uniform(1000, 2000, (2, 100, 2))  # out of sight
    ends[100:292], half_widths = starts[100:292] + 3, generator.uniform(0.3, 1.2, 300)
    ends[299] = starts[299]  # a dot
    expected = np.zeros((height, width), dtype=bool)
    for row, column in np.ndindex(height, width):
        expected[row, column] = any(
            on_a_segment(row, column, complex(*starts[i]), complex(*ends[i]), half_widths[i]) for i in range(100, 300)
        )
    assert 0.05 < expected.mean() < 0.95
    assert (render_strokes(height, width, starts, ends, half_widths) != expected).mean() < 1e-3


def test_nothing_is_missing_at_share_zero_and_more_with_a_larger_share() -> None:
    for kind in KINDS:
        shares = [holes(kind, share).mask(160, 160, np.random.default_rng(1)).mean() for share in (0, 0.05, 0.2, 0.6)]
        assert shares[0] == 0
        assert all(less < more for less, more in pairwise(shares))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_generators_give_equal_bytes_and_others_other_holes(kind: str) -> None:
    clean = picture(3, 64, 64)
    first, again, other = (holes(kind, 0.2, 0.4)(clean, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="kind 'scratches' is unknown: use one of boxes, strokes, text"):
        holes("scratches", 0.1)
    for low, high in ((-0.1, 0.2), (0.3, 0.2), (0.1, 0.95), (math.nan, 0.2)):
        with pytest.raises(ValueError, match=re.escape(f"share {low}..{high}: use 0 <= low <= high <= 0.9")):
            holes("boxes", low, high)


def test_given_masks_are_cropped_everywhere_and_flipped_all_four_ways() -> None:
    given = np.random.default_rng(0).uniform(size=(14, 13)) < 0.5
    ways = [given[::down, ::right] for down in (1, -1) for right in (1, -1)]
    found: list[tuple[int, int, int]] = []
    for seed in range(600):
        mask = GivenHoles([given]).mask(10, 10, np.random.default_rng(seed))
        for way, flipped in enumerate(ways):
            same = (sliding_window_view(flipped, (10, 10)) == mask).all(axis=(2, 3))
            found.extend((way, int(row), int(column)) for row, column in np.argwhere(same))
    assert len(found) == 600
    assert len(set(found)) == 4 * 5 * 4


def test_a_given_mask_goes_on_as_its_mirror_image_on_a_larger_image() -> None:
    given = np.random.default_rng(1).uniform(size=(9, 11)) < 0.5
    endless = np.pad(given, ((0, 90), (0, 110)), mode="symmetric")
    windows = sliding_window_view(endless, (25, 30))
    for seed in range(20):
        mask = GivenHoles([given]).mask(25, 30, np.random.default_rng(seed))
        flips = (mask[::down, ::right] for down in (1, -1) for right in (1, -1))
        assert any((windows == flip).all(axis=(2, 3)).any() for flip in flips)


def test_given_masks_are_drawn_alike_may_be_numbers_and_come_out_as_holes() -> None:
    class Drawer:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, number: int) -> np.ndarray:
            return np.array([np.zeros((20, 20)), np.eye(20, dtype=bool), np.full((20, 20), 255)][number])

    clean, degradation = picture(3, 20, 20), GivenHoles(Drawer())  # type: ignore[arg-type]
    counts = [int(degradation(clean, np.random.default_rng(seed))[-1].sum()) for seed in range(90)]
    assert {counts.count(each) > 15 for each in (0, 20, 400)} == {True}
    assert sum(counts.count(each) for each in (0, 20, 400)) == 90
    mask = degradation.mask(20, 20, np.random.default_rng(3))
    np.testing.assert_array_equal(degradation(clean, np.random.default_rng(3)), with_holes(clean, mask))


def test_no_masks_and_masks_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="masks: there are none"):
        GivenHoles([])
    with pytest.raises(ValueError, match=re.escape("mask 0 is (1, 8, 8): give (h, w)")):
        GivenHoles([np.ones((1, 8, 8))])(picture(3, 8, 8), np.random.default_rng(0))
