"""The residual of a layer's pairs, and its way into the gradient, in one pass each: ``fused.c``, compiled at first use.

What `observation` does with some ten operations of torch, each of which costs a processor more than its numbers, is one
call here: for maps on the CPU in float32, whole and dense, and a group on the grid. Anything else, and everything
where there is no C compiler, goes through torch's operations, to the same result up to rounding. Set the environment
variable ``EQREG_FUSED=0`` to have it so in any case.

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

from .groups import Field, Group, is_channels_last
from .penalties import EPSILON, Size

_SOURCE = Path(__file__).with_name("fused.c")
_FLAGS = ["-O3", "-fPIC", "-fno-math-errno"]
_LONGEST_FIELD = 8  # as in fused.c
_SIZES: tuple[Size, ...] = ("relative", "none", "paper")  # likewise


class Turn(ctypes.Structure):
    """How an element of a group moves the entries of maps of one shape: the C structure ``Geometry``."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("pairs", "channels", "height", "width", "first", "by_row", "by_column")],
        ("order", ctypes.c_int64),
        ("sources", ctypes.c_int64 * _LONGEST_FIELD),
        ("is_channels_last", ctypes.c_int64),
    ]


def is_available() -> bool:
    """Whether this is wanted here, and there was a C compiler."""
    return _library() is not None


def turn_of(maps: Tensor, group: Group, element: int, field: Field) -> Turn | None:
    """For the maps of originals and copies, ``(2P, C, H, W)``; None where torch's operations are to do it."""
    if not _is_plain(maps) or not group.is_on_grid or not is_available():
        return None
    channels_last = is_channels_last(maps)
    if not (channels_last or maps.is_contiguous()):
        return None
    entries, channels, height, width = maps.shape
    return _turn(entries // 2, channels, height, width, channels_last, group, element, field)


def residual(turn: Turn, maps: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """The residual of the maps ``(2P, C, H, W)``, ``(P, C, H, W)``, and what follows from it: a row of `settle`."""
    library = _library()
    assert library is not None
    layout = torch.channels_last if turn.is_channels_last else torch.contiguous_format
    found = torch.empty((turn.pairs, *maps.shape[1:]), memory_format=layout, dtype=torch.float32, device="cpu")
    settled = torch.empty(1 + 2 * turn.pairs, dtype=torch.float32, device="cpu")
    pointers = (maps.data_ptr(), found.data_ptr(), _SIZES.index(size), EPSILON, settled.data_ptr())
    library.eqreg_residual(turn, *pointers, torch.get_num_threads())
    return found, settled


def can_add(turn: Turn, total: Tensor, scales: Tensor) -> bool:
    """Whether `add` can write into this gradient, and read these."""
    layout = torch.channels_last if turn.is_channels_last else torch.contiguous_format
    return _is_plain(total) and total.is_contiguous(memory_format=layout) and scales.dtype == torch.float32


def add(
    turn: Turn, total: Tensor, residual: Tensor, scales: Tensor, limits: Tensor | None, measures: bool
) -> Tensor | None:
    """Add ``s_p`` times a residual to the gradient at the copies, and take it, turned back, from that at the originals.

    ``s_p = scale_p min(1, limit_p a_p)`` with a_p the norm of what had arrived at both maps of the pair.

    Args:
        total: the gradient at the layer's output, ``(B, C, H, W)``, changed in place.
        scales, limits: P entries each; no cap if `limits` is None.
        measures: whether a_p is asked for.

    Returns:
        a_p, ``(P,)``, if there is a cap or it was asked for.
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
    """Whether the memory holds what the tensor says: 4-dimensional, float32, on the CPU."""
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
    pairs: int, channels: int, height: int, width: int, channels_last: bool, group: Group, element: int, field: Field
) -> Turn | None:
    sources = group.sources(element) if field == "regular" else [0]
    pixels = group.spatial(
        torch.arange(height * width, device="cpu").view(height, width), element
    )  # where each comes from
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
    """The compiled functions; None where that is not wanted or cannot be had."""
    if os.environ.get("EQREG_FUSED") == "0":
        return None
    candidates = [shlex.split(os.environ.get("CC", "")), ["cc"], ["gcc"], ["clang"]]
    compiler = next((command for command in candidates if command and shutil.which(command[0])), None)
    if compiler is None:
        return None
    reasons = []
    # OpenMP comes from where torch has it, so that both run on the same threads; or, if it cannot, there is one thread.
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
                if whole := _kept(kept):  # of a process that was waited for
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


# Compiling takes about two seconds of each process: the result is kept. It is one for all processors of an
# architecture. Of several processes one compiles, and the others wait for it.


def _cache() -> Path:
    try:
        home = Path.home()
    except RuntimeError:  # a user without one
        home = Path(os.devnull)  # below which nothing can be kept
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "eqreg"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Where the folder cannot be written or locked, all compile."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context((folder / "fused.lock").open("w")), fcntl.LOCK_EX)
        yield


def _key(compiler: list[str], flags: list[str]) -> str:
    """16 hexadecimal digits of all that the result depends on."""
    program = Path(shutil.which(compiler[0]) or compiler[0]).resolve()
    status = program.stat()
    described = [*compiler, *_FLAGS, *flags, str(program), status.st_size, status.st_mtime_ns, platform.machine()]
    return hashlib.sha256(repr(described).encode() + _SOURCE.read_bytes()).hexdigest()[:16]


def _kept(path: Path) -> bytes | None:
    """What `_keep` wrote there, if it is whole and only this user can have written it."""
    try:
        status, data = path.stat(), path.read_bytes()
    except OSError:
        return None
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        return None
    compiled, digest = data[:-32], data[-32:]
    return compiled if hashlib.sha256(compiled).digest() == digest else None


def _keep(compiled: bytes, path: Path) -> None:
    """Where the cache can be written. Others see all of it or nothing."""
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=path.parent, prefix=".fused-") as folder:
        new = Path(folder) / path.name
        new.touch(0o600)
        new.write_bytes(compiled + hashlib.sha256(compiled).digest())
        new.replace(path)
