"""JPEG artifacts: the image is encoded and decoded with a JPEG codec."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from components.data.readers.images import to_float, to_uint8

BLOCK = 16
"""Side in pixels of the area that is coded together: 8 x 8 values of the halved chroma."""


@dataclass(frozen=True)
class JPEG:
    """JPEG compression of the image at a quality drawn uniformly from the integers of a range.

    The image is clipped to [0, 1] and rounded to 8 bits before it is coded. A grey image is coded as grey. A colour
    image is coded as Y, Cb, Cr with the chroma halved along both axes (4:2:0), as cameras and the web do. Deblocking
    papers on grey images take the luma first.

    Attributes:
        quality: lowest and highest quality on the Independent JPEG Group's scale 1..100, which libjpeg, Pillow and
            MATLAB use.
        random_grid: if True, the block grid has a random offset, as in a random crop of a large coded image. Because of
            the margin, the result equals the crop of the coded image exactly. If False, the first block begins at the
            first pixel, as in a whole image.

    Raises:
        ValueError: the range is reversed or leaves 1..100; when called, the image is not grey or RGB.

    Example:
        >>> clean = np.random.default_rng(0).random((3, 48, 64), dtype=np.float32)
        >>> JPEG(quality=(40, 40))(clean, np.random.default_rng(0)).shape
        (3, 48, 64)
        >>> cropped = JPEG(quality=(10, 40), random_grid=True)  # margin 16
        >>> cropped.margin, cropped(clean, np.random.default_rng(0)).shape
        (16, (3, 16, 32))
    """

    quality: tuple[int, int]
    random_grid: bool = False

    def __post_init__(self) -> None:
        low, high = self.quality
        if not 1 <= low <= high <= 100 or low != int(low) or high != int(high):
            raise ValueError(f"quality {low}..{high}: use integers with 1 <= low <= high <= 100")

    @property
    def margin(self) -> int:
        """Margin in pixels of the clean image on each side, which a grid with a random offset needs."""
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
    """Encode and decode an image with JPEG, ``(C, H, W)`` uint8, C = 1 or 3; the first block begins at the first pixel.

    Raises:
        ValueError: the image does not have 1 or 3 channels.

    Example:
        >>> flat = np.full((1, 16, 16), 128, dtype=np.uint8)
        >>> bool((coded(flat, quality=50) == flat).all())
        True
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"image {image.shape}: JPEG needs (1, H, W) grey or (3, H, W) RGB")
    pixels = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)  # (H, W) or (H, W, 3)
    file = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(file) as decoded:
        return np.ascontiguousarray(np.atleast_3d(np.asarray(decoded)).transpose(2, 0, 1))
