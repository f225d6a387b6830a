"""Whatever lies on disk becomes 8- or 16-bit RGB or grey, or is refused by name."""

import io
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from components.data.readers import images
from components.data.readers.images import image_size, is_image_name, read_image, to_float, to_uint8, write_image

pytestmark = pytest.mark.unit

HEIGHT, WIDTH = 9, 14


@pytest.fixture
def pixels() -> np.ndarray:
    """(H, W, 3) uint8, of many colours."""
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def deep() -> np.ndarray:
    """(H, W, 3) uint16, of many colours, with every high and low byte in use."""
    return np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    body = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def _png_chunks(values: np.ndarray, bits: int, colour_type: int) -> list[tuple[bytes, bytes]]:
    """Header, pixels and end of ``(H, W, C)``, row r with filter r mod 3: none, sub, up (PNG specification, 9.2)."""
    height, width, channels = values.shape
    rows = np.frombuffer(values.astype(f">u{bits // 8}").tobytes(), np.uint8).reshape(height, -1)
    step = channels * bits // 8
    left = np.pad(rows, ((0, 0), (step, 0)))[:, :-step]
    above = np.pad(rows, ((1, 0), (0, 0)))[:-1]
    filtered = [row - [0 * row, left[r], above[r]][r % 3] for r, row in enumerate(rows)]
    pixels = b"".join(bytes([r % 3]) + row.tobytes() for r, row in enumerate(filtered))
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return [(b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]


def _smooth() -> np.ndarray:
    rows, columns = np.mgrid[:64, :48]
    return np.stack([2 * rows, 3 * columns, rows + columns], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".TIFF", ".webp"])
def test_lossless_colour_comes_out_as_it_was_stored(tmp_path: Path, pixels: np.ndarray, suffix: str) -> None:
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    image = read_image(tmp_path / f"a{suffix}")
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert np.array_equal(image, pixels.transpose(2, 0, 1))


def test_jpeg_comes_out_close_to_what_was_stored(tmp_path: Path) -> None:
    Image.fromarray(_smooth()).save(tmp_path / "a.jpg", quality=95)
    difference = read_image(tmp_path / "a.jpg").transpose(1, 2, 0).astype(int) - _smooth()
    assert np.abs(difference).mean() < 3


def test_grey_becomes_three_equal_channels(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels[..., 0]).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), np.stack([pixels[..., 0]] * 3))


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode="P")
    colours = [(10, 20, 30), (40, 50, 60), (70, 80, 90)]
    image.putpalette([value for colour in colours for value in colour])
    image.save(tmp_path / "a.png")
    expected = np.array([[colours[0], colours[1]], [colours[2], colours[1]]]).transpose(2, 0, 1)
    assert np.array_equal(read_image(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_dropped_and_the_colour_under_it_kept(tmp_path: Path, pixels: np.ndarray, mode: str) -> None:
    colour = Image.fromarray(pixels).convert("RGB" if mode == "RGBA" else "L")
    image = colour.copy()
    image.putalpha(Image.fromarray(pixels[..., 1]))
    assert image.mode == mode
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), np.asarray(colour.convert("RGB")).transpose(2, 0, 1))


def test_black_and_white_becomes_0_and_255(tmp_path: Path) -> None:
    bits = np.eye(6, dtype=bool)
    Image.fromarray(bits).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), np.stack([bits * 255] * 3))


def test_cmyk_becomes_the_rgb_of_its_inks(tmp_path: Path) -> None:
    inks = np.zeros((16, 16, 4), dtype=np.uint8)
    inks[:, 8:] = (0, 255, 255, 0)  # magenta and yellow: red
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "a.jpg", quality=100)
    image = read_image(tmp_path / "a.jpg").astype(int)
    assert np.abs(image[:, :, :6] - 255).max() < 8
    assert np.abs(image[:, :, 10:] - np.array([255, 0, 0])[:, None, None]).max() < 8


# EXIF orientation -> how the stored pixels are to be turned to stand upright (EXIF 2.3, section 4.6.4).
ORIENTATIONS: dict[int, Any] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_a_camera_held_sideways_gives_an_upright_image(
    tmp_path: Path, pixels: np.ndarray, orientation: int, suffix: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    expected = ORIENTATIONS[orientation](pixels)
    assert np.array_equal(read_image(path), expected.transpose(2, 0, 1))
    assert image_size(path) == expected.shape[:2]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_grey_of_a_sideways_tiff_is_upright(tmp_path: Path, pixels: np.ndarray, orientation: int) -> None:
    """Pillow itself mixes up the rows of such a file where it maps it into memory."""
    tifffile.imwrite(tmp_path / "a.tif", pixels[..., 0], extratags=[(274, 3, 1, orientation, True)])
    assert np.array_equal(read_image(tmp_path / "a.tif", "grey")[0], ORIENTATIONS[orientation](pixels[..., :1])[..., 0])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_sixteen_bits_are_turned_upright_too(tmp_path: Path, deep: np.ndarray, orientation: int) -> None:
    expected = ORIENTATIONS[orientation](deep).transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    assert np.array_equal(read_image(tmp_path / "a.tif"), expected)
    tifffile.imwrite(tmp_path / "b.tif", deep[..., 0], extratags=[(274, 3, 1, orientation, True)])
    assert np.array_equal(read_image(tmp_path / "b.tif", "grey"), expected[:1])
    assert image_size(tmp_path / "a.tif") == image_size(tmp_path / "b.tif") == expected.shape[1:]


def test_orientation_written_behind_the_pixels_of_a_png_counts(tmp_path: Path, pixels: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    chunks = _png_chunks(pixels, bits=8, colour_type=2)
    (tmp_path / "a.png").write_bytes(_png([*chunks[:-1], (b"eXIf", exif.tobytes()[6:]), chunks[-1]]))
    assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(pixels, -1).transpose(2, 0, 1))
    assert image_size(tmp_path / "a.png") == (WIDTH, HEIGHT)


def test_the_size_is_read_without_the_pixels(tmp_path: Path, pixels: np.ndarray) -> None:
    (header, _, end) = _png_chunks(pixels, bits=8, colour_type=2)
    (tmp_path / "a.png").write_bytes(_png([header, (b"IDAT", b"no pixels"), end]))
    assert image_size(tmp_path / "a.png") == (HEIGHT, WIDTH)
    with pytest.raises(ValueError, match=r"a\.png: not a readable image"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_all_16_bits_of_a_png_are_kept_whatever_its_filters(tmp_path: Path, deep: np.ndarray, channels: int) -> None:
    values = deep[..., [0, 1, 2, 1]][..., :channels]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    (tmp_path / "a.png").write_bytes(_png(_png_chunks(values, bits=16, colour_type=colour_type)))
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint16
    colour = values[..., :3] if channels > 2 else values[..., [0, 0, 0]]  # the last of 2 and 4 is alpha
    assert np.array_equal(image, colour.transpose(2, 0, 1))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("kind", ["grey", "rgb", "rgba", "strips", "tiles"])
def test_all_16_bits_of_a_tiff_are_kept(
    tmp_path: Path, deep: np.ndarray, byteorder: Any, compression: str | None, kind: str
) -> None:
    values = {"grey": deep[..., 0], "rgba": deep[..., [0, 1, 2, 0]]}.get(kind, deep)
    options: dict[str, Any] = {"strips": {"rowsperstrip": 2}, "tiles": {"tile": (16, 16)}}.get(kind, {})
    if kind == "rgba":
        options["extrasamples"] = ["unassalpha"]
    tifffile.imwrite(
        tmp_path / "a.tif",
        values,
        photometric="minisblack" if kind == "grey" else "rgb",
        byteorder=byteorder,
        compression=compression,
        **options,
    )
    image = read_image(tmp_path / "a.tif")
    assert image.dtype == np.uint16
    expected = np.stack([deep[..., 0]] * 3) if kind == "grey" else deep.transpose(2, 0, 1)
    assert np.array_equal(image, expected)


def test_a_16_bit_tiff_whose_zero_is_white_is_inverted(tmp_path: Path, deep: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "a.tif", 65535 - deep[..., 0], photometric="miniswhite")
    assert np.array_equal(read_image(tmp_path / "a.tif", "grey"), deep[None, ..., 0])


def test_grey_is_the_luma_of_bt601_in_8_and_16_bits(tmp_path: Path, pixels: np.ndarray, deep: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "b.tif", deep, photometric="rgb")
    for name, values, dtype in (("a.png", pixels, np.uint8), ("b.tif", deep, np.uint16)):
        grey = read_image(tmp_path / name, "grey")
        assert grey.dtype == dtype
        assert grey.shape == (1, HEIGHT, WIDTH)
        exact = values @ np.array([0.299, 0.587, 0.114])
        assert np.abs(grey[0] - exact).max() <= (0.51 if dtype == np.uint8 else 1.5)  # weights of 16 bits


def test_white_is_white_in_16_bit_grey(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full((4, 4, 3), 65535, dtype=np.uint16), photometric="rgb")
    assert (read_image(tmp_path / "a.tif", "grey") == 65535).all()


@pytest.mark.parametrize("kind", ["grey", "palette", "black and white", "LA", "CMYK"])
def test_grey_of_any_file_is_grey_of_its_rgb(tmp_path: Path, pixels: np.ndarray, kind: str) -> None:
    colour = Image.fromarray(pixels)
    stored = {
        "grey": colour.convert("L"),
        "palette": colour.quantize(8),
        "black and white": colour.convert("1"),
        "LA": colour.convert("LA"),
        "CMYK": colour.convert("CMYK"),
    }[kind]
    path = tmp_path / ("a.jpg" if kind == "CMYK" else "a.png")
    stored.save(path)
    expected = np.asarray(Image.fromarray(read_image(path).transpose(1, 2, 0)).convert("L"))
    assert np.array_equal(read_image(path, "grey"), expected[None])


def test_a_palette_with_transparency_keeps_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "a.png", transparency=0)
    assert read_image(tmp_path / "a.png")[:, 0].T.tolist() == [[10, 20, 30], [40, 50, 60]]


def test_ycck_becomes_the_rgb_of_its_inks(tmp_path: Path) -> None:
    """A CMYK JPEG whose Adobe marker says YCCK: the bands are luma and colour differences of the inks, and 255 - K.

    libjpeg's specification has C = 255 - R of the bands, and Adobe stores 255 - ink: the inversions cancel.
    """
    inks = np.zeros((16, 16, 4), dtype=np.uint8)
    luma, blue_difference, red_difference, black = 105, 130, 170, 55
    inks[:] = (255 - luma, 255 - blue_difference, 255 - red_difference, black)
    content = io.BytesIO()
    Image.fromarray(inks, mode="CMYK").save(content, "jpeg", quality=100)
    data = bytearray(content.getvalue())
    marker = data.index(b"Adobe")
    assert data[marker + 11] == 0
    data[marker + 11] = 2  # ColorTransform: YCCK
    (tmp_path / "a.jpg").write_bytes(data)
    converted = Image.new("YCbCr", (1, 1), (luma, blue_difference, red_difference)).convert("RGB").getpixel((0, 0))
    expected = (255 - np.array(converted)) * (255 - black) / 255
    assert np.abs(read_image(tmp_path / "a.jpg").reshape(3, -1).T - expected).max() < 4


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("a.tif", np.full((8, 8), 40_000, dtype=np.int32), "signed pixels"),
        ("b.tif", np.full((8, 8), -5, dtype=np.int16), "signed pixels"),
        ("c.tif", np.full((8, 8), 0.5, dtype=np.float32), "floating-point pixels"),
        ("d.tif", np.full((8, 8), -5, dtype=np.int8), "signed pixels"),
        ("e.tif", np.full((8, 8), 40_000, dtype=np.uint32), "32-bit pixels"),
        ("f.tif", np.full((8, 8, 3), 0.5, dtype=np.float32), "floating-point 32-bit pixels"),
        ("g.tif", np.full((8, 8), 0.5, dtype=np.float16), "floating-point 16-bit pixels"),
        ("h.tif", np.full((8, 8, 3), 0.5, dtype=np.float16), "floating-point 16-bit pixels"),
        ("i.tif", np.full((8, 8), 0.5, dtype=np.float64), "floating-point 64-bit pixels"),
        ("j.tif", np.full((8, 8, 3), -5, dtype=np.int16), "signed 16-bit pixels"),
    ],
)
def test_pixels_whose_white_is_unknown_are_refused_with_the_remedy(
    tmp_path: Path, name: str, values: np.ndarray, why: str
) -> None:
    for bigtiff in (False, True):
        photometric: Any = "rgb" if values.ndim == 3 else "minisblack"
        tifffile.imwrite(tmp_path / name, values, photometric=photometric, bigtiff=bigtiff)
        with pytest.raises(
            ValueError, match=rf"{name}.*\({why}, whose white is not stated: convert it to 8 or 16 bits"
        ):
            read_image(tmp_path / name)


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "rgb", "planarconfig": "separate"},
        {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib"},
        {"photometric": "rgb", "extrasamples": ["assocalpha"]},
        {"photometric": "separated"},
    ],
)
def test_16_bits_that_would_be_cut_to_8_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    planar = "planarconfig" in options
    values = np.full((3, 8, 9) if planar else (8, 9, 4), 40_000, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    with pytest.raises(ValueError, match=r"a\.tif: not a readable image"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_several_frames_are_refused_by_name(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    for read in (read_image, image_size):
        with pytest.raises(ValueError, match=rf"a\{suffix}.*several frames or pages"):
            read(tmp_path / f"a{suffix}")


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    for side, name in ((8193, "a.png"), (60_000, "b.png")):
        header = (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        (tmp_path / name).write_bytes(_png([header, (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]))
        for read in (read_image, image_size):
            with pytest.raises(ValueError, match=rf"{name}: not a readable image \(.*pixels"):
                read(tmp_path / name)
    assert images.MAX_PIXELS == 8192 * 8192


def test_only_the_decoders_of_photographs_are_tried(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", "EPS")
    with pytest.raises(ValueError, match=r"a\.png: not a readable image"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.3, 0.6, 0.9, 0.97])
def test_a_file_cut_short_is_refused_by_name(tmp_path: Path, suffix: str, share: float) -> None:
    content = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save(content, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
    data = content.getvalue()
    (tmp_path / f"cut.{suffix}").write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=rf"cut\.{suffix}: not a readable image \(.+\)"):
        read_image(tmp_path / f"cut.{suffix}")


def test_a_file_with_damaged_bytes_gives_an_image_or_is_refused_by_name(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.fromarray(_smooth()).save(content, "tiff", compression="tiff_deflate")
    random, path = np.random.default_rng(0), tmp_path / "a.tif"
    messages: list[str] = []
    for _ in range(150):
        damaged = bytearray(content.getvalue())
        for position in random.integers(0, len(damaged), 3):
            damaged[position] = random.integers(256)
        path.write_bytes(damaged)
        try:
            assert read_image(path).dtype == np.uint8
        except ValueError as error:
            messages.append(str(error))
    assert messages
    assert all(message.startswith(f"{path}: ") for message in messages)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "a Git LFS pointer.*'git lfs pull'"),
        (b"/annex/objects/SHA256E-s9--ab.png\n", "a git-annex pointer.*'git annex get'"),
        (b"\n<!DOCTYPE html>\n<html>", "a web page.*download the file again"),
        (bytes([0, 0, 0, 24]) + b"ftypheic" + bytes(99), "HEIC data: convert it to PNG"),
        (b"my notes", "no PNG, JPEG, BMP, TIFF, WEBP or GIF data in it"),
        (b"II*\0" + bytes(99), "a TIFF file that is damaged"),
    ],
)
def test_what_is_no_image_is_called_what_it_is(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    for read in (read_image, image_size):
        with pytest.raises(ValueError, match=rf"a\.png: not a readable image \({what}") as error:
            read(tmp_path / "a.png")
        assert "<_io" not in str(error.value)


def _textured(height: int = 240, width: int = 320) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    smooth = np.stack([128 + 90 * np.sin(columns / 17), 128 + 90 * np.cos(rows / 11), (rows + columns) % 256], axis=-1)
    return (smooth + np.random.default_rng(0).normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)


def _is_refused(path: Path) -> bool:
    try:
        read_image(path)
    except ValueError as error:
        return f"{path}: not a readable image" in str(error)
    return False


JPEGS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "all colours": {"subsampling": 0},
    "optimised": {"optimize": True},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "many restarts": {"restart_marker_blocks": 2},
}


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("damage", ["zeros", "noise", "lost"])
def test_a_jpeg_whose_middle_is_rotten_is_refused(tmp_path: Path, kind: str, damage: str) -> None:
    """Pillow alone reads most of these without a word."""
    content = io.BytesIO()
    Image.fromarray(_textured()).save(content, "jpeg", quality=85, **JPEGS[kind])
    data, path = content.getvalue(), tmp_path / "a.jpg"
    path.write_bytes(data)
    assert read_image(path).shape == (3, 240, 320)
    random = np.random.default_rng(1)
    read_by_pillow = seen = 0
    for start in np.linspace(0.3, 0.7, 12):
        at = int(start * len(data))
        noise = random.integers(0, 255, 700, dtype=np.uint8).tobytes()
        middle = {"zeros": bytes(700), "noise": noise.replace(b"\xff", b"\xfe"), "lost": b""}[damage]
        path.write_bytes(data[:at] + middle + data[at + 700 :])
        with suppress(OSError), Image.open(path) as image:
            image.load()
            read_by_pillow += 1
        seen += _is_refused(path)
    assert read_by_pillow >= 4
    # The number of blocks may be right again; in a progressive file the decoder often finds back to it.
    assert seen >= (6 if kind == "progressive" else 9)


def test_good_jpegs_of_all_kinds_pass_the_check_of_their_codes(tmp_path: Path) -> None:
    """Flat ones too, whose blocks take a few bits, and those with bytes after the codes, as some cameras write them."""
    flat, one = np.zeros((96, 128, 3), dtype=np.uint8), np.full((1, 1, 3), 77, dtype=np.uint8)
    half = _textured()
    half[:, 160:] = 255
    for number, pixels in enumerate((_textured(), flat, one, half, _textured(17, 33))):
        for mode in ("RGB", "L", "CMYK"):
            for options in JPEGS.values():
                for quality in (5, 95):
                    content = io.BytesIO()
                    Image.fromarray(pixels).convert(mode).save(content, "jpeg", quality=quality, **options)
                    for tail in (b"", b"\x00\x00", b"\xff\xff", b"\x12\x34\x56"):
                        data = content.getvalue()
                        (tmp_path / "a.jpg").write_bytes(data[:-2] + tail + data[-2:] + b"beyond the end")
                        assert read_image(tmp_path / "a.jpg").shape == (3, *pixels.shape[:2]), (number, mode, options)


def test_a_deflated_tiff_whose_middle_is_rotten_is_refused(tmp_path: Path) -> None:
    """Of 8 and 16 bits, in strips and tiles. libtiff does not look at the sum behind the pixels."""
    deep = _textured().astype(np.uint16) * 257
    for number, options in enumerate(({"rowsperstrip": 16}, {"tile": (64, 64)})):
        for values in (_textured(), deep):
            path = tmp_path / f"{number}.tif"
            tifffile.imwrite(path, values, photometric="rgb", compression="zlib", **options)
            assert read_image(path).dtype == values.dtype
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 0x10
            path.write_bytes(data)
            with pytest.raises(ValueError, match=rf"{number}\.tif: not a readable image \(.*damaged"):
                read_image(path)


def test_nothing_that_pillow_warns_of_is_printed(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    content = io.BytesIO()
    Image.fromarray(_smooth()).save(content, "png")
    chunks = (b"acTL" + struct.pack(">II", 0, 0), content.getvalue())  # an animation of no frames
    animation = struct.pack(">I", 8) + chunks[0] + struct.pack(">I", zlib.crc32(chunks[0]))
    (tmp_path / "a.png").write_bytes(chunks[1][:33] + animation + chunks[1][33:])
    with pytest.warns(UserWarning, match="Invalid APNG"), Image.open(tmp_path / "a.png"):
        pass
    recwarn.clear()
    assert np.array_equal(read_image(tmp_path / "a.png"), _smooth().transpose(2, 0, 1))
    assert image_size(tmp_path / "a.png") == (64, 48)
    assert [str(warning.message) for warning in recwarn] == []


def test_a_text_file_called_png_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("these are my notes")
    with pytest.raises(ValueError, match=r"notes\.png: not a readable image"):
        read_image(tmp_path / "notes.png")


def test_a_missing_file_a_folder_and_a_path_below_a_file_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.png: there is no such file"):
        read_image(tmp_path / "a.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=r"folder\.png: not a readable image"):
        read_image(tmp_path / "folder.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"b\.png: not a readable image"):
        read_image(tmp_path / "file" / "b.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_written_image_is_clipped_and_rounded(tmp_path: Path, channels: int) -> None:
    values = np.array([-0.5, 0.0, 0.4 / 255, 0.6 / 255, 127.4 / 255, 127.6 / 255, 1.0, 1.7], dtype=np.float32)
    write_image(tmp_path / "a.png", np.broadcast_to(values.reshape(1, 2, 4), (channels, 2, 4)))
    with Image.open(tmp_path / "a.png") as stored:
        assert stored.mode == ("L" if channels == 1 else "RGB")
        assert np.asarray(stored.convert("L")).ravel().tolist() == [0, 0, 0, 1, 127, 128, 255, 255]


def test_rows_and_columns_stay_where_they_are_through_writing_and_reading(tmp_path: Path, pixels: np.ndarray) -> None:
    image = pixels.transpose(2, 0, 1)
    write_image(tmp_path / "a.png", to_float(image))
    assert np.array_equal(read_image(tmp_path / "a.png"), image)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def breaks_off(image: Image.Image, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", breaks_off)
    with pytest.raises(ValueError, match=r"a\.png: cannot be written \(.*No space left"):
        write_image(path, np.zeros((3, 4, 4), dtype=np.float32))
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(ValueError, match=rf"{folder.name}/a\.png: cannot be written"):
            write_image(folder / "a.png", np.zeros((3, 4, 4), dtype=np.float32))


def test_a_suffix_of_no_format_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.xyz: cannot be written"):
        write_image(tmp_path / "a.xyz", np.zeros((3, 4, 4), dtype=np.float32))
    assert not list(tmp_path.iterdir())


def test_8_bits_survive_the_way_to_float_and_back() -> None:
    levels = np.arange(256, dtype=np.uint8)
    assert to_float(levels).dtype == np.float32
    assert to_float(levels)[[0, 51, 255]] == pytest.approx([0, 0.2, 1])
    assert np.array_equal(to_uint8(to_float(levels)), levels)


def test_16_bits_become_a_share_of_65535_and_float32_is_left_alone() -> None:
    levels = np.array([0, 257, 13107, 65535], dtype=np.uint16)
    assert to_float(levels) == pytest.approx([0, 1 / 255, 0.2, 1])
    assert to_float(levels).dtype == np.float32
    floats = np.array([-0.5, 1.7], dtype=np.float32)
    assert np.array_equal(to_float(floats), floats)
    with pytest.raises(ValueError, match=r"int64.*uint8, uint16, or float32"):
        to_float(np.zeros(3, dtype=np.int64))


def test_the_suffix_says_what_is_an_image() -> None:
    assert all(
        is_image_name(Path(name)) for name in ("a.png", "b.JPG", "c.jpeg", "d.x.Tiff", "e.webp", "f.jfif", "g.JPE")
    )
    assert not any(is_image_name(Path(name)) for name in ("a.txt", "png", "b.png.partial", ".png"))
