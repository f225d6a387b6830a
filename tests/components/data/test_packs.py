"""Packs give back what was packed, and damage is noticed and named."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from components.data.packs import Entry, Pack, file_sha256, write_pack

SIZES = [(20, 31), (17, 17), (40, 16)]


def _images() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (3, *size), dtype=np.uint8) for size in SIZES]


def _entries() -> list[Entry]:
    return [Entry(f"image{i}", f"scene{i % 2}", *size) for i, size in enumerate(SIZES)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pack of three pairs."""
    folder = tmp_path / "val"
    folder.mkdir()
    degraded = [image.astype(np.float32) / 100 - 0.5 for image in _images()]
    write_pack(folder, _entries(), _images(), degraded)
    return folder


def test_a_pack_gives_back_every_pair_in_order_to_the_bit(folder: Path) -> None:
    pairs = list(Pack(folder).pairs())
    assert [entry for entry, _, _ in pairs] == _entries()
    for (_, degraded, clean), image in zip(pairs, _images(), strict=True):
        assert clean.dtype == degraded.dtype == np.float32
        assert np.array_equal(np.rint(clean * 255), image)
        assert np.array_equal(degraded, image.astype(np.float32) / 100 - 0.5)
        assert degraded.max() > 1.5  # noise is not clipped


def test_a_pack_may_hold_clean_images_alone(tmp_path: Path) -> None:
    write_pack(tmp_path, _entries(), _images())
    pack = Pack(tmp_path)
    assert len(pack) == 3
    assert np.array_equal(pack.clean(2) * 255, _images()[2])


def test_a_crop_is_the_slice_of_the_whole_at_every_corner(folder: Path) -> None:
    pack = Pack(folder)
    for index, (height, width) in enumerate(SIZES):
        for top in (0, (height - 16) // 2, height - 16):
            for left in (0, width - 16):
                whole = pack.clean(index)[:, top : top + 16, left : left + 16]
                assert np.array_equal(pack.clean_crop(index, top, left, 16), whole)


def test_packing_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    write_pack(again, _entries(), _images(), [image.astype(np.float32) / 100 - 0.5 for image in _images()])
    for name in ("images.safetensors", "index.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_the_sum_of_a_file_is_its_sha_256(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_an_undamaged_pack_verifies(folder: Path) -> None:
    Pack(folder).verify()


@pytest.mark.parametrize("position", [-1, -5000])
def test_one_flipped_bit_of_the_pixels_is_noticed(folder: Path, position: int) -> None:
    data = bytearray((folder / "images.safetensors").read_bytes())
    data[position] ^= 1
    (folder / "images.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"val/images\.safetensors: damaged, .*run 'eqreg preprocess' again"):
        Pack(folder).verify()


@pytest.mark.parametrize("kept", [0, 4, 100, -10])
def test_pixels_cut_short_are_named(folder: Path, kept: int) -> None:
    data = (folder / "images.safetensors").read_bytes()
    (folder / "images.safetensors").write_bytes(data[:kept])
    with pytest.raises(ValueError, match=r"val: damaged pack .*run 'eqreg preprocess' again"):
        Pack(folder)


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b'{"sha256": "00", "entr',
        b"\xff\xfe\x00",
        b"[]",
        b"{}",
        b'{"sha256": "00"}',
        b'{"sha256": "00", "entries": [{"name": "a"}]}',
        b'{"sha256": "00", "entries": 3}',
    ],
)
def test_a_damaged_index_is_named(folder: Path, index: bytes) -> None:
    (folder / "index.json").write_bytes(index)
    with pytest.raises(ValueError, match=r"val: damaged pack .*run 'eqreg preprocess' again"):
        Pack(folder)


def test_an_index_of_other_pixels_is_noticed(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    index["sha256"] = hashlib.sha256(b"other").hexdigest()
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="damaged"):
        Pack(folder).verify()


@pytest.mark.parametrize("missing", ["images.safetensors", "index.json", None])
def test_a_missing_pack_says_which_command_makes_it(folder: Path, missing: str | None) -> None:
    if missing:
        (folder / missing).unlink()
    with pytest.raises(ValueError, match="no packed images here; run 'eqreg preprocess' first"):
        Pack(folder if missing else folder / "elsewhere")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing/images\.safetensors: cannot be written"):
        write_pack(tmp_path / "missing", _entries(), _images())
