"""Files that DVC tracks in this or another repository; they are read from the DVC remote without a checkout.

``dvc:PATH`` is tracked by the project itself. ``dvc:REPOSITORY#PATH`` and ``dvc:REPOSITORY#PATH@REVISION`` are tracked
by another repository, which is a folder or a git URL. The location of the remote and the credentials come from the
settings of DVC.
"""

from __future__ import annotations

import posixpath
import secrets
from collections.abc import Generator
from typing import Any

from pipeline.errors import UserError
from pipeline.paths import find_input
from pipeline.sources.checksums import Recorded
from pipeline.sources.names import HEAD, check_names, choose, is_scan
from pipeline.sources.source import CHUNK, InterruptedTransferError, Listing, RemoteObject, Reply


class Tracked:
    """A source of every file of a known kind below a path that DVC (or git) tracks.

    The MD5 of a file comes from the records of DVC.
    """

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
        """Lists the files of a known kind; see `Source.listing`."""
        found = self._find()
        is_file = list(found) == [self.path]
        start = 0 if self.path == "." else len(self.path) + 1
        names = {posixpath.basename(path) if is_file else path[start:]: path for path in found}
        if is_file:
            check_names(names, self.where)
            return Listing([_object(name, found[path]) for name, path in names.items()], is_file=True)
        taken, skipped = choose(names, lambda unclear: [self._is_scan(names[name]) for name in unclear], self.where)
        return Listing([_object(name, found[names[name]]) for name in taken], skipped)

    def read(self, item: RemoteObject, start: int) -> Reply:
        """Reads a whole file, because the listed objects have no ranges; see `Source.read`."""
        is_path = posixpath.basename(self.path) == item.name and self.files.isfile(self.path)
        path = self.path if is_path else posixpath.join(self.path, item.name)
        return Reply(self._chunks(path), Recorded(md5=item.etag))

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
        except Exception as error:  # the client of the remote may raise any exception
            raise InterruptedTransferError(f"DVC cannot read it ({type(error).__name__})") from None

    def _open(self, repository: str | None, revision: str | None) -> Any:
        from dvc.api import DVCFileSystem  # slow to import and rarely needed

        try:
            files = DVCFileSystem(url=repository, rev=revision)
            if not files.repo.dvc_dir:
                raise FileNotFoundError(".dvc")
            return files
        except Exception as error:  # from DVC, git or the network
            reason = type(error).__name__
            if reason == "CloneError" and repository and "://" in repository:  # missing, refused or out of reach
                raise UserError(
                    f"{self.where}: the repository cannot be cloned; look at REPOSITORY, your rights there and the "
                    "network"
                ) from None
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
    """Returns a tracked file as an object; a file that git tracks has no MD5 and is fetched again each time."""
    md5 = (info.get("dvc_info") or {}).get("md5")
    return RemoteObject(name, info["size"], md5, stamp="" if md5 else secrets.token_hex(), ranges=False)
