"""A CT slice without a sinogram: the network's inputs are those of training, and what it cannot know is not changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from components.degradations.ct import WATER, WHITE, FanBeam, filtered_back_projection, scan
from components.degradations.ct.artifacts import MetalArtifactCase
from components.inference.ct import find_metal, metal_inputs, restore_dicom, restored_hounsfield
from tests.components.inference.dicom_files import SECRET, ct_bytes, hounsfield, read

pytestmark = pytest.mark.unit

SIZE, SPACING = 96, 3.0
HU_PER_GREY = 1000 * WHITE / WATER


def discs(*shapes: tuple[float, float, float]) -> np.ndarray:
    """Coverage by discs of (row, column, radius), ``(S, S)``: a half at the radius."""
    rows, columns = np.indices((SIZE, SIZE))
    distances = [radius + 0.5 - np.hypot(rows - row, columns - column) for row, column, radius in shapes]
    return np.max(np.clip(distances, 0, 1), axis=0).astype(np.float32)


METAL = discs((40, 36, 3), (56, 60, 2.5))


@cache
def scanned() -> tuple[MetalArtifactCase, np.ndarray]:
    """A body of water with two pieces of metal, and its slice as a scanner would store it, in HU up to 3071."""
    hu = (1000 * (discs((47.5, 47.5, 40)) - 1) + 60 * discs((60, 40, 8))).astype(np.float32)
    geometry = replace(FanBeam().scaled(SIZE), field_cm=SPACING / 10 * SIZE)
    case = scan(hu, METAL, "iron", geometry, 1e12, np.random.default_rng(0))
    image = filtered_back_projection(torch.from_numpy(case.sinogram)[None], geometry)[0].numpy()
    return case, np.rint(1000 * (image / WATER - 1)).clip(-1024, 3071).astype(np.int16)


def rmse(first: np.ndarray, second: np.ndarray) -> float:
    """In HU, of grey images outside the metal and its border."""
    outside = ~ndimage.binary_dilation(METAL > 0, iterations=2)
    return HU_PER_GREY * float(np.sqrt(((first - second)[outside] ** 2).mean()))


def test_the_inputs_are_near_those_of_the_true_sinogram() -> None:
    case, hu = scanned()
    inputs, metal, note = metal_inputs(hu.astype(np.float32), SPACING, None)
    assert (inputs.shape, inputs.dtype, metal.dtype) == ((3, SIZE, SIZE), np.float32, bool)
    assert (inputs.min(), inputs.max()) == (0, 1)
    assert not (metal & ~ndimage.binary_dilation(METAL > 0)).any()
    assert not (~metal & (METAL == 1)).any()
    assert np.array_equal(inputs[2], metal)
    true, own = case.linear_interpolation[0], inputs[0]
    artifact = rmse(case.artifact[0], case.clean[0])
    assert rmse(own, true) < 0.5 * artifact
    assert rmse(own, case.clean[0]) < 0.7 * artifact
    assert (
        rmse(inputs[1], case.artifact[0]) < 0.6 * artifact
    )  # two reconstructions of coarse pixels; see benchmarks/ct_restore.py
    assert "not from the measured sinogram" in note


def test_the_images_do_not_depend_on_the_pixel_spacing() -> None:
    hu = scanned()[1].astype(np.float32)
    first, second, third = (metal_inputs(hu, spacing, None)[0] for spacing in (None, 0.4, 3.0))
    assert np.allclose(first, second, atol=1e-5)
    assert np.allclose(first, third, atol=1e-5)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_slice_gives_turned_inputs(turns: int) -> None:
    hu = scanned()[1].astype(np.float32)
    inputs, turned = metal_inputs(hu, None, None)[0], metal_inputs(np.rot90(hu, turns).copy(), None, None)[0]
    assert np.allclose(turned, np.rot90(inputs, turns, axes=(1, 2)), atol=1e-4)


@pytest.mark.parametrize("window", [np.s_[10:86, :], np.s_[:, 8:89], np.s_[:75, 3:]])
def test_a_slice_that_is_not_square_is_as_in_a_square_of_air(window: tuple[slice, slice]) -> None:
    hu = scanned()[1].astype(np.float32)
    inputs, metal, _ = metal_inputs(hu[window], None, None)
    assert inputs.shape[1:] == metal.shape == hu[window].shape
    size, air = max(metal.shape), np.full((SIZE, SIZE), -1000, dtype=np.float32)[: max(metal.shape), : max(metal.shape)]
    rows, columns = ((size - side) // 2 for side in metal.shape)
    place = (slice(rows, rows + metal.shape[0]), slice(columns, columns + metal.shape[1]))
    air[place] = hu[window]
    assert np.array_equal(inputs, metal_inputs(air, None, None)[0][(slice(None), *place)])


def test_a_given_mask_replaces_the_threshold() -> None:
    hu = scanned()[1].astype(np.float32)
    mask = np.zeros(hu.shape, dtype=np.uint8)
    mask[30:34, 30:40] = 255
    assert np.array_equal(metal_inputs(hu, None, mask, threshold_hu=0)[1], mask > 0)
    assert np.array_equal(find_metal(hu, None, 1500), hu > 1500)


@pytest.mark.parametrize(
    ("mask", "threshold", "message"),
    [
        (np.ones((96, 95)), 2500, "the mask has 95x96 pixels, its slice 96x96"),
        (None, -1000, "metal threshold -1000 HU: use a number above -1000"),
        (None, float("nan"), "metal threshold nan HU"),
        (None, -999, "the metal trace fills a whole view"),
    ],
)
def test_metal_that_cannot_be_is_refused(mask: np.ndarray | None, threshold: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metal_inputs(np.full((SIZE, SIZE), 40, dtype=np.float32), None, mask, threshold)


def test_values_beyond_the_range_of_the_network_and_the_metal_are_those_of_the_slice() -> None:
    hu = np.array([[-1024, -1024, 2000, 2000, 3071, 40, 40]], dtype=np.float32)
    grey = np.array([[0.001, 0.4, 0.999, 0.4, 0.2, 0.384, 1.3]], dtype=np.float32)
    metal = np.array([[False] * 4 + [True] + [False] * 2])
    expected = [-1024, 1000 * (0.2 / WATER - 1), 2000, 1000 * (0.2 / WATER - 1), 3071, 0, 1000 * (WHITE / WATER - 1)]
    assert restored_hounsfield(hu, grey, metal)[0] == pytest.approx(expected, abs=0.01)


def first_input(inputs: np.ndarray) -> np.ndarray:
    """A network that gives the LI image."""
    return inputs[:1]


HOW: dict[str, Any] = {"model": "eqreg-ct_mar version 3", "digest": "ab" * 32}


def stored(hu: np.ndarray) -> np.ndarray:
    return (hu + 1024).astype(np.uint16)


def test_a_file_is_restored_outside_its_metal_and_says_how() -> None:
    _, hu = scanned()
    result = restore_dicom(first_input, ct_bytes(stored(hu)), **HOW)
    restored = hounsfield(result.data)
    metal = hu > 2500
    assert np.array_equal(restored[metal], hu[metal])
    assert (result.metal_pixels, result.clipped_pixels) == (metal.sum(), 0)
    expected = 1000 * (metal_inputs(hu.astype(np.float32), None, None)[0][0] * WHITE / WATER - 1)
    inside = ~metal & (hu > -1000) & (hu < 1600)
    assert np.abs(restored - expected)[inside].max() <= 0.51
    text = read(result.data).DerivationDescription
    assert result.note in text
    for part in ("above 2500 HU", "by forward projection, not from the measured sinogram", "version 3", "ab" * 32):
        assert part in text
    assert "For research, not for diagnosis" in text
    assert read(result.data).PixelSpacing == [0.7, 0.7]


def test_a_slice_without_metal_is_a_derived_copy_and_no_network_runs() -> None:
    hu = np.full((20, 24), 40, dtype=np.int16)
    hu[:4] = 2500

    def fails(inputs: np.ndarray) -> np.ndarray:
        raise AssertionError("a network ran")

    result = restore_dicom(fails, ct_bytes(stored(hu)), **HOW)
    assert np.array_equal(hounsfield(result.data), hu)
    assert result.metal_pixels == 0
    assert result.note == "No metal (the pixels above 2500 HU): pixels unchanged."
    assert read(result.data).SOPInstanceUID != "1.2.3.4"
    with_metal = restore_dicom(first_input, ct_bytes(stored(scanned()[1])), **HOW)
    assert read(with_metal.data).SeriesInstanceUID == read(result.data).SeriesInstanceUID


def test_padding_is_no_metal_and_stays() -> None:
    hu = scanned()[1].copy()
    hu[:2] = 30_000
    result = restore_dicom(first_input, ct_bytes(stored(hu), PixelPaddingValue=31_024), **HOW)
    assert result.metal_pixels == (hu[2:] > 2500).sum()
    assert (hounsfield(result.data)[:2] == 30_000).all()


def test_text_in_the_pixels_is_not_taken_for_metal(tmp_path: Path) -> None:
    hu = scanned()[1]
    file = tmp_path / "1.dcm"
    file.write_bytes(ct_bytes(stored(hu), BurnedInAnnotation="YES"))
    with pytest.raises(ValueError, match=r"1\.dcm: BurnedInAnnotation is YES"):
        restore_dicom(first_input, file, **HOW)
    assert restore_dicom(first_input, file, **HOW, metal=METAL > 0.5).metal_pixels == (METAL > 0.5).sum()


def test_a_turned_file_gives_the_turned_result() -> None:
    hu = scanned()[1]
    restored, turned = (
        hounsfield(restore_dicom(first_input, ct_bytes(stored(each)), **HOW).data) for each in (hu, np.rot90(hu).copy())
    )
    assert np.abs(np.rot90(restored) - turned).max() <= 1


def test_another_threshold_or_setting_gives_another_series() -> None:
    data = ct_bytes(stored(scanned()[1]))
    changes: list[dict[str, Any]] = [
        {},
        {"threshold_hu": 2600.0},
        {"settings": "self-ensemble 4"},
        {"metal": METAL > 0.5},
    ]
    series = [read(restore_dicom(first_input, data, **HOW, **change).data).SeriesInstanceUID for change in changes]
    assert len(set(series)) == len(changes)


def test_values_that_the_file_cannot_hold_are_counted_in_its_text() -> None:
    """The file holds -24 HU and more."""
    hu = scanned()[1].clip(-24, None)
    data = ct_bytes((hu + 24).astype(np.uint16), intercept="-24")
    result = restore_dicom(lambda inputs: 0.3 * inputs[:1], data, **HOW)
    assert result.clipped_pixels > 1000
    assert f"{result.clipped_pixels} pixels clipped" in read(result.data).DerivationDescription


def damaged(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize("change", [damaged, lambda data: data])
def test_an_error_names_the_file_and_not_the_patient(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "1.dcm"
    file.write_bytes(change(ct_bytes(stored(scanned()[1]))))
    with pytest.raises(ValueError, match=r"1\.dcm: ") as caught:
        restore_dicom(first_input, file, **HOW, threshold_hu=-999)
    assert SECRET.split("^")[0] not in str(caught.value)
