"""The elements of a DICOM file that make it one CT slice in Hounsfield units, checked and converted.

Legend: H rows, W columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pydicom
from pydicom.pixels import get_decoder
from pydicom.uid import DeflatedExplicitVRLittleEndian

LARGEST_SIDE = 4096  # pixels: limit for a DICOM slice; scanners produce 512 to 2048

METAL_HU = 2500.0
"""A pixel above this value is metal; cortical bone and teeth reach 2000 to 2400 HU."""

PADDING_HU = -1024.0
"""Replaces the padding value of a DICOM file, which is used outside the round field of view."""


def check_syntax(syntax: Any) -> None:
    """Check that pixels of a transfer syntax can be decoded here; to be called before the file is read.

    A deflated file is refused, because it is decompressed as a whole.

    Args:
        syntax: the UID of the syntax; None if the file names none.

    Raises:
        ValueError: they cannot.
    """
    if syntax is None or syntax == DeflatedExplicitVRLittleEndian or not _can_decode(syntax):
        name = "none" if syntax is None else syntax.name
        raise ValueError(
            f"transfer syntax {name}: decompress it first, for instance with dcmdjpeg, dcmdjpls or gdcmconv"
        )


def check_slice(dataset: pydicom.Dataset) -> None:
    """Check that the elements are those of one CT slice in Hounsfield units; the pixels are not looked at.

    Raises:
        ValueError: they are not.
    """
    modality = dataset.get("Modality")
    if modality != "CT":
        raise ValueError(f"modality {modality}: only CT has Hounsfield units")
    if "LOCALIZER" in (dataset.get("ImageType") or ()):
        raise ValueError("a localizer (scout view), not a slice")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise ValueError(f"{dataset.NumberOfFrames} frames in one file: split it into slices")
    if dataset.get("SamplesPerPixel", 1) != 1 or dataset.get("PhotometricInterpretation") not in (
        "MONOCHROME1",
        "MONOCHROME2",
    ):
        raise ValueError(f"photometric interpretation {dataset.get('PhotometricInterpretation')}: only grey is CT")
    rows, columns = dataset.get("Rows"), dataset.get("Columns")
    if not (isinstance(rows, int) and isinstance(columns, int) and 0 < rows <= LARGEST_SIDE >= columns > 0):
        raise ValueError(f"{rows} rows and {columns} columns: at most {LARGEST_SIDE} each")
    if dataset.get("RescaleSlope") is None or dataset.get("RescaleIntercept") is None:
        raise ValueError("no RescaleSlope and RescaleIntercept: its numbers are not in Hounsfield units")
    if (dataset.get("RescaleType") or "HU") != "HU":
        raise ValueError(f"rescaled to {dataset.RescaleType}: only HU is meant")


def stored_values(dataset: pydicom.Dataset) -> np.ndarray:
    """Decode the pixels as they are stored, ``(H, W)`` integers, of elements that `check_slice` accepts.

    Raises:
        ValueError: there are more or fewer bytes than pixels.
    """
    if not dataset.file_meta.TransferSyntaxUID.is_compressed:
        expected = dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
        if len(dataset.PixelData) not in (expected, expected + 1):  # an odd number of bytes is padded
            raise ValueError(f"{len(dataset.PixelData)} bytes of pixels where {expected} should be")
    return np.asarray(dataset.pixel_array)


def padding_of(dataset: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
    """Return where pixels hold the padding value, or a value of the range of padding, ``(H, W)`` bool."""
    if dataset.get("PixelPaddingValue") is None:
        return np.zeros(stored.shape, dtype=bool)
    low, high = padding_range(dataset)
    return (stored >= low) & (stored <= high)


def padding_range(dataset: pydicom.Dataset) -> tuple[int, int]:
    """Return the lowest and the highest padding value of a file with ``PixelPaddingValue``.

    The element may name the bits of a signed value as an unsigned one, or the reverse; the pixels' sign decides.
    """
    is_signed = bool(dataset.get("PixelRepresentation"))
    ends = []
    for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        if (value := dataset.get(name)) is not None:
            bits = int(value) % 2**16
            ends.append(bits - 2**16 if is_signed and bits >= 2**15 else bits)
    return min(ends), max(ends)


def to_hounsfield(dataset: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
    """Convert stored values to Hounsfield units by the file's slope and intercept, ``(H, W)`` float64.

    Padding becomes `PADDING_HU`.
    """
    hu = stored.astype(np.float64) * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    hu[padding_of(dataset, stored)] = PADDING_HU
    return hu


def square_spacing(spacing: Any) -> float | None:
    """Return the side of a pixel in mm; None if it is unknown.

    Args:
        spacing: one number or two, in mm; None if they are unknown.

    Raises:
        ValueError: the pixels are not square, or a number is not positive.
    """
    if spacing is None:
        return None
    sides = np.atleast_1d(np.asarray(spacing, dtype=np.float64))
    if sides.size not in (1, 2) or not (np.isfinite(sides).all() and sides.min() > 0):
        raise ValueError(f"pixel spacing {spacing}: give a positive number of millimetres")
    if sides.max() > 1.01 * sides.min():
        raise ValueError(f"pixels of {sides[0]:g} x {sides[1]:g} mm: resample them to square ones")
    return float(sides.mean())


def _can_decode(syntax: Any) -> bool:
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False
