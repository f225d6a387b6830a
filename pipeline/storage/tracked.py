"""Files that DVC tracks, here or in another repository, read from its remote without checking them out.

``dvc:PATH`` is tracked by the project itself, ``dvc:REPOSITORY#PATH`` and ``dvc:REPOSITORY#PATH@REVISION`` by another:
a folder or a git URL. DVC's own settings say where the remote is and who may read it.
"""

from __future__ import annotations

import posixpath
import secrets
from collections.abc import Generator
from typing import Any

from pipeline.errors import UserError
from pipeline.paths import find_input
from pipeline.storage.names import HEAD, check_names, choose, is_scan
from pipeline.storage.objects import CHUNK, InterruptedTransferError, Listing, RemoteObject, Reply


class Tracked:
    """Every file of a known kind below a path that DVC (or git) tracks; each has its MD5 from DVC's records."""

    threads = 4
    is_local = False

    def __init__(self, address: str, key: str = "fetch.source") -> None:
        self.where = f"{key}: {address}"
        repository, hash_mark, path = address.removeprefix("dvc:").rpartition("#")
        path, _, revision = path.partition("@") if hash_mark else (path, "", "")
        self.path = posixpath.normpath(path.strip("/") or ".")
        if not path or self.path.startswith("..") or (hash_mark and not repository):
            raise UserError(f"{self.where}: use dvc:PATH, dvc:REPOSITORY#PATH or dvc:REPOSITORY#PATH@REVISION")
        self.files = self._open(find_input(repository) if repository else None, revision or None)

    def listing(self) -> Listing:
        found = self._find()
        is_file = list(found) == [self.path]
        start = 0 if self.path == "." else len(self.path) + 1
        names = {posixpath.basename(path) if is_file else path[start:]: path for path in found}
        if is_file:
            check_names(names, self.where)
            return Listing([_object(name, found[path]) for name, path in names.items()], is_file=True)
        taken, skipped = choose(names, lambda unclear: [self._is_scan(names[name]) for name in unclear], self.where)
        return Listing([_object(name, found[names[name]]) for name in taken], skipped)

    def read(self, item: RemoteObject, start: int, stop: int | None) -> Reply:
        is_path = posixpath.basename(self.path) == item.name and self.files.isfile(self.path)
        path = self.path if is_path else posixpath.join(self.path, item.name)
        return Reply(self._chunks(path), md5=item.etag)

    def _is_scan(self, path: str) -> bool:
        try:
            with self.files.open(path, "rb") as file:
                return is_scan(file.read(HEAD))
        except Exception as error:
            raise UserError(f"{self.where}: {path}: DVC cannot read it ({type(error).__name__})") from None

    def _chunks(self, path: str) -> Generator[bytes]:
        try:
            with self.files.open(path, "rb") as file:
                while chunk := file.read(CHUNK):
                    yield chunk
        except FileNotFoundError:
            raise UserError(
                f"{self.where}: {path}: recorded, but not in DVC's cache or remote; run 'dvc push' where it was added"
            ) from None
        except Exception as error:  # whatever the client of the remote raises
            raise InterruptedTransferError(f"DVC cannot read it ({type(error).__name__})") from None

    def _open(self, repository: str | None, revision: str | None) -> Any:
        from dvc.api import DVCFileSystem  # slow to import, and seldom needed

        try:
            files = DVCFileSystem(url=repository, rev=revision)
            if not files.repo.dvc_dir:
                raise FileNotFoundError(".dvc")
            return files
        except Exception as error:  # of DVC, of git, or of the network
            reason = type(error).__name__
            raise UserError(
                f"{self.where}: no repository of DVC, or no such revision ({reason}); look at REPOSITORY and REVISION"
            ) from None

    def _find(self) -> dict[str, Any]:
        try:
            if not self.files.exists(self.path):
                raise UserError(f"{self.where}: neither DVC nor git tracks '{self.path}' there; look at the path")
            found: dict[str, Any] = self.files.find(self.path, detail=True)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{self.where}: DVC cannot list it ({type(error).__name__}); run 'dvc push' where it was added, and "
                "look at the settings of the remote"
            ) from None
        return {posixpath.normpath(path.strip("/")): info for path, info in found.items()}


def _object(name: str, info: dict[str, Any]) -> RemoteObject:
    """A tracked file; one that git tracks has no MD5, and is fetched anew each time."""
    md5 = (info.get("dvc_info") or {}).get("md5")
    return RemoteObject(name, info["size"], md5, stamp="" if md5 else secrets.token_hex(), ranges=False)
