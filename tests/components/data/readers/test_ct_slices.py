"""CT slices come out in Hounsfield units whatever holds them, in order and by name; what is no CT slice is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from components.data.readers.ct_slices import holds_metal, is_ct_name, read_ct, read_metal_pair, read_metal_pairs

pytestmark = pytest.mark.unit

HU = np.random.default_rng(0).integers(-1024, 2000, (3, 12, 10)).astype(np.int16)


def write_dicom(path: Path, hu: np.ndarray, syntax: str = ExplicitVRLittleEndian, **changes: Any) -> None:
    """One CT slice with slope 2 and intercept -1024; None takes an element away."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, "1.2.3.4"
    dataset.Modality, dataset.PatientID, dataset.SeriesInstanceUID = "CT", "Jane Doe 17", "1.2.3"
    dataset.Rows, dataset.Columns = hu.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = "2", "-1024", "HU"
    dataset.PixelSpacing = ["0.75", "0.75"]
    stored = ((hu.astype(int) + 1024) // 2).astype(">u2" if syntax == ExplicitVRBigEndian else "<u2")
    if syntax == RLELossless:
        dataset.compress(RLELossless, stored, generate_instance_uid=False)
    elif syntax == JPEGLSLossless:
        dataset.PixelData = pydicom.encaps.encapsulate([b"no JPEG-LS"])
    else:
        dataset.add_new("PixelData", "OW", stored.tobytes())
    for name, value in changes.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    little, implicit = syntax != ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True, little_endian=little, implicit_vr=implicit)


def write_metal_case(
    folder: Path, case: str = "000195_02_02", metal: tuple[slice, slice] = np.s_[4:8, 4:8], number: int = 0
) -> np.ndarray:
    """The truth of a 26 x 26 pair in SynDeepLesion's layout, with metal in these pixels."""
    random = np.random.default_rng(number)
    truth = random.uniform(0, 0.45, (26, 26)).astype(np.float32)
    artifact, interpolated = (truth + random.normal(0, 0.01, truth.shape).astype(np.float32) for _ in range(2))
    artifact[metal] = 2.8
    place = folder / "train_640geo" / case / "202"
    place.mkdir(parents=True, exist_ok=True)
    with h5py.File(place / "gt.h5", "w") as file:
        file.create_dataset("image", data=truth, compression="gzip")
    with h5py.File(place / f"{number}.h5", "w") as file:
        file.create_dataset("ma_CT", data=artifact, compression="gzip")
        file.create_dataset("LI_CT", data=interpolated, compression="gzip")
    return truth


def _even(hu: np.ndarray) -> np.ndarray:
    return (hu.astype(int) + 1024) // 2 * 2 - 1024


def test_slices_of_an_npz_file_carry_their_patients_and_spacing(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "chest.npz",
        hu=HU,
        patient=["a", "b", "b"],
        fname=["x/1.dcm", "..\\..\\2.dcm", "/etc/3"],
        pixel_spacing_mm=[[0.7, 0.7], [0.8, 0.8], [0.9, 0.9]],
    )
    slices = list(read_ct(tmp_path / "chest.npz"))
    assert [s.name for s in slices] == ["chest-1", "chest-2", "chest-3"]
    assert [s.patient for s in slices] == ["a", "b", "b"]
    assert [s.pixel_spacing_mm for s in slices] == pytest.approx([0.7, 0.8, 0.9])
    assert all(s.hu.dtype == np.float32 and np.array_equal(s.hu, hu) for s, hu in zip(slices, HU, strict=True))


def test_without_names_and_patients_slices_are_numbered_and_of_one_patient(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    np.savez(tmp_path / "b.npz", hu=HU, fname=["same", "same", "other"], pixel_spacing_mm=[0.5, 0.6, 0.7])
    np.save(tmp_path / "sub" / "stack.npy", HU.astype(np.float64))
    np.save(tmp_path / "sub" / "one.npy", HU[1])
    (tmp_path / ".hidden.npy").write_text("hidden")
    (tmp_path / "notes.txt").write_text("notes")
    slices = {s.name: s for s in read_ct(tmp_path)}
    assert list(slices) == [
        *(f"b-{n:04}" for n in range(3)),
        "sub__one-0000",
        *(f"sub__stack-{n:04}" for n in range(3)),
    ]
    assert [s.patient for s in slices.values()] == ["b"] * 3 + ["sub__one"] + ["sub__stack"] * 3
    assert slices["b-0002"].pixel_spacing_mm == pytest.approx(0.7)
    assert slices["sub__one-0000"].pixel_spacing_mm is None
    assert np.array_equal(slices["sub__one-0000"].hu, HU[1])
    assert np.array_equal(slices["sub__stack-0002"].hu, HU[2])


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_dicom_slice_is_rescaled_to_hounsfield_units(tmp_path: Path, syntax: str, photometric: str) -> None:
    write_dicom(tmp_path / "a.dcm", HU[0], syntax, PhotometricInterpretation=photometric)
    (found,) = read_ct(tmp_path / "a.dcm")
    assert np.array_equal(found.hu, _even(HU[0]))
    assert (found.name, found.pixel_spacing_mm) == ("a", 0.75)


def test_the_patient_id_itself_goes_nowhere_but_tells_patients_apart(tmp_path: Path) -> None:
    for name, patient in (("1", "Jane Doe 17"), ("2", "Jane Doe 17"), ("3", "John Doe 4")):
        write_dicom(tmp_path / name, HU[0], PatientID=patient)
    slices = list(read_ct(tmp_path))
    assert slices[0].patient == slices[1].patient != slices[2].patient
    assert not any(word in repr(slice_).lower() for slice_ in slices for word in ("jane", "john", "doe"))


def test_padding_becomes_air(tmp_path: Path) -> None:
    hu = HU[0].copy()
    hu[0, :3] = 30_000
    write_dicom(tmp_path / "a.dcm", hu, PixelPaddingValue=(30_000 + 1024) // 2)
    (found,) = read_ct(tmp_path / "a.dcm")
    assert (found.hu[0, :3] == -1024).all()
    assert np.array_equal(found.hu[1:], _even(HU[0])[1:])


def test_slices_of_a_series_come_in_the_order_of_their_positions(tmp_path: Path) -> None:
    for name, series, height in (("a", "2", -5.0), ("b", "1", 30.0), ("c", "1", -2.5), ("d", "1", 10.0)):
        write_dicom(
            tmp_path / name,
            HU[0],
            SeriesInstanceUID=f"1.2.{series}",
            ImagePositionPatient=[1, 2, height],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        )
    assert [s.name for s in read_ct(tmp_path)] == ["c", "d", "b", "a"]
    for name, number in (("e", 12), ("f", 3)):  # without positions: by number
        write_dicom(tmp_path / name, HU[0], SeriesInstanceUID="1.2.3", InstanceNumber=number)
    assert [s.name for s in read_ct(tmp_path)] == ["c", "d", "b", "a", "f", "e"]


UNUSABLE = {
    "mr": ({"Modality": "MR"}, "modality MR: only CT"),
    "scout": ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localizer"),
    "frames": ({"NumberOfFrames": 3}, "3 frames in one file: split it"),
    "colour": ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "only grey is CT"),
    "rows": ({"Rows": 60_000}, "60000 rows and 10 columns: at most 4096"),
    "more": ({"Rows": 4000, "Columns": 4000}, "240 bytes of pixels where 32000000 should be"),
    "slope": ({"RescaleSlope": None}, "no RescaleSlope and RescaleIntercept"),
    "unit": ({"RescaleType": "MGML"}, "rescaled to MGML: only HU"),
    "oblong": ({"PixelSpacing": ["0.5", "0.7"]}, "pixels of 0.5 x 0.7 mm: resample"),
    "pixels": ({"PixelData": None}, "Pixel ?Data"),
    "deflated": ({"syntax": DeflatedExplicitVRLittleEndian}, "transfer syntax Deflated.*: decompress it first"),
    "lossless": ({"syntax": JPEGLSLossless}, "transfer syntax JPEG-LS Lossless.*: decompress it first"),
    "scaled": ({"RescaleSlope": "0.0001", "RescaleIntercept": "0"}, r"all values are in \[0, 1\]"),
}


@pytest.mark.parametrize(("changes", "why"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_is_no_ct_slice_is_refused_with_the_reason(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    write_dicom(tmp_path / "a.dcm", HU[0], **changes)
    with pytest.raises(ValueError, match=rf"a\.dcm: not a usable DICOM slice \(.*{why}"):
        list(read_ct(tmp_path / "a.dcm"))


def test_unusable_files_of_a_folder_are_reported_and_the_others_read(tmp_path: Path) -> None:
    write_dicom(tmp_path / "good.dcm", HU[0])
    write_dicom(tmp_path / "scout.dcm", HU[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_dicom(tmp_path / "cut.dcm", HU[0])
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "cut.dcm").read_bytes()[:-50])
    (tmp_path / "notes").write_text("these are my notes")
    np.savez(tmp_path / "nan.npz", hu=np.full((1, 4, 4), np.nan))
    (tmp_path / "DICOMDIR").write_text("an index, left alone")
    reports: list[str] = []
    assert [s.name for s in read_ct(tmp_path, reports.append)] == ["good"]
    assert sorted(Path(report.split(": ")[0]).name for report in reports) == [
        "cut.dcm",
        "nan.npz",
        "notes",
        "scout.dcm",
    ]
    with pytest.raises(ValueError, match=r"nan\.npz: .*not finite"):
        list(read_ct(tmp_path))


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"hu": HU[None]}, r"give numbers of shape \(N, H, W\)"),
        ({"hu": np.array([["a"]])}, "give numbers"),
        ({"hu": HU[:0]}, "give numbers"),
        ({"hu": np.ones((2, 4, 4))}, r"all values are in \[0, 1\]"),
        ({"hu": HU, "patient": ["a", "b"]}, "patient has 2 entries for 3 slices"),
        ({"hu": HU, "pixel_spacing_mm": [1, 1, 0]}, "positive number of millimetres"),
        ({"hu": HU, "pixel_spacing_mm": np.ones((3, 3))}, "positive number of millimetres"),
        ({"image": HU}, "no array hu; it holds image"),
    ],
)
def test_arrays_that_are_no_slices_are_refused(tmp_path: Path, arrays: dict[str, Any], why: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=rf"a\.npz: .*{why}"):
        list(read_ct(tmp_path / "a.npz"))


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    for name in ("missing.npz", "missing.npy", "missing.dcm"):
        with pytest.raises(ValueError, match=rf"{name}: there is no such file"):
            list(read_ct(tmp_path / name))
    with pytest.raises(ValueError, match="no npz, npy or DICOM file in this folder"):
        list(read_ct(tmp_path))
    with pytest.raises(ValueError, match=r"no CASE/SLICE/gt\.h5 in this folder"):
        list(read_metal_pairs(tmp_path))


def test_metal_is_what_exceeds_the_threshold() -> None:
    hu = np.full((4, 4), 2400.0, dtype=np.float32)
    assert not holds_metal(hu)
    hu[1, 2] = 2501
    assert holds_metal(hu)
    assert not holds_metal(hu, threshold=3000)


def test_pairs_of_syndeeplesion_are_scaled_and_masked_by_the_mask_of_their_number(tmp_path: Path) -> None:
    truths = [write_metal_case(tmp_path, number=0), write_metal_case(tmp_path, "000129_03_01", np.s_[8:12, 16:20], 1)]
    masks = np.zeros((52, 52, 2), dtype=np.uint8)
    masks[9:15, 9:15, 0] = 1
    masks[16:24, 32:40, 1] = 1
    np.save(tmp_path / "trainmask.npy", masks)
    second, first = read_metal_pairs(tmp_path)
    assert [pair.name for pair in (first, second)] == ["000195_02_02-202-0", "000129_03_01-202-1"]
    assert [pair.patient for pair in (first, second)] == ["000195", "000129"]
    for number, (pair, truth) in enumerate(zip((first, second), truths, strict=True)):
        for image in (pair.clean, pair.artifact, pair.linear_interpolation):
            assert (image.shape, image.dtype) == ((1, 26, 26), np.float32)
        assert np.allclose(pair.clean[0], truth / 0.5)
        assert pair.artifact.max() == pytest.approx(5.6)
        resized = Image.fromarray(masks[..., number]).resize((26, 26), Image.Resampling.BILINEAR)
        assert pair.mask.dtype == bool
        assert np.array_equal(pair.mask[0], np.asarray(resized) == 1)
    assert second.mask.sum() == 16


def test_a_mask_that_is_not_at_hand_is_where_the_metal_is(tmp_path: Path) -> None:
    write_metal_case(tmp_path, number=80)
    expected = np.zeros((26, 26), dtype=bool)
    expected[4:8, 4:8] = True
    (without_file,) = read_metal_pairs(tmp_path)
    np.save(tmp_path / "trainmask.npy", np.zeros((52, 52, 2), dtype=np.uint8))
    (with_two,) = read_metal_pairs(tmp_path)
    assert np.array_equal(without_file.mask[0], expected)
    assert np.array_equal(with_two.mask[0], expected)


def test_one_pair_is_read_as_it_is_among_all(tmp_path: Path) -> None:
    write_metal_case(tmp_path, number=0)
    masks = np.zeros((26, 26, 1), dtype=np.uint8)
    masks[5:8, 5:8] = 1  # smaller than the metal, so that it is seen which is taken
    np.save(tmp_path / "trainmask.npy", masks)
    file = tmp_path / "train_640geo" / "000195_02_02" / "202" / "0.h5"
    (among_all,) = read_metal_pairs(tmp_path)
    alone, without_file = read_metal_pair(file, tmp_path / "trainmask.npy"), read_metal_pair(file, None)
    assert alone.name == among_all.name
    assert np.array_equal(alone.clean, among_all.clean)
    assert np.array_equal(alone.mask, among_all.mask)
    assert (alone.mask.sum(), without_file.mask.sum()) == (9, 16)


def test_the_name_says_what_may_be_a_ct_slice() -> None:
    assert all(is_ct_name(Path(name)) for name in ("a.npz", "b/c.NPY", "d.dcm", "e.IMA", "IM0001", "1.2.840.113"))
    assert not any(is_ct_name(Path(name)) for name in ("a.txt", ".a.npz", ".git/a.npy", "x/DICOMDIR", "gt.h5"))


def test_masks_of_another_numbering_and_damaged_files_are_refused_or_reported(tmp_path: Path) -> None:
    write_metal_case(tmp_path, number=0)
    write_metal_case(tmp_path, number=7)
    masks = np.zeros((52, 52, 1), dtype=np.uint8)
    masks[40:50, 40:50] = 1
    np.save(tmp_path / "trainmask.npy", masks)
    with pytest.raises(ValueError, match=r"0\.h5: .*mask 0 does not lie on its metal: the mask file has another num"):
        list(read_metal_pairs(tmp_path))
    reports: list[str] = []
    assert [pair.name for pair in read_metal_pairs(tmp_path, reports.append)] == ["000195_02_02-202-7"]
    assert len(reports) == 1
    np.save(tmp_path / "trainmask.npy", masks[..., 0])
    with pytest.raises(ValueError, match=r"trainmask\.npy: .*give uint8 of shape \(H, W, K\)"):
        list(read_metal_pairs(tmp_path))
    np.save(tmp_path / "othermask.npy", masks)
    with pytest.raises(ValueError, match=r"several mask files, othermask\.npy, trainmask\.npy; keep one"):
        list(read_metal_pairs(tmp_path))
