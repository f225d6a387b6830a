"""Labelled images for classification: the binary edition of CIFAR-10 and CIFAR-100, npz files, folders of classes.

The python edition of CIFAR holds pickles, which could run anything. It is refused, with a conversion.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from components.data.own_split import PARTS, Part
from components.data.readers.images import image_size, is_image_name, read_image
from components.data.readers.safe_arrays import MAX_BYTES, file_size, load_npz, naming_array, naming_file

_FILE_LIMIT = 2**28  # bytes: limit for one file of CIFAR; the largest file has 155 MB
_TAR_RATIO = 8  # limit of the compression ratio; CIFAR's archives have 1.1
_MOST_CLASSES = 2**16  # limit of the number of classes without names
_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_TEN: dict[str, Part] = {**{f"data_batch_{number}": "train" for number in range(1, 6)}, "test_batch": "test"}
_HUNDRED: dict[str, Part] = {"train": "train", "test": "test"}
_PICKLES = frozenset({*_TEN, *_HUNDRED, "batches.meta", "meta"})
CIFAR_FILES = _PICKLES | {f"{batch}.bin" for batch in _TEN | _HUNDRED} | {"batches.meta.txt", "fine_label_names.txt"}
"""Names of the files of both editions."""


@dataclass(frozen=True)
class Labelled:
    """N images of one size with their classes.

    Attributes:
        images: ``(N, 3, H, W)`` uint8.
        labels: ``(N,)`` int64, indices into ``classes``.
        classes: names of the classes.
        split: part of the data set's own split for each image; "" if the data set defines none.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: list[str]
    split: list[Part]


def read_labelled(path: Path) -> Labelled:
    """Read the labelled images of a file or folder, in its order.

    - CIFAR-100 (its 100 fine classes) or CIFAR-10, binary edition: the folder, or the ``.tar.gz``. Nothing is extracted
      from the archive to disk.
    - ``.npz``: ``x`` uint8 (N, H, W, 3) or (N, 3, H, W), ``y`` (N,) integers from 0; optionally ``classes`` and
      ``split`` ("train", "val" or "test", (N,)).
    - A folder with one folder per class, optionally below ``train``, ``val`` and ``test``. It holds 8-bit image files
      of one size, which are read in the order of their names. Hidden files are ignored.

    Raises:
        ValueError: there are no such data, or they are damaged; a label has no class; or images differ in size. (They
            must be resized first, because the method of resizing changes the results.) For the python edition of
            CIFAR, the message has lines of Python that convert it.
    """
    if path.suffix.lower() == ".npz":
        return _from_npz(path)
    names = sorted(name for name in CIFAR_FILES if (path / name).is_file())
    if path.is_dir() and not names:
        return _from_class_folders(path)
    with naming_file(path, "CIFAR folder" if names else "CIFAR archive (.tar.gz) or npz file"):
        files = {name: _content(path / name) for name in names} if names else _tar_files(path)
        if any(name.endswith(".bin") for name in files) or not files.keys() & (_TEN | _HUNDRED).keys():
            return _from_cifar(files)
    raise ValueError(f"{path}: {_python_edition(files.keys(), path if names else None)}")


def _python_edition(names: Set[str], folder: Path | None) -> str:
    """The message that refuses the python edition: what to do, then a conversion of four lines.

    Args:
        names: names of its files.
        folder: folder of its files; None if they are in an archive.
    """
    number, batches, labels, meta, classes = (
        (100, _HUNDRED, "fine_labels", "meta", "fine_label_names")
        if names & _HUNDRED.keys()
        else (10, _TEN, "labels", "batches.meta", "label_names")
    )
    files = [name for name in (*batches, meta) if name in names]
    split = [batches[name] for name in files if name != meta]
    place = f"{folder}/" if folder else ""
    return (
        "holds the python edition of CIFAR, whose pickles are never loaded: get the binary edition, "
        f"cifar-{number}-binary.tar.gz, or, if you trust the files, run these lines in Python"
        f"{'' if folder else ', in the folder of the unpacked files,'} and give cifar.npz instead:\n"
        "import pickle, numpy as np\n"
        f"{'*b, m' if meta in names else 'b'} = "
        f'[pickle.load(open({place!r} + name, "rb"), encoding="latin1") for name in {files}]\n'
        f'x, y = (np.concatenate([k[key] for k in b]) for key in ("data", "{labels}"))\n'
        f'np.savez("cifar.npz", x=x.reshape(-1, 3, 32, 32), y=y, split=np.repeat({split}, [len(k["data"]) for k in b])'
        f"{f', classes=m[{classes!r}]' if meta in names else ''})"
    )


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
    """Read CIFAR's files from a compressed tar, by the last part of their names; of pickles, the names alone.

    The archive is decompressed in memory, up to a limit.
    """
    limit = min(_TAR_RATIO * file_size(path) + 2**20, 2 * _FILE_LIMIT)
    with gzip.open(path) as compressed:
        content = compressed.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"over {limit} bytes uncompressed: no CIFAR archive")
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        for member in archive:
            name = PurePosixPath(member.name).name
            if name in CIFAR_FILES and member.isreg() and not member.issparse():
                file = archive.extractfile(member)
                assert file is not None
                files[name] = b"" if name in _PICKLES else file.read()
    if not files:
        raise ValueError("holds none of CIFAR's files")
    return files


def _content(path: Path) -> bytes:
    if path.name in _PICKLES:
        return b""
    if file_size(path) > _FILE_LIMIT:
        raise ValueError(f"{path.name}: over {_FILE_LIMIT} bytes, no file of CIFAR")
    return path.read_bytes()


def _from_cifar(files: Mapping[str, bytes]) -> Labelled:
    """Read the images of the files of the binary edition; training or test files may be missing."""
    hundred = any(f"{batch}.bin" in files for batch in _HUNDRED)
    batches = {f"{batch}.bin": part for batch, part in (_HUNDRED if hundred else _TEN).items()}
    present = {name: part for name, part in batches.items() if name in files}
    if not present:
        raise ValueError(f"holds {', '.join(files)} but no images")
    pixels: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    split: list[Part] = []
    for name, part in present.items():
        with naming_array(name):
            batch_pixels, batch_labels = _binary(files[name], hundred)
        pixels.append(batch_pixels)
        labels.append(batch_labels)
        split += [part] * len(batch_labels)
    images = np.concatenate(pixels).reshape(-1, 3, _SIDE, _SIDE)  # planes of red, green and blue
    return _checked(images, np.concatenate(labels), _cifar_classes(files, hundred), split)


def _binary(content: bytes, hundred: bool) -> tuple[np.ndarray, np.ndarray]:
    """Read records of labels (coarse and fine for CIFAR-100, one for CIFAR-10) and 3072 bytes of pixels."""
    num_labels = 2 if hundred else 1
    record = num_labels + _PIXELS
    if not content or len(content) % record:
        raise ValueError(f"{len(content)} bytes are no whole number of records of {record}: cut short, or not CIFAR")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    return records[:, num_labels:], records[:, num_labels - 1]


def _cifar_classes(files: Mapping[str, bytes], hundred: bool) -> list[str]:
    """Read the names of the classes; without the file of names, return the numbers of the classes."""
    name, number = ("fine_label_names.txt", 100) if hundred else ("batches.meta.txt", 10)
    if name not in files:
        return [str(k) for k in range(number)]
    with naming_array(name):
        names = files[name].decode("ascii").split()
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
