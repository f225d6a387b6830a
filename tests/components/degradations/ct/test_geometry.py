"""The scanner keeps its proportions at any resolution, and impossible ones are refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from components.degradations.ct.geometry import FanBeam

pytestmark = pytest.mark.unit


def test_the_default_is_the_standard_geometry() -> None:
    geometry = FanBeam()
    assert (geometry.size, geometry.views, geometry.detectors) == (416, 640, 641)
    assert geometry.source == pytest.approx(1075)
    assert geometry.pixel_cm == pytest.approx(512 / 416 * 0.03)
    assert geometry.pitch * geometry.detectors == pytest.approx(math.sqrt(416**2 + 416**2))


@pytest.mark.parametrize("size", [17, 64, 128, 832])
def test_another_size_keeps_the_field_and_the_proportions(size: int) -> None:
    geometry = FanBeam().scaled(size)
    assert geometry.size == size
    assert geometry.pixel_cm * size == pytest.approx(15.36)
    assert geometry.source / size == pytest.approx(1075 / 416)
    assert geometry.views % 4 == 0
    assert geometry.views / size == pytest.approx(640 / 416, abs=2 / size)
    assert geometry.detectors / size == pytest.approx(641 / 416, abs=0.5 / size)


def test_the_bins_are_the_middles_of_equal_parts_of_the_detector() -> None:
    geometry = replace(FanBeam(), size=64, detectors=10)
    bins, width = geometry.bins(), 64 * math.sqrt(2)
    assert bins[0].item() == pytest.approx(-width / 2 + width / 20)
    assert bins[-1].item() == pytest.approx(width / 2 - width / 20)
    assert bins.diff().tolist() == pytest.approx([width / 10] * 9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 8),
        ("views", 642),
        ("views", 0),
        ("detectors", 1),
        ("field_cm", 0.0),
        ("field_cm", math.inf),
        ("distance", 0.7),
        ("distance", math.nan),
    ],
)
def test_an_impossible_scanner_is_refused_by_its_name_and_value(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} {value}: use "):
        replace(FanBeam(), **{name: value})
