"""Labelled images for classification: CIFAR-10 and CIFAR-100 as they are distributed, npz files, folders of classes.

CIFAR's Python version is pickled; it is read by `plain_pickle`, which cannot run anything.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from components.data.images import image_size, is_image_name, read_image
from components.data.own_split import PARTS, Part
from components.data.safe_arrays import MAX_BYTES, as_text, file_size, load_npz, naming_array, naming_file, plain_pickle

_FILE_LIMIT = 2**28  # bytes of one file of CIFAR; the largest has 155 MB
_TAR_RATIO = 8  # of CIFAR's archives: 1.1
_MOST_CLASSES = 2**16  # without names
_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_TEN_BATCHES = [(f"data_batch_{number}", "train") for number in range(1, 6)]
_CIFAR_FILES = frozenset(
    {"train", "test", "meta", "train.bin", "test.bin", "fine_label_names.txt", "batches.meta", "batches.meta.txt"}
    | {f"{batch}{suffix}" for batch in (*dict(_TEN_BATCHES), "test_batch") for suffix in ("", ".bin")}
)


@dataclass(frozen=True)
class Labelled:
    """N images of one size with their classes.

    Attributes:
        images: ``(N, 3, H, W)`` uint8.
        labels: ``(N,)`` int64, indices into ``classes``.
        classes: their names.
        split: the side that the data set itself puts each image on; "" where it says nothing.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: list[str]
    split: list[Part]


def read_labelled(path: Path) -> Labelled:
    """The images of a file or folder, in its order.

    - CIFAR-100 (its 100 fine classes) or CIFAR-10, Python or binary version: the folder, or the ``.tar.gz``, of which
      nothing is extracted.
    - ``.npz``: ``x`` uint8 (N, H, W, 3) or (N, 3, H, W), ``y`` (N,) integers from 0; if there, ``classes`` and
      ``split`` ("train", "val" or "test", (N,)).
    - A folder with a folder a class, perhaps below ``train``, ``val`` and ``test``: image files of 8 bits, all of one
      size, in the order of their names; hidden ones are left alone.

    Raises:
        ValueError: there is nothing of the kind, or it is damaged; a label has no class; images differ in size (resize
            them first: how, is a choice that changes results).
    """
    if path.suffix.lower() == ".npz":
        return _from_npz(path)
    if not path.is_dir():
        with naming_file(path, "CIFAR archive (.tar.gz) or npz file"):
            return _from_cifar(_tar_files(path))
    files = {name: path / name for name in sorted(_CIFAR_FILES) if (path / name).is_file()}
    if files:
        with naming_file(path, "CIFAR folder"):
            return _from_cifar({name: _content(file) for name, file in files.items()})
    return _from_class_folders(path)


def _from_npz(path: Path) -> Labelled:
    arrays = load_npz(path, ["x", "y"], optional=["classes", "split"])
    with naming_file(path, "npz file of labelled images"):
        images = arrays["x"]
        if images.ndim != 4 or images.dtype != np.uint8 or 3 not in (images.shape[3], images.shape[1]):
            raise ValueError(f"x is {images.dtype} {images.shape}: give uint8 (N, H, W, 3) or (N, 3, H, W)")
        if images.shape[3] == 3:
            images = images.transpose(0, 3, 1, 2)  # (N, 3, H, W)
        labels = arrays["y"].reshape(-1) if arrays["y"].ndim == 2 else arrays["y"]
        classes = [str(name) for name in np.atleast_1d(arrays.get("classes", np.array([], dtype=str)))]
        split = [str(part) for part in np.atleast_1d(arrays["split"])] if "split" in arrays else [""] * len(images)
        if not classes and labels.size:
            classes = [str(number) for number in range(min(int(labels.max()) + 1, _MOST_CLASSES))]
        return _checked(images, labels, classes, split)


def _from_class_folders(path: Path) -> Labelled:
    with naming_file(path, "folder of classes"):
        folders = _subfolders(path)
        parts: list[tuple[Part, Path]] = [("", path)]
        if folders and {folder.name.lower() for folder in folders} <= set(PARTS):
            parts = [(PARTS[folder.name.lower()], folder) for folder in folders]
        found = [(part, folder) for part, root in parts for folder in _subfolders(root)]
        classes = sorted({folder.name for _, folder in found})
        files = [(part, folder.name, file) for part, folder in found for file in _image_files(folder)]
        if len(classes) < 2 or not files:
            raise ValueError("holds neither CIFAR files nor two folders with images: give CLASS/IMAGE.png")
        height, width = image_size(files[0][2])
        if (total := len(files) * 3 * height * width) > MAX_BYTES:
            raise ValueError(f"{len(files)} images of {width}x{height} pixels take {total} bytes, over {MAX_BYTES}")
    images = np.empty((len(files), 3, height, width), dtype=np.uint8)
    for place, (_, _, file) in enumerate(files):
        if (size := image_size(file)) != (height, width):
            raise ValueError(
                f"{file}: {size[1]}x{size[0]} pixels, the others have {width}x{height}: resize them to one size first"
            )
        image = read_image(file)
        if image.dtype != np.uint8:
            raise ValueError(f"{file}: 16 bits a channel: convert it to 8")
        images[place] = image
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[name] for _, name, _ in files], dtype=np.int64)
    return Labelled(images, labels, classes, [part for part, _, _ in files])


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if is_image_name(file) and not file.name.startswith("."))


def _tar_files(path: Path) -> dict[str, bytes]:
    """CIFAR's files of a compressed tar, by their last name; it is inflated to memory, up to a limit."""
    limit = min(_TAR_RATIO * file_size(path) + 2**20, 2 * _FILE_LIMIT)
    with gzip.open(path) as compressed:
        content = compressed.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"over {limit} bytes uncompressed: no CIFAR archive")
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        for member in archive:
            name = PurePosixPath(member.name).name
            if name in _CIFAR_FILES and member.isreg() and not member.issparse():
                file = archive.extractfile(member)
                assert file is not None
                files[name] = file.read()
    if not files:
        raise ValueError("holds none of CIFAR's files")
    return files


def _content(path: Path) -> bytes:
    if file_size(path) > _FILE_LIMIT:
        raise ValueError(f"{path.name}: over {_FILE_LIMIT} bytes, no file of CIFAR")
    return path.read_bytes()


def _from_cifar(files: Mapping[str, bytes]) -> Labelled:
    """Whichever version the files are of; those that are there of training and test."""
    hundred = any(name in files for name in ("train", "test", "train.bin", "test.bin"))
    batches = [("train", "train"), ("test", "test")] if hundred else [*_TEN_BATCHES, ("test_batch", "test")]
    suffix = ".bin" if any(name.endswith(".bin") for name in files) else ""
    present = [(f"{batch}{suffix}", part) for batch, part in batches if f"{batch}{suffix}" in files]
    if not present:
        raise ValueError(f"holds {', '.join(files)} but no images")
    pixels: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    split: list[Part] = []
    for name, part in present:
        with naming_array(name):
            read = _binary if suffix else _pickled
            batch_pixels, batch_labels = read(files[name], hundred)
        pixels.append(batch_pixels)
        labels.append(batch_labels)
        split += [PARTS[part]] * len(batch_labels)
    images = np.concatenate(pixels).reshape(-1, 3, _SIDE, _SIDE)  # planes of red, green and blue
    return _checked(images, np.concatenate(labels), _cifar_classes(files, hundred, bool(suffix)), split)


def _binary(content: bytes, hundred: bool) -> tuple[np.ndarray, np.ndarray]:
    """Records of labels (coarse and fine of CIFAR-100, one of CIFAR-10) and 3072 bytes of pixels."""
    num_labels = 2 if hundred else 1
    record = num_labels + _PIXELS
    if not content or len(content) % record:
        raise ValueError(f"{len(content)} bytes are no whole number of records of {record}: cut short, or not CIFAR")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    return records[:, num_labels:], records[:, num_labels - 1]


def _pickled(content: bytes, hundred: bool) -> tuple[np.ndarray, np.ndarray]:
    batch = plain_pickle(content)
    labels = "fine_labels" if hundred else "labels"
    if not {"data", labels} <= set(batch):
        raise ValueError(f"holds {', '.join(list(batch)[:5])}, not data and {labels}")
    data = batch["data"]
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _PIXELS or data.dtype != np.uint8:
        raise ValueError(f"data is not a uint8 array of shape (N, {_PIXELS})")
    return data, np.array(batch[labels])


def _cifar_classes(files: Mapping[str, bytes], hundred: bool, binary: bool) -> list[str]:
    """Of the file that names them; their numbers where it is missing."""
    name = {
        (True, True): "fine_label_names.txt",
        (True, False): "meta",
        (False, True): "batches.meta.txt",
        (False, False): "batches.meta",
    }[hundred, binary]
    number = 100 if hundred else 10
    if name not in files:
        return [str(k) for k in range(number)]
    with naming_array(name):
        if binary:
            names = files[name].decode("ascii").split()
        else:
            names = [as_text(k) for k in plain_pickle(files[name])["fine_label_names" if hundred else "label_names"]]
        if len(names) != number:
            raise ValueError(f"{len(names)} names of {number} classes")
    return names


def _checked(images: np.ndarray, labels: np.ndarray, classes: list[str], split: Sequence[str]) -> Labelled:
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(images) == len(labels) == len(split):
        raise ValueError(f"{len(images)} images, labels {labels.dtype} {labels.shape}, {len(split)} splits: one each")
    if not len(images) or images.size == 0:
        raise ValueError("no images")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"labels {labels.min()}..{labels.max()} for {len(classes)} classes: use 0..{len(classes) - 1}")
    if unknown := {part for part in split if part} - set(PARTS):
        raise ValueError(f"split {sorted(unknown)[0]!r}: use train, val, test or nothing")
    return Labelled(
        np.ascontiguousarray(images), labels.astype(np.int64), classes, [PARTS[part] if part else "" for part in split]
    )
