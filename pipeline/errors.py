"""Errors that the user can fix, and messages for errors of the file system."""

from __future__ import annotations

import errno
import os
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_MACHINE = (*FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT)


class UserError(ValueError):
    """An error that the user can fix.

    The message has one or two lines: what is wrong, where, and what to do. The command prints it and exits with 2.
    """


class InsufficientResourcesError(UserError):
    """The cluster had too few free resources during the whole waiting time; a later try may succeed."""


class FullDiskError(UserError):
    """A disk is full or a quota is used up; another try would fail in the same way."""


def path_of(error: OSError) -> Path | None:
    """The file that an ``OSError`` names; None if it names none."""
    name = error.filename
    return Path(os.fsdecode(name)) if name and isinstance(name, str | bytes | os.PathLike) else None


def described(error: OSError) -> str:
    """A message for an ``OSError``: the file, the system's reason, and a hint if one is known."""
    path, reason = path_of(error), error.strerror or str(error) or type(error).__name__
    text = f"{path}: {reason}" if path else reason
    if error.errno in FULL:
        return f"{text}; make room there" if path else f"{text}; make room here, and in TMPDIR"
    if "temporary directory" in reason or "AF_UNIX" in reason:
        return f"{text}; set TMPDIR to another folder that can be written, with a short path as /tmp"
    if path and error.errno in _REFUSED and _is_kept_at_home(path):
        return f"{text}; set HOME to a folder that can be written"
    return text


def fault_of_machine(error: Exception) -> str | None:
    """The reason, if an error is about this machine: its memory, disk, rights or open files; None for other errors."""
    if isinstance(error, OSError) and error.errno in _OF_MACHINE:
        return described(error)
    # torch raises a RuntimeError where no memory is left.
    is_memory = isinstance(error, RuntimeError) and ("allocate memory" in str(error) or "out of memory" in str(error))
    return "out of memory" if is_memory or isinstance(error, MemoryError) else None


def _is_kept_at_home(path: Path) -> bool:
    """Whether a path is in a hidden folder of HOME, such as ~/.cache, where programs keep their own files."""
    home = Path(os.environ.get("HOME") or "/nowhere")
    return path.is_relative_to(home) and path != home and path.relative_to(home).parts[0].startswith(".")
