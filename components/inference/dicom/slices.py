"""One CT slice, read from a DICOM file into Hounsfield units."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from components.inference.dicom.silence import silent_pydicom

if TYPE_CHECKING:
    import pydicom

MAX_BYTES = 2**28
"""Largest DICOM file; a slice of 512 x 512 has 0.5 MB."""

_BITS = 16


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
        with silent_pydicom(), _opened(source) as file:
            return _read(file)
    except RefusedError as error:
        raise ValueError(f"{name}{error}") from None
    except OSError as error:
        raise ValueError(f"{name}cannot be read ({error.strerror or type(error).__name__})") from None
    except Exception as error:  # pydicom raises errors of any type, and their text may quote the file's elements
        raise ValueError(f"{name}not a readable DICOM slice ({type(error).__name__})") from None


class RefusedError(ValueError):
    """Its message is this module's own and quotes no element that names a patient."""


@contextmanager
def _opened(source: Path | bytes) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield BytesIO(source)
        return
    if not source.exists():
        raise RefusedError("there is no such file")
    if not source.is_file():
        raise RefusedError("not a file")
    if (size := source.stat().st_size) > MAX_BYTES:
        raise RefusedError(f"{size} bytes: at most {MAX_BYTES} for a slice")
    with source.open("rb") as file:
        yield file


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
        raise RefusedError(f"transfer syntax {syntax.name}: convert it to little endian first, with dcmconv +te")
    _own(check_syntax, syntax)
    file.seek(0)
    dataset = pydicom.dcmread(file)
    _own(check_slice, dataset)
    if dataset.get("SOPClassUID") != CTImageStorage:
        raise RefusedError("its class (SOPClassUID) is not CT Image Storage, so it cannot be written as a CT image")
    for name in ("SOPInstanceUID", "SeriesInstanceUID", "PixelData"):
        if not dataset.get(name):
            raise RefusedError(f"no {name}")
    bits = dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit
    if bits[0] != _BITS or not 2 <= bits[1] <= _BITS or bits[2] != bits[1] - 1:
        raise RefusedError(f"bits allocated, stored and highest {bits}: CT has 16, at most 16 and one less than stored")
    positions = [dataset.get((group, 0x0102)) for group in range(0x6000, 0x6020, 2)]  # OverlayBitPosition
    if any(position is not None and int(position.value or 0) for position in positions):
        raise RefusedError("an overlay lies within the pixels: move it to OverlayData first")
    if not _is_rescale(dataset):
        raise RefusedError("RescaleSlope and RescaleIntercept are no finite numbers, or the slope is 0")
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
            raise RefusedError(str(error)) from None
        raise


def _syntax(file: BinaryIO) -> Any:
    """Read the transfer syntax of a file, and nothing behind the elements of group 2."""
    from pydicom.filereader import read_dataset

    if file.read(132)[128:] != b"DICM":
        raise RefusedError("no DICOM file: the mark DICM is missing")
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
