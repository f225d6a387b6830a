"""JPEG artifacts: the image is really coded and decoded."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from components.data.images import to_float, to_uint8

BLOCK = 16
"""Pixels: the side of what is coded together, 8 x 8 values of the halved chroma."""


@dataclass(frozen=True)
class JPEG:
    """The image after JPEG at a quality drawn uniformly from the integers of its range.

    A grey image is coded as one; a colour image as Y, Cb, Cr with the chroma halved along both axes (4:2:0), which is
    what cameras and the web do. The image is clipped to [0, 1] and rounded to 8 bits before. Deblocking papers on grey
    images take the luma first.

    Attributes:
        quality: lowest and highest, of the Independent JPEG Group's scale 1..100, as libjpeg, Pillow and MATLAB use it.
        random_grid: the blocks lie as in a random crop of a large coded image, and with the margin the crop is exactly
            what it would be there; otherwise the first block begins at the first pixel, as in a whole image.

    Raises:
        ValueError: the range is reversed or leaves 1..100; when called, the image is not grey or RGB.
    """

    quality: tuple[int, int]
    random_grid: bool = False

    def __post_init__(self) -> None:
        low, high = self.quality
        if not 1 <= low <= high <= 100 or low != int(low) or high != int(high):
            raise ValueError(f"quality {low}..{high}: use integers with 1 <= low <= high <= 100")

    @property
    def margin(self) -> int:
        """Pixels of the clean image that a grid at a random place needs on each side."""
        return BLOCK if self.random_grid else 0

    def __call__(self, clean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """``(C, H + 2 margin, W + 2 margin)`` float32, C = 1 or 3 -> ``(C, H, W)`` with values k / 255."""
        quality = int(generator.integers(self.quality[0], self.quality[1], endpoint=True))
        if not self.random_grid:
            return to_float(coded(to_uint8(clean), quality))
        top, left = (int(place) for place in generator.integers(BLOCK, size=2))  # where the first block begins
        _, height, width = clean.shape
        image = coded(to_uint8(clean[:, top:, left:]), quality)
        return to_float(image[:, BLOCK - top : height - BLOCK - top, BLOCK - left : width - BLOCK - left])


def coded(image: np.ndarray, quality: int) -> np.ndarray:
    """The image after JPEG at this quality, blocks from the first pixel on: ``(C, H, W)`` uint8, C = 1 or 3.

    Raises:
        ValueError: not 1 or 3 channels.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"image {image.shape}: JPEG needs (1, H, W) grey or (3, H, W) RGB")
    pixels = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)  # (H, W) or (H, W, 3)
    file = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(file) as decoded:
        return np.ascontiguousarray(np.atleast_3d(np.asarray(decoded)).transpose(2, 0, 1))
