"""A DICOM CT slice in and out: read into Hounsfield units, and written as a derived image of the same series of slices.

No message of this module, and no representation of its objects, holds a value of a file's elements that could name a
patient. Messages of pydicom can quote such values, so they are replaced and its warnings are silenced.

Legend: H rows, W columns.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from components.data.readers.quiet import no_warnings

if TYPE_CHECKING:
    import pydicom

MAX_BYTES = 2**28
"""Largest DICOM file; a slice of 512 x 512 has 0.5 MB."""

_DESCRIPTION, _TEXT = 64, 1024  # most characters of DICOM's LO and ST
_BITS = 16
_TEXT_VRS = ("LO", "LT", "PN", "SH", "ST", "UC", "UT")  # of SpecificCharacterSet
_WRONG_AFTERWARDS = (
    "DigitalSignaturesSequence",  # of the source's pixels
    "MACParametersSequence",
    "InstanceCreationDate",  # of the source; the output of a command names no time
    "InstanceCreationTime",
    "InstanceCreatorUID",
    "IconImageSequence",  # a small image of the source's pixels
    "ExtendedOffsetTable",  # of compressed pixels
    "ExtendedOffsetTableLengths",
    "EncapsulatedPixelDataValueTotalLength",
)
_PYDICOM = threading.Lock()
"""Held while pydicom is silent: its settings and its logger are those of the whole process."""


@dataclass(frozen=True)
class DicomSlice:
    """One slice of a DICOM file.

    Attributes:
        hounsfield: ``(H, W)`` float32, Hounsfield units; padding is -1024.
        pixel_spacing_mm: side of a pixel; None if the file does not say.
        is_padding: ``(H, W)`` bool, pixels outside the scan, which are never changed.
        is_burnt_in: whether the file says that its pixels hold text (``BurnedInAnnotation``).
        words: ``(H, W)`` uint16, the pixels as they are stored, signed ones as their bits.
        dataset: all elements of the file; not part of the representation, as it names the patient.
    """

    hounsfield: np.ndarray = field(repr=False)
    pixel_spacing_mm: float | None
    is_padding: np.ndarray = field(repr=False)
    is_burnt_in: bool
    words: np.ndarray = field(repr=False)
    dataset: pydicom.Dataset = field(repr=False)


@dataclass(frozen=True)
class Derivation:
    """How a derived image was made, for its elements.

    Attributes:
        model: name of the model, as ``eqreg-ct_mar version 3``.
        digest: SHA-256 of the model, or another name of it.
        text: what was done; at most 1024 characters.
        settings: what else decides the pixels of the whole series, as the threshold of the metal.
    """

    model: str
    digest: str
    text: str
    settings: str = ""


def read_slice(source: Path | bytes) -> DicomSlice:
    """Read a CT slice.

    Args:
        source: path of a DICOM file, or its bytes.

    Raises:
        ValueError: it is no DICOM file, or not one CT slice in Hounsfield units that can be written again. Refused are
            another modality or class than a CT image, a localizer, several frames, colour, elements of the rescale or
            of the identity that are missing, pixels that are not square, other than 16 allocated bits, overlays within
            the pixels, big endian, deflated files, and a compression without a decoder. The message has one line and
            names the file if a path was given.
    """
    name = f"{source}: " if isinstance(source, Path) else ""
    try:
        with _silent_pydicom(), _opened(source) as file:
            return _read(file)
    except _RefusedError as error:
        raise ValueError(f"{name}{error}") from None
    except OSError as error:
        raise ValueError(f"{name}cannot be read ({error.strerror or type(error).__name__})") from None
    except Exception as error:  # pydicom raises errors of any type, and their text may quote the file's elements
        raise ValueError(f"{name}not a readable DICOM slice ({type(error).__name__})") from None


def write_slice(slice_: DicomSlice, restored: np.ndarray, derivation: Derivation) -> bytes:
    r"""Write a restored slice as a DICOM file: explicit VR, little endian, without compression.

    A pixel whose value is that of the slice keeps its stored bits. Other values are rounded to the slope of the file
    and clipped to the range of its stored bits (`clipped`). Padding stays, and no other pixel gets its value.

    The elements say that the image is derived: ``ImageType`` begins with ``DERIVED\SECONDARY``, the instance has a new
    UID, the series has a new UID and the model in its description, ``DerivationDescription`` holds the text,
    ``SourceImageSequence`` names the source, and ``ContributingEquipmentSequence`` the model. The UIDs are computed
    from those of the source, the model, the settings and (of the instance) the pixels, so that a repetition gives the
    same bytes. Signatures, the icon, the creation time and the lengths of compressed pixels of the source are left out,
    the smallest and largest pixel value are updated if they are there. All other elements, private ones too, are
    unchanged.

    Args:
        slice_: the slice that was restored.
        restored: ``(H, W)`` Hounsfield units.
        derivation: how it was made.

    Raises:
        ValueError: the shape differs, a value is not finite, or an element of the file cannot be written as it was.
    """
    words, _ = _stored(slice_, restored)
    try:
        with _silent_pydicom():
            _check_text(slice_.dataset)
            return _written(slice_, words, derivation)
    except _RefusedError as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # as in `read_slice`
        raise ValueError(
            f"an element of this DICOM file cannot be written again ({type(error).__name__}): convert the file first, "
            "for instance with dcmconv or gdcmconv"
        ) from None


def clipped(slice_: DicomSlice, restored: np.ndarray) -> int:
    """Count the pixels of a restored slice that the stored bits of the file cannot hold.

    Args:
        slice_: the slice that was restored.
        restored: ``(H, W)`` Hounsfield units.
    """
    return _stored(slice_, restored)[1]


class _RefusedError(ValueError):
    """Its message is this module's own and quotes no element that names a patient."""


@contextmanager
def _opened(source: Path | bytes) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield BytesIO(source)
        return
    if not source.exists():
        raise _RefusedError("there is no such file")
    if not source.is_file():
        raise _RefusedError("not a file")
    if (size := source.stat().st_size) > MAX_BYTES:
        raise _RefusedError(f"{size} bytes: at most {MAX_BYTES} for a slice")
    with source.open("rb") as file:
        yield file


@contextmanager
def _silent_pydicom() -> Iterator[None]:
    """Silence pydicom's warnings and logger, and let it write values that break DICOM's rules as they were read.

    One thread at a time: of two that overlap, the first to end would let pydicom speak while the other one reads.
    """
    from pydicom import config

    logger = logging.getLogger("pydicom")
    with _PYDICOM:
        was_disabled, logger.disabled = logger.disabled, True
        try:
            with no_warnings, config.disable_value_validation():
                yield
        finally:
            logger.disabled = was_disabled


def _read(file: BinaryIO) -> DicomSlice:
    import pydicom
    from pydicom.uid import CTImageStorage, ExplicitVRBigEndian

    from components.data.readers.dicom_elements import (
        check_slice,
        check_syntax,
        padding_of,
        square_spacing,
        stored_values,
        to_hounsfield,
    )

    syntax = _syntax(file)
    if syntax == ExplicitVRBigEndian:
        raise _RefusedError(f"transfer syntax {syntax.name}: convert it to little endian first, with dcmconv +te")
    _own(check_syntax, syntax)
    file.seek(0)
    dataset = pydicom.dcmread(file)
    _own(check_slice, dataset)
    if dataset.get("SOPClassUID") != CTImageStorage:
        raise _RefusedError("its class (SOPClassUID) is not CT Image Storage, so it cannot be written as a CT image")
    for name in ("SOPInstanceUID", "SeriesInstanceUID", "PixelData"):
        if not dataset.get(name):
            raise _RefusedError(f"no {name}")
    bits = dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit
    if bits[0] != _BITS or not 2 <= bits[1] <= _BITS or bits[2] != bits[1] - 1:
        raise _RefusedError(
            f"bits allocated, stored and highest {bits}: CT has 16, at most 16 and one less than stored"
        )
    positions = [dataset.get((group, 0x0102)) for group in range(0x6000, 0x6020, 2)]  # OverlayBitPosition
    if any(position is not None and int(position.value or 0) for position in positions):
        raise _RefusedError("an overlay lies within the pixels: move it to OverlayData first")
    if not _is_rescale(dataset):
        raise _RefusedError("RescaleSlope and RescaleIntercept are no finite numbers, or the slope is 0")
    stored = _own(stored_values, dataset)
    return DicomSlice(
        to_hounsfield(dataset, stored).astype(np.float32),
        _own(square_spacing, dataset.get("PixelSpacing")),
        padding_of(dataset, stored),
        dataset.get("BurnedInAnnotation") == "YES",
        _words(dataset, stored),
        dataset,
    )


def _is_rescale(dataset: pydicom.Dataset) -> bool:
    try:
        slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
    except (TypeError, ValueError):
        return False
    return bool(np.isfinite([slope, intercept]).all()) and slope != 0


def _own(check: Any, *arguments: Any) -> Any:
    """Call a check of the project, whose messages quote no element that names a patient."""
    try:
        return check(*arguments)
    except ValueError as error:
        # A message of pydicom or numpy that comes through a check is not the project's own.
        frame = error.__traceback__
        while frame and frame.tb_next:
            frame = frame.tb_next
        if frame and frame.tb_frame.f_globals.get("__name__") == check.__module__:
            raise _RefusedError(str(error)) from None
        raise


def _syntax(file: BinaryIO) -> Any:
    """Read the transfer syntax of a file, and nothing behind the elements of group 2."""
    from pydicom.filereader import read_dataset

    if file.read(132)[128:] != b"DICM":
        raise _RefusedError("no DICOM file: the mark DICM is missing")
    meta = read_dataset(
        file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, vr, size: tag >> 16 != 2
    )
    return meta.get("TransferSyntaxUID")


def _words(dataset: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
    """Return the 16 bits of each pixel, ``(H, W)`` uint16."""
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        return stored.astype(np.int64).astype(np.uint16)  # modulo 2^16
    count = stored.size
    return np.frombuffer(dataset.PixelData, dtype="<u2", count=count).reshape(stored.shape).astype(np.uint16)


def _range(dataset: pydicom.Dataset) -> tuple[int, int]:
    """Return the smallest and the largest stored value."""
    bits = int(dataset.BitsStored)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.PixelRepresentation else (0, 2**bits - 1)


def _stored(slice_: DicomSlice, restored: np.ndarray) -> tuple[np.ndarray, int]:
    """Convert Hounsfield units to stored bits.

    Returns:
        ((H, W) uint16, the number of values that were clipped).
    """
    from components.data.readers.dicom_elements import padding_range

    if restored.shape != slice_.hounsfield.shape or not np.isfinite(restored).all():
        raise ValueError(f"restored {restored.shape}: give finite Hounsfield units of shape {slice_.hounsfield.shape}")
    dataset = slice_.dataset
    changed = (restored != slice_.hounsfield) & ~slice_.is_padding
    low, high = _range(dataset)
    values = np.rint(
        (restored[changed].astype(np.float64) - float(dataset.RescaleIntercept)) / float(dataset.RescaleSlope)
    )
    outside = int(((values < low) | (values > high)).sum())
    values = values.clip(low, high).astype(np.int64)
    if dataset.get("PixelPaddingValue") is not None:
        first, last = padding_range(dataset)
        values[(values >= first) & (values <= last)] = last + 1 if last < high else first - 1
    words = slice_.words.copy()
    words[changed] = values.astype(np.uint16)  # modulo 2^16: negative values extend their sign
    return words, outside


def _check_text(dataset: pydicom.Dataset) -> None:
    """Check that the text of a file with implicit VR, which is decoded and encoded again, comes back as it was."""
    if not dataset.file_meta.TransferSyntaxUID.is_implicit_VR:
        return
    if any("\ufffd" in str(element.value) for element in dataset.iterall() if element.VR in _TEXT_VRS):
        raise _RefusedError(
            "an element's text is not in the file's SpecificCharacterSet, so it would be damaged: convert the file to "
            "explicit VR first, for instance with dcmconv +te"
        )


def _written(slice_: DicomSlice, words: np.ndarray, derivation: Derivation) -> bytes:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    source = slice_.dataset
    dataset = copy.deepcopy(source)
    for name in _WRONG_AFTERWARDS:
        if name in dataset:
            delattr(dataset, name)
    pixels = words.astype("<u2").tobytes()
    dataset.add_new("PixelData", "OW", pixels)
    _update_extremes(dataset, words)
    model, digest, settings = (_ascii(text) for text in (derivation.model, derivation.digest, derivation.settings))
    instance = _uid(source.SOPInstanceUID, digest, settings, hashlib.sha256(pixels).hexdigest())
    series = _uid(source.SeriesInstanceUID, digest, settings)
    kinds = source.get("ImageType") or ()  # a single value is a str
    further = [] if isinstance(kinds, str) else list(kinds)[2:]
    dataset.ImageType = ["DERIVED", "SECONDARY", *(further or ["AXIAL"])]
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID = UID(instance), UID(series)
    own = model[:_DESCRIPTION]
    before = str(source.get("SeriesDescription") or "")[: max(0, _DESCRIPTION - len(own) - 3)].rstrip()
    dataset.SeriesDescription = f"{before} | {own}" if before else own
    dataset.DerivationDescription = _ascii(derivation.text)[:_TEXT]
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    reference.PurposeOfReferenceCodeSequence = [
        _code("121322", "Source image for image processing operation"),
    ]
    dataset.SourceImageSequence = [reference]
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [_code("109103", "Modifying Equipment")]
    equipment.Manufacturer = "eqreg"
    equipment.ManufacturerModelName, equipment.SoftwareVersions = model[:_DESCRIPTION], digest[:_DESCRIPTION]
    dataset.ContributingEquipmentSequence = [*(dataset.get("ContributingEquipmentSequence") or ()), equipment]
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(instance)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for name in ("ImplementationClassUID", "ImplementationVersionName"):  # of the program that wrote the source
        if name in dataset.file_meta:
            delattr(dataset.file_meta, name)
    dataset.preamble = bytes(128)  # another format's header there would point to places of the source
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return file.getvalue()


def _update_extremes(dataset: pydicom.Dataset, words: np.ndarray) -> None:
    """Correct the elements that hold the smallest and the largest pixel value, if they are there."""
    low, high = _range(dataset)
    values = words.astype(np.int64) % 2 ** int(dataset.BitsStored)
    values[values > high] += 2 * low  # the sign of a signed value
    for name, value in (("SmallestImagePixelValue", values.min()), ("LargestImagePixelValue", values.max())):
        if name in dataset:
            dataset.add_new(name, "SS" if dataset.PixelRepresentation else "US", int(value))


def _code(value: str, meaning: str) -> pydicom.Dataset:
    """Return an item of a code sequence, of DICOM's own scheme (PS3.16)."""
    from pydicom.dataset import Dataset

    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


def _uid(*parts: str) -> str:
    """Return the UID of a name: 2.25 and a UUID of version 5 as a decimal number (PS3.5, B.2)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '|'.join(map(str, parts))).int}"


def _ascii(text: str) -> str:
    """Return a text in the characters that every DICOM file may hold, on one line."""
    return " ".join(text.encode("ascii", "replace").decode().replace("\\", "/").split())
