"""Encode a restored image as a file's bytes; depth, alpha, ICC profile and EXIF data are kept where the format can.

Legend: H rows, W columns, C channels with alpha (1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha).
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from components.data.readers.images import DecodedImage

SUFFIXES = {
    ".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP", ".bmp": "BMP",
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG",
}  # fmt: skip
"""Suffix -> format that is written for it."""

FORMATS = ("PNG", "TIFF", "JPEG", "WEBP", "BMP")

_SAME = {"MPO": "JPEG", "GIF": "PNG"}
_LEVEL = 4
"""Of zlib, for PNG; on a photograph of 3 megapixels 2.5 times as fast as Pillow's 6, and 8 % larger."""

_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": _LEVEL},
    # 4:4:4 at quality 95; Pillow's default (4:2:0 at 75) costs a restored photograph more than a network gains.
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},
}

_LOSES = {  # format -> what it cannot hold
    "JPEG": ("alpha", "16 bits"),
    "WEBP": ("16 bits",),
    "BMP": ("alpha", "16 bits", "ICC profile", "EXIF data"),
    "TIFF": ("EXIF data",),
    "PNG": (),
}


def format_of(name: Path, source_format: str = "") -> str:
    """Return the format to write.

    Args:
        name: of the file to write; its suffix decides.
        source_format: of the input, for a name without a suffix.

    Raises:
        ValueError: the suffix names no format that can be written.
    """
    if not name.suffix and source_format:
        return same_format(source_format)
    try:
        return SUFFIXES[name.suffix.lower()]
    except KeyError:
        raise ValueError(
            f"{name}: its suffix names no image format that can be written; use for instance .png"
        ) from None


def same_format(source_format: str) -> str:
    """Return the format in which the result of a file of this format is written."""
    return _SAME.get(source_format, source_format)


def encode_image(image: DecodedImage, form: str) -> tuple[bytes, tuple[str, ...]]:
    """Encode an image.

    PNG and TIFF keep 8 and 16 bits exactly, WebP keeps 8 bits exactly. JPEG is written with quality 95 and without
    subsampling of the colours. The bytes are a function of the image and of the versions of the libraries.

    Args:
        image: to write.
        form: one of `FORMATS`.

    Returns:
        (the bytes of the file, what the format cannot hold and the image had, in words).
    """
    dropped = []
    loses = _LOSES[form]
    if image.alpha is not None and "alpha" in loses:
        dropped.append("alpha")
        image = replace(image, alpha=None)
    if image.pixels.dtype == np.uint16 and "16 bits" in loses:
        dropped.append("16 bits (8 are kept)")
        image = replace(
            image, pixels=_eight_bits(image.pixels), alpha=None if image.alpha is None else _eight_bits(image.alpha)
        )
    if image.icc is not None and "ICC profile" in loses:
        dropped.append("ICC profile")
        image = replace(image, icc=None)
    if image.exif is not None and "EXIF data" in loses:
        dropped.append("EXIF data")
        image = replace(image, exif=None)
    return _encoded(image, form), tuple(dropped)


def _eight_bits(values: np.ndarray) -> np.ndarray:
    return np.rint(values / 257).astype(np.uint8)


def _encoded(image: DecodedImage, form: str) -> bytes:
    samples = image.pixels
    if image.alpha is not None:
        samples = np.concatenate([samples.reshape(*samples.shape[:2], -1), image.alpha[..., None]], axis=2)
    if form == "TIFF":
        return _tiff(image, samples)
    if samples.dtype == np.uint16:
        return png_of_16_bits(samples, icc=image.icc, exif=image.exif)
    stream = io.BytesIO()
    options: dict[str, Any] = _OPTIONS.get(form, {})
    about = {"icc_profile": image.icc, "exif": image.exif}
    Image.fromarray(samples).save(stream, form, **options, **{key: value for key, value in about.items() if value})
    return stream.getvalue()


def _tiff(image: DecodedImage, samples: np.ndarray) -> bytes:
    import tifffile

    stream = io.BytesIO()
    tifffile.imwrite(
        stream,
        samples,
        photometric="rgb" if image.pixels.ndim == 3 else "minisblack",
        planarconfig="contig" if samples.ndim == 3 else None,
        extrasamples=["unassalpha"] if image.alpha is not None else None,
        compression="zlib",
        iccprofile=image.icc,
        metadata=None,
        software=False,
    )
    return stream.getvalue()


def png_of_16_bits(samples: np.ndarray, icc: bytes | None = None, exif: bytes | None = None) -> bytes:
    """Encode an image of 16 bits per channel as PNG; Pillow can write 16 bits for grey alone.

    Args:
        samples: ``(H, W)`` or ``(H, W, C)`` uint16.
        icc: ICC profile.
        exif: EXIF data.

    Source: W3C, *Portable Network Graphics (PNG) Specification*, third edition, sections 5, 9 and 11.
    """
    height, width = samples.shape[:2]
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    rows = samples.astype(">u2").reshape(height, width * channels).view(np.uint8)  # high byte first
    step = 2 * channels  # filter type 1: the difference to the pixel before
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = 1
    filtered[:, 1 : 1 + step] = rows[:, :step]
    np.subtract(rows[:, step:], rows[:, :-step], out=filtered[:, 1 + step :])
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [(b"IHDR", struct.pack(">2I5B", width, height, 16, colour_type, 0, 0, 0))]
    if icc is not None:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)))
    if exif is not None:
        chunks.append((b"eXIf", exif.removeprefix(b"Exif\0\0")))
    chunks += [(b"IDAT", zlib.compress(filtered.data, _LEVEL)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
