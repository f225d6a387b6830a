"""CIFAR's binary edition, npz files and folders of classes give the same labelled images; nothing is unpickled."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.data.readers.labelled import Labelled, read_labelled

pytestmark = pytest.mark.unit

RANDOM = np.random.default_rng(0)
TRAIN = RANDOM.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
TEST = RANDOM.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
FINE = {"train": [0, 99, 3, 3, 50, 7], "test": [1, 2, 98, 0]}
FINE_NAMES = [f"fine_{k}" for k in range(100)]
TEN = [3, 9, 0, 1, 2, 8]
TEN_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def _rows(images: np.ndarray) -> np.ndarray:
    """(N, 3072), red, green and blue planes one after another, as CIFAR stores them."""
    return images.reshape(len(images), -1)


def _python2_pickle(table: dict[str, Any]) -> bytes:
    """As Python 2 wrote CIFAR: protocol 2, all text and the bytes of arrays as BINSTRING."""
    data = table["data"]
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + b"".join(b"M" + n.to_bytes(2, "little") for n in data.shape)
        + b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + data.size.to_bytes(4, "little")
        + data.tobytes()
        + b"tb"
    )
    labels = b"](" + b"".join(b"K" + bytes([label]) for label in table["fine_labels"]) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x0bfine_labels" + labels + b"u."


def _write_hundred(folder: Path, edition: str) -> None:
    for part, images in (("train", TRAIN), ("test", TEST)):
        if edition == "binary":
            coarse = [label // 5 for label in FINE[part]]
            records = np.column_stack([coarse, FINE[part], _rows(images)]).astype(np.uint8)
            (folder / f"{part}.bin").write_bytes(records.tobytes())
        else:
            (folder / part).write_bytes(_python2_pickle({"data": _rows(images), "fine_labels": FINE[part]}))
    if edition == "binary":
        (folder / "fine_label_names.txt").write_text("\n".join(FINE_NAMES) + "\n")
    else:
        (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": FINE_NAMES}, protocol=2))


def _write_ten(folder: Path, edition: str) -> None:
    for batch, chosen in {"data_batch_1": slice(0, 2), "data_batch_2": slice(2, 4), "test_batch": slice(4, 6)}.items():
        rows, own = _rows(TRAIN[chosen]), TEN[chosen]
        if edition == "binary":
            (folder / f"{batch}.bin").write_bytes(np.column_stack([own, rows]).astype(np.uint8).tobytes())
        else:
            (folder / batch).write_bytes(pickle.dumps({"data": rows, "labels": own}, protocol=2))
    if edition == "binary":
        (folder / "batches.meta.txt").write_text("\n".join(TEN_NAMES) + "\n\n")
    else:
        (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": TEN_NAMES}, protocol=2))


def _is_hundred(found: Labelled) -> bool:
    return (
        np.array_equal(found.images, np.concatenate([TRAIN, TEST]))
        and found.images.dtype == np.uint8
        and found.labels.tolist() == FINE["train"] + FINE["test"]
        and found.labels.dtype == np.int64
        and found.classes == FINE_NAMES
        and found.split == ["train"] * 6 + ["test"] * 4
    )


def _is_ten(found: Labelled) -> bool:
    return (
        np.array_equal(found.images, TRAIN)
        and found.labels.tolist() == TEN
        and found.classes == TEN_NAMES
        and found.split == ["train"] * 4 + ["test"] * 2
    )


WRITE = {100: _write_hundred, 10: _write_ten}
IS_READ = {100: _is_hundred, 10: _is_ten}


def _packed(folder: Path) -> Path:
    path = folder.with_suffix(".tar.gz")
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, arcname="cifar")
    return path


@pytest.mark.parametrize("number", [100, 10])
@pytest.mark.parametrize("packed", ["folder", "archive"])
def test_the_binary_edition_of_cifar_is_read(tmp_path: Path, number: int, packed: str) -> None:
    folder = tmp_path / "cifar"
    folder.mkdir()
    WRITE[number](folder, "binary")
    assert IS_READ[number](read_labelled(folder if packed == "folder" else _packed(folder)))
    WRITE[number](folder, "python")  # beside it, as after a conversion
    assert IS_READ[number](read_labelled(folder if packed == "folder" else _packed(folder)))


@pytest.mark.parametrize("number", [100, 10])
@pytest.mark.parametrize("packed", ["folder", "archive"])
def test_the_python_edition_is_refused_with_a_conversion_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, packed: str
) -> None:
    folder = tmp_path / "it's cifar"
    folder.mkdir()
    WRITE[number](folder, "python")
    path = folder if packed == "folder" else _packed(folder)
    with pytest.raises(ValueError, match=f"holds the python edition .* cifar-{number}-binary.tar.gz") as refused:
        read_labelled(path)
    what, *conversion = str(refused.value).splitlines()
    assert what.startswith(f"{path}: ")
    assert len(conversion) <= 4
    monkeypatch.chdir(tmp_path if packed == "folder" else folder)
    exec("\n".join(conversion), {})
    assert IS_READ[number](read_labelled(Path("cifar.npz")))


def test_files_of_the_python_edition_without_names_of_classes_are_converted_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_hundred(tmp_path, "python")
    for name in ("meta", "test"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match="python edition") as refused:
        read_labelled(tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(str(refused.value).partition("\n")[2], {})
    found = read_labelled(Path("cifar.npz"))
    assert np.array_equal(found.images, TRAIN)
    assert (found.labels.tolist(), found.split) == (FINE["train"], ["train"] * 6)


def test_an_npz_file_may_have_its_channels_last_or_first(tmp_path: Path) -> None:
    labels = np.array([0, 1, 1, 0, 2, 2], dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=TRAIN.transpose(0, 2, 3, 1), y=labels, classes=["a", "b", "c"])
    np.savez(tmp_path / "b.npz", x=TRAIN, y=labels[:, None], split=["train"] * 5 + ["test"])
    first, second = read_labelled(tmp_path / "a.npz"), read_labelled(tmp_path / "b.npz")
    for found in (first, second):
        assert np.array_equal(found.images, TRAIN)
        assert found.images.flags.c_contiguous
        assert found.labels.tolist() == labels.tolist()
    assert (first.classes, first.split) == (["a", "b", "c"], [""] * 6)
    assert (second.classes, second.split) == (["0", "1", "2"], ["train"] * 5 + ["test"])


@pytest.mark.parametrize("split", [True, False])
def test_a_folder_of_classes(tmp_path: Path, split: bool) -> None:
    for number, image in enumerate(TRAIN):
        part = ("train" if number < 4 else "test") if split else ""
        folder = tmp_path / part / ("dog" if number % 2 else "cat")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{number}.png")
        (folder / "notes.txt").write_text("notes")
        (folder / ".hidden.png").write_text("hidden")
    found = read_labelled(tmp_path)
    order = [4, 5, 0, 2, 1, 3] if split else [0, 2, 4, 1, 3, 5]
    assert found.classes == ["cat", "dog"]
    assert np.array_equal(found.images, TRAIN[order])
    assert found.labels.tolist() == [number % 2 for number in order]
    assert found.split == (["test"] * 2 + ["train"] * 4 if split else [""] * 6)


def test_images_of_other_sizes_and_depths_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 6)).save(tmp_path / name / "1.png")
    Image.new("RGB", (6, 8)).save(tmp_path / "dog" / "2.png")
    with pytest.raises(ValueError, match=r"dog/2\.png: 6x8 pixels, the others have 8x6: resize them"):
        read_labelled(tmp_path)
    Image.fromarray(np.zeros((6, 8), dtype=np.uint16)).save(tmp_path / "dog" / "2.png")
    with pytest.raises(ValueError, match=r"dog/2\.png: 16 bits a channel: convert it to 8"):
        read_labelled(tmp_path)


@pytest.mark.parametrize("name", ["train", "data_batch_1", "test_batch"])
def test_a_pickle_that_would_run_something_does_not_run(tmp_path: Path, name: str) -> None:
    sprung = tmp_path / "sprung"
    folder = tmp_path / "cifar"
    folder.mkdir()
    trap = pickle.dumps({"data": Trap(sprung), "fine_labels": [0]})
    (folder / name).write_bytes(trap)
    for path in (folder, _packed(folder)):
        with pytest.raises(ValueError, match="python edition of CIFAR, whose pickles are never loaded"):
            read_labelled(path)
    assert not sprung.exists()
    pickle.loads(trap)
    assert sprung.exists()  # the trap works


def test_an_archive_that_expands_without_end_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("cifar-100-python/train")
        member.size = 30_000_000
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    with pytest.raises(ValueError, match=r"bomb\.tar\.gz: .*bytes uncompressed: no CIFAR archive"):
        read_labelled(tmp_path / "bomb.tar.gz")


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"x": TRAIN.astype(np.float32), "y": [0] * 6}, "give uint8"),
        ({"x": TRAIN[0], "y": [0] * 6}, "give uint8"),
        ({"x": TRAIN[:, :2], "y": [0] * 6}, "give uint8"),
        ({"x": TRAIN, "y": [0] * 5}, "one each"),
        ({"x": TRAIN, "y": [0.0] * 6}, "one each"),
        ({"x": TRAIN, "y": [-1] * 6}, r"labels -1\.\.-1"),
        ({"x": TRAIN, "y": [2] * 6, "classes": ["a", "b"]}, r"labels 2\.\.2 for 2 classes: use 0\.\.1"),
        ({"x": TRAIN, "y": [2**40] * 6}, "for 65536 classes"),
        ({"x": TRAIN[:0], "y": np.zeros(0, dtype=int)}, "no images"),
        ({"x": TRAIN, "y": [0] * 6, "split": ["dev"] * 6}, "split 'dev': use train, val, test or nothing"),
        ({"x": TRAIN}, "no array y"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(tmp_path: Path, arrays: dict[str, Any], why: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=rf"a\.npz: .*{why}"):
        read_labelled(tmp_path / "a.npz")


def test_what_is_no_set_of_labelled_images_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "train.bin").write_bytes(bytes(3074 + 17))
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "meta").write_bytes(b"")
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "train.bin").write_bytes(bytes(3074))
    (tmp_path / "names" / "fine_label_names.txt").write_text("one two")
    (tmp_path / "notes.tar.gz").write_text("notes")
    for name, why in {
        "empty": "give CLASS/IMAGE",
        "short": "train.bin: 3091 bytes are no whole number of records",
        "meta": "holds meta but no images",
        "names": "fine_label_names.txt: 2 names of 100 classes",
        "notes.tar.gz": "Not a gzipped file",
        "missing": "there is no such file",
    }.items():
        with pytest.raises(ValueError, match=rf"{name}: .*{why}"):
            read_labelled(tmp_path / name)
