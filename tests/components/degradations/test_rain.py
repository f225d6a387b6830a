"""The rain is what its formula says, wherever the image is cut out of the sky."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

from components.degradations.rain import Rain, Streaks, render_streaks

pytestmark = pytest.mark.unit

LIGHT = Rain(angle=(-30, 30), length=(16, 38), width=(1.6, 2.4), density=(0.15, 0.33), brightness=(0.06, 0.14))


def one_streak(
    row: float = 40, column: float = 40, angle: float = 0, length: float = 30, width: float = 2, brightness: float = 0.5
) -> Streaks:
    values = (row, column, angle, length, width, brightness)
    return Streaks(*(np.array([value], dtype=np.float64) for value in values))


def bump(x: float) -> float:
    return math.cos(math.pi * x / 2) ** 2 if abs(x) < 1 else 0.0


def rendered_pixel_by_pixel(height: int, width: int, streaks: Streaks) -> np.ndarray:
    """The formula by complex numbers: rows are the real axis, columns the imaginary one."""
    layer = np.zeros((height, width))
    for row, column in np.ndindex(height, width):
        for number in range(streaks.rows.size):
            centre = complex(streaks.rows[number], streaks.columns[number])
            turn = complex(math.cos(angle := math.radians(streaks.angles[number])), math.sin(angle))
            own = (complex(row, column) - centre) / turn  # along + i across
            length, end = streaks.lengths[number], 0.4 * streaks.lengths[number]
            along = abs(own.real) - 0.5 * (length - end)
            fade = 1.0 if along <= 0 else bump(along / end)
            layer[row, column] += streaks.brightnesses[number] * fade * bump(own.imag / streaks.widths[number])
    return layer


def orientation(layer: np.ndarray) -> float:
    """Degrees from the vertical: the eigenvector of the structure tensor along which the layer changes least."""
    gradient = np.stack([ndimage.gaussian_filter(layer, 1.0, order=order).ravel() for order in ((1, 0), (0, 1))])
    rows, columns = np.linalg.eigh(gradient @ gradient.T)[1][:, 0]
    return math.degrees(math.atan(columns / rows))


@pytest.mark.parametrize("angle", [-90, -60, -45, -20, 0, 7, 45, 46, 80, 90])
@pytest.mark.parametrize(("height", "width"), [(33, 20), (20, 33)])
def test_rendering_agrees_with_the_formula_evaluated_pixel_by_pixel(angle: float, height: int, width: int) -> None:
    generator = np.random.default_rng(100 + height + int(angle))
    streaks = Streaks(
        rows=generator.uniform(-10, height + 10, 12),
        columns=generator.uniform(-10, width + 10, 12),
        angles=np.clip(angle + generator.uniform(-3, 3, 12), -90, 90),
        lengths=generator.uniform(1, 25, 12),
        widths=generator.uniform(0.5, 4, 12),
        brightnesses=generator.uniform(0.05, 0.8, 12),
    )
    expected = rendered_pixel_by_pixel(height, width, streaks)
    assert expected.max() > 0.05
    np.testing.assert_allclose(render_streaks(height, width, streaks), expected, atol=2e-5)


def test_drawn_rain_is_the_formula_applied_to_the_drawn_streaks() -> None:
    streaks = LIGHT.draw(24, 31, np.random.default_rng(3))
    layer = LIGHT.streaks(24, 31, np.random.default_rng(3))
    assert layer.dtype == np.float32
    np.testing.assert_allclose(layer, rendered_pixel_by_pixel(24, 31, streaks), atol=2e-5)


@pytest.mark.parametrize("angle", [-70, 0, 15, 50])
def test_the_light_of_a_streak_is_brightness_times_length_times_width(angle: float) -> None:
    layer = render_streaks(81, 81, one_streak(angle=angle, length=30, width=2, brightness=0.5))
    assert layer.sum() == pytest.approx(0.5 * 30 * 2, rel=0.01)


def test_a_streak_is_half_as_bright_half_its_length_and_half_its_width_away() -> None:
    layer = render_streaks(81, 81, one_streak(length=30, width=2, brightness=0.5))
    assert layer[40, 40] == pytest.approx(0.5)
    assert layer[40 + 15, 40] == pytest.approx(0.25) == layer[40 - 15, 40]
    assert layer[40, 40 + 1] == pytest.approx(0.25) == layer[40, 40 - 1]


def test_a_streak_of_positive_angle_leans_like_a_backslash() -> None:
    layer = render_streaks(81, 81, one_streak(angle=30))
    assert layer[50, 46] > 0.3  # 10 rows down, 10 tan 30 degrees = 5.8 columns to the right
    assert layer[50, 34] == 0


@pytest.mark.parametrize("angle", [-75, -40, -20, 0, 12, 30, 60])
def test_the_orientation_of_a_layer_is_the_angle_asked_for(angle: float) -> None:
    rain = replace(LIGHT, angle=(angle, angle))
    layer = rain.streaks(256, 256, np.random.default_rng(0))
    assert orientation(layer) == pytest.approx(angle, abs=1.5)


def test_images_take_their_angles_from_all_of_the_range() -> None:
    rain = replace(LIGHT, angle=(10, 50))
    angles = [orientation(rain.streaks(128, 128, np.random.default_rng(seed))) for seed in range(40)]
    assert 8 < min(angles) < 17
    assert 43 < max(angles) < 52


def test_degraded_is_the_clipped_sum_of_clean_and_streak() -> None:
    clean = np.random.default_rng(0).uniform(0.5, 1, (3, 40, 56)).astype(np.float32)
    rain = replace(LIGHT, brightness=(0.5, 0.5))
    degraded = rain(clean, np.random.default_rng(1))
    total = clean + rain.streaks(40, 56, np.random.default_rng(1))
    assert (total > 1).any()
    assert degraded.dtype == np.float32
    np.testing.assert_array_equal(degraded, np.where(total > 1, np.float32(1), total))


def test_rain_only_brightens_and_equally_in_all_channels() -> None:
    clean = np.broadcast_to(np.float32([0.0, 0.125, 0.25])[:, None, None], (3, 48, 48))
    added = replace(LIGHT, brightness=(0.05, 0.05))(clean, np.random.default_rng(2)) - clean
    assert added.min() >= 0
    assert added.max() > 0.05
    np.testing.assert_allclose(added[1:], np.stack([added[0], added[0]]), atol=1e-6)


def test_a_grey_image_gets_the_rain_of_a_colour_image() -> None:
    grey = np.full((1, 30, 44), 0.25, dtype=np.float32)
    colour = np.repeat(grey, 3, axis=0)
    degraded = LIGHT(grey, np.random.default_rng(5))
    assert degraded.shape == (1, 30, 44)
    np.testing.assert_array_equal(np.repeat(degraded, 3, axis=0), LIGHT(colour, np.random.default_rng(5)))


def test_equal_generators_give_equal_bytes_and_others_other_rain() -> None:
    clean = np.full((3, 64, 64), 0.5, dtype=np.float32)
    first, again, other = (LIGHT(clean, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert first.tobytes() == again.tobytes()
    assert np.abs(first - other).max() > 0.05
    assert (clean == 0.5).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (50, 1), (7, 13), (64, 31)])
@pytest.mark.parametrize("angle", [0, 25, 90])
def test_images_of_any_size_show_the_crop_of_the_sky_they_cover(height: int, width: int, angle: float) -> None:
    rain = Rain(angle=(angle, angle), length=(60, 60), width=(2, 2), density=(1, 1), brightness=(0.1, 0.1))
    layers = [rain.streaks(height, width, np.random.default_rng(seed)) for seed in range(10)]
    assert {layer.shape for layer in layers} == {(height, width)}
    assert np.mean(layers) > 0.02
    assert all(np.isfinite(layer).all() and layer.min() >= 0 for layer in layers)


def test_the_mean_light_is_density_times_mean_brightness() -> None:
    """Of an endless sky; the mean of an exponential distribution with mean b, cut off at 0.8, is known."""
    rain = Rain(angle=(-20, -20), length=(20, 20), width=(2, 2), density=(0.3, 0.3), brightness=(0.3, 0.3))
    mean_brightness = 0.3 - 0.8 / math.expm1(0.8 / 0.3)
    layers = [rain.streaks(32, 32, np.random.default_rng(seed)) for seed in range(1500)]
    assert np.mean(layers) == pytest.approx(0.3 * mean_brightness, rel=0.03)


def test_the_streaks_have_the_mean_length_and_width_asked_for_and_vary_about_them() -> None:
    rain = Rain(angle=(5, 5), length=(30, 30), width=(3, 3), density=(1, 1), brightness=(0.1, 0.1))
    streaks = rain.draw(600, 600, np.random.default_rng(0))
    assert streaks.lengths.mean() == pytest.approx(30, rel=0.03)
    assert streaks.widths.mean() == pytest.approx(3, rel=0.03)
    assert streaks.angles.mean() == pytest.approx(5, abs=0.1)
    assert streaks.brightnesses.max() <= 0.8
    assert all(np.std(values) > 0.05 * np.mean(values) for values in (streaks.lengths, streaks.widths, streaks.angles))


def test_coverage_grows_with_density() -> None:
    densities = (0, 0.05, 0.1, 0.2, 0.4, 0.8)
    layers = [
        replace(LIGHT, density=(density, density)).streaks(256, 256, np.random.default_rng(1)) for density in densities
    ]
    coverage = [float((layer > 0.02).mean()) for layer in layers]
    assert coverage[0] == 0
    assert all(less < more for less, more in pairwise(coverage))


@pytest.mark.parametrize("angle", [0, 30, -65])
def test_a_patch_and_a_crop_of_a_large_image_are_equally_covered(angle: float) -> None:
    rain = Rain(angle=(angle, angle), length=(30, 30), width=(2, 2), density=(0.25, 0.25), brightness=(0.1, 0.1))
    patches = [rain.streaks(32, 32, np.random.default_rng(seed)) for seed in range(600)]
    crops = [rain.streaks(224, 224, np.random.default_rng(10_000 + seed))[96:128, 96:128] for seed in range(600)]
    patch_cover, crop_cover = ([float((layer > 0.02).mean()) for layer in layers] for layers in (patches, crops))
    error = math.hypot(np.std(patch_cover), np.std(crop_cover)) / math.sqrt(600)
    assert abs(np.mean(patch_cover) - np.mean(crop_cover)) < 4 * error < 0.03
    rows = np.mean([layer.mean(axis=1) for layer in patches], axis=0)
    columns = np.mean([layer.mean(axis=0) for layer in patches], axis=0)
    for profile in (rows, columns):  # as much light at the border as in the middle
        assert profile[[0, 1, -2, -1]].mean() == pytest.approx(profile[8:-8].mean(), rel=0.2)


@pytest.mark.parametrize(
    ("field", "limits"),
    [
        ("angle", (10, -10)),
        ("angle", (-91, 0)),
        ("length", (0, 20)),
        ("length", (40, 20)),
        ("width", (-1, 2)),
        ("width", (0.2, 2)),
        ("density", (-0.1, 0.2)),
        ("density", (0.1, 5)),
        ("brightness", (0, 0.5)),
        ("brightness", (0.1, 1.5)),
        ("brightness", (0.1, float("nan"))),
    ],
)
def test_an_impossible_range_is_refused_by_its_name_and_value(field: str, limits: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=rf"^{field} {limits[0]}\.\.{limits[1]}: use .+ <= low <= high <= "):
        replace(LIGHT, **{field: limits})
