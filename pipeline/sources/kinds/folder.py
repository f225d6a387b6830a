"""A local folder with its subfolders, or one local file, which may be an archive."""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

from pipeline.errors import UserError
from pipeline.sources.archives import archive_kind
from pipeline.sources.folder_listing import read_tree
from pipeline.sources.names import HEAD, KINDS, check_names, choose, is_scan, is_taken
from pipeline.sources.source import CHUNK, Listing, RemoteObject, Reply
from pipeline.sources.sums_files import LARGEST, MANIFEST, SUMS, read_sums


class Folder:
    """A source of every file of a known kind in a folder, or of one file.

    Symbolic links are followed. Hidden files and folders are ignored, and archives inside the folder are not opened.
    """

    threads = 4
    is_local = True

    def __init__(self, path: Path, key: str = "fetch.source") -> None:
        self.path = path
        self.key = key

    def listing(self) -> Listing:
        """Lists the files of a known kind; see `Source.listing`."""
        where = f"{self.key}: {self.path}"
        try:
            if self.path.is_file():
                return self._one_file(where)
            if not self.path.is_dir():
                raise UserError(f"{where}: there is no such folder; {_remedy(self.path)}")
            return self._all_files(where)
        except OSError as error:
            raise UserError(f"{error.filename or self.path}: cannot be read ({error.strerror})") from error

    def read(self, item: RemoteObject, start: int) -> Reply:
        """Reads a file from a byte on; see `Source.read`."""
        path = self.path if self.path.is_file() else self.path / item.name
        return read_file(path, item, start)

    def _one_file(self, where: str) -> Listing:
        item = file_object(self.path.name, self.path)
        taken = is_taken(item.name)
        if not (archive_kind(self.path, item.name) or taken or (taken is None and _is_scan(self.path))):
            raise UserError(f"{where}: neither a folder nor an archive nor a file of a known kind ({KINDS})")
        check_names([item.name], where)
        return Listing([item], is_file=True)

    def _all_files(self, where: str) -> Listing:
        tree = read_tree(self.path)
        taken, skipped = choose(tree.files, self._find_scans, where, tree.left_out())
        sums: dict[str, str] = {}
        for name in (MANIFEST, SUMS):
            if (path := self.path / name).is_file() and path.stat().st_size <= LARGEST:
                sums |= read_sums(name, path.read_bytes(), where)
        objects = [replace(file_object(name, self.path / name), sha256=sums.get(name)) for name in taken]
        return Listing(objects, skipped)

    def _find_scans(self, names: list[str]) -> list[bool]:
        return [_is_scan(self.path / name) for name in names]


def file_object(name: str, path: Path) -> RemoteObject:
    """Returns a local file as an object; its modification time distinguishes versions."""
    status = path.stat()
    return RemoteObject(name, status.st_size, stamp=str(status.st_mtime_ns))


def read_file(path: Path, item: RemoteObject, start: int) -> Reply:
    """Reads a local file, which must not change during the read, from a byte on.

    Args:
        path: path of the file.
        item: the file as it was listed.
        start: first byte.
    """
    return Reply(_chunks(path, item, start))


def _chunks(path: Path, item: RemoteObject, start: int) -> Generator[bytes]:
    try:
        with path.open("rb") as file:
            file.seek(start)
            left = (item.size or 0) - start
            while left and (chunk := file.read(min(CHUNK, left))):
                left -= len(chunk)
                yield chunk
            status = os.fstat(file.fileno())
            if (status.st_size, str(status.st_mtime_ns)) != (item.size, item.stamp):
                raise UserError(f"{path}: changed while it was copied; run 'eqreg fetch' again")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _is_scan(path: Path) -> bool:
    with path.open("rb") as file:
        return is_scan(file.read(HEAD))


def _remedy(path: Path) -> str:
    """Returns a hint about a missing path; a path that DVC tracks can be pulled."""
    for place in (path, *path.parents):
        if Path(f"{place}.dvc").is_file():
            return f"DVC tracks it: run 'dvc pull {place}' first"
    return "use 'builtin', a folder, an archive, s3://BUCKET/PREFIX, https://... or dvc:PATH"
