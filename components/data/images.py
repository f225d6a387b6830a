"""Reading and writing image files: whatever lies on disk becomes 8-bit RGB or grey, or is refused by name."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})

# What Pillow raises for damaged files of different formats.
_UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_image(path: Path) -> np.ndarray:
    """The image as ``(3, H, W)`` uint8 RGB, upright (EXIF rotation applied), transparency dropped.

    Raises:
        ValueError: the file is missing, is no image or does not decode.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode in ("I", "I;16", "I;16B", "F"):
                raise ValueError(f"pixels of mode {upright.mode}, not 8 bit: convert it to 8-bit RGB first")
            pixels = np.asarray(upright.convert("RGB"))  # (H, W, 3)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except _UNREADABLE as error:
        raise ValueError(f"{path}: not a readable image ({_first_line(error)}); replace it or take it away") from error
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes ``(C, H, W)`` in [0, 1] (clipped, rounded to 8 bits), C = 1 or 3; the suffix names the format.

    The file appears whole or not at all.

    Raises:
        ValueError: the suffix names no format that can be written, or the folder cannot be written.
    """
    pixels = to_uint8(image).transpose(1, 2, 0)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(temporary)
        temporary.replace(path)
    except (OSError, ValueError) as error:
        with suppress(OSError):  # the folder itself may be missing
            temporary.unlink()
        raise ValueError(f"{path}: cannot be written ({_first_line(error)})") from error


def to_uint8(image: np.ndarray) -> np.ndarray:
    """``round(255 * clip(image, 0, 1))`` as uint8, any shape."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def to_float(image: np.ndarray) -> np.ndarray:
    """``image / 255`` as float32, any shape."""
    return image.astype(np.float32) / np.float32(255)


def is_image_name(path: Path) -> bool:
    """Whether the file's suffix is one of ``IMAGE_SUFFIXES``."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
