"""Whatever lies on disk becomes 8-bit RGB, or is refused by name."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.data.images import is_image_name, read_image, to_float, to_uint8, write_image

HEIGHT, WIDTH = 9, 14


@pytest.fixture
def pixels() -> np.ndarray:
    """(H, W, 3) uint8, of many colours."""
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


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
def test_a_camera_held_sideways_gives_an_upright_image(tmp_path: Path, pixels: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    expected = ORIENTATIONS[orientation](pixels)
    assert np.array_equal(read_image(tmp_path / "a.png"), expected.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("a.png", np.full((8, 8), 40_000, dtype=np.uint16)),
        ("a.tif", np.full((8, 8), 40_000, dtype=np.uint16)),
        ("b.tif", np.full((8, 8), 40_000, dtype=np.int32)),
        ("c.tif", np.full((8, 8), 0.5, dtype=np.float32)),
    ],
)
def test_more_than_8_bits_are_refused_with_the_remedy(tmp_path: Path, name: str, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}.*not 8 bit: convert it to 8-bit RGB"):
        read_image(tmp_path / name)


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


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
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


def test_the_suffix_says_what_is_an_image() -> None:
    assert all(is_image_name(Path(name)) for name in ("a.png", "b.JPG", "c.jpeg", "d.x.Tiff", "e.webp"))
    assert not any(is_image_name(Path(name)) for name in ("a.txt", "png", "b.png.partial", ".png"))
