"""A restored slice as a derived image: a DICOM file with the elements of its source, and with what was done to it."""

from __future__ import annotations

import copy
import hashlib
import uuid
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from components.inference.dicom.silence import silent_pydicom
from components.inference.dicom.slices import DicomSlice, RefusedError

if TYPE_CHECKING:
    import pydicom

_DESCRIPTION, _TEXT = 64, 1024  # most characters of DICOM's LO and ST
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
        with silent_pydicom():
            _check_text(slice_.dataset)
            return _written(slice_, words, derivation)
    except RefusedError as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # as in `slices.read_slice`
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


def _range(dataset: pydicom.Dataset) -> tuple[int, int]:
    """Return the smallest and the largest stored value."""
    bits = int(dataset.BitsStored)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.PixelRepresentation else (0, 2**bits - 1)


def _check_text(dataset: pydicom.Dataset) -> None:
    """Check that the text of a file with implicit VR, which is decoded and encoded again, comes back as it was."""
    if not dataset.file_meta.TransferSyntaxUID.is_implicit_VR:
        return
    if any("\ufffd" in str(element.value) for element in dataset.iterall() if element.VR in _TEXT_VRS):
        raise RefusedError(
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
