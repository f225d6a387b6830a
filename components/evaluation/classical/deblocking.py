"""Taking the blocks and the ringing of JPEG off an image, not told its quality.

Legend: images are numpy ``(C, H, W)`` float32, C = 1 or 3.
"""

from __future__ import annotations

import io
from itertools import product

import numpy as np
from PIL import Image

BLOCK = 8


def bilateral(image: np.ndarray, sigma_color: float, sigma_spatial: float) -> np.ndarray:
    """Means of near neighbours that look alike: Gaussian weights of distance and of contrast, the channels coupled.

    ``u(p) = sum_q w x(q) / sum_q w``, ``w = exp(-|p - q|^2 / 2 sigma_spatial^2 - |x(p) - x(q)|^2 / 2 sigma_color^2)``,
    over the q at most 2 sigma_spatial rows and columns away, the image mirrored beyond its border. (The spatial
    weights of scikit-image 0.26 are askew: turned images give other values.)

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
    """The mean of the image compressed again with all 64 shifts of the block grid, shifted back.

    A block's edge lies inside of the blocks of the other grids, which do not keep it; the mean keeps what most of them
    do. A flat area can end some grey levels off, where all grids round it alike, if the quality is not that of the
    image. Values are clipped to [0, 1] and rounded to 8 bits first, as JPEG has it; colour keeps its full resolution.

    Source: Nosratinia, *Enhancement of JPEG-Compressed Images by Re-application of JPEG*, J. VLSI Signal Processing
    2001.
    """
    _, height, width = image.shape
    levels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    padded = np.pad(levels, ((0, 0), (BLOCK, BLOCK), (BLOCK, BLOCK)), mode="symmetric").transpose(1, 2, 0)  # (H, W, C)
    total = np.zeros((height, width, len(image)), dtype=np.uint32)
    for down, right in product(range(BLOCK), repeat=2):  # of the grid: BLOCK - down rows precede the image
        compressed = _compress(padded[down:, right:], quality)
        top, left = BLOCK - down, BLOCK - right
        total += compressed[top : top + height, left : left + width]
    return total.transpose(2, 0, 1) / (255 * BLOCK**2)


def _compress(levels: np.ndarray, quality: int) -> np.ndarray:
    """``(H, W, C)`` uint8 through JPEG."""
    file = io.BytesIO()
    picture = Image.fromarray(levels[:, :, 0] if levels.shape[2] == 1 else levels)
    picture.save(file, "JPEG", quality=quality, subsampling=0)
    return np.asarray(Image.open(file)).reshape(levels.shape)
