"""Files that are written hold what the image holds, or say what they do not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import png
import pytest
import tifffile
from PIL import Image, ImageCms

from components.data.readers.images import DecodedImage, decode_image
from components.inference.writing import FORMATS, encode_image, format_of, png_of_16_bits

pytestmark = pytest.mark.unit

RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)
COLOUR = np.stack([RAMP, RAMP.T, RAMP[::-1]], axis=2)
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    return exif.tobytes()


def _image(pixels: np.ndarray, alpha: np.ndarray | None = None) -> DecodedImage:
    return DecodedImage(pixels, alpha, "PNG", None, None, ())


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_another_reader_finds_every_one_of_the_65536_values_in_a_png_of_16_bits(channels: int) -> None:
    samples = np.concatenate([COLOUR, RAMP[..., None]], axis=2)[..., [0, 3] if channels == 2 else range(channels)]
    samples = samples[..., 0] if channels == 1 else samples
    width, height, rows, info = png.Reader(bytes=png_of_16_bits(samples)).read()
    assert (width, height, info["bitdepth"], info["planes"]) == (256, 256, 16, channels)
    assert np.array_equal(np.vstack([np.asarray(row, np.uint16) for row in rows]), samples.reshape(256, -1))


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 5)])
def test_a_png_of_16_bits_may_have_a_side_of_one_pixel(size: tuple[int, int]) -> None:
    samples = RAMP[: size[0], 200 : 200 + size[1]]
    rows = png.Reader(bytes=png_of_16_bits(samples)).read()[2]
    assert np.array_equal(np.vstack([np.asarray(row, np.uint16) for row in rows]), samples)


@pytest.mark.parametrize("pixels", [RAMP, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("alpha", [None, RAMP.T], ids=["opaque", "alpha"])
def test_16_bits_come_back_exactly(form: str, pixels: np.ndarray, alpha: np.ndarray | None) -> None:
    content, dropped = encode_image(_image(pixels, alpha), form)
    if form == "TIFF" and alpha is not None and pixels.ndim == 2:
        found = tifffile.imread(io.BytesIO(content))  # Pillow knows no TIFF of grey and alpha with 16 bits
        assert np.array_equal(found, np.stack([pixels, alpha], axis=2))
        return
    read = decode_image(content)
    assert dropped == ()
    assert np.array_equal(read.pixels, pixels)
    assert (read.alpha is None) == (alpha is None)
    assert alpha is None or np.array_equal(read.alpha, alpha)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("pixels", [RAMP, COLOUR], ids=["grey", "colour"])
def test_8_bits_come_back_exactly_but_from_jpeg(form: str, pixels: np.ndarray) -> None:
    eight = (pixels % 256).astype(np.uint8)
    read = decode_image(encode_image(_image(eight), form)[0])
    expected = np.repeat(eight[..., None], 3, axis=2) if form == "WEBP" and eight.ndim == 2 else eight  # it has no grey
    assert np.array_equal(read.pixels, expected)


def test_a_jpeg_loses_little_where_pillows_own_settings_lose_much() -> None:
    generator = np.random.default_rng(0)
    smooth = np.asarray(Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((256, 256)))
    ours = decode_image(encode_image(_image(smooth), "JPEG")[0]).pixels
    stream = io.BytesIO()
    Image.fromarray(smooth).save(stream, "JPEG")
    pillows = decode_image(stream.getvalue()).pixels
    errors = [np.mean((pixels - smooth.astype(float)) ** 2) for pixels in (ours, pillows)]
    assert errors[0] < errors[1] / 4


@pytest.mark.parametrize("form", FORMATS)
def test_what_a_format_cannot_hold_is_named_and_the_rest_is_kept(form: str) -> None:
    pixels = np.full((20, 30, 3), 300, np.uint16)
    image = DecodedImage(pixels, np.full((20, 30), 30000, np.uint16), "PNG", ICC, _exif(), ())
    content, dropped = encode_image(image, form)
    read = decode_image(content)
    held = {
        "alpha": read.alpha is not None,
        "16 bits (8 are kept)": read.pixels.dtype == np.uint16,
        "ICC profile": read.icc == ICC,
        "EXIF data": read.exif is not None and b"a camera" in read.exif,
    }
    assert {what for what, is_held in held.items() if not is_held} == set(dropped)


def test_the_suffix_names_the_format() -> None:
    assert [format_of(Path(name)) for name in ("a.JPG", "b.tiff", "c.webp")] == ["JPEG", "TIFF", "WEBP"]
    with pytest.raises(ValueError, match=r"a\.xyz: its suffix names no image format"):
        format_of(Path("a.xyz"))


def test_the_bytes_are_a_function_of_the_image() -> None:
    for form in FORMATS:
        assert encode_image(_image(COLOUR), form) == encode_image(_image(COLOUR.copy()), form)
