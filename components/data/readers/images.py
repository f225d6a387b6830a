"""Reading and writing of image files: a file becomes 8- or 16-bit RGB or grey, or is rejected with its name.

Legend: C channels (1 grey, 3 RGB), H rows, W columns, of the upright image.
"""

from __future__ import annotations

import hashlib
import io
import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from components.brief import first_line
from components.data.readers.damage import check_deflated, check_jpeg
from components.data.readers.placeholders import HEAD, placeholder
from components.data.readers.quiet import no_warnings

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp"})
LOSSY_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".webp"})

MAX_PIXELS = 2**26
"""8192 x 8192; checked before anything is decoded, because a file of a few kB can declare any number of pixels."""

# Only these decoders are tried, for any suffix. (Pillow's decoder for EPS, for example, would start Ghostscript.)
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")

# Layouts with which Pillow unpacks 16 bits per channel into 8 bits. The left layout keeps the high bytes, the right one
# the low bytes.
_LOW_BYTES = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGBX;16B": "RGBX;16L",
    "RGBX;16L": "RGBX;16B",
    "RGBA;16B": "RGBA;16L",
    "RGBA;16L": "RGBA;16B",
    "RGB;16N": "RGB;16B" if np.little_endian else "RGB;16L",  # N: native byte order
    "RGBX;16N": "RGBX;16B" if np.little_endian else "RGBX;16L",
    "RGBA;16N": "RGBA;16B" if np.little_endian else "RGBA;16L",
}
_EXIF_ORIENTATION = 0x0112
_DEFLATE = (8, 32946)  # TIFF's two numbers for this compression
_SIGNED, _FLOAT = 2, 3  # TIFF's sample formats
_EXIF_IN_TIFF = 34665
_GREYS = ("1", "L", "LA")
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_OTHER_COLOURS = ("CMYK", "YCbCr", "LAB", "HSV")
_CHANGED = {
    "1": "black and white: written as 8-bit grey",
    "P": "palette: written as RGB",
    "PA": "palette: written as RGB",
    **{mode: f"{mode}: written as RGB, without its ICC profile" for mode in _OTHER_COLOURS},
}
_BOXES = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC", b"jxl ": "JPEG XL"}
_LYING = (5, 6, 7, 8)  # EXIF orientations that exchange rows and columns


def read_image(path: Path, colour: Literal["rgb", "grey"] = "rgb") -> np.ndarray:
    """Read an image as ``(3, H, W)`` or, in grey, ``(1, H, W)``: uint8, or uint16 if the file has 16 bits per channel.

    - The EXIF rotation is applied, so the image is upright.
    - Transparency is dropped; the colour stored under it is kept.
    - Palettes are resolved. Black and white become 0 and 255.
    - CMYK and YCCK become RGB as ``(255 - ink) (255 - black) / 255``, without their ICC profile.
    - Grey from colour is the luma of ITU-R BT.601, ``0.299 R + 0.587 G + 0.114 B``, rounded.
    - 16 bits are kept for grey, RGB and RGBA files in PNG and TIFF.

    Raises:
        ValueError: the file is missing, is not an image, does not decode, has damage that `damage` can detect, or has
            over ``MAX_PIXELS`` pixels. It has several frames or pages, so the image is ambiguous. It has floating-point
            or signed pixels, so the value of white is unknown. Or it has 16 bits in a layout that would lose bits.
    """
    decoded = decode_image(path)
    pixels = decoded.pixels
    if colour == "grey" and pixels.ndim == 3:
        pixels = luma(pixels)
    if pixels.ndim == 2:
        return np.ascontiguousarray(np.broadcast_to(pixels, (1 if colour == "grey" else 3, *pixels.shape)))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


@dataclass(frozen=True)
class DecodedImage:
    """What an image file holds, upright.

    Attributes:
        pixels: ``(H, W)`` grey or ``(H, W, 3)`` RGB, uint8 or uint16.
        alpha: ``(H, W)`` of the same dtype, 0 transparent; None if the file has none.
        format: of the file, such as "PNG".
        icc: its ICC profile; None if it has none, or if the profile is not for grey or RGB.
        exif: its EXIF data, without the orientation; None if it has none.
        dropped: what else the file holds that the fields above do not, in words.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    format: str
    icc: bytes | None
    exif: bytes | None
    dropped: tuple[str, ...]


def decode_image(source: Path | bytes, name: str = "") -> DecodedImage:
    """Read all of an image that the result of a restoration can keep: pixels, alpha, ICC profile, EXIF data.

    The pixels are those of `read_image`, but grey files stay grey.

    Args:
        source: the file, or the bytes of one.
        name: for messages; by default the path.

    Raises:
        ValueError: as `read_image`.
    """
    with _opened(source, name) as image:
        if isinstance(image, TiffImagePlugin.TiffImageFile) and _SIGNED in image.tag_v2.get(
            TiffImagePlugin.SAMPLEFORMAT, ()
        ):
            raise _without_white("signed")
        dropped = [_CHANGED[image.mode]] if image.mode in _CHANGED else []
        if _is_sixteen_bit(image):
            pixels, alpha = _sixteen_bits(source, image)
        elif image.mode in ("I", "F"):
            raise _without_white("floating-point" if image.mode == "F" else "32-bit")
        else:
            upright = ImageOps.exif_transpose(image)
            pixels = np.asarray(upright.convert("L" if image.mode in _GREYS else "RGB"))
            has_alpha = upright.mode in _WITH_ALPHA or "transparency" in upright.info
            alpha = np.asarray(upright.convert("RGBA"))[..., 3] if has_alpha else None
        _check_damage(source, image)
        info = image.info
        if "xmp" in info or "XML:com.adobe.xmp" in info:
            dropped.append("XMP data")
        if isinstance(image, TiffImagePlugin.TiffImageFile) and _EXIF_IN_TIFF in image.tag_v2:
            dropped.append("EXIF data")
        icc = None if image.mode in _OTHER_COLOURS else info.get("icc_profile")
        return DecodedImage(pixels, alpha, str(image.format), icc or None, _upright_exif(image), tuple(dropped))


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of the image that `read_image` returns, from the file's header.

    The pixels of a file with a valid header may still be damaged. (A PNG with EXIF or XMP data after its pixels is
    decoded.)

    Raises:
        ValueError: the file is missing, is not an image, or has over ``MAX_PIXELS`` pixels or several frames.
    """
    with _opened(path) as image:
        width, height = image.size
        # Pillow has already rotated the size of a TIFF. For a PNG, it decodes the file to find EXIF data.
        if image.format == "TIFF" or (image.format == "PNG" and not _may_be_turned(path)):
            return height, width
        return (width, height) if image.getexif().get(_EXIF_ORIENTATION) in _LYING else (height, width)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image ``(C, H, W)`` in [0, 1], C = 1 or 3, clipped and rounded to 8 bits; the suffix sets the format.

    The write is atomic: the file is complete or absent.

    Raises:
        ValueError: the suffix names no writable format, or the folder cannot be written.
    """
    pixels = to_uint8(image).transpose(1, 2, 0)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(temporary)
        temporary.replace(path)
    except (OSError, ValueError) as error:
        with suppress(OSError):  # the folder may be missing
            temporary.unlink()
        raise ValueError(f"{path}: cannot be written ({_reason(error)})") from error


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Convert an image of any shape to uint8: ``round(255 * clip(image, 0, 1))``."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def to_float(image: np.ndarray) -> np.ndarray:
    """Convert an image of any shape to float32: uint8 / 255, uint16 / 65535; float32 is returned unchanged.

    Raises:
        ValueError: the image has another dtype, for which the value of white is unknown.
    """
    if image.dtype == np.float32:
        return image
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"image of dtype {image.dtype}: give uint8, uint16, or float32 in [0, 1]")
    return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)


def pixels_sha256(image: np.ndarray) -> str:
    """Compute the SHA-256 of an array's values and shape.

    The result is the same for one image in two files, even if one file has 8 bits and the other 16 bits.
    """
    if image.dtype == np.uint16 and not (image % 257).any():  # 8 bits, scaled to 16
        image = (image // 257).astype(np.uint8)
    digest = hashlib.sha256(repr((image.shape, image.dtype.str)).encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


def is_image_name(path: Path) -> bool:
    """Return whether the file's suffix is one of ``IMAGE_SUFFIXES``."""
    return path.suffix.lower() in IMAGE_SUFFIXES


@contextmanager
def _opened(source: Path | bytes, name: str = "") -> Iterator[Image.Image]:
    """Open a file, read its header and check it; any error becomes a ValueError that names the file."""
    name = name or ("the image" if isinstance(source, bytes) else str(source))
    try:
        if isinstance(source, Path) and source.exists() and not source.is_file():
            raise ValueError("not a file")
        # The open file is passed and not its name: by name, Pillow memory-maps uncompressed files, and rotated TIFFs
        # are then read wrongly.
        # Pillow warns about unusual tags, for example; relevant defects are errors here.
        with no_warnings, _stream(source) as file, _identified(file) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width}x{height} pixels, the limit is {MAX_PIXELS}: cut it into smaller images")
            if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a camera's JPEG with a preview
                raise ValueError("several frames or pages: save the one that is meant as a file of its own")
            yield image
    except FileNotFoundError:
        raise ValueError(f"{name}: there is no such file") from None
    except Exception as error:  # on damaged files, Pillow's decoders raise errors of any type
        raise ValueError(f"{name}: not a readable image ({_reason(error)}); replace it or take it away") from error


def _stream(source: Path | bytes) -> IO[bytes]:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _content(source: Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def _identified(file: IO[bytes]) -> Image.Image:
    """Open the image of a file; if it is not an image, raise a ValueError that says what the file is."""
    try:
        return Image.open(file, formats=_FORMATS)
    except UnidentifiedImageError:
        file.seek(0)
        raise ValueError(_what_it_is(file)) from None


def _what_it_is(file: IO[bytes]) -> str:
    """Describe why Pillow cannot identify a file."""
    head = file.read(HEAD)
    if what := placeholder(head):
        return what
    if head[4:8] == b"ftyp" or head[4:8] == b"JXL ":
        return f"{_BOXES.get(head[8:12], 'video or image')} data: convert it to PNG first"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):  # +: BigTIFF, for files above 4 GiB
        tags = TiffImagePlugin.ImageFileDirectory_v2(head[: 16 if b"+" in head[:4] else 8])
        with suppress(Exception):  # a damaged directory
            file.seek(tags.next)
            tags.load(file)
        bits, formats = (tags.get(tag) or (1,) for tag in (TiffImagePlugin.BITSPERSAMPLE, TiffImagePlugin.SAMPLEFORMAT))
        if _FLOAT in formats or _SIGNED in formats:
            return str(_without_white(f"{'floating-point' if _FLOAT in formats else 'signed'} {max(bits)}-bit"))
        if max(bits) > 8:
            return f"a TIFF file of {len(bits)} x {max(bits)} bits a pixel: save it as 8- or 16-bit grey or RGB"
        return "a TIFF file that is damaged, or of a kind that is not read: save it as 8-bit grey or RGB"
    return f"no {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]} data in it"


def _without_white(kind: str) -> ValueError:
    return ValueError(f"{kind} pixels, whose white is not stated: convert it to 8 or 16 bits first")


def _check_damage(source: Path | bytes, image: Image.Image) -> None:
    """Raise a ValueError for damage that the decoder ignored."""
    if image.format in ("JPEG", "MPO"):
        check_jpeg(_content(source))
    elif isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(TiffImagePlugin.COMPRESSION) in _DEFLATE:
        tags = image.tag_v2
        tiles = (TiffImagePlugin.TILEOFFSETS, TiffImagePlugin.TILEBYTECOUNTS)
        strips = (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.STRIPBYTECOUNTS)
        places, sizes = (tags.get(tag, ()) for tag in (tiles if tiles[0] in tags else strips))
        check_deflated(_content(source), places, sizes)


def _upright_exif(image: Image.Image) -> bytes | None:
    """Return the EXIF data without the orientation, which the pixels have already."""
    stored: bytes | None = image.info.get("exif")
    if not stored or image.getexif().get(_EXIF_ORIENTATION, 1) == 1:
        return stored or None
    exif = image.getexif()
    del exif[_EXIF_ORIENTATION]
    return exif.tobytes()


def _is_sixteen_bit(image: Image.Image) -> bool:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
        return max(bits) > 8 and image.mode not in ("I", "F")
    return image.mode.startswith("I;16") or any(";16" in _layout(tile) for tile in _tiles(image))


def _sixteen_bits(source: Path | bytes, image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Read an upright image as ``(H, W)`` or ``(H, W, 3)`` uint16, and its alpha ``(H, W)``.

    Pillow does not support 16-bit colour, so the high and the low bytes are read separately.
    """
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    layout = "planes apart" if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2 else _layout(_tiles(image)[0])
    if image.mode.startswith("I;16") and layout != "I;12":
        grey = np.asarray(ImageOps.exif_transpose(image)).astype(np.uint16)
        return (65535 - grey if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 else grey), None  # 0: white
    if layout == "LA;16B":
        first_four = _unpacked(source, "RGBA").astype(np.uint16)  # high and low byte of grey, of alpha
        return first_four[..., 0] << 8 | first_four[..., 1], first_four[..., 2] << 8 | first_four[..., 3]
    if layout in _LOW_BYTES:
        high, low = (_unpacked(source, half).astype(np.uint16) for half in (layout, _LOW_BYTES[layout]))
        bands = high << 8 | low
        return bands[..., :3], bands[..., 3] if layout.startswith("RGBA") else None
    raise ValueError(f"more than 8 bits a channel, {layout}: save it as 16-bit grey or RGB PNG")


def _unpacked(source: Path | bytes, layout: str) -> np.ndarray:
    """Read the file's decompressed bytes in a given layout of Pillow, as upright ``(H, W, bands)`` uint8."""
    with _stream(source) as file, Image.open(file, formats=_FORMATS) as image:
        assert isinstance(image, ImageFile.ImageFile)
        image.tile = [
            tile._replace(args=layout if isinstance(tile.args, str) else (layout, *_arguments(tile)[1:]))
            for tile in image.tile
        ]
        return np.asarray(ImageOps.exif_transpose(image))


def _tiles(image: Image.Image) -> list[ImageFile._Tile]:
    return image.tile if isinstance(image, ImageFile.ImageFile) else []


def _layout(tile: ImageFile._Tile) -> str:
    return str(_arguments(tile)[0])


def _arguments(tile: ImageFile._Tile) -> tuple[Any, ...]:
    return tile.args if isinstance(tile.args, tuple) else (tile.args,)


def luma(colour: np.ndarray) -> np.ndarray:
    """Convert ``(H, W, 3)`` to luma ``(H, W)`` of the same dtype, with Pillow's weights: BT.601 in units of 2^-16."""
    weighted = colour.astype(np.uint32) @ np.array([19595, 38470, 7471], dtype=np.uint32)
    return ((weighted + 0x8000) >> 16).astype(colour.dtype)  # at most 65535 * 2^16 + 2^15 < 2^32


def _may_be_turned(path: Path) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(mark) >= 0 for mark in (b"eXIf", b"Raw profile type", b"tiff:Orientation"))


def _reason(error: Exception) -> str:
    line = first_line(error)
    return "its pixels do not decode: the file is damaged" if line.startswith("decoder error") else line
