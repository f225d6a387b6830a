"""The errors that are a user's to mend, and the file system's in words."""

from __future__ import annotations

import errno
import os
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT)


class UserError(ValueError):
    """What is wrong, where, and what to do, in one or two lines; the command prints it and exits with 2."""


class NoRoomError(UserError):
    """A cluster had no room for as long as it was waited for; later it may."""


class FullDiskError(UserError):
    """A disk is full, or a quota used up: another try comes to the same."""


def path_of(error: OSError) -> Path | None:
    """The file that an error of the system is about; None where it names none."""
    name = error.filename
    return Path(os.fsdecode(name)) if name and isinstance(name, str | bytes | os.PathLike) else None


def described(error: OSError) -> str:
    """The file first, what the system says of it, and what to do where that can be told."""
    path, reason = path_of(error), error.strerror or str(error) or type(error).__name__
    text = f"{path}: {reason}" if path else reason
    if error.errno in FULL:
        return f"{text}; make room there" if path else f"{text}; make room here, and in TMPDIR"
    if "temporary directory" in reason or "AF_UNIX" in reason:
        return f"{text}; set TMPDIR to another folder that can be written, with a short path as /tmp"
    if path and error.errno in _REFUSED and _is_kept_at_home(path):
        return f"{text}; set HOME to a folder that can be written"
    return text


def _is_kept_at_home(path: Path) -> bool:
    """Whether programs keep it there, as in ~/.cache; it is none of the user's own files."""
    home = Path(os.environ.get("HOME") or "/nowhere")
    return path.is_relative_to(home) and path != home and path.relative_to(home).parts[0].startswith(".")
