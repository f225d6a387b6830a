"""Drawn metal has the areas asked for and lies within the body."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from components.degradations.ct.metal import (
    KINDS,
    LARGEST_AREA,
    SMALLEST_AREA,
    Rectangles,
    body_of,
    draw_metal,
    render,
)

pytestmark = pytest.mark.unit


def one(x: float, y: float, length: float, width: float, corner: float = 0.0, angle: float = 0.0) -> Rectangles:
    return Rectangles(*(np.array([value]) for value in (x, y, length, width, corner, angle)))


def disc_body(size: int) -> np.ndarray:
    places = np.arange(size) - (size - 1) / 2
    return np.hypot(places[:, None], 1.3 * places[None, :]) < 0.45 * size


def test_an_upright_rectangle_fills_exactly_the_shares_of_its_pixels() -> None:
    coverage = render(one(10, 8, 3.25, 2.0), 24)
    expected = np.zeros((24, 24))
    expected[6:11, 7:14] = 1
    expected[[6, 10]] *= 0.5  # y from 6 to 10: the border is in the middle of rows 6 and 10
    expected[:, [7, 13]] *= 0.75  # x from 6.75 to 13.25
    corners = np.ix_([6, 10], [7, 13])
    expected[corners] = coverage[corners]
    np.testing.assert_allclose(coverage, expected, atol=1e-6)
    assert (coverage[corners] <= 0.5).all()


@pytest.mark.parametrize("angle", [0, 0.4, 2.0])
@pytest.mark.parametrize(("length", "width", "corner"), [(9, 9, 9), (14, 5, 5), (12, 4, 0), (12, 6, 2), (15, 0.4, 0.4)])
def test_the_coverage_sums_to_the_area_of_the_shape(length: float, width: float, corner: float, angle: float) -> None:
    area = 4 * length * width - (4 - math.pi) * corner**2
    assert render(one(31.3, 30.8, length, width, corner, angle), 64).sum() == pytest.approx(area, rel=0.03)


@pytest.mark.parametrize("angle", [0, 0.7, -1.1])
def test_coverage_agrees_with_counted_points(angle: float) -> None:
    fine = 16
    places = (np.arange(40 * fine) + 0.5) / fine - 0.5
    right, down = places[None, :] - 18.2, places[:, None] - 21.4
    along = np.abs(right * math.cos(angle) + down * math.sin(angle))
    across = np.abs(down * math.cos(angle) - right * math.sin(angle))
    counted = ((along < 11) & (across < 4)).reshape(40, fine, 40, fine).mean(axis=(1, 3))
    assert np.abs(render(one(18.2, 21.4, 11, 4, 0, angle), 40) - counted).max() < 0.3  # at its corners
    assert np.abs(render(one(18.2, 21.4, 11, 4, 0, angle), 40) - counted).mean() < 0.004


def test_the_area_of_a_union_counts_overlaps_once() -> None:
    twice = Rectangles(*(np.array([value, value]) for value in (0.0, 0.0, 2.0, 1.0, 0.0, 0.3)))
    assert twice.area() == pytest.approx(8, rel=0.01)


def test_metal_beyond_the_border_of_the_image_is_cut_off() -> None:
    whole = render(one(40, 40, 12, 5, 2, 0.8), 80)
    np.testing.assert_array_equal(render(one(0, 4, 12, 5, 2, 0.8), 40), whole[36:76, 40:])
    assert render(one(-50, 4, 12, 5), 40).sum() == 0


@pytest.mark.parametrize("area", [16, 60, 300, 1000, 2400])
@pytest.mark.parametrize("size", [128, 416])
def test_the_metal_has_the_area_asked_for_in_proportion_to_the_image(area: float, size: int) -> None:
    body = disc_body(size)
    areas = [float(draw_metal(body, (area, area), np.random.default_rng(seed)).sum()) for seed in range(12)]
    assert np.median(areas) == pytest.approx(area * (size / 416) ** 2, rel=0.05)


def test_areas_are_spread_evenly_over_the_orders_of_magnitude() -> None:
    body = disc_body(128)
    areas = [draw_metal(body, (16, 2400), np.random.default_rng(seed)).sum() * (416 / 128) ** 2 for seed in range(300)]
    logarithms = (np.log(areas) - np.log(16)) / np.log(150)
    np.testing.assert_allclose(
        np.quantile(logarithms, [0.1, 0.25, 0.5, 0.75, 0.9]), [0.1, 0.25, 0.5, 0.75, 0.9], atol=0.08
    )


def test_metal_lies_in_the_body_wherever_that_is() -> None:
    body = np.zeros((128, 128), dtype=bool)
    body[20:60, 70:120] = True
    coverages = [draw_metal(body, (16, 2400), np.random.default_rng(seed)) for seed in range(40)]
    assert all(coverage[~body].sum() == 0 < coverage.sum() for coverage in coverages)
    rows, columns = np.transpose([ndimage.center_of_mass(coverage) for coverage in coverages])
    assert rows.min() < 32 < 48 < rows.max()
    assert columns.min() < 85 < 105 < columns.max()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_implant_is_of_the_parts_it_is_made_of(kind: str) -> None:
    parts = {"joint": {1}, "screws": {1, 2}, "rods": {1, 2, 3}, "fillings": set(range(1, 8)), "clips": set(range(1, 6))}
    numbers = set()
    for seed in range(40):
        shape = KINDS[kind][0](np.random.default_rng(seed))
        coverage = render(shape.placed(6.0, 0.5, 127.5, 127.5), 256)
        assert coverage[[0, -1]].sum() == 0 == coverage[:, [0, -1]].sum()
        numbers.add(ndimage.label(coverage > 0.3, structure=np.ones((3, 3)))[1])
    assert numbers <= parts.get(kind, {1})
    assert len(numbers) == 1 or len(numbers) >= 2


def test_sizes_without_a_kind_do_not_exist() -> None:
    for area in np.geomspace(SMALLEST_AREA, LARGEST_AREA, 200):
        assert any(low <= area * (1 + 1e-12) and area * (1 - 1e-12) <= high for _, low, high in KINDS.values())


def test_the_body_is_the_largest_part_that_is_no_air() -> None:
    hu = np.full((60, 60), -1000.0)
    hu[10:40, 5:50] = 40
    hu[20:30, 20:30] = -800  # a lung
    hu[50:53] = 100  # the table
    body = body_of(hu)
    assert body.sum() == 30 * 45 - 100
    assert not body[50:53].any()
    assert not body[25, 25]


@pytest.mark.parametrize("level", [-1000, -1024, -500])
def test_a_slice_of_air_is_refused(level: float) -> None:
    hu = np.full((64, 64), level)
    hu[:5, :5] = 0
    with pytest.raises(ValueError, match=r"^the slice has no body: 25 of 4096 pixels together are above -300 HU"):
        body_of(hu)
