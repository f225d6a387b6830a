"""The residual of a layer's pairs, and its addition to the gradient, in one pass each by compiled C code (``fused.c``).

`comparison` needs some ten operations of torch for this, and on a CPU each of them costs more than its arithmetic. The
C code, which is compiled at first use, does the same in one call. It serves dense float32 maps on the CPU and groups on
the grid. In all other cases, and where there is no C compiler, torch's operations give the same result up to rounding.
The environment variable ``EQREG_FUSED=0`` turns the C code off.

Legend: P pairs, C channels, H rows, W columns.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..groups import FieldType, Group, is_channels_last
from ..penalties import EPSILON, Size

_SOURCE = Path(__file__).with_name("fused.c")
_FLAGS = ["-O3", "-fPIC", "-fno-math-errno"]
_LONGEST_FIELD = 8  # as in fused.c
_SIZES: tuple[Size, ...] = ("relative", "none", "paper")  # in the order of fused.c


class Turn(ctypes.Structure):
    """How an element of a group moves the entries of maps of one shape: the structure ``Geometry`` of fused.c."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("pairs", "channels", "height", "width", "first", "by_row", "by_column")],
        ("order", ctypes.c_int64),
        ("sources", ctypes.c_int64 * _LONGEST_FIELD),
        ("is_channels_last", ctypes.c_int64),
    ]


def is_available() -> bool:
    """Whether the C code is enabled and a C compiler has compiled it."""
    return _library() is not None


def turn_of(maps: Tensor, group: Group, element: int, field: FieldType) -> Turn | None:
    """The structure for the C code; None if torch's operations must be used.

    Args:
        maps: of originals and transformed images, ``(2P, C, H, W)``.
        group: the group.
        element: the element of the group that maps an original to its transformed image.
        field: "trivial" or "regular".
    """
    if not _is_plain(maps) or not group.is_on_grid or not is_available():
        return None
    channels_last = is_channels_last(maps)
    if not (channels_last or maps.is_contiguous()):
        return None
    entries, channels, height, width = maps.shape
    return _turn(entries // 2, channels, height, width, channels_last, group, element, field)


def residual(turn: Turn, maps: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Compute the residual of the pairs, with its value, coefficients and norms.

    Args:
        turn: from `turn_of`.
        maps: ``(2P, C, H, W)``.
        size: how the size of a residual is measured.

    Returns:
        The residual ``(P, C, H, W)``, and one row of `comparison.compute_values`, ``(1 + 2 P,)``.
    """
    library = _library()
    assert library is not None
    layout = torch.channels_last if turn.is_channels_last else torch.contiguous_format
    found = torch.empty((turn.pairs, *maps.shape[1:]), memory_format=layout, dtype=torch.float32, device="cpu")
    row = torch.empty(1 + 2 * turn.pairs, dtype=torch.float32, device="cpu")
    pointers = (maps.data_ptr(), found.data_ptr(), _SIZES.index(size), EPSILON, row.data_ptr())
    library.eqreg_residual(turn, *pointers, torch.get_num_threads())
    return found, row


def can_add(turn: Turn, total: Tensor, scales: Tensor) -> bool:
    """Whether `add` can write into the gradient `total` and read the scales.

    Args:
        turn: from `turn_of`.
        total: the gradient at the layer's output, ``(B, C, H, W)``.
        scales: ``(P,)``.
    """
    layout = torch.channels_last if turn.is_channels_last else torch.contiguous_format
    return _is_plain(total) and total.is_contiguous(memory_format=layout) and scales.dtype == torch.float32


def add(
    turn: Turn, total: Tensor, residual: Tensor, scales: Tensor, limits: Tensor | None, measures: bool
) -> Tensor | None:
    """Add ``s_p`` times a residual at the transformed images, and subtract it, transformed back, at the originals.

    ``s_p = scale_p min(1, limit_p a_p)``, where a_p is the norm of the gradient that arrived at both maps of pair p.

    Args:
        turn: from `turn_of`.
        total: the gradient at the layer's output, ``(B, C, H, W)``, changed in place.
        residual: ``(P, C, H, W)``.
        scales: ``(P,)``.
        limits: ``(P,)``; None for no cap.
        measures: whether to return a_p even without a cap.

    Returns:
        a_p, ``(P,)``. None if there is no cap and `measures` is false.
    """
    library = _library()
    assert library is not None
    arriving = None
    if measures or limits is not None:
        arriving = torch.empty(turn.pairs, dtype=torch.float32, device="cpu")
    library.eqreg_add(
        turn,
        total.data_ptr(),
        residual.data_ptr(),
        scales.data_ptr(),
        None if limits is None else limits.data_ptr(),
        None if arriving is None else arriving.data_ptr(),
        torch.get_num_threads(),
    )
    return arriving


def _is_plain(maps: Tensor) -> bool:
    """Whether the C code can read the tensor's memory directly: 4-dimensional, float32, on the CPU."""
    return (
        type(maps) is Tensor
        and maps.layout is torch.strided
        and maps.dtype == torch.float32
        and maps.device.type == "cpu"
        and maps.ndim == 4
        and not (maps.is_neg() or maps._is_zerotensor())
    )


@lru_cache(maxsize=1024)
def _turn(
    pairs: int,
    channels: int,
    height: int,
    width: int,
    channels_last: bool,
    group: Group,
    element: int,
    field: FieldType,
) -> Turn | None:
    sources = group.sources(element) if field == "regular" else [0]
    pixels = group.spatial(
        torch.arange(height * width, device="cpu").view(height, width), element
    )  # the source of each pixel
    if pixels.shape != (height, width) or len(sources) > _LONGEST_FIELD or channels % len(sources):
        return None
    first, by_row, by_column = int(pixels[0, 0]), 0, 0
    if height > 1:
        by_row = int(pixels[1, 0]) - first
    if width > 1:
        by_column = int(pixels[0, 1]) - first
    turn = Turn(pairs, channels, height, width, first, by_row, by_column, len(sources))
    turn.sources[: len(sources)] = sources
    turn.is_channels_last = channels_last
    return turn


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled functions; None if they are disabled or cannot be compiled."""
    if os.environ.get("EQREG_FUSED") == "0":
        return None
    candidates = [shlex.split(os.environ.get("CC", "")), ["cc"], ["gcc"], ["clang"]]
    compiler = next((command for command in candidates if command and shutil.which(command[0])), None)
    if compiler is None:
        return None
    reasons = []
    # With -fopenmp, the C code takes OpenMP from where torch has it, and both run on the same threads. If that fails,
    # the C code uses one thread.
    for flags in (["-fopenmp"], ["-fopenmp-simd"]):
        try:
            return _compiled(compiler, flags)
        except (OSError, subprocess.SubprocessError, AttributeError) as error:
            said = getattr(error, "stderr", None) or b""
            reasons.append(f"{error} {said.decode(errors='replace').strip()}".strip())
    logging.getLogger(__name__).warning(
        "the regulariser's passes are not compiled, and take longer (EQREG_FUSED=0: not tried, and not said): %s",
        reasons[-1],
    )
    return None


def _compiled(compiler: list[str], flags: list[str]) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(prefix="eqreg-") as folder:
        path = Path(folder) / "fused.so"
        kept = _cache() / f"fused-{_key(compiler, flags)}.so"
        if whole := _kept(kept):
            path.write_bytes(whole)
        else:
            with _alone(kept.parent):
                if whole := _kept(kept):  # another process compiled it while this one waited
                    path.write_bytes(whole)
                else:
                    _compile(compiler, flags, path)
                    _keep(path.read_bytes(), kept)
        library = ctypes.CDLL(str(path))
    turn, pointer, integer = ctypes.POINTER(Turn), ctypes.c_void_p, ctypes.c_int64
    library.eqreg_residual.argtypes = [turn, pointer, pointer, integer, ctypes.c_double, pointer, integer]
    library.eqreg_add.argtypes = [turn, *[pointer] * 5, integer]
    library.eqreg_residual.restype = library.eqreg_add.restype = None
    return library


def _compile(compiler: list[str], flags: list[str], path: Path) -> None:
    parts = path.with_suffix(".o")
    for command in (
        [*compiler, *_FLAGS, *flags, "-c", "-o", str(parts), str(_SOURCE)],
        [*compiler, "-shared", "-o", str(path), str(parts), "-lm"],
    ):
        subprocess.run(command, check=True, capture_output=True, timeout=120)


# Compiling takes about two seconds, so the result is cached for other processes. One file works for all processors of
# an architecture. If several processes start together, one compiles and the others wait for it.


def _cache() -> Path:
    try:
        home = Path.home()
    except RuntimeError:  # the user has no home directory
        home = Path(os.devnull)  # nothing can be cached below it
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "eqreg"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock the folder for this process; if it cannot be written or locked, every process compiles for itself."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context((folder / "fused.lock").open("w")), fcntl.LOCK_EX)
        yield


def _key(compiler: list[str], flags: list[str]) -> str:
    """A key of 16 hexadecimal digits, from everything that the compiled file depends on."""
    program = Path(shutil.which(compiler[0]) or compiler[0]).resolve()
    status = program.stat()
    described = [*compiler, *_FLAGS, *flags, str(program), status.st_size, status.st_mtime_ns, platform.machine()]
    return hashlib.sha256(repr(described).encode() + _SOURCE.read_bytes()).hexdigest()[:16]


def _kept(path: Path) -> bytes | None:
    """The bytes that `_keep` wrote, if they are complete and only this user can have written them."""
    try:
        status, data = path.stat(), path.read_bytes()
    except OSError:
        return None
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        return None
    compiled, digest = data[:-32], data[-32:]
    return compiled if hashlib.sha256(compiled).digest() == digest else None


def _keep(compiled: bytes, path: Path) -> None:
    """Write the compiled file to the cache atomically, if the cache can be written."""
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=path.parent, prefix=".fused-") as folder:
        new = Path(folder) / path.name
        new.touch(0o600)
        new.write_bytes(compiled + hashlib.sha256(compiled).digest())
        new.replace(path)
