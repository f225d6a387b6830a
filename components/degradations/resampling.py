"""Bicubic resampling as MATLAB's imresize does it, and the low-resolution images of the super-resolution literature.

Legend: C channels, H rows, W columns. The centre of input pixel i lies at output coordinate ``(i + 1/2) s - 1/2`` for a
scale s = output size / input size: the images' outer edges coincide, not their outer pixels' centres.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import sparse

A = -0.5
"""Keys' parameter: the one value with which the kernel reproduces parabolas."""


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel of any shape; 1 at 0, 0 at the other integers and from |x| = 2 on.

    ``(A + 2) |x|^3 - (A + 3) |x|^2 + 1`` for |x| <= 1 and ``A (|x|^3 - 5 |x|^2 + 8 |x| - 4)`` for 1 < |x| < 2.

    Source: Keys, *Cubic convolution interpolation for digital image processing*, IEEE TASSP 1981.
    """
    x = np.abs(x)
    near = ((A + 2) * x - (A + 3)) * x**2 + 1
    far = A * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def imresize(image: np.ndarray, up: int = 1, down: int = 1) -> np.ndarray:
    """The image at ``up / down`` times its size: ``(..., H, W)`` -> ``(..., ceil(H up / down), ceil(W up / down))``.

    An output value is the mean of the inputs with the weights ``cubic(min(s, 1) d)``, d the distance in input pixels
    and s = up / down: for shrinking the kernel is widened by 1 / s, against aliasing. The image goes on beyond its
    border as its mirror image (the border pixel twice). Computed in float64, given back in the dtype of the image, not
    rounded or clipped: the kernel overshoots at edges. (MATLAB rounds an 8-bit image after each axis: a level of
    difference here and there.)

    Raises:
        ValueError: a scale is no positive integer, or the image is not of floating point.
    """
    if min(up, down) < 1 or up != int(up) or down != int(down):
        raise ValueError(f"scale {up} / {down}: use positive integers")
    if image.dtype.kind != "f" or image.ndim < 2:
        raise ValueError(f"image {image.shape} of {image.dtype}: give a floating point image (..., H, W)")
    rows = _along_rows(image.astype(np.float64), up, down)
    return np.ascontiguousarray(_along_rows(rows.swapaxes(-2, -1), up, down).swapaxes(-2, -1), dtype=image.dtype)


def bicubic_upsample(image: np.ndarray, scale: int) -> np.ndarray:
    """``(..., H, W)`` -> ``(..., scale H, scale W)``: what a super-resolution network has to beat (`imresize`)."""
    return imresize(image, up=scale)


def _along_rows(image: np.ndarray, up: int, down: int) -> np.ndarray:
    """Resamples the rows of (..., H, W); float64."""
    matrix = _weights(image.shape[-2], up, down)
    columns = np.moveaxis(image, -2, 0)  # (H, ..., W)
    resampled = matrix @ columns.reshape(columns.shape[0], -1)  # (H', ... W)
    return np.moveaxis(resampled.reshape(-1, *columns.shape[1:]), 0, -2)


@lru_cache(maxsize=64)
def _weights(size: int, up: int, down: int) -> sparse.csr_array:
    """The ``(ceil(size up / down), size)`` matrix that resamples one axis; its rows sum to 1."""
    outputs = -(-size * up // down)
    shrinking = min(up / down, 1.0)
    reach = 2 / shrinking  # of the kernel, in input pixels
    centres = (np.arange(outputs) + 0.5) * (down / up) - 0.5  # (outputs,)
    inputs = np.floor(centres - reach).astype(np.int64)[:, None] + np.arange(int(np.ceil(2 * reach)) + 2)
    weights = cubic(shrinking * (centres[:, None] - inputs))  # (outputs, taps)
    weights /= weights.sum(axis=1, keepdims=True)
    mirrored = inputs % (2 * size)
    mirrored = np.where(mirrored < size, mirrored, 2 * size - 1 - mirrored)
    numbers = np.broadcast_to(np.arange(outputs)[:, None], inputs.shape)
    matrix = sparse.coo_array((weights.ravel(), (numbers.ravel(), mirrored.ravel())), shape=(outputs, size)).tocsr()
    matrix.eliminate_zeros()
    return matrix


@dataclass(frozen=True)
class Bicubic:
    """The image at ``1 / scale`` of its size, shrunk by `imresize`: the "BI" degradation of super-resolution.

    The result is the inside of the shrunk large image, if the crop begins at a multiple of `scale` in it. A whole image
    that is first padded by `margin` with its mirror image (numpy's "symmetric") comes out as ``imresize`` of it.

    Attributes:
        scale: 2, 3, 4 ...
        rounded: clip to [0, 1] and round to 8 bits, as the low-resolution files of the benchmarks are.

    Raises:
        ValueError: the scale is no integer of 1 or more; when called, a side of the image is no multiple of it.
    """

    scale: int
    rounded: bool = False

    def __post_init__(self) -> None:
        if self.scale != int(self.scale) or not 1 <= self.scale <= 16:
            raise ValueError(f"scale {self.scale}: use an integer from 1 to 16")

    @property
    def margin(self) -> int:
        """Pixels of the clean image on each side: a multiple of the scale that holds the kernel's reach."""
        return 2 * self.scale

    def __call__(self, clean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """``(C, H + 2 margin, W + 2 margin)`` float32 -> ``(C, H / scale, W / scale)``; draws nothing."""
        if any(side % self.scale or side <= 2 * self.margin for side in clean.shape[-2:]):
            height, width = (side - 2 * self.margin for side in clean.shape[-2:])
            raise ValueError(
                f"{height} x {width} pixels and a margin of {self.margin} cannot be shrunk by {self.scale}: "
                f"cut the image to multiples of {self.scale}"
            )
        small = imresize(clean, down=self.scale)[..., 2:-2, 2:-2]
        if self.rounded:
            small = np.floor(np.clip(small, 0, 1) * 255 + np.float32(0.5)) / np.float32(255)
        return np.ascontiguousarray(small)
