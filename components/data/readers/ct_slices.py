"""CT slices in Hounsfield units from npz, npy and DICOM files; pairs with metal artifacts in SynDeepLesion's layout.

Legend: H rows, W columns, N slices, K metal masks. Slices are converted one at a time. An npz file is decompressed once
and kept in its stored dtype. An npy file is memory-mapped. Of DICOM files, only the headers are kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pydicom
from PIL import Image

from components.brief import short_digest
from components.data.readers.dicom_elements import (
    METAL_HU,
    check_slice,
    check_syntax,
    square_spacing,
    stored_values,
    to_hounsfield,
)
from components.data.readers.safe_arrays import file_size, load_h5, load_npy, load_npz, naming_file

Report = Callable[[str], None]
T = TypeVar("T")

_NO_MASKS = np.zeros((1, 1, 0), dtype=np.uint8)
SYNDEEPLESION_SCALE = 0.5
"""Attenuation in 1/cm that is scaled to 1. On this data set, the literature computes the PSNR of values clipped to
[0, 0.5]."""

METAL_ATTENUATION = 1.5
"""Threshold for metal in the image with artifacts, in 1/cm: bone is below 0.6, titanium and heavier metals are above 2.
In one case that was compared, the pixels above the threshold are those of the stored mask."""


@dataclass(frozen=True)
class Slice:
    """One slice.

    Attributes:
        name: unique within one call of `read_ct`.
        patient: the patient; slices of one patient belong on one side of a split.
        hu: ``(H, W)`` float32, Hounsfield units.
        pixel_spacing_mm: side of a (square) pixel; None if it is unknown.
    """

    name: str
    patient: str
    hu: np.ndarray
    pixel_spacing_mm: float | None


@dataclass(frozen=True)
class MetalPair:
    """One slice without metal and with simulated metal, in units of `SYNDEEPLESION_SCALE`, not clipped.

    Attributes:
        name: unique within the data set: case, slice and mask.
        patient: the patient; pairs of one patient belong on one side of a split.
        clean: ``(1, H, W)`` float32, the reference.
        artifact: ``(1, H, W)`` float32, reconstructed from the sinogram with metal.
        linear_interpolation: ``(1, H, W)`` float32, reconstructed from the sinogram with the metal trace interpolated.
        mask: ``(1, H, W)`` bool, the metal; there is no reference at these pixels.
    """

    name: str
    patient: str
    clean: np.ndarray
    artifact: np.ndarray
    linear_interpolation: np.ndarray
    mask: np.ndarray


def holds_metal(hu: np.ndarray, threshold: float = METAL_HU) -> bool:
    """Return whether a pixel of a slice in Hounsfield units is above the threshold; such a slice is not clean."""
    return bool((hu > threshold).any())


def read_ct(path: Path, report: Report | None = None) -> Iterator[Slice]:
    """Read the slices of a file, or of all files in a folder and its subfolders, sorted by name; ignore hidden files.

    - ``.npz``: ``hu`` (N, H, W) or (H, W); optionally ``patient`` and ``fname`` (N,), ``pixel_spacing_mm`` (N,) or
      (N, 2). Without ``patient`` the file is one patient.
    - ``.npy``: (N, H, W) or (H, W), one patient.
    - ``.dcm``, ``.dicom``, ``.ima`` or no suffix: DICOM, one CT slice per file. Slices are sorted by series, then by
      position. ``RescaleSlope`` and ``RescaleIntercept`` are applied. MONOCHROME1 only affects the display of an image
      (DICOM PS3.3, C.7.6.3.1.2). The patient is a hash of ``PatientID``; ``PatientID`` itself is not stored.

    Args:
        path: path of the file or folder.
        report: called with a message for each file that cannot be used; the file is then skipped. Without it, the first
            such file is an error.

    Raises:
        ValueError: there is nothing to read, or a file is damaged or is not a CT slice in Hounsfield units. Reasons
            are another modality, a localizer, several frames, pixels that are not square, a compression without a
            decoder, values that are not finite, and values within [0, 1].
    """
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if is_ct_name(file.relative_to(path)) and file.is_file()]
        if not files:
            raise ValueError(f"{path}: no npz, npy or DICOM file in this folder")
    else:
        files = [path]
    root = path if path.is_dir() else path.parent
    arrays = [file for file in files if file.suffix.lower() in (".npz", ".npy")]
    for file in arrays:
        yield from _usable(report, _array_slices, file, _name(file, root))
    for file in _in_order([file for file in files if file not in set(arrays)], report):
        yield from _usable(report, _dicom_slices, file, _name(file, root))


def read_metal_pairs(folder: Path, report: Report | None = None) -> Iterator[MetalPair]:
    """Read the pairs of a folder in SynDeepLesion's layout, sorted by name.

    ``.../CASE/SLICE/gt.h5`` holds ``image``. In the same folder, ``N.h5`` holds ``ma_CT`` and ``LI_CT`` for mask N. The
    patient is CASE up to its first ``_``. The masks are in ``*mask.npy`` in the given folder, (H', W', K) uint8 of 0
    and 1, where N counts from 0. They are resized bilinearly, as in the data set's own code. If there is no mask N, the
    mask is the set of pixels at which ``ma_CT`` exceeds `METAL_ATTENUATION`.

    Args:
        folder: folder of the training or test part of the data set.
        report: as in `read_ct`.

    Raises:
        ValueError: there is nothing to read, a file is damaged, or mask N does not lie on metal because the mask file
            has another numbering.
    """
    truths = sorted(folder.rglob("gt.h5"))
    if not truths:
        raise ValueError(f"{folder}: no CASE/SLICE/gt.h5 in this folder; give SynDeepLesion's train or test folder")
    mask_files = sorted(folder.glob("*mask.npy"))
    if len(mask_files) > 1:
        raise ValueError(f"{folder}: several mask files, {', '.join(file.name for file in mask_files)}; keep one")
    masks = _masks(mask_files[0]) if mask_files else _NO_MASKS
    for truth in truths:
        for file in sorted((f for f in truth.parent.glob("*.h5") if f.stem.isdecimal()), key=lambda f: int(f.stem)):
            yield from _usable(report, _metal_pairs, file, masks)


def read_metal_pair(path: Path, masks: Path | None) -> MetalPair:
    """Read the pair of one ``N.h5`` with the ``gt.h5`` beside it; ``masks`` is the ``*mask.npy``, if there is one.

    Raises:
        ValueError: as in `read_metal_pairs`.
    """
    return _metal_pairs(path, _NO_MASKS if masks is None else _masks(masks))[0]


def is_ct_name(file: Path) -> bool:
    """Return whether `read_ct` would read a file with this relative path."""
    hidden = any(part.startswith(".") for part in file.parts)
    known = (
        file.suffix.lower() in (".npz", ".npy", ".dcm", ".dicom", ".ima", "") or file.suffix[1:].isdecimal()
    )  # 1.2.840.3
    return known and not hidden and file.name != "DICOMDIR"


def _usable(report: Report | None, read: Callable[..., Iterable[T]], *arguments: Any) -> Iterator[T]:
    try:
        yield from read(*arguments)
    except ValueError as error:
        if report is None:
            raise
        report(str(error))


def _name(file: Path, root: Path) -> str:
    """Return the relative path with ``__`` instead of ``/``, without a suffix that names the format."""
    name = file.relative_to(root).as_posix().replace("/", "__")
    return re.sub(r"\.(npz|npy|dcm|dicom|ima)$", "", name, flags=re.IGNORECASE)


def _array_slices(path: Path, name: str) -> Iterator[Slice]:
    """Read the slices of an npz or npy file."""
    if path.suffix.lower() == ".npz":
        arrays = load_npz(path, ["hu"], optional=["patient", "fname", "pixel_spacing_mm"])
    else:
        arrays = {"hu": load_npy(path)}
    with naming_file(path, "CT file"):
        hu = arrays["hu"][None] if arrays["hu"].ndim == 2 else arrays["hu"]  # (N, H, W)
        if hu.ndim != 3 or not hu.size or hu.dtype.kind not in "iuf":
            raise ValueError(f"hu is {hu.dtype} {arrays['hu'].shape}: give numbers of shape (N, H, W) or (H, W)")
        patients = [str(patient) for patient in _column(arrays, "patient", len(hu), name)]
        files = [re.split(r"[/\\]", str(file))[-1] for file in _column(arrays, "fname", len(hu), "")]
        names = [f"{name}-{file.removesuffix('.dcm')}" for file in files]
        if len(set(names)) < len(names) or "fname" not in arrays:
            names = [f"{name}-{index:04}" for index in range(len(hu))]
        spacings = [square_spacing(spacing) for spacing in _column(arrays, "pixel_spacing_mm", len(hu), None)]
    for values, patient, own, spacing in zip(hu, patients, names, spacings, strict=True):
        with naming_file(path, "CT file"):
            pixels = _checked(values, own)
        yield Slice(own, patient, pixels, spacing)


def _column(arrays: dict[str, np.ndarray], name: str, number: int, default: str | None) -> Sequence[Any]:
    """Return one entry per slice, from the file or the default."""
    if name not in arrays:
        return [default] * number
    column = np.atleast_1d(arrays[name])
    if len(column) != number:
        raise ValueError(f"{name} has {len(column)} entries for {number} slices")
    return list(column)


def _checked(values: np.ndarray, name: str) -> np.ndarray:
    """Convert values to ``(H, W)`` float32; check that they are finite and not scaled to [0, 1]."""
    hu = np.array(values, dtype=np.float32)
    if not np.isfinite(hu).all():
        raise ValueError(f"{name}: holds numbers that are not finite")
    if hu.min() >= 0 and hu.max() <= 1:
        raise ValueError(f"{name}: all values are in [0, 1]; give Hounsfield units (air -1000, water 0)")
    return hu


def _in_order(files: Sequence[Path], report: Report | None) -> list[Path]:
    """Sort DICOM files by series, then by position along the axis; omit files without a usable header."""
    keys: dict[Path, tuple[str, float]] = {}
    for file in files:
        for header in _usable(report, _headers, file):
            keys[file] = header
    return sorted(keys, key=lambda file: (*keys[file], file))


def _headers(path: Path) -> list[tuple[str, float]]:
    """Return (series, position) of a file, as a list with one element."""
    with naming_file(path, "DICOM slice"):
        dataset = _dataset(path, pixels=False)
        position, directions = dataset.get("ImagePositionPatient"), dataset.get("ImageOrientationPatient")
        if position and directions:
            axis = np.cross(*np.array(directions, dtype=np.float64).reshape(2, 3))
            where = float(np.dot(axis, np.array(position, dtype=np.float64)))
        else:
            where = float(dataset.get("SliceLocation", dataset.get("InstanceNumber")) or 0)
        if not np.isfinite(where):
            raise ValueError("its position is not finite")
        return [(str(dataset.get("SeriesInstanceUID", "")), where)]


def _dataset(path: Path, pixels: bool) -> pydicom.Dataset:
    """Read the elements of a file, which must be one CT slice, uncompressed or with an available decoder.

    The elements are checked before the pixels are decoded. The transfer syntax is checked before anything is read.
    """
    file_size(path)
    check_syntax(pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID"))
    dataset = pydicom.dcmread(path, force=False, stop_before_pixels=not pixels)
    check_slice(dataset)
    return dataset


def _dicom_slices(path: Path, name: str) -> list[Slice]:
    """Read the slice of a file, as a list with one element."""
    with naming_file(path, "DICOM slice"):
        dataset = _dataset(path, pixels=True)
        hu = to_hounsfield(dataset, stored_values(dataset))
        identity = str(dataset.get("PatientID") or dataset.get("StudyInstanceUID") or path.parent.name)
        patient = "patient-" + short_digest(identity)
        return [Slice(name, patient, _checked(hu, name), square_spacing(dataset.get("PixelSpacing")))]


def _masks(path: Path) -> np.ndarray:
    masks = load_npy(path)
    with naming_file(path, "mask file"):
        if masks.ndim != 3 or masks.dtype.kind not in "bu":
            raise ValueError(f"{masks.dtype} {masks.shape}: give uint8 of shape (H, W, K)")
    return masks


def _metal_pairs(path: Path, masks: np.ndarray) -> list[MetalPair]:
    """Read the pair of an ``N.h5``, as a list with one element."""
    truth = load_h5(path.with_name("gt.h5"), ["image"])["image"]
    simulated = load_h5(path, ["ma_CT", "LI_CT"])
    with naming_file(path, "SynDeepLesion file"):
        images = [truth, simulated["ma_CT"], simulated["LI_CT"]]
        if truth.ndim != 2 or len({image.shape for image in images}) > 1:
            raise ValueError(
                f"image, ma_CT and LI_CT are {[image.shape for image in images]}: one shape (H, W) is meant"
            )
        if not all(np.isfinite(image).all() for image in images):
            raise ValueError("holds numbers that are not finite")
        metal = simulated["ma_CT"] > METAL_ATTENUATION
        number = int(path.stem)
        if number < masks.shape[2]:
            mask = _resized(masks[:, :, number], truth.shape)
            if not mask.any() or metal[mask].mean() < 0.5:
                raise ValueError(f"mask {number} does not lie on its metal: the mask file has another numbering")
        else:
            mask = metal
        clean, artifact, interpolated = ((image[None] / SYNDEEPLESION_SCALE).astype(np.float32) for image in images)
        case = path.parent.parent.name
        name = f"{case}-{path.parent.name}-{path.stem}"
        return [MetalPair(name, case.split("_")[0], clean, artifact, interpolated, mask[None])]


def _resized(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize an (H', W') mask of 0 and 1 to ``(H, W)`` bool: bilinear interpolation, then rounding to 0 and 1."""
    small = Image.fromarray(np.ascontiguousarray(mask != 0).astype(np.uint8))
    return np.asarray(small.resize(shape[::-1], Image.Resampling.BILINEAR)) > 0
