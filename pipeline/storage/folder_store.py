"""A folder as an artifact store; writes are atomic and survive a power failure."""

from __future__ import annotations

import errno
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pipeline.errors import FULL, FullDiskError, UserError
from pipeline.sources.names import shown, unsafe
from pipeline.storage.store import KEY, probe

_PARTIAL = ".partial"
_ABANDONED = 3600.0  # seconds since the last write, after which a partial file counts as abandoned
_CHUNK = 1 << 22


class FolderStore:
    """A folder whose files are the objects.

    An object is written under a hidden temporary name in the same folder and then renamed.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def names(self, prefix: str) -> list[str]:
        """Lists all names below ``prefix``; see `ArtifactStore.names`."""
        folder = self._path(prefix) if prefix else Path(self.address)
        with self._user_errors("be listed"):
            files = [
                Path(parent) / name
                for parent, _, names in os.walk(folder, onerror=self._on_listing_error)
                for name in names
            ]
        return sorted(file.relative_to(self.address).as_posix() for file in files if not _is_partial(file.name))

    def read(self, name: str) -> bytes:
        """Reads an object; see `ArtifactStore.read`."""
        with self._user_errors("be read", name):
            return self._path(name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Creates or replaces an object; see `ArtifactStore.write`."""
        with self._new_file(name) as file, self._user_errors("be written", name):
            file.write(data)

    def download(self, name: str, path: Path) -> None:
        """Copies an object to a file; see `ArtifactStore.download`."""
        with self._user_errors("be read", name):
            source = self._path(name).open("rb")
        with source, path.open("wb") as file:
            while chunk := self._read_chunk(source, name):
                file.write(chunk)

    def upload(self, path: Path, name: str) -> None:
        """Copies a file to an object; see `ArtifactStore.upload`."""
        with path.open("rb") as source, self._new_file(name) as file:
            while chunk := source.read(_CHUNK):
                with self._user_errors("be written", name):
                    file.write(chunk)

    def delete(self, name: str) -> None:
        """Deletes an object, and folders that are then empty; see `ArtifactStore.delete`."""
        path = self._path(name)
        with self._user_errors("be deleted", name), suppress(FileNotFoundError):
            path.unlink()
            _sync_folder(path.parent)
        with suppress(OSError):  # removes the folders that are now empty, up to the store's own folder
            _remove_abandoned(path.parent)
            for folder in path.parents:
                if folder == Path(self.address):
                    break
                folder.rmdir()

    def check(self) -> None:
        """Writes, reads back and deletes a small object; see `ArtifactStore.check`."""
        probe(self)

    @contextmanager
    def _new_file(self, name: str) -> Iterator[IO[bytes]]:
        """Opens a file that becomes the object when the block succeeds."""
        path = self._path(name)
        partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}{_PARTIAL}")
        with self._user_errors("be written", name):
            if not Path(self.address).is_dir():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.address)
            file = _open_new(partial)
        try:
            with file:
                yield file
                with self._user_errors("be written", name):
                    file.flush()
                    os.fsync(file.fileno())
            with self._user_errors("be written", name):
                partial.replace(path)
                _sync_folder(path.parent)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        with suppress(OSError):
            _remove_abandoned(path.parent)

    def _read_chunk(self, source: IO[bytes], name: str) -> bytes:
        with self._user_errors("be read", name):
            return source.read(_CHUNK)

    def _on_listing_error(self, error: OSError) -> None:
        """Ignores the error of a folder that is missing, or that was removed during the listing."""
        if not (_is_missing(error) and Path(self.address).is_dir()):
            raise error

    def _path(self, name: str) -> Path:
        if reason := unsafe(name):
            raise ValueError(f"{shown(name)}: {reason}")
        return Path(self.address) / name

    @contextmanager
    def _user_errors(self, what: str, name: str = "") -> Iterator[None]:
        """Converts errors of the file system to UserErrors; a missing object that is read is a FileNotFoundError."""
        try:
            yield
        except OSError as error:
            host = socket.gethostname()
            if not Path(self.address).is_dir():
                reason, hint = "there is no such folder", "mount it there, or use s3://BUCKET/PREFIX"
            elif _is_missing(error) and what == "be read":
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None
            else:
                reason = error.strerror or str(error)
                hint = "make room" if error.errno in FULL else "every node must be allowed to read and write there"
            at = f"{self.address}: {name}" if name else self.address
            kind = FullDiskError if error.errno in FULL else UserError
            raise kind(f"{KEY}: {at}: cannot {what} on {host} ({reason}); {hint}") from error


def make_folder(folder: Path) -> None:
    """Creates a folder and its parents, so that they survive a power failure."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _open_new(path: Path) -> IO[bytes]:
    """Creates a new file and its folder; retries if another process removes the folder because it is empty."""
    for attempt in range(10):
        try:
            make_folder(path.parent)
            return path.open("xb")
        except (FileNotFoundError, FileExistsError):
            if attempt == 9:
                raise
    raise AssertionError("the last attempt raises")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def _is_missing(error: OSError) -> bool:
    return isinstance(error, FileNotFoundError | NotADirectoryError)


def _is_partial(name: str) -> bool:
    return name.startswith(".") and name.endswith(_PARTIAL)


def _remove_abandoned(folder: Path) -> None:
    """Removes the partial files of killed writers; their age is measured with the clock of the file system."""
    partials = [file for file in folder.iterdir() if _is_partial(file.name)]
    if partials:
        now = folder.stat().st_mtime
        for file in partials:
            if now - file.stat().st_mtime > _ABANDONED:
                file.unlink(missing_ok=True)
