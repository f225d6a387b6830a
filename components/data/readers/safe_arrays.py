"""Arrays from untrusted npy, npz and HDF5 files: sizes are checked before memory is allocated, nothing is unpickled.

Arrays are looked up by their names. Nothing is extracted to disk, so a member called ``../x`` is harmless.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import h5py
import numpy as np
from numpy.lib import format as npy_format

from components.brief import first_line
from components.data.readers.placeholders import placeholder_at

MAX_BYTES = 2**32
"""4 GiB: largest uncompressed size of all arrays that are read from one file."""

FREE_BYTES = 2**28
"""256 MiB: up to this uncompressed size, any compression ratio is allowed, because masks reach 1000. Above it,
`MAX_RATIO` applies."""

MAX_RATIO = 100
"""Largest ratio of uncompressed bytes to bytes on disk. CT slices and photographs are below 10, a zip bomb is at
1000."""

_PLAIN = "biufSU"  # booleans, integers, floating point, text: dtypes that need no pickle
_HEADERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
_SHOWN = 5  # number of names that an error message lists


def load_npy(path: Path) -> np.ndarray:
    """Open the array of an npy file as a read-only memory map; values are read from disk on access.

    Raises:
        ValueError: the file is missing, truncated or not an npy file, or holds pickled objects.
    """
    with naming_file(path, "npy file"):
        size = file_size(path)
        with path.open("rb") as file:
            _check_header(file, size)
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return array


def load_npz(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Read arrays of an npz file completely.

    Args:
        path: path of the file.
        names: names of required arrays.
        optional: names of arrays that are read if the file holds them.

    Returns:
        Name -> array.

    Raises:
        ValueError: the file is missing, damaged or not an npz file; a required array is missing; a requested array
            holds pickled objects; or the requested arrays exceed ``MAX_BYTES`` or look like a zip bomb.
    """
    with naming_file(path, "npz file"), _zip(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if missing := [name for name in names if name not in members]:
            raise ValueError(f"no array {', '.join(missing)}; it holds {_listed(members)}")
        wanted = [name for name in (*names, *optional) if name in members]
        _check_total(sum(members[name].file_size for name in wanted), path)
        for name in wanted:
            with naming_array(name), archive.open(members[name]) as file:
                _check_header(file, members[name].file_size)
        arrays: dict[str, np.ndarray] = {}
        for name in wanted:
            with naming_array(name), archive.open(members[name]) as file:
                arrays[name] = npy_format.read_array(file, allow_pickle=False)
        return arrays


def load_h5(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read numeric datasets of an HDF5 file completely; return name -> array. No other file is opened.

    Raises:
        ValueError: the file is missing, damaged or not an HDF5 file; a dataset is missing, is a link, has its data in
            another file or is not numeric; or the datasets exceed ``MAX_BYTES`` or look like a decompression bomb.
    """
    with naming_file(path, "HDF5 file"):
        file_size(path)  # gives a plain message if the file is missing
        with h5py.File(path, "r") as file:
            datasets: dict[str, h5py.Dataset] = {}
            for name in names:
                with naming_array(name):
                    datasets[name] = _own_dataset(file, name)
            _check_total(sum(dataset.size * dataset.dtype.itemsize for dataset in datasets.values()), path)
            return {name: np.asarray(dataset[()]) for name, dataset in datasets.items()}


@contextmanager
def naming_file(path: Path, kind: str) -> Iterator[None]:
    """Convert any error in reading a file or folder into a ValueError that names it, because readers raise any type."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except Exception as error:
        is_file = path.is_file()  # reading a pipe would block
        reason = (placeholder_at(path) if is_file else "") or first_line(error)
        raise ValueError(f"{path}: not a usable {kind} ({reason}); replace it or take it away") from error


def file_size(path: Path) -> int:
    """Return the size of a file in bytes.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the path is a folder, or a pipe, on which reading would block.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError("not a file")
    return size


@contextmanager
def naming_array(name: str) -> Iterator[None]:
    """Convert any error into a ValueError whose message begins with the name of the array."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{name}: {first_line(error)}") from error


def _zip(path: Path) -> zipfile.ZipFile:
    file_size(path)
    return zipfile.ZipFile(path)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:_SHOWN]) or "nothing"


def _check_total(total: int, path: Path) -> None:
    if total > MAX_BYTES:
        raise ValueError(f"{total} bytes uncompressed, the limit is {MAX_BYTES}: split the file")
    on_disk = file_size(path)
    if total > FREE_BYTES and total > MAX_RATIO * on_disk:
        raise ValueError(f"{total} bytes uncompressed in {on_disk} on disk, over {MAX_RATIO} to 1: a bomb, or split it")


def _check_header(file: IO[bytes], size: int) -> None:
    """Check an npy header against the ``size`` bytes of the file, before an array is allocated."""
    version = npy_format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"npy format {version[0]}.{version[1]}, which only field names need: save a plain array")
    shape, _, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("pickled objects, which are never loaded: save numbers or text")
    if dtype.kind not in _PLAIN:
        raise ValueError(f"dtype {dtype}: save numbers or text")
    expected = math.prod(shape) * dtype.itemsize
    found = size - file.tell()
    if min(shape, default=0) < 0 or expected != found:
        raise ValueError(f"shape {shape} of {dtype} needs {expected} bytes, {found} are there")


def _own_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    parts = name.split("/")
    for depth in range(1, len(parts) + 1):
        link = file.get("/".join(parts[:depth]), getlink=True)  # the link itself, not its target
        if link is None:
            raise ValueError(f"not in it; it holds {_listed(file)}")
        if not isinstance(link, h5py.HardLink):
            raise ValueError("a link to another place, which is not followed")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError("a group, not a dataset")
    if dataset.external or dataset.is_virtual:
        raise ValueError("its data lie in another file, which is not opened")
    if dataset.dtype.kind not in "biuf":
        raise ValueError(f"dtype {dataset.dtype}: save numbers")
    if dataset.chunks and math.prod(dataset.chunks) * dataset.dtype.itemsize > FREE_BYTES:
        raise ValueError(f"chunks {dataset.chunks} of {dataset.dtype}: save it in smaller chunks")
    return dataset
