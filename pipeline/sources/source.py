"""The interface of a source of files: a listing of objects, and reads of byte ranges.

Each kind of address has a module in `pipeline.sources.kinds`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Protocol

from components.brief import short_digest
from pipeline.errors import UserError
from pipeline.sources.checksums import Recorded

CHUNK = 1 << 20  # bytes of one read


class InterruptedTransferError(Exception):
    """A transfer failed temporarily and may be retried.

    The message says what happened, without any address.
    """


@dataclass(frozen=True)
class RemoteObject:
    """One file at a source, in one version.

    Attributes:
        name: relative POSIX path, checked by `pipeline.sources.names.check_names`.
        size: size in bytes; None if the server does not report it.
        etag: the server's identifier of this version, which changes with the object; None if there is none.
        sha256: SHA-256 that is recorded beside the object at the source.
        stamp: another value that distinguishes versions but does not depend on the bytes, such as the modification
            time of a file; it is never recorded.
        ranges: whether the rest of the object can be read alone.
    """

    name: str
    size: int | None
    etag: str | None = None
    sha256: str | None = None
    stamp: str = ""
    ranges: bool = True

    @property
    def key(self) -> str:
        """A hash of the name and the version, 32 hexadecimal digits."""
        return short_digest(json.dumps(astuple(self)), digits=32)


@dataclass(frozen=True)
class Listing:
    """The content of a source.

    Attributes:
        objects: objects of known kinds, sorted by name.
        skipped: reason for skipping files (a suffix, or other words) -> number of files.
        is_file: whether the address names one file, which is unpacked if it is an archive.
    """

    objects: list[RemoteObject]
    skipped: Counter[str] = field(default_factory=Counter)
    is_file: bool = False


@dataclass(frozen=True)
class Reply:
    """The bytes of an object, and the sums of the whole object that the source reports.

    Attributes:
        chunks: chunks of bytes, in order; closing the iterator ends the transfer. None if there is `save`.
        recorded: the sums.
        save: writes all bytes to a new file. It calls a function, in any thread, with the number of bytes that have
            arrived since the last call, which is negative if they are to arrive again; what that raises ends it.
    """

    chunks: Generator[bytes] | None
    recorded: Recorded = field(default_factory=Recorded)
    save: Callable[[Path, Callable[[int], None]], None] | None = None


def too_large(where: str, max_bytes: int) -> UserError:
    """Returns the error about data that exceed ``fetch.max_gib``."""
    return UserError(f"{where}: more than {max_bytes / 2**30:.4g} GiB; raise fetch.max_gib if it is meant")


class Source(Protocol):
    """A source of files. Its methods are called from several threads at the same time.

    Attributes:
        threads: number of parallel transfers that is fast without overloading the server.
        is_local: whether reading all files is cheap; then contents are compared instead of ETags.
    """

    threads: int
    is_local: bool

    def listing(self) -> Listing:
        """Lists every file of a known kind.

        Raises:
            UserError: the source is missing, refuses access, does not answer or holds no file of a known kind.
        """
        ...

    def read(self, item: RemoteObject, start: int) -> Reply:
        """Reads exactly the version of an object that was listed.

        Args:
            item: listed object.
            start: first byte; 0 if the object has no ranges.

        Raises:
            InterruptedTransferError: on opening or while reading; another attempt may succeed.
            UserError: another attempt would fail, too.
        """
        ...
