"""Packs give back what was packed, and damage is noticed and named."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from components.data.packs import Entry, Pack, ShardWriter, file_sha256, write_index, write_pack

pytestmark = pytest.mark.unit

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
    for name in ("images-00000.safetensors", "index.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_the_sum_of_a_file_is_its_sha_256(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_an_undamaged_pack_verifies(folder: Path) -> None:
    Pack(folder).verify()


@pytest.mark.parametrize("position", [-1, -5000])
def test_one_flipped_bit_of_the_pixels_is_noticed(folder: Path, position: int) -> None:
    data = bytearray((folder / "images-00000.safetensors").read_bytes())
    data[position] ^= 1
    (folder / "images-00000.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"val/images-00000\.safetensors: damaged, .*run 'eqreg preprocess' again"):
        Pack(folder).verify()


@pytest.mark.parametrize("kept", [0, 4, 100, -10])
def test_pixels_cut_short_are_named(folder: Path, kept: int) -> None:
    data = (folder / "images-00000.safetensors").read_bytes()
    (folder / "images-00000.safetensors").write_bytes(data[:kept])
    with pytest.raises(
        ValueError, match=r"val/images-00000\.safetensors: damaged shard .*run 'eqreg preprocess' again"
    ):
        Pack(folder).clean(0)


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b'{"sha256": "00", "entr',
        b"\xff\xfe\x00",
        b"[]",
        b"{}",
        b'{"shards": [{"file": "a", "sha256": "00"}]}',
        b'{"shards": [{"file": "a", "sha256": "00", "entries": [{"name": "a"}]}]}',
        b'{"shards": [3]}',
        b'{"shards": 3}',
    ],
)
def test_a_damaged_index_is_named(folder: Path, index: bytes) -> None:
    (folder / "index.json").write_bytes(index)
    with pytest.raises(ValueError, match=r"val: damaged pack .*run 'eqreg preprocess' again"):
        Pack(folder)


def test_a_pack_without_a_format_is_read_and_a_newer_one_is_refused_by_name(folder: Path) -> None:
    names = [entry.name for entry in Pack(folder).entries]
    index = json.loads((folder / "index.json").read_text())
    assert index.pop("format") == 1
    (folder / "index.json").write_text(json.dumps(index))
    assert [entry.name for entry in Pack(folder).entries] == names
    (folder / "index.json").write_text(json.dumps({**index, "format": 2}))
    with pytest.raises(ValueError, match=r"has format 2, and this eqreg reads formats up to 1: use the eqreg that"):
        Pack(folder)


def test_an_index_of_other_pixels_is_noticed(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["sha256"] = hashlib.sha256(b"other").hexdigest()
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="damaged"):
        Pack(folder).verify()


@pytest.mark.parametrize("missing", ["index.json", None])
def test_a_missing_pack_says_which_command_makes_it(folder: Path, missing: str | None) -> None:
    if missing:
        (folder / missing).unlink()
    with pytest.raises(ValueError, match="no packed images here; run 'eqreg preprocess' first"):
        Pack(folder if missing else folder / "elsewhere")


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "images-00000.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"images-00000\.safetensors: this shard is missing; run 'eqreg preprocess' again"
    ):
        Pack(folder)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing/images-00000\.safetensors: cannot be written"):
        write_pack(tmp_path / "missing", _entries(), _images())


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Three images by two writers, each image in a shard of its own."""
    shards = []
    for prefix, chosen in (("a", (0, 1)), ("b", (2,))):
        writer = ShardWriter(tmp_path, prefix, shard_bytes=1)
        for index in chosen:
            writer.add(_entries()[index], _images()[index])
        shards += writer.close()
    write_index(tmp_path, shards)
    return tmp_path


def test_a_pack_of_many_shards_reads_as_one(sharded: Path) -> None:
    assert sorted(file.name for file in sharded.glob("*.safetensors")) == [
        "a-00000.safetensors",
        "a-00001.safetensors",
        "b-00000.safetensors",
    ]
    pack = Pack(sharded)
    pack.verify()
    assert pack.entries == _entries()
    for index, image in enumerate(_images()):
        assert np.array_equal(np.rint(pack.clean(index) * 255), image)
        assert np.array_equal(pack.clean_crop(index, 1, 0, 16), pack.clean(index)[:, 1:17, :16])


def test_the_damaged_one_of_many_shards_is_named(sharded: Path) -> None:
    data = bytearray((sharded / "a-00001.safetensors").read_bytes())
    data[-1] ^= 1
    (sharded / "a-00001.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"a-00001\.safetensors: damaged"):
        Pack(sharded).verify()


def test_a_writer_keeps_at_most_a_shard_in_memory(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, shard_bytes=3 * 40 * 40)
    for number in range(10):
        writer.add(Entry(f"i{number}", "s", 40, 25), np.zeros((3, 40, 25), dtype=np.uint8))
        assert sum(tensor.nbytes for tensor in writer._tensors.values()) < 3 * 40 * 40
    assert [len(shard.entries) for shard in writer.close()] == [2] * 5


def test_two_images_of_one_name_are_refused_across_writers(tmp_path: Path) -> None:
    shards = []
    for prefix in "ab":
        writer = ShardWriter(tmp_path, prefix)
        writer.add(_entries()[0], _images()[0])
        shards += writer.close()
    with pytest.raises(ValueError, match="two images are called image0"):
        write_index(tmp_path, shards)


def test_sixteen_bit_images_other_sizes_and_labels_come_back(tmp_path: Path) -> None:
    clean = np.arange(16 * 20, dtype=np.uint16).reshape(1, 16, 20) * 200
    degraded = np.linspace(-1, 2, 2 * 8 * 10, dtype=np.float32).reshape(2, 8, 10)
    write_pack(tmp_path, [Entry("a", "s", 16, 20, label=7)], [clean], [degraded])
    pack = Pack(tmp_path)
    assert pack.holds_pairs
    assert pack.entries[0].label == 7
    assert np.allclose(pack.clean(0) * 65535, clean, atol=0.01)
    assert np.array_equal(pack.degraded_crop(0, 2, 3, 4), degraded[:, 2:6, 3:7])
    assert pack.stored(0).dtype == np.uint16


def test_crops_are_not_counted_as_memory_of_the_process(tmp_path: Path) -> None:
    def anonymous() -> int:
        status = Path("/proc/self/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))

    image = np.random.default_rng(0).integers(0, 256, (3, 4000, 4000), dtype=np.uint8)
    write_pack(tmp_path, [Entry("large", "s", 4000, 4000)], [image])
    pack, before = Pack(tmp_path), anonymous()
    for top in range(0, 3900, 50):
        for left in range(0, 3900, 400):
            pack.clean_crop(0, top, left, 48)
    assert anonymous() - before < 4000  # kB, of 48 MB
