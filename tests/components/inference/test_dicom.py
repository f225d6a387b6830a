"""A DICOM slice keeps all that it said but what a derived image must say anew; nothing names the patient."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from components.inference.dicom.derived import Derivation, clipped, write_slice
from components.inference.dicom.slices import read_slice
from tests.components.inference.dicom_files import ct_bytes, ct_dataset, hounsfield, read

pytestmark = pytest.mark.unit

HOW = Derivation("eqreg-ct_mar version 3", "ab" * 32, "Metal artifacts reduced. For research.", "threshold 2500 HU")
RAMP = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
SMALL = np.random.default_rng(0).integers(0, 3000, (24, 20)).astype(np.uint16)
NEW = {
    "ImageType",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "DerivationDescription",
    "SourceImageSequence",
    "ContributingEquipmentSequence",
    "InstanceCreationDate",
    "PixelData",
}


@pytest.mark.parametrize("stored", [RAMP, RAMP.view(np.int16), RAMP % 4096], ids=["unsigned", "signed", "12 bits"])
@pytest.mark.parametrize("slope", ["1", "2.5", "0.1", "0.0007"])
def test_an_untouched_ramp_comes_back_bit_by_bit(stored: np.ndarray, slope: str) -> None:
    slice_ = read_slice(ct_bytes(stored, slope=slope))
    written = read(write_slice(slice_, slice_.hounsfield.copy(), HOW))
    assert np.array_equal(written.pixel_array, stored)
    assert (written.RescaleSlope, written.RescaleIntercept) == (float(slope), -1024)


@pytest.mark.parametrize("stored", [RAMP, RAMP.view(np.int16)], ids=["unsigned", "signed"])
@pytest.mark.parametrize("slope", ["1", "0.1"])
def test_changed_values_are_rounded_to_the_slope(stored: np.ndarray, slope: str) -> None:
    data = ct_bytes(stored, slope=slope)
    slice_ = read_slice(data)
    wanted = slice_.hounsfield + np.random.default_rng(0).uniform(-30, 30, stored.shape).astype(np.float32)
    inside = (wanted >= slice_.hounsfield.min()) & (wanted <= slice_.hounsfield.max())
    error = np.abs(hounsfield(write_slice(slice_, wanted, HOW)) - wanted)[inside]
    assert error.max() <= float(slope) / 2 + 0.002  # float32 of numbers up to 65536
    assert clipped(slice_, wanted) <= (~inside).sum()


@pytest.mark.parametrize(
    ("bits", "dtype", "low", "high"), [(12, "u2", 0, 4095), (12, "i2", -2048, 2047), (16, "u2", 0, 65535)]
)
def test_values_beyond_the_stored_bits_are_clipped_and_counted(bits: int, dtype: str, low: int, high: int) -> None:
    slice_ = read_slice(ct_bytes(SMALL.astype(dtype) % 2000, BitsStored=bits, HighBit=bits - 1))
    restored = slice_.hounsfield.copy()
    restored[0, 0], restored[0, 1], restored[0, 2] = -1e6, 1e6, 7
    assert clipped(slice_, restored) == 2
    written = read(write_slice(slice_, restored, HOW))
    assert written.pixel_array[0, :3].tolist() == [low, high, 7 + 1024]
    assert (written.BitsAllocated, written.BitsStored, written.HighBit) == (16, bits, bits - 1)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless])
def test_every_other_element_is_as_it_was(syntax: str) -> None:
    """The oracle is pydicom, which reads both files."""
    data = ct_bytes(SMALL, syntax)
    slice_ = read_slice(data)
    source, written = read(data), read(write_slice(slice_, slice_.hounsfield + 1, HOW))
    kept = [element for element in source if element.keyword not in NEW]
    assert len(kept) > 35
    for element in kept:
        there = written[element.tag]
        is_bytes = isinstance(element.value, bytes) or isinstance(there.value, bytes)
        same = bytes_of(there.value) == bytes_of(element.value) if is_bytes else there.value == element.value
        assert same, element.tag
    assert {element.keyword for element in written} - {element.keyword for element in source} <= NEW
    assert written.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert np.array_equal(written.pixel_array, SMALL + 1)


def bytes_of(value: Any) -> bytes:
    """A private element without its VR is read as bytes, padded to an even number."""
    return (value if isinstance(value, bytes) else str(value).encode()).rstrip(b" \0")


def test_the_image_says_that_it_is_derived_and_from_what() -> None:
    slice_ = read_slice(ct_bytes(SMALL))
    written = read(write_slice(slice_, slice_.hounsfield + 1, HOW))
    assert list(written.ImageType) == ["DERIVED", "SECONDARY", "AXIAL", "CT_SOM5 SPI"]
    assert written.SeriesDescription == "Thorax 1.0 | eqreg-ct_mar version 3"
    assert written.DerivationDescription == HOW.text
    (source,) = written.SourceImageSequence
    assert (source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID) == (slice_.dataset.SOPClassUID, "1.2.3.4")
    (equipment,) = written.ContributingEquipmentSequence
    assert (equipment.Manufacturer, equipment.ManufacturerModelName) == ("eqreg", HOW.model)
    assert written.SOPInstanceUID == written.file_meta.MediaStorageSOPInstanceUID != "1.2.3.4"
    assert (written.StudyInstanceUID, written.FrameOfReferenceUID) == ("1.2", "1.2.9")
    assert "InstanceCreationDate" not in written


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("ORIGINAL", ["DERIVED", "SECONDARY", "AXIAL"]),
        (["ORIGINAL", "PRIMARY"], ["DERIVED", "SECONDARY", "AXIAL"]),
        (None, ["DERIVED", "SECONDARY", "AXIAL"]),
        (["ORIGINAL", "PRIMARY", "OTHER"], ["DERIVED", "SECONDARY", "OTHER"]),
    ],
)
def test_an_image_type_of_any_length_becomes_derived(given: Any, wanted: list[str]) -> None:
    slice_ = read_slice(ct_bytes(SMALL, ImageType=given))
    assert list(read(write_slice(slice_, slice_.hounsfield, HOW)).ImageType) == wanted


def test_what_describes_the_pixels_of_the_source_is_left_out() -> None:
    dataset = ct_dataset(SMALL)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.compress(RLELossless, encapsulate_ext=True, generate_instance_uid=False)
    dataset.EncapsulatedPixelDataValueTotalLength = 100
    icon = pydicom.Dataset()
    icon.Rows = icon.Columns = 1
    icon.BitsAllocated, icon.PixelRepresentation = 8, 0
    icon.PixelData = b"\1\0"
    dataset.IconImageSequence = [icon]
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    slice_ = read_slice(file.getvalue())
    assert "ExtendedOffsetTable" in slice_.dataset
    written = read(write_slice(slice_, slice_.hounsfield + 1, HOW))
    assert [element.keyword for element in written if element.tag.group == 0x7FE0] == ["PixelData"]
    assert "IconImageSequence" not in written


@pytest.mark.parametrize(
    ("charset", "name", "is_kept"),
    [("ISO_IR 192", "Müller".encode(), True), ("ISO_IR 192", b"M\xfcller", False), ("ISO_IR 100", b"M\xfcller", True)],
)
def test_a_name_keeps_its_bytes_or_the_file_is_refused(charset: str, name: bytes, is_kept: bool) -> None:
    """Of implicit VR; the text of other files is not decoded at all."""
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
        data = ct_bytes(SMALL, syntax, PatientName="A" * len(name), SpecificCharacterSet=charset)
        slice_ = read_slice(data.replace(b"A" * len(name), name))
        if is_kept or syntax == ExplicitVRLittleEndian:
            assert name in write_slice(slice_, slice_.hounsfield, HOW)
            continue
        with pytest.raises(ValueError, match="SpecificCharacterSet") as caught:
            write_slice(slice_, slice_.hounsfield, HOW)
        assert "ller" not in str(caught.value)


def test_threads_leave_the_settings_of_pydicom_and_the_warnings_as_they_were() -> None:
    def state() -> tuple[Any, ...]:
        settings = pydicom.config.settings
        modes = settings.reading_validation_mode, settings.writing_validation_mode
        return logging.getLogger("pydicom").disabled, modes, list(warnings.filters)

    data, before, switched = ct_bytes(SMALL), state(), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            slices = list(pool.map(read_slice, [data] * 200))
    finally:
        sys.setswitchinterval(switched)
    assert all(np.array_equal(slice_.hounsfield, slices[0].hounsfield) for slice_ in slices)
    assert state() == before


def test_written_files_pass_the_validation_of_pydicom() -> None:
    slice_ = read_slice(ct_bytes(SMALL, SmallestImagePixelValue=0, LargestImagePixelValue=1))
    data = write_slice(slice_, slice_.hounsfield + 1, HOW)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("error")
        patch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.RAISE)
        dataset = read(data)
        for element in dataset.iterall():
            assert element.value is not None
        dataset.save_as(BytesIO(), enforce_file_format=True)
    assert all(uid.is_valid for uid in (dataset.SOPInstanceUID, dataset.SeriesInstanceUID))
    assert (dataset.SmallestImagePixelValue, dataset.LargestImagePixelValue) == (SMALL.min() + 1, SMALL.max() + 1)


def uids(data: bytes) -> tuple[str, str]:
    dataset = read(data)
    return str(dataset.SeriesInstanceUID), str(dataset.SOPInstanceUID)


def test_a_repetition_gives_the_same_bytes_and_another_model_another_series() -> None:
    first = read_slice(ct_bytes(SMALL))
    second = read_slice(ct_bytes(SMALL, SOPInstanceUID="1.2.3.5"))
    other = Derivation(HOW.model, "cd" * 32, HOW.text, HOW.settings)
    threshold = Derivation(HOW.model, HOW.digest, HOW.text, "threshold 2000 HU")
    once = write_slice(first, first.hounsfield + 1, HOW)
    assert write_slice(read_slice(ct_bytes(SMALL)), first.hounsfield + 1, HOW) == once
    neighbour, model, settings, pixels = (
        uids(write_slice(source, source.hounsfield + change, how))
        for source, change, how in ((second, 1, HOW), (first, 1, other), (first, 1, threshold), (first, 2, HOW))
    )
    assert neighbour[0] == pixels[0] == uids(once)[0]
    assert len({uids(once)[0], model[0], settings[0], "1.2.3"}) == 4
    assert len({uids(once)[1], neighbour[1], model[1], settings[1], pixels[1]}) == 5


@pytest.mark.parametrize(
    ("value", "dtype", "named"), [(0, "u2", 0), (4000, "u2", 4000), (-2000, "i2", -2000), (-2000, "i2", 63536)]
)
def test_padding_stays_and_no_other_pixel_becomes_padding(value: int, dtype: str, named: int) -> None:
    stored = (SMALL.astype(dtype) % 2000) + np.array(10, dtype)
    stored[0] = value
    dataset_bytes = bytearray(ct_bytes(stored))
    dataset = read(bytes(dataset_bytes))
    dataset.add_new("PixelPaddingValue", "SS" if named < 0 else "US", named)
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    slice_ = read_slice(file.getvalue())
    assert slice_.is_padding[0].all()
    assert not slice_.is_padding[1:].any()
    assert (slice_.hounsfield[0] == -1024).all()
    restored = np.full_like(slice_.hounsfield, value - 1024)  # what padding would mean
    written = read(write_slice(slice_, restored, HOW)).pixel_array
    assert (written[0] == value).all()
    assert (np.abs(written[1:].astype(int) - value) == 1).all()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "magnetic resonance": ({"Modality": "MR"}, "modality MR"),
    "frames": ({"NumberOfFrames": "3"}, "3 frames in one file"),
    "colour": ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "only grey is CT"),
    "no slope": ({"RescaleSlope": None}, "no RescaleSlope"),
    "slope of 0": ({"RescaleSlope": "0"}, "or the slope is 0"),
    "other units": ({"RescaleType": "US"}, "only HU is meant"),
    "localizer": ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localizer"),
    "class": ({"SOPClassUID": pydicom.uid.SecondaryCaptureImageStorage}, "not CT Image Storage"),
    "pixels": ({"PixelSpacing": ["0.7", "0.9"]}, "resample them to square ones"),
    "no series": ({"SeriesInstanceUID": None}, "no SeriesInstanceUID"),
    "no pixels": ({"PixelData": None}, "no PixelData"),
    "bits": ({"BitsStored": 12}, r"bits allocated, stored and highest \(16, 12, 15\)"),
    "short": ({"Rows": 25}, "960 bytes of pixels where 1000 should be"),
    "a number that is none": ({"BitsAllocated": None}, "not a readable DICOM slice"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_ct_slice_is_refused_in_one_line_that_names_the_file(tmp_path: Path, name: str) -> None:
    changes, message = REFUSED[name]
    file = tmp_path / "1.dcm"
    file.write_bytes(ct_bytes(SMALL, **changes))
    with pytest.raises(ValueError, match=message) as caught:
        read_slice(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("syntax", "message"),
    [
        (ExplicitVRBigEndian, "Big Endian.*convert it to little endian"),
        (DeflatedExplicitVRLittleEndian, "Deflated.*decompress it first"),
    ],
)
def test_other_transfer_syntaxes_are_refused_by_name(syntax: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_slice(ct_bytes(SMALL, syntax))


def test_a_compression_without_a_decoder_is_refused_by_name() -> None:
    dataset = ct_dataset(SMALL)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
    dataset.PixelData = pydicom.encaps.encapsulate([b"no JPEG-LS"])
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    with pytest.raises(ValueError, match=r"JPEG-LS.*decompress it first"):
        read_slice(file.getvalue())


@pytest.mark.parametrize("data", [b"", b"no DICOM" * 40, b"\x89PNG\r\n\x1a\n" + bytes(200)])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="the mark DICM is missing"):
        read_slice(data)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_a_file_that_is_cut_short_is_refused_without_the_name_of_its_patient(share: float) -> None:
    data = ct_bytes(SMALL)
    with pytest.raises(ValueError, match=r"bytes of pixels|not a readable|no |modality") as caught:
        read_slice(data[: int(share * len(data))])
    assert "Secret" not in str(caught.value)
    assert caught.value.__cause__ is None


BROKEN = {
    "PatientBirthDate": ("19500101", "Secret^P"),
    "StudyTime": ("121314.000001", "Secret^Patien"),
    "RescaleSlope": ("0.100000000001", "Secret^Patient"),
    "WindowCenter": ("40.1234567890", "Secret^Patien"),
    "FrameOfReferenceUID": ("1.2.9.1234567.1", "Secret^Patient0"),
}
"""Element -> (a value that DICOM's rules allow, one of the same length that they do not)."""


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("name", BROKEN)
def test_nothing_that_is_printed_warned_or_logged_names_the_patient(
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
    name: str,
    syntax: str,
) -> None:
    caplog.set_level("DEBUG")
    good, bad = BROKEN[name]
    data = ct_bytes(SMALL, syntax, **{name: good}).replace(good.encode(), bad.encode())
    assert name != "FrameOfReferenceUID" or is_quoted_by_pydicom(data, name)  # else this test would see nothing
    capfd.readouterr()
    caplog.clear()
    recwarn.clear()
    shown = []
    try:
        slice_ = read_slice(data)
        assert bad.encode() in write_slice(slice_, slice_.hounsfield + 1, HOW)
        shown += [repr(slice_), str(slice_)]
    except ValueError as error:
        assert name == "RescaleSlope"
        shown.append("".join(traceback.format_exception(error)))
    shown += [caplog.text, *capfd.readouterr(), *(str(each.message) for each in recwarn)]
    assert not any("Secret" in each for each in shown)


def is_quoted_by_pydicom(data: bytes, name: str) -> bool:
    """Whether pydicom quotes the element in a warning or an error."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            getattr(read(data), name)
        except ValueError as error:
            return "Secret" in str(error)
    return any("Secret" in str(each.message) for each in warned)
