"""Downloads the objects of a source to verified files in a folder.

Several objects are fetched at the same time, and each can be taken up after any interruption. The folder holds the
state between runs. A finished file is named KEY-SHA256, where KEY is a hash of the object's name and version. The names
therefore show which objects are still missing, and a changed object is another file. KEY.partial holds the bytes that
have arrived of an unfinished one; they are used if the source can send the rest alone.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import as_completed, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from components.data.packs import file_sha256
from pipeline.console import progress
from pipeline.errors import UserError
from pipeline.sources.checksums import verify
from pipeline.sources.daemon_executor import DaemonExecutor
from pipeline.sources.names import shown
from pipeline.sources.source import InterruptedTransferError, Listing, RemoteObject, Source, too_large

ATTEMPTS = 5  # in a row, without `PROGRESS`
PROGRESS = 8 << 20  # bytes that an attempt adds to a file before the attempts are counted anew
FIRST_WAIT = 0.2  # seconds before the second attempt; doubled for each further attempt, with random jitter


@dataclass(frozen=True)
class Fetched:
    """An object that was fetched completely.

    Attributes:
        item: the object.
        path: its file.
        size: size in bytes.
        sha256: SHA-256 of the file.
    """

    item: RemoteObject
    path: Path
    size: int
    sha256: str


def download(source: Source, listing: Listing, folder: Path, where: str, max_bytes: int) -> list[Fetched]:
    """Downloads every object of a listing to a verified file in ``folder``.

    An object is verified if it has the listed size and, where a sum is recorded, this sum; see
    `pipeline.sources.checksums.Recorded`. Files that an earlier, interrupted call left in the folder are used.

    Args:
        source: source of the objects.
        listing: its listing.
        folder: folder for the files and for the state between runs.
        where: name of the source in messages.
        max_bytes: largest size of all objects together.

    Returns:
        The files, in the order of the listing.

    Raises:
        UserError: an object is refused, gone, changed or not verified after `ATTEMPTS` attempts, the disk is full, or
            all objects together exceed ``max_bytes``.
    """
    with _locked(folder, where):
        done = _already_there(listing, folder)
        missing = [item for item in listing.objects if item.key not in done]
        _check_space(listing, missing, folder, where, max_bytes)
        if missing:
            for fetched in _Download(source, folder, where, max_bytes).run(missing, len(done)):
                done[fetched.item.key] = fetched
    return [done[item.key] for item in listing.objects]


def put(folder: Path, item: RemoteObject, file: Path, sha256: str) -> bool:
    """Copies an existing file into the folder as this version of an object, if the file has the expected SHA-256.

    Args:
        folder: folder of the downloads.
        item: object that the file should be.
        file: existing file.
        sha256: expected SHA-256.

    Returns:
        Whether the folder now holds the object.
    """
    target = folder / f"{item.key}-{sha256}"
    partial = folder / f"{item.key}.copy"
    if target.exists():
        return True
    try:
        shutil.copyfile(file, partial)
        if file_sha256(partial) == sha256:
            partial.replace(target)
    except OSError:  # the object is then fetched from the source
        pass
    partial.unlink(missing_ok=True)
    return target.exists()


@contextmanager
def _locked(folder: Path, where: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / "lock", blocking=False).acquire()
    except Timeout:
        raise UserError(f"{where}: is being fetched by another process; wait for it") from None
    with lock:
        yield


def _already_there(listing: Listing, folder: Path) -> dict[str, Fetched]:
    """Finds the verified files of the listed objects; files that belong to no listed object are removed."""
    items = {item.key: item for item in listing.objects}
    done: dict[str, Fetched] = {}
    for path in sorted(folder.iterdir()):
        key, _, sha256 = path.name.partition("-")
        if sha256 and (item := items.get(key)):
            if file_sha256(path) == sha256:
                done[key] = Fetched(item, path, path.stat().st_size, sha256)
                continue
        elif path.name == "lock" or (path.suffix == ".partial" and path.stem in items and items[path.stem].ranges):
            continue
        path.unlink()
    return done


def _check_space(listing: Listing, missing: list[RemoteObject], folder: Path, where: str, max_bytes: int) -> None:
    total = sum(item.size or 0 for item in listing.objects)
    if total > max_bytes:
        raise too_large(f"{where}: {total / 2**30:.4g} GiB", max_bytes)
    needed = sum(item.size or 0 for item in missing) - sum(file.stat().st_size for file in folder.glob("*.partial"))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{where}: {needed / 2**20:.0f} MiB to fetch, and {free / 2**20:.0f} MiB are free on the disk of {folder}; "
            "make room"
        )


class _Cancelled(Exception):  # noqa: N818
    """The download has failed in another thread, or was interrupted."""


class _Download:
    """The threads of one download."""

    def __init__(self, source: Source, folder: Path, where: str, max_bytes: int) -> None:
        self.source, self.folder, self.where, self.max_bytes = source, folder, where, max_bytes
        self.stop = threading.Event()
        self.bars = progress()
        self.arrived: dict[str, int] = {}  # key of an object -> number of its bytes that are there
        self.num_bytes, self.shown = 0, 0.0  # bytes of all objects, and when the bar was last updated
        self.lock = threading.Lock()
        self.hashers = DaemonExecutor(os.cpu_count() or 1)

    def run(self, items: list[RemoteObject], num_done: int) -> list[Fetched]:
        """Fetches objects; ``num_done`` others are there already."""
        total, of = max(sum(item.size or 0 for item in items) / 1e6, 0.001), num_done + len(items)
        threads = DaemonExecutor(self.source.threads)
        with self.bars as bars:
            self.bar = bars.add_task("fetching", total=total, note=f"MB, {num_done} of {of} files")
            futures = [threads.submit(self._fetch, item) for item in items]
            try:
                for count, future in enumerate(as_completed(futures), num_done + 1):
                    future.result()
                    bars.update(self.bar, completed=self.num_bytes / 1e6, note=f"MB, {count} of {of} files")
            finally:
                self.stop.set()
                threads.shutdown(wait=False, cancel_futures=True)
                wait(futures, timeout=2)
            bars.update(self.bar, completed=total)
        return [future.result() for future in futures]

    def _fetch(self, item: RemoteObject) -> Fetched:
        """Fetches an object in as many attempts as it takes, with increasing pauses.

        Raises:
            UserError: `ATTEMPTS` in a row have failed, or the folder cannot be written.
        """
        seen: set[str] = set()
        failures = 0
        try:
            while True:
                start = self._num_there(item)
                try:
                    return self._attempt(item, start, seen)
                except InterruptedTransferError as error:
                    failures = 1 if self._num_there(item) - start >= PROGRESS else failures + 1
                    if failures == ATTEMPTS:
                        raise UserError(
                            f"{self.where}: {shown(item.name)}: {error}, {ATTEMPTS} times; run 'eqreg fetch' to go on"
                        ) from None
                if self.stop.wait(FIRST_WAIT * 2 ** (failures - 1) * random.uniform(0.5, 1.5)):
                    raise _Cancelled
        except OSError as error:
            hint = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "look at the folder"
            raise UserError(
                f"{self.folder}: cannot be written ({error.strerror or error}); {hint}, then run 'eqreg fetch' again: "
                "it goes on where it stopped"
            ) from None

    def _partial(self, item: RemoteObject) -> Path:
        return self.folder / f"{item.key}.partial"

    def _num_there(self, item: RemoteObject) -> int:
        """Returns how many bytes of the object an attempt can start from."""
        partial = self._partial(item)
        there = partial.stat().st_size if item.ranges and partial.exists() else 0
        return min(there, item.size - 1) if there and item.size else 0  # one byte at least is asked for

    def _attempt(self, item: RemoteObject, start: int, seen: set[str]) -> Fetched:
        """Fetches an object, from ``start`` on, and verifies it.

        A download whose multipart MD5 cannot be matched is accepted if the same bytes, which ``seen`` holds the SHA-256
        of, arrived twice.

        Raises:
            InterruptedTransferError: the transfer was interrupted, or the object is not verified.
            UserError: another attempt would fail, too.
        """
        partial = self._partial(item)
        reply = self.source.read(item, start)
        self._tell(item, start - self.arrived.get(item.key, 0))
        if reply.save:
            partial.unlink(missing_ok=True)  # of an earlier attempt; the new file grows beside it
            reply.save(partial, lambda num_bytes: self._tell(item, num_bytes))
        else:
            assert reply.chunks is not None
            with partial.open("r+b" if start else "wb") as file, closing(reply.chunks) as chunks:
                file.seek(start)
                for chunk in chunks:
                    self._tell(item, len(chunk))
                    file.write(chunk)
                file.truncate()
        length = self.arrived[item.key]
        if item.size is not None and length < item.size:
            raise InterruptedTransferError(f"cut off after {length} of {item.size} bytes")
        recorded = replace(reply.recorded, sha256=item.sha256 or reply.recorded.sha256)
        sha256, agrees = verify(partial, recorded, self.hashers)
        if self.stop.is_set():
            raise _Cancelled
        is_doubtful = agrees is None and recorded.md5 is not None and sha256 not in seen
        seen.add(sha256)
        if agrees is False or is_doubtful:
            partial.unlink()
            reason = "do not fit the ETag" if is_doubtful else "are not those recorded (altered on the way?)"
            raise InterruptedTransferError(f"the bytes that arrived {reason}")
        path = self.folder / f"{item.key}-{sha256}"
        partial.replace(path)
        return Fetched(item, path, length, sha256)

    def _tell(self, item: RemoteObject, num_bytes: int) -> None:
        """Counts bytes that have arrived, in any thread.

        Raises:
            InterruptedTransferError: they are more than the object has.
            UserError: they are more than ``max_bytes``.
        """
        if self.stop.is_set():
            raise _Cancelled
        now = time.monotonic()
        with self.lock:
            self.arrived[item.key] = length = self.arrived.get(item.key, 0) + num_bytes
            self.num_bytes += num_bytes
            is_due = now > self.shown + 0.1
            self.shown = now if is_due else self.shown
        if item.size is not None and length > item.size:
            self._partial(item).unlink(missing_ok=True)
            raise InterruptedTransferError(f"more than its {item.size} bytes")
        if length > self.max_bytes:
            raise too_large(self.where, self.max_bytes)
        if is_due:
            self.bars.update(self.bar, completed=self.num_bytes / 1e6)
