"""What a source of files is: a listing of objects, and ranges of their bytes. Each kind of address has a module."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Generator
from dataclasses import astuple, dataclass, field
from typing import Protocol

from pipeline.errors import UserError

CHUNK = 1 << 20  # bytes that are read at a time


class InterruptedTransferError(Exception):
    """A transfer that failed in a way that may pass; it is tried again. Says what happened, without any address."""


@dataclass(frozen=True)
class RemoteObject:
    """One file at a source, in one version.

    Attributes:
        name: relative POSIX path, checked by `safe_name`.
        size: in bytes; None where a server does not say.
        etag: what the server calls this version: a changed object has another. None where there is no such thing.
        sha256: recorded beside the object at the source.
        stamp: what else tells versions apart but is no property of the bytes (a file's time); never recorded.
        ranges: whether parts can be read.
    """

    name: str
    size: int | None
    etag: str | None = None
    sha256: str | None = None
    stamp: str = ""
    ranges: bool = True

    @property
    def key(self) -> str:
        """32 hexadecimal digits that change with the name and the version."""
        return hashlib.sha256(json.dumps(astuple(self)).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Listing:
    """What a source holds.

    Attributes:
        objects: sorted by name.
        skipped: suffix -> number of files that are of no known kind.
        is_file: the address names one file, which is unpacked if it is an archive.
    """

    objects: list[RemoteObject]
    skipped: Counter[str] = field(default_factory=Counter)
    is_file: bool = False


@dataclass(frozen=True)
class Reply:
    """The bytes of a range, and what the source says of the whole object when it is opened.

    Attributes:
        chunks: of `CHUNK` bytes at most each; closing the iterator ends the transfer.
        sha256: of the whole object.
        md5: of the whole object; ``HEX-N`` is the MD5 of the MD5s of N parts, as S3 has it for objects put in parts.
    """

    chunks: Generator[bytes]
    sha256: str | None = None
    md5: str | None = None


def too_large(where: str, max_bytes: int) -> UserError:
    """What is said of more than ``fetch.max_gib``."""
    return UserError(f"{where}: more than {max_bytes / 2**30:.4g} GiB; raise fetch.max_gib if it is meant")


class Source(Protocol):
    """A place that holds files. Its methods are called from several threads at once.

    Attributes:
        threads: how many transfers at a time are fast and polite.
        is_local: reading all of it is cheap, so contents are compared where there are no ETags.
    """

    threads: int
    is_local: bool

    def listing(self) -> Listing:
        """Every file of a known kind.

        Raises:
            UserError: the source is missing, refuses, does not answer or holds nothing of a known kind.
        """
        ...

    def read(self, item: RemoteObject, start: int, stop: int | None) -> Reply:
        """Bytes ``start`` to ``stop`` (not included; None: to the end) of exactly the version that was listed.

        Raises:
            InterruptedTransferError: on opening or while reading; trying again may help.
            UserError: it will not.
        """
        ...
