"""Restoration of CT slices with metal that have no sinogram: the inputs of the network, and its output in HU.

A network of the task ct_mar was trained with two reconstructions of a simulated scan: one of the sinogram (the artifact
image), one of the sinogram interpolated across the metal trace (the LI image). Of a slice from a file there is no
sinogram. Its sinogram is therefore computed from the slice by the project's own forward projection.

- As in training: both images come from one sinogram by the same fan beam, filter and interpolation, in the same grey
  values, so that they are as sharp as the network expects. All steps are linear in the size of a pixel, so that the
  pixel spacing cancels out.
- Approximations: the sinogram is a projection of the reconstructed slice, streaks included, not the measured one. The
  fan beam is that of training, not the one of the scanner. It is scaled to the slice, so a slice keeps its pixels and
  may have more of them, and smaller ones, than the slices of training. The metal is what exceeds a threshold in the
  slice (or a given mask), and CT files often cut its values off (at 3071 HU).

Legend: H rows, W columns, S side of the square that holds the slice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from components.data.readers.dicom_elements import METAL_HU
from components.degradations.ct.attenuation import WATER, WHITE
from components.degradations.ct.geometry import FanBeam
from components.degradations.ct.interpolation import linear_interpolation
from components.degradations.ct.projection import project
from components.degradations.ct.reconstruction import filtered_back_projection
from components.inference.dicom.derived import Derivation, clipped, write_slice
from components.inference.dicom.slices import DicomSlice, read_slice

AIR = -1000.0  # HU
RANGE_HU = (AIR, 1000 * (WHITE / WATER - 1))
"""Hounsfield units of the grey values 0 and 1: -1000 and 1604."""

END = 0.01
"""An output this near to an end of the grey values says no more than that the pixel is at or beyond that end."""

OWN_PROJECTION = (
    "The linear-interpolation image was made from the reconstructed slice itself by forward projection, not from the "
    "measured sinogram."
)


@dataclass(frozen=True)
class RestoredSlice:
    """A restored slice.

    Attributes:
        data: the DICOM file.
        metal_pixels: number of pixels of the metal; with 0 the pixels of the slice are unchanged.
        clipped_pixels: number of pixels that the stored bits of the file could not hold.
        note: what was done, in sentences.
        pixels: number of pixels of the slice.
    """

    data: bytes
    metal_pixels: int
    clipped_pixels: int
    note: str
    pixels: int

    @property
    def summary(self) -> tuple[str, ...]:
        """What was done, in words that are the same for many slices."""
        if not self.metal_pixels:
            return ("no metal: pixels unchanged, written as a derived image",)
        clipping = ("values clipped to the range of the stored bits",) if self.clipped_pixels else ()
        return ("the LI image was made from the slice itself, as there is no sinogram", *clipping)


def find_metal(hounsfield: np.ndarray, metal: np.ndarray | None, threshold_hu: float = METAL_HU) -> np.ndarray:
    """Return the metal of a slice, ``(H, W)`` bool: the given mask, or the pixels above the threshold.

    Args:
        hounsfield: ``(H, W)``.
        metal: ``(H, W)``; 0 where there is no metal. None to use the threshold.
        threshold_hu: Hounsfield units; it is not used with a mask.

    Raises:
        ValueError: the mask has another size than the slice, or the threshold is not above that of dense bone's grey.
    """
    if metal is not None:
        if metal.shape != hounsfield.shape:
            sizes = [f"{each.shape[-1]}x{each.shape[-2]}" for each in (metal, hounsfield)]
            raise ValueError(f"the mask has {sizes[0]} pixels, its slice {sizes[1]}")
        return metal != 0
    if not AIR < threshold_hu < np.inf:
        raise ValueError(f"metal threshold {threshold_hu} HU: use a number above {AIR:g}, usually 2000 to 3000")
    return hounsfield > threshold_hu


def metal_inputs(
    hounsfield: np.ndarray,
    pixel_spacing_mm: float | None,
    metal: np.ndarray | None,
    threshold_hu: float = METAL_HU,
) -> tuple[np.ndarray, np.ndarray, str]:
    """Compute the inputs of a network of the task ct_mar from a reconstructed slice.

    The slice is projected as it is, without the clipping of grey values, and centred in a square of air if it is not
    square.

    Args:
        hounsfield: ``(H, W)`` Hounsfield units, 16 pixels or more on the longer side.
        pixel_spacing_mm: side of a pixel; None if it is unknown. The images do not depend on it.
        metal: ``(H, W)`` mask of the metal; None to use the threshold.
        threshold_hu: a pixel above it is metal, if there is no mask.

    Returns:
        (``(3, H, W)`` float32 in [0, 1]: LI image, artifact image and metal; the metal ``(H, W)`` bool; a sentence that
        says how the LI image was made).

    Raises:
        ValueError: the mask has another size, the slice is too small, or the metal covers the whole view of a detector.
    """
    found = find_metal(hounsfield, metal, threshold_hu)
    size = max(hounsfield.shape)
    geometry = FanBeam().scaled(size)
    if pixel_spacing_mm is not None:
        geometry = replace(geometry, field_cm=pixel_spacing_mm / 10 * size)
    attenuation = WATER * (1 + np.maximum(hounsfield, AIR) / 1000)
    rows, columns = ((size - side) // 2 for side in hounsfield.shape)
    inside = (slice(rows, rows + hounsfield.shape[0]), slice(columns, columns + hounsfield.shape[1]))
    squares = np.zeros((2, size, size), dtype=np.float32)  # 0 / cm is air
    squares[0][inside], squares[1][inside] = attenuation, found
    sinogram, paths = project(torch.from_numpy(squares), geometry)  # (V, D) each
    interpolated = linear_interpolation(sinogram, paths > 0)
    corrected, artifact = filtered_back_projection(torch.stack([interpolated, sinogram]), geometry)  # (S, S) each
    grey = [(image.numpy()[inside] / WHITE).clip(0, 1) for image in (corrected, artifact)]
    return np.stack([*grey, found]).astype(np.float32), found, OWN_PROJECTION


def restored_hounsfield(hounsfield: np.ndarray, grey: np.ndarray, metal: np.ndarray) -> np.ndarray:
    """Convert the output of the network to Hounsfield units, ``(H, W)`` float32.

    The metal is that of the slice, as in the literature. A pixel of the slice beyond the range of the network (air
    below -1000 HU, bone above 1604 HU) keeps its value where the output is at the same end of the range.

    Args:
        hounsfield: ``(H, W)``, the slice.
        grey: ``(H, W)``, the output of the network.
        metal: ``(H, W)`` bool.
    """
    low, high = RANGE_HU
    restored = (1000 * (grey.clip(0, 1).astype(np.float64) * WHITE / WATER - 1)).astype(np.float32)
    is_kept = metal | ((hounsfield < low) & (grey <= END)) | ((hounsfield > high) & (grey >= 1 - END))
    return np.where(is_kept, hounsfield, restored)


def restore_dicom(
    network: Callable[[np.ndarray], np.ndarray],
    source: Path | bytes,
    *,
    model: str,
    digest: str,
    metal: np.ndarray | None = None,
    threshold_hu: float = METAL_HU,
    settings: str = "",
) -> RestoredSlice:
    """Restore a slice of a DICOM file.

    A slice without metal is written as a derived image with unchanged pixels, so that a series stays whole: the network
    was not trained for such slices.

    Args:
        network: gives the output ``(1, H, W)`` of a network of the task ct_mar for inputs ``(3, H, W)``, both float32.
        source: path of a DICOM file, or its bytes.
        model: name of the model, for the elements of the file.
        digest: SHA-256 of the model or another name of it, likewise.
        metal: ``(H, W)`` mask of the metal; None to use the threshold.
        threshold_hu: a pixel above it is metal, if there is no mask.
        settings: how the network is used, as a self-ensemble; another text gives another series.

    Raises:
        ValueError: the file, the mask or the metal cannot be used; the message names the file if a path was given.
    """
    slice_ = read_slice(source)
    try:
        return _restored(network, slice_, model, digest, metal, threshold_hu, settings)
    except ValueError as error:
        raise ValueError(f"{source}: {error}" if isinstance(source, Path) else str(error)) from None


def _restored(
    network: Callable[[np.ndarray], np.ndarray],
    slice_: DicomSlice,
    model: str,
    digest: str,
    metal: np.ndarray | None,
    threshold_hu: float,
    settings: str,
) -> RestoredSlice:
    if metal is None and slice_.is_burnt_in:
        raise ValueError(
            "BurnedInAnnotation is YES: text in the pixels could be taken for metal; give the metal with a mask"
        )
    origin = f"the pixels above {threshold_hu:g} HU" if metal is None else "a given mask"
    found = find_metal(slice_.hounsfield, metal, threshold_hu) & ~slice_.is_padding
    restored, lost = slice_.hounsfield, 0
    if found.any():
        inputs, found, projection = metal_inputs(slice_.hounsfield, slice_.pixel_spacing_mm, found)
        restored = restored_hounsfield(slice_.hounsfield, network(inputs)[0], found)
        lost = clipped(slice_, restored)
        note = (
            f"Metal artifacts reduced by a network; metal: {origin}, {int(found.sum())} pixels, unchanged. {projection}"
        )
    else:
        note = f"No metal ({origin}): pixels unchanged."
    if lost:
        note += f" {lost} pixels clipped to the range of the stored bits."
    text = f"{note} Model {model}, digest {digest}. For research, not for diagnosis."
    derivation = Derivation(model, digest, text, f"{origin} {settings}".strip())
    data = write_slice(slice_, restored, derivation)
    return RestoredSlice(data, int(found.sum()), lost, note, restored.size)
