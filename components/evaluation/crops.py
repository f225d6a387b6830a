"""Crops from the centre of images: degraded | restored | truth | error, side by side.

Legend: images are ``(C, H, W)`` in [0, 1], C = 1 or 3; s is the size of the clean image / size of the degraded image.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from components.evaluation.metrics import as_saved

SIDE = 128
"""Largest side of a crop, in pixels of the clean image."""

ERROR_GAIN = 5
"""The error is shown this many times as bright as it is."""

_GAP = 4  # white pixels between the columns


def centre_crop(inputs: np.ndarray, clean: np.ndarray, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """Cut the same square, or all of a smaller image, from the centre of a pair.

    Args:
        inputs: ``(C', h, w)``.
        clean: ``(C, s h, s w)``.
        side: largest side of the crop of ``clean``, in pixels.

    Returns:
        Crops of ``inputs`` and ``clean``.
    """
    scale = clean.shape[-1] // inputs.shape[-1]
    height, width = (min(size, max(1, side // scale)) for size in inputs.shape[-2:])
    top, left = (inputs.shape[-2] - height) // 2, (inputs.shape[-1] - width) // 2
    cut = clean[:, scale * top : scale * (top + height), scale * left : scale * (left + width)]
    return inputs[:, top : top + height, left : left + width], cut


def side_by_side(degraded: np.ndarray, restored: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Put a degraded image, its restoration, the truth and the error of the restoration side by side.

    The error is the absolute difference of the images as saved in 8 bits, in the mean over the channels, multiplied by
    ``ERROR_GAIN``.

    Args:
        degraded: ``(C, H, W)``.
        restored: ``(C, H, W)``.
        clean: ``(C, H, W)``.

    Returns:
        ``(H, 4 W + 3 gaps, 3)``, uint8.
    """
    saved = [as_saved(torch.from_numpy(np.array(image, dtype=np.float32))) for image in (degraded, restored, clean)]
    error = ERROR_GAIN * (saved[1] - saved[2]).abs().mean(dim=0, keepdim=True)
    columns = [*saved, error.clamp(max=1)]
    pixels = [(column * 255).round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0).numpy() for column in columns]
    gap = np.full((clean.shape[-2], _GAP, 3), 255, dtype=np.uint8)
    return np.concatenate([part for column in pixels for part in (column, gap)][:-1], axis=1)


def compared_crop(
    restore: Callable[[np.ndarray], np.ndarray],
    as_image: Callable[[np.ndarray], np.ndarray],
    inputs: np.ndarray,
    clean: np.ndarray,
) -> np.ndarray:
    """Restore the crop of a pair, and put it beside the degraded image, the truth and the error.

    Args:
        restore: inputs ``(C', h, w)`` -> restored image ``(C, H, W)``.
        as_image: inputs -> degraded image ``(C, H, W)``.
        inputs: ``(C', h, w)``.
        clean: ``(C, s h, s w)``.

    Returns:
        ``(H, 4 W + 3 gaps, 3)``, uint8.
    """
    given, wanted = centre_crop(inputs, clean)
    return side_by_side(as_image(given), restore(given), wanted)
