"""Bicubic resampling as in MATLAB's imresize, and the low-resolution images of the super-resolution literature.

Legend: C channels, H rows, W columns. The centre of input pixel i lies at output coordinate ``(i + 1/2) s - 1/2`` for a
scale s = output size / input size. The outer edges of both images coincide; the centres of their outer pixels do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import sparse

A = -0.5
"""Keys' parameter: the only value with which the kernel reproduces parabolas."""


def cubic(x: np.ndarray) -> np.ndarray:
    """Evaluate Keys' cubic convolution kernel for an array of any shape.

    ``(A + 2) |x|^3 - (A + 3) |x|^2 + 1`` for |x| <= 1 and ``A (|x|^3 - 5 |x|^2 + 8 |x| - 4)`` for 1 < |x| < 2. The
    kernel is 1 at 0. It is 0 at the other integers and for |x| >= 2.

    Source: Keys, *Cubic convolution interpolation for digital image processing*, IEEE TASSP 1981.

    Example:
        >>> cubic(np.array([0.0, 0.5, 1.0, 1.5, 2.0]))
        array([ 1.    ,  0.5625,  0.    , -0.0625,  0.    ])
    """
    x = np.abs(x)
    near = ((A + 2) * x - (A + 3)) * x**2 + 1
    far = A * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def imresize(image: np.ndarray, up: int = 1, down: int = 1) -> np.ndarray:
    """Resize an image by ``up / down``: ``(..., H, W)`` -> ``(..., ceil(H up / down), ceil(W up / down))``.

    An output value is the weighted mean of the inputs with the weights ``cubic(min(s, 1) d)``. Here d is the distance
    in input pixels and s = up / down. For shrinking, the kernel is widened by 1 / s to prevent aliasing. The image is
    extended beyond its border by its mirror image (the border pixel occurs twice). The result is computed in float64
    and returned in the dtype of the image. It is not rounded or clipped, because the kernel overshoots at edges.
    (MATLAB rounds an 8-bit image after each axis, so single values differ by one level.)

    Args:
        image: ``(..., H, W)``, floating point.
        up: numerator of the scale.
        down: denominator of the scale.

    Raises:
        ValueError: ``up`` or ``down`` is not a positive integer, or the image is not of floating point.

    Example:
        >>> image = np.full((3, 6, 9), 0.5)
        >>> imresize(image, down=2).shape, imresize(image, up=4, down=3).shape
        ((3, 3, 5), (3, 8, 12))
    """
    if min(up, down) < 1 or up != int(up) or down != int(down):
        raise ValueError(f"scale {up} / {down}: use positive integers")
    if image.dtype.kind != "f" or image.ndim < 2:
        raise ValueError(f"image {image.shape} of {image.dtype}: give a floating point image (..., H, W)")
    rows = _along_rows(image.astype(np.float64), up, down)
    return np.ascontiguousarray(_along_rows(rows.swapaxes(-2, -1), up, down).swapaxes(-2, -1), dtype=image.dtype)


def bicubic_upsample(image: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge an image with `imresize`; this is the baseline of super-resolution.

    Shape: ``(..., H, W)`` -> ``(..., scale H, scale W)``.

    Example:
        >>> bicubic_upsample(np.zeros((3, 4, 5)), scale=2).shape
        (3, 8, 10)
    """
    return imresize(image, up=scale)


def _along_rows(image: np.ndarray, up: int, down: int) -> np.ndarray:
    """Resample the rows of a float64 image ``(..., H, W)``."""
    matrix = _weights(image.shape[-2], up, down)
    columns = np.moveaxis(image, -2, 0)  # (H, ..., W)
    resampled = matrix @ columns.reshape(columns.shape[0], -1)  # (H', ... W)
    return np.moveaxis(resampled.reshape(-1, *columns.shape[1:]), 0, -2)


@lru_cache(maxsize=64)
def _weights(size: int, up: int, down: int) -> sparse.csr_array:
    """Return the matrix ``(ceil(size up / down), size)`` that resamples one axis; its rows sum to 1."""
    outputs = -(-size * up // down)
    shrinking = min(up / down, 1.0)
    reach = 2 / shrinking  # radius of the kernel in input pixels
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
    """Shrink the image to ``1 / scale`` of its size by `imresize`: the "BI" degradation of super-resolution.

    If a crop begins at a multiple of `scale` in a large image, its result is the interior of the shrunk large image. If
    a whole image is first padded by `margin` with its mirror image (numpy's "symmetric"), the result is ``imresize`` of
    the image.

    Attributes:
        scale: an integer from 1 to 16.
        rounded: clip to [0, 1] and round to 8 bits, as in the low-resolution files of the benchmarks.

    Raises:
        ValueError: the scale is not an integer from 1 to 16; when called, a side of the image is not a multiple of it.

    Example:
        >>> degrade = Bicubic(scale=2, rounded=True)
        >>> clean = np.pad(np.full((3, 8, 12), 0.5, dtype=np.float32), ((0, 0), (4, 4), (4, 4)), "symmetric")
        >>> degrade.margin, degrade(clean, np.random.default_rng(0)).shape
        (4, (3, 4, 6))
    """

    scale: int
    rounded: bool = False

    def __post_init__(self) -> None:
        if self.scale != int(self.scale) or not 1 <= self.scale <= 16:
            raise ValueError(f"scale {self.scale}: use an integer from 1 to 16")

    @property
    def margin(self) -> int:
        """Margin in pixels on each side: a multiple of the scale that covers the kernel's support."""
        return 2 * self.scale

    def __call__(self, clean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """``(C, H + 2 margin, W + 2 margin)`` float32 -> ``(C, H / scale, W / scale)``; uses no random numbers."""
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
