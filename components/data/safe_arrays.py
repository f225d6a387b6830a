"""Arrays from npy, npz and HDF5 files of strangers: sizes are checked before memory is taken, nothing is unpickled.

What is asked for is looked up by its name; nothing is extracted to disk, so a member called ``../x`` is only a name.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import h5py
import numpy as np
from numpy.lib import format as npy_format

from components.data.placeholders import placeholder_at

MAX_BYTES = 2**32
"""4 GiB: of all arrays read from one file, uncompressed."""

FREE_BYTES = 2**28
"""256 MiB: so much may be compressed as well as it likes (masks shrink a thousandfold); beyond it `MAX_RATIO` holds."""

MAX_RATIO = 100
"""Uncompressed bytes over bytes on disk. CT slices and photographs stay below 10, a zip bomb is at 1000."""

MAX_OPERATIONS = 2**20
"""Of a pickle; CIFAR-100's training set takes a third of it."""

T = TypeVar("T")
_PLAIN = "biufSU"  # booleans, integers, floating point, text: what needs no pickle
_HEADERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
_SHOWN = 5  # names that an error message lists


def load_npy(path: Path) -> np.ndarray:
    """The array of an npy file, mapped into memory and read-only: only what is looked at is read.

    Raises:
        ValueError: the file is missing, cut short or no npy file, or holds pickled objects.
    """
    with naming_file(path, "npy file"):
        size = file_size(path)
        with path.open("rb") as file:
            _check_header(file, size)
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return array


def load_npz(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """These arrays of an npz file, by name, whole. Of ``optional`` those that it holds.

    Raises:
        ValueError: the file is missing, damaged or no npz file, an array of ``names`` is not in it, or one that is
            asked for holds pickled objects; or together they exceed ``MAX_BYTES`` or look like a zip bomb.
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
    """These numeric datasets of an HDF5 file, by name, whole. Nothing outside the file is opened.

    Raises:
        ValueError: the file is missing, damaged or no HDF5 file, or a dataset is not in it, is a link, has its data in
            another file or is not numeric; or together they exceed ``MAX_BYTES`` or look like a bomb.
    """
    with naming_file(path, "HDF5 file"):
        file_size(path)  # a plain message where there is none
        with h5py.File(path, "r") as file:
            datasets: dict[str, h5py.Dataset] = {}
            for name in names:
                with naming_array(name):
                    datasets[name] = _own_dataset(file, name)
            _check_total(sum(dataset.size * dataset.dtype.itemsize for dataset in datasets.values()), path)
            return {name: np.asarray(dataset[()]) for name, dataset in datasets.items()}


def plain_pickle(data: bytes) -> dict[str, Any]:
    """What a pickled dict of lists, tuples, text, numbers and numeric arrays holds, without unpickling it.

    The operations of the pickle are read one by one, and the few that such a dict needs are carried out here; none of
    them can call anything. Keys become text. Text of Python 2 comes as text (Latin-1), whatever it was.

    Raises:
        ValueError: it holds anything else, or is cut short.

    Source: CPython's pickletools, which describes every operation.
    """
    machine = _Machine()
    for number, (operation, argument, _) in enumerate(pickletools.genops(io.BytesIO(data))):
        if number == MAX_OPERATIONS:
            raise ValueError(f"a pickle of over {MAX_OPERATIONS} operations")
        if operation.name == "STOP":
            held = _of(dict, machine.pop())
            return {key: value.array() if isinstance(value, _Array) else value for key, value in held.items()}
        machine.carry_out(operation.name, argument)
    raise ValueError("a pickle cut short")


def as_text(value: Any) -> str:
    """Text, or bytes of Latin-1 as text.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return _of(str, value)


@contextmanager
def naming_file(path: Path, kind: str) -> Iterator[None]:
    """Turns whatever goes wrong in reading a file or folder into a ValueError that names it: readers raise anything."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except Exception as error:
        is_file = path.is_file()  # a pipe would be waited for
        reason = (placeholder_at(path) if is_file else "") or (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: not a usable {kind} ({reason}); replace it or take it away") from error


def file_size(path: Path) -> int:
    """In bytes.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is a folder or a pipe, which would be waited for.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError("not a file")
    return size


@contextmanager
def naming_array(name: str) -> Iterator[None]:
    """Puts the name of an array before the message of whatever goes wrong with it."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{name}: {error or type(error).__name__}") from error


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
    """Refuses an npy header that the ``size`` bytes do not bear out, before an array is allocated by it."""
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
        link = file.get("/".join(parts[:depth]), getlink=True)  # looks at the link, not at what it leads to
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


class _Global(str):
    """The name of what a pickle would import."""


class _Mark:
    """Where the values of a list, tuple or dict begin on the stack."""


class _Dtype:
    """numpy.dtype: a letter and a size, then, as its state, the byte order."""

    def __init__(self, code: Any) -> None:
        self.code = as_text(code)
        self.order = "="

    def build(self, state: tuple[Any, ...]) -> None:
        if any(part is not None for part in state[2:5]):  # a shape, names and fields
            raise ValueError("a pickled array with fields")
        self.order = as_text(state[1])

    def dtype(self) -> np.dtype[Any]:
        if not re.fullmatch(r"[biuf]\d", self.code) or self.order not in tuple("<>|="):
            raise ValueError(f"a pickled array of dtype {self.order}{self.code}: only numbers are read")
        return np.dtype(self.order + self.code)


class _Array:
    """numpy.ndarray: nothing, then, as its state, (version, shape, dtype, in columns, bytes)."""

    def __init__(self, *state: Any) -> None:
        self.state = state

    def build(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        _, shape, dtype, is_fortran, content = self.state
        raw = content.encode("latin-1") if isinstance(content, str) else bytes(content)
        flat = np.frombuffer(raw, dtype=_of(_Dtype, dtype).dtype())
        return flat.reshape(_of(tuple, shape), order="F" if is_fortran else "C")


class _Machine:
    """The stack and memo of a pickle, and the operations that are carried out."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        values: list[Any] = []
        while not isinstance(value := self.pop(), _Mark):
            values.append(value)
        return values[::-1]

    def carry_out(self, name: str, argument: Any) -> None:
        if _LITERALS.fullmatch(name):
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in ("TUPLE", "LIST", "DICT"):
            made: Any = self.since_mark()
            self.stack.append(tuple(made) if name == "TUPLE" else _pairs(made) if name == "DICT" else made)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            self.stack.append(tuple([self.pop() for _ in range(int(name[-1]))][::-1]))
        elif name in ("APPEND", "APPENDS"):
            values = self.since_mark() if name == "APPENDS" else [self.pop()]
            _of(list, self.stack[-1]).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = self.since_mark() if name == "SETITEMS" else [self.pop(), self.pop()][::-1]
            _of(dict, self.stack[-1]).update(_pairs(values))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "GLOBAL":
            self.stack.append(_Global(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            attribute, module = as_text(self.pop()), as_text(self.pop())
            self.stack.append(_Global(f"{module}.{attribute}"))
        elif name == "REDUCE":
            arguments = _of(tuple, self.pop())
            self.stack.append(_reduced(_of(_Global, self.pop()), arguments))
        elif name == "BUILD":
            state = _of(tuple, self.pop())
            if not isinstance(self.stack[-1], (_Array, _Dtype)):
                raise ValueError("a pickled object, which is never loaded")
            self.stack[-1].build(state)
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"a pickle with the operation {name}, which plain data do not need")


_LITERALS = re.compile(  # their argument is the value; text and bytes in all their lengths
    "(BIN)?INT[12]?|LONG1?|(BIN)?FLOAT|(SHORT_)?(BIN)?STRING|(SHORT_)?(BIN)?UNICODE8?|(SHORT_)?BINBYTES8?|BYTEARRAY8"
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "MARK": _Mark,
}


def _reduced(function: _Global, arguments: tuple[Any, ...]) -> Any:
    """What these calls, the only ones in pickles of bytes and arrays, would give."""
    if function == "_codecs.encode" and len(arguments) == 2 and arguments[1] in ("latin1", "latin-1"):
        return _of(str, arguments[0]).encode("latin-1")
    if function in ("builtins.bytes", "__builtin__.bytes") and not arguments:
        return b""
    if function == "numpy.dtype":
        return _Dtype(arguments[0])
    if function in ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"):
        return _Array()
    if function in ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"):
        content, dtype, shape, order = arguments
        return _Array(1, shape, dtype, order == "F", content)
    raise ValueError(f"a pickle that calls {function}, which is never done")


def _pairs(values: list[Any]) -> dict[str, Any]:
    return {as_text(key): value for key, value in zip(values[::2], values[1::2], strict=True)}


def _of(kind: type[T], value: Any) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} where a {kind.__name__.strip('_').lower()} should be")
    return value
