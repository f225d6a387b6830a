"""Unpacks zip and tar files safely: no member can be written outside the target folder or fill the disk.

Every member is written by this module under a checked name. An archive is refused if it holds a link, a device, a name
that leads outside the folder, or a name that occurs twice. Archives inside archives are not opened.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, cast

from components.brief import first_line
from pipeline.errors import UserError
from pipeline.sources.names import (
    HEAD,
    HIDDEN,
    KINDS,
    check_names,
    is_hidden,
    is_scan,
    is_taken,
    shown,
    skipped_text,
    suffix_of,
)
from pipeline.sources.source import CHUNK, too_large

Kind = Literal["zip", "tar", "gzip", "bzip2", "xz"]

_LARGEST_HEADER = 8 << 20  # bytes; largest single read of the tar module, apart from the contents
# Exceptions that zipfile, tarfile and their decompressors raise for damaged files.
_DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, OverflowError,
    NotImplementedError, RuntimeError, IndexError, KeyError,
)  # fmt: skip


class DamagedError(UserError):
    """The archive cannot be decoded."""


@dataclass(frozen=True)
class Limits:
    """Upper limits for an archive.

    Attributes:
        num_bytes: unpacked size of all members together, in bytes.
        num_members: number of files and folders.
        ratio: ratio of the unpacked to the packed size. Images and arrays stay far below it; zip bombs exceed it.
        free_bytes: unpacked size in bytes up to which the ratio is not checked.
    """

    num_bytes: int
    num_members: int = 2_000_000
    ratio: float = 250.0
    free_bytes: int = 256 << 20


@dataclass(frozen=True)
class Member:
    """One unpacked file.

    Attributes:
        name: path relative to the folder.
        size: size in bytes.
        sha256: SHA-256 of its content.
    """

    name: str
    size: int
    sha256: str


def archive_kind(path: Path, name: str) -> Kind | None:
    """Returns the kind of archive that the first bytes of a file show; None if it is not an archive.

    ``name`` is the name of the file. An .npz file is a zip file, but it is not unpacked.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"):
        return None if name.lower().endswith(".npz") else "zip"
    if head[257:262] == b"ustar":
        return "tar"
    packed: dict[Kind, bytes] = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "xz": b"\xfd7zXZ\x00"}
    return next((kind for kind, magic in packed.items() if head.startswith(magic)), None)


def unpack(path: Path, kind: Kind, folder: Path, limits: Limits, where: str) -> tuple[list[Member], Counter[str]]:
    """Unpacks every file of a known kind below ``folder``.

    Args:
        path: path of the archive.
        kind: result of `archive_kind`.
        folder: existing folder; the caller removes it if this function fails.
        limits: limits beyond which the archive is refused.
        where: name of the archive in messages.

    Returns:
        (unpacked files, sorted by name; number of skipped files by suffix, or by "hidden").

    Raises:
        UserError: the archive is damaged, unsafe or too large; the message names the member.
    """
    budget = _Budget(limits, path.stat().st_size, where)
    try:
        members = _zip_members(path, budget) if kind == "zip" else _tar_members(path, kind, budget)
        return _write(members, folder, budget)
    except UserError:
        raise
    except _DAMAGED as error:
        at = f" at {shown(budget.member)}" if budget.member else ""
        reason = shown(first_line(error))
        raise DamagedError(f"{where}: damaged or cut off{at} ({reason}); get the archive anew") from error


class _Budget:
    """Counts the unpacked bytes and members of an archive, and records which member is being read."""

    def __init__(self, limits: Limits, packed: int, where: str) -> None:
        self.limits, self.packed, self.where = limits, packed, where
        self.member = ""
        self.num_bytes = self.num_members = 0

    def enter(self, member: str) -> None:
        self.member = member
        self.num_members += 1
        if self.num_members > self.limits.num_members:
            raise UserError(f"{self.where}: more than {self.limits.num_members} members; split the archive")

    def spend(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        self.check(self.num_bytes)

    def check(self, num_bytes: int) -> None:
        at = f"{self.where}: {shown(self.member)}" if self.member else self.where
        if num_bytes > self.limits.num_bytes:
            raise too_large(f"{at}: unpacks to", self.limits.num_bytes)
        if num_bytes > max(self.limits.free_bytes, self.limits.ratio * self.packed):
            raise UserError(
                f"{at}: unpacks to more than {self.limits.ratio:.0f} times its size, as no images do; "
                "if you trust it, unpack it yourself and use the folder"
            )

    def refuse(self, reason: str) -> UserError:
        return UserError(f"{self.where}: {shown(self.member)}: {reason}; make the archive without it")


def _write(
    members: Iterator[tuple[str, IO[bytes]]], folder: Path, budget: _Budget
) -> tuple[list[Member], Counter[str]]:
    written: list[Member] = []
    skipped: Counter[str] = Counter()
    for name, content in members:
        taken = False if is_hidden(name) else is_taken(name)
        head = b""
        if taken is None:
            head = content.read(HEAD)
            taken = is_scan(head)
        if not taken:
            skipped[HIDDEN if is_hidden(name) else suffix_of(name)] += 1
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        with target.open("xb") as file:
            chunk = head or content.read(CHUNK)
            while chunk:
                budget.spend(len(chunk))
                digest.update(chunk)
                file.write(chunk)
                size += len(chunk)
                chunk = content.read(CHUNK)
        written.append(Member(name, size, digest.hexdigest()))
    if not written:
        found = f" ({skipped_text(skipped)})" if skipped else ""
        raise UserError(f"{budget.where}: no file of a known kind in it{found}: {KINDS}")
    return sorted(written, key=lambda member: member.name), skipped


def _zip_members(path: Path, budget: _Budget) -> Iterator[tuple[str, IO[bytes]]]:
    """Yields (name, content) of every file; all names are checked before the first file."""
    with zipfile.ZipFile(path) as archive:
        files: list[tuple[str, zipfile.ZipInfo]] = []
        folders: list[str] = []
        for info in archive.infolist():
            budget.enter(info.orig_filename)
            name = info.orig_filename.removeprefix("./")
            mode = stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir() or mode == stat.S_IFDIR:
                folders.append(name.rstrip("/"))
                continue
            if mode not in (0, stat.S_IFREG):
                raise budget.refuse("a link" if mode == stat.S_IFLNK else "a device or pipe")
            if info.flag_bits & 1:
                raise UserError(f"{budget.where}: {shown(name)}: needs a password; unpack it yourself, use the folder")
            files.append((name, info))
        _check_all([name for name, _ in files], folders, budget)
        budget.member = ""
        budget.check(sum(info.file_size for _, info in files))
        for name, info in files:
            budget.member = name
            with archive.open(info) as content:
                yield name, content


def _tar_members(path: Path, kind: Kind, budget: _Budget) -> Iterator[tuple[str, IO[bytes]]]:
    """Yields (name, content) of every file in one pass; each name is checked before its member is written."""
    openers: dict[Kind, Any] = {"tar": open, "gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
    files: set[str] = set()
    parents: set[str] = set()
    folders: list[str] = []
    with openers[kind](path, "rb") as packed:
        stream = _TarStream(packed, budget)
        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r:") as archive:
            while info := archive.next():
                budget.enter(info.name)
                archive.members = []  # type: ignore[attr-defined]  # otherwise it keeps every header in memory
                name = info.name.removeprefix("./")
                if info.isdir():
                    if name not in ("", "."):
                        folders.append(name.rstrip("/"))
                        check_names(folders[-1:], budget.where)
                    continue
                if info.issym() or info.islnk():
                    raise budget.refuse("a link")
                if not info.isreg() or info.issparse():
                    raise budget.refuse("neither a plain file nor a folder")
                check_names([name] * (2 if name in files else 1), budget.where)
                above = {str(parent) for parent in PurePosixPath(name).parents}
                files.add(name)
                parents |= above
                _check_kinds({name}, parents, budget)
                _check_kinds(files, above, budget)
                content = archive.extractfile(info)
                assert content is not None
                budget.check(budget.num_bytes + info.size)
                yield name, content
            if stream.last_block != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("the end is missing")
            while stream.read(CHUNK):  # reads up to the checksums of gzip, bzip2 and xz at the end
                pass
    budget.member = ""
    _check_all(sorted(files), folders, budget)


def _check_all(files: list[str], folders: list[str], budget: _Budget) -> None:
    check_names(files, budget.where)
    check_names(sorted(set(folders)), budget.where)
    _check_kinds(set(files), set(folders), budget)


def _check_kinds(files: set[str], folders: set[str], budget: _Budget) -> None:
    if both := files & folders:
        raise UserError(f"{budget.where}: {shown(min(both))}: is both a file and a folder; make the archive anew")


class _TarStream(io.RawIOBase):
    """The stream that tarfile reads from.

    It only reads forwards, limits the size of each read, counts the bytes and keeps the last header block.
    """

    def __init__(self, packed: IO[bytes], budget: _Budget) -> None:
        self.packed, self.budget = packed, budget
        self.position = 0
        self.last_block = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        try:
            data = self.packed.read(size)
        except OSError as error:
            if error.errno is None:  # gzip and bz2 raise such an OSError for invalid data
                raise tarfile.ReadError(str(error)) from error
            raise
        self.position += len(data)
        self.budget.check(self.position)
        if size == tarfile.BLOCKSIZE:
            self.last_block = data
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < self.position:
            raise tarfile.ReadError("members that overlap")
        while self.position < offset and self.read(min(CHUNK, offset - self.position)):
            pass
        return self.position
