"""Stages packed images from the driver to the nodes; each node fetches them once and caches them by hash.

On a node, CACHE/packs/HASH is a copy that was completely verified before it got this name.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from components.data.packs import file_sha256
from pipeline.errors import FULL, FullDiskError, UserError
from pipeline.provenance.lineage import data_hash
from pipeline.storage.manifest import (
    DamagedError,
    Item,
    is_whole,
    object_name,
    open_packs,
    publish,
    read_manifest_of,
    withdraw,
)
from pipeline.storage.open_store import open_store
from pipeline.storage.store import ArtifactStore

_THREADS = 4
_SEEN = "verified.json"


def deliver(packed: Path, storage: str | None, cache: str) -> StagedPacks:
    """Makes the packs available to all nodes; called on the driver.

    Args:
        packed: folder of the packs, such as data/packed.
        storage: address of an artifact store, to which the packs are uploaded unless it holds them completely. If it is
            None, the nodes read ``packed`` directly.
        cache: ``cluster.cache``; ``~`` is expanded on each node.

    Raises:
        UserError: there are no packs, they are damaged, or the artifact store refuses or does not answer.
    """
    packed = packed.resolve()
    hash_ = data_hash(packed)
    packs = open_packs(packed)
    if storage is None:
        return StagedPacks(hash_, packed, None, cache)
    artifact_store = open_store(storage)
    try:
        if not is_whole(artifact_store, hash_):
            publish(packed, packs, artifact_store, hash_)
    except OSError as error:
        raise UserError(f"{error.filename or packed}: cannot be read ({error.strerror or error})") from error
    return StagedPacks(hash_, packed, artifact_store, cache)


@dataclass(frozen=True)
class StagedPacks:
    """Packs that every node can obtain; this object is pickled and sent to the nodes.

    Attributes:
        hash: hash of the indexes of the packs, `pipeline.provenance.lineage.data_hash`.
        packed: absolute path of the driver's folder.
        artifact_store: store that the nodes fetch the packs from; None if they read ``packed`` directly.
        cache: folder in which a node keeps its copy.
    """

    hash: str
    packed: Path
    artifact_store: ArtifactStore | None
    cache: str

    def obtain(self) -> Path:
        """Returns the folder of the packs (train, val, ...) on this node.

        Every byte of a fetched copy was verified on this node once. If several processes of a node call this method,
        one fetches the packs and the others wait.

        Raises:
            UserError: the packs are missing or damaged, or the cache cannot be written.
        """
        if self.artifact_store is None:
            return self._in_place()
        packs = Path(self.cache).expanduser().absolute() / "packs"
        try:
            packs.mkdir(parents=True, exist_ok=True)
            with FileLock(packs / f"{self.hash}.lock"):  # released, too, when the process ends in any way
                if not _is_intact(packs / self.hash):
                    self._fetch(packs, self.artifact_store)
        except OSError as error:
            is_full = error.errno in FULL
            hint = "make room there" if is_full else "look at that folder"
            raise (FullDiskError if is_full else UserError)(
                f"cluster.cache: {packs}: cannot be written on {socket.gethostname()} ({error.strerror or error}); "
                f"{hint}, or set cluster.cache to another folder"
            ) from error
        return packs / self.hash

    def _in_place(self) -> Path:
        if (found := data_hash(self.packed)) == self.hash:
            return self.packed
        seen = f"sees other packs ({found}, the driver's are {self.hash})" if self.packed.is_dir() else "sees no folder"
        raise UserError(
            f"cluster.storage: null: {socket.gethostname()} {seen} at {self.packed}; share that folder, "
            "or set cluster.storage to a folder that all see or to s3://BUCKET/PREFIX"
        )

    def _fetch(self, packs: Path, artifact_store: ArtifactStore) -> None:
        """Creates ``packs/HASH``; first the remains of a fetch by this host that was killed are removed."""
        new = packs / f".{self.hash}.{socket.gethostname()}"
        shutil.rmtree(new, ignore_errors=True)
        try:
            items = read_manifest_of(artifact_store, self.hash)
            _check_room(packs, sum(item.size for item in items))
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(lambda item: _fetch_item(artifact_store, self.hash, item, new), items))
            _check_chain(new, items, self.hash)
            _remember(new, items)
        except DamagedError as error:
            shutil.rmtree(new, ignore_errors=True)
            withdraw(artifact_store, self.hash)
            raise UserError(
                f"cluster.storage: {artifact_store.address}: {error}, as {socket.gethostname()} reads it; run the "
                "stage again: all of these packs are brought there anew"
            ) from error
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        shutil.rmtree(packs / self.hash, ignore_errors=True)  # a damaged copy
        new.rename(packs / self.hash)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise FullDiskError(
            f"cluster.cache: {folder}: {needed / 2**20:.0f} MiB of packs are to come, and {free / 2**20:.0f} MiB are "
            f"free on {socket.gethostname()}; make room there, or set cluster.cache to another folder"
        )


def _fetch_item(artifact_store: ArtifactStore, hash_: str, item: Item, folder: Path) -> None:
    """Fetches and verifies one file; a damaged file is fetched once more, because the transfer may have damaged it."""
    path, name = folder / item.name, object_name(hash_, item.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        try:
            artifact_store.download(name, path)
        except FileNotFoundError:
            raise DamagedError(f"{name}: is not there") from None
        with path.open("rb") as file:
            os.fsync(file.fileno())
        if path.stat().st_size == item.size and file_sha256(path) == item.sha256:
            return
    raise DamagedError(f"{name}: is damaged")


def _check_chain(folder: Path, items: list[Item], hash_: str) -> None:
    """Verifies the chain of hashes: the hash of the packs covers the indexes, and the indexes cover the shards.

    The files are then verified independently of the manifest.
    """
    arrived = {item.name: item.sha256 for item in items}
    try:
        packs = open_packs(folder)
    except UserError as error:
        raise DamagedError(f"packs/{hash_}: {error}") from error
    wanted = {f"{name}/{shard.file}": shard.sha256 for name, pack in packs.items() for shard in pack.shards}
    if data_hash(folder) != hash_ or any(arrived.get(name) != sha256 for name, sha256 in wanted.items()):
        raise DamagedError(f"packs/{hash_}: holds other packs than its name says")


def _remember(folder: Path, items: list[Item]) -> None:
    """Records the size, modification time and SHA-256 of each verified file."""
    seen = {}
    for item in items:
        status = (folder / item.name).stat()
        seen[item.name] = [status.st_size, status.st_mtime_ns, item.sha256]
    (folder / _SEEN).write_text(json.dumps(seen))


def _is_intact(folder: Path) -> bool:
    """Returns whether a copy exists and is unchanged since its verification.

    A file is hashed again only if its modification time differs.
    """
    try:
        seen = json.loads((folder / _SEEN).read_text())
        for name, (size, time, sha256) in seen.items():
            status = (folder / name).stat()
            if status.st_size != size or (status.st_mtime_ns != time and file_sha256(folder / name) != sha256):
                return False
    except (OSError, ValueError, AttributeError, TypeError):
        return False
    return True
