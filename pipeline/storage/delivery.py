"""Packed images on their way from the driver to the nodes, each of which fetches them once and keeps them by hash.

On a node, CACHE/packs/HASH is a copy that was verified whole before it got its name.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from components.data.packs import file_sha256
from pipeline.errors import FULL, FullDiskError, UserError
from pipeline.lineage import data_hash
from pipeline.storage.bill import DamagedError, Item, is_whole, object_name, open_packs, publish, read_bill, withdraw
from pipeline.storage.places import Place, open_place

_THREADS = 4
_SEEN = "verified.json"


def deliver(packed: Path, storage: str | None, cache: str) -> Delivery:
    """Makes the packs available to all nodes. On the driver.

    Args:
        packed: folder of the packs, as data/packed.
        storage: address of a place, to which they are brought unless they are there whole; None: nodes read them here.
        cache: ``cluster.cache``, expanded on each node.

    Raises:
        UserError: there are no packs, they are damaged, or the place refuses.
    """
    packed = packed.resolve()
    hash_ = data_hash(packed)
    packs = open_packs(packed)
    if storage is None:
        return Delivery(hash_, packed, None, cache)
    place = open_place(storage)
    try:
        if not is_whole(place, hash_):
            publish(packed, packs, place, hash_)
    except OSError as error:
        raise UserError(f"{error.filename or packed}: cannot be read ({error.strerror or error})") from error
    return Delivery(hash_, packed, place, cache)


@dataclass(frozen=True)
class Delivery:
    """Packs as every node can have them; travels to the nodes pickled.

    Attributes:
        hash: of their indexes, `pipeline.lineage.data_hash`.
        packed: the driver's own folder, absolute.
        place: where the nodes take them from; None: they see ``packed``.
        cache: the folder in which a node keeps its copy.
    """

    hash: str
    packed: Path
    place: Place | None
    cache: str

    def obtain(self) -> Path:
        """The folder of the packs (train, val, ...) on this node, every byte of which has been verified here once.

        Of several processes of a node one fetches, the others wait for it.

        Raises:
            UserError: they are not there, damaged, or find no room.
        """
        if self.place is None:
            return self._in_place()
        packs = Path(self.cache).expanduser().absolute() / "packs"
        try:
            packs.mkdir(parents=True, exist_ok=True)
            with _locked(packs / f"{self.hash}.lock"):
                if not _is_intact(packs / self.hash):
                    self._fetch(packs, self.place)
        except OSError as error:
            is_full = error.errno in FULL
            remedy = "make room there" if is_full else "look at that folder"
            raise (FullDiskError if is_full else UserError)(
                f"cluster.cache: {packs}: cannot be written on {socket.gethostname()} ({error.strerror or error}); "
                f"{remedy}, or set cluster.cache to another folder"
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

    def _fetch(self, packs: Path, place: Place) -> None:
        """Makes ``packs/HASH``. What a fetch of this host that was killed has left is removed first."""
        new = packs / f".{self.hash}.{socket.gethostname()}"
        shutil.rmtree(new, ignore_errors=True)
        try:
            items = read_bill(place, self.hash)
            _check_room(packs, sum(item.size for item in items))
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(lambda item: _bring(place, self.hash, item, new), items))
            _check_chain(new, items, self.hash)
            _remember(new, items)
        except DamagedError as error:
            shutil.rmtree(new, ignore_errors=True)
            withdraw(place, self.hash)
            raise UserError(
                f"cluster.storage: {place.address}: {error}, as {socket.gethostname()} reads it; run the stage again: "
                "all of these packs are brought there anew"
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


def _bring(place: Place, hash_: str, item: Item, folder: Path) -> None:
    """One file, verified. One that is not right is fetched once more: it may be the way here."""
    path, name = folder / item.name, object_name(hash_, item.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        try:
            place.download(name, path)
        except FileNotFoundError:
            raise DamagedError(f"{name}: is not there") from None
        with path.open("rb") as file:
            os.fsync(file.fileno())
        if path.stat().st_size == item.size and file_sha256(path) == item.sha256:
            return
    raise DamagedError(f"{name}: is damaged")


def _check_chain(folder: Path, items: list[Item], hash_: str) -> None:
    """The hash vouches for the indexes, the indexes for the shards, and so not only the bill for all of them."""
    arrived = {item.name: item.sha256 for item in items}
    try:
        packs = open_packs(folder)
    except UserError as error:
        raise DamagedError(f"packs/{hash_}: {error}") from error
    wanted = {f"{name}/{shard.file}": shard.sha256 for name, pack in packs.items() for shard in pack.shards}
    if data_hash(folder) != hash_ or any(arrived.get(name) != sha256 for name, sha256 in wanted.items()):
        raise DamagedError(f"packs/{hash_}: holds other packs than its name says")


def _remember(folder: Path, items: list[Item]) -> None:
    """Notes which bytes were verified: those of these sizes and times."""
    seen = {}
    for item in items:
        status = (folder / item.name).stat()
        seen[item.name] = [status.st_size, status.st_mtime_ns, item.sha256]
    (folder / _SEEN).write_text(json.dumps(seen))


def _is_intact(folder: Path) -> bool:
    """Whether a copy is there and as it was when it was verified; files of another time are read again."""
    try:
        seen = json.loads((folder / _SEEN).read_text())
        for name, (size, time, sha256) in seen.items():
            status = (folder / name).stat()
            if status.st_size != size or (status.st_mtime_ns != time and file_sha256(folder / name) != sha256):
                return False
    except (OSError, ValueError, AttributeError, TypeError):
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits until this process alone holds the lock; a process that ends, however, gives it back."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
