"""Removal of the blocking and ringing artifacts of JPEG without knowledge of the quality.

Legend: images are numpy ``(C, H, W)`` float32, C = 1 or 3.
"""

from __future__ import annotations

import io
from itertools import product

import numpy as np
from PIL import Image

BLOCK = 8


def bilateral(image: np.ndarray, sigma_color: float, sigma_spatial: float) -> np.ndarray:
    """Bilateral filter: a mean with Gaussian weights of distance and of contrast; the channels are coupled.

    ``u(p) = sum_q w x(q) / sum_q w``, ``w = exp(-|p - q|^2 / 2 sigma_spatial^2 - |x(p) - x(q)|^2 / 2 sigma_color^2)``.
    The sum runs over the q at most 2 sigma_spatial rows and columns away. The image is extended by its mirror image.
    (The spatial weights of scikit-image 0.26 are not symmetric, so rotated images give other values there.)

    Args:
        image: ``(C, H, W)``.
        sigma_color: standard deviation of the weight of the contrast.
        sigma_spatial: standard deviation of the weight of the distance, in pixels.

    Source: Tomasi, Manduchi, *Bilateral Filtering for Gray and Color Images*, ICCV 1998.
    """
    _, height, width = image.shape
    reach = int(2 * sigma_spatial)
    padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)), mode="symmetric")
    total, weights = np.zeros_like(image), np.zeros_like(image[0])
    for down, right in product(range(-reach, reach + 1), repeat=2):
        top, left = reach + down, reach + right
        neighbours = padded[:, top : top + height, left : left + width]
        contrasts = np.square(neighbours - image).sum(axis=0)  # (H, W)
        exponents = contrasts / (-2 * sigma_color**2) - (down**2 + right**2) / (2 * sigma_spatial**2)
        weight = np.exp(exponents)
        total += weight * neighbours
        weights += weight
    return total / weights


def shifted_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress the image again with all 64 shifts of the block grid, shift the results back and average them.

    A block edge lies inside the blocks of most other grids. Compression with these grids removes the edge, and the
    average suppresses it. If the quality differs from that of the image, all grids may round a flat area in the same
    way. The area is then wrong by some grey levels. Values are first clipped to [0, 1] and rounded to 8 bits, as JPEG
    requires. Colour keeps its full resolution.

    Source: Nosratinia, *Enhancement of JPEG-Compressed Images by Re-application of JPEG*, J. VLSI Signal Processing
    2001.
    """
    _, height, width = image.shape
    levels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    padded = np.pad(levels, ((0, 0), (BLOCK, BLOCK), (BLOCK, BLOCK)), mode="symmetric").transpose(1, 2, 0)  # (H, W, C)
    total = np.zeros((height, width, len(image)), dtype=np.uint32)
    for down, right in product(range(BLOCK), repeat=2):  # shift of the grid: BLOCK - down rows precede the image
        compressed = _compress(padded[down:, right:], quality)
        top, left = BLOCK - down, BLOCK - right
        total += compressed[top : top + height, left : left + width]
    return total.transpose(2, 0, 1) / (255 * BLOCK**2)


def _compress(levels: np.ndarray, quality: int) -> np.ndarray:
    """Compress and decompress levels ``(H, W, C)`` uint8 with JPEG."""
    file = io.BytesIO()
    picture = Image.fromarray(levels[:, :, 0] if levels.shape[2] == 1 else levels)
    picture.save(file, "JPEG", quality=quality, subsampling=0)
    return np.asarray(Image.open(file)).reshape(levels.shape)
