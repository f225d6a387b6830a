"""Objects of a source -> verified files in a folder: parallel, in bounded memory, resumed after any interruption.

The folder is the memory between runs. A finished file is called KEY-SHA256, KEY standing for the object's name and
version, so that one look tells what is still to come, and a changed object is another file. A large object is fetched
in parts into KEY.partial, and KEY.parts lists the parts that are there.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import queue
import random
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from components.data.packs import file_sha256
from pipeline.console import progress
from pipeline.errors import UserError
from pipeline.storage.digests import Digests, Sha256, etag_of_parts
from pipeline.storage.names import shown
from pipeline.storage.objects import CHUNK, InterruptedTransferError, Listing, RemoteObject, Reply, Source, too_large

PART = 8 << 20  # bytes; larger objects are fetched in parts of this size
ATTEMPTS = 5
FIRST_WAIT = 0.2  # seconds before the second attempt; doubled for each further one, and varied


@dataclass(frozen=True)
class Fetched:
    """An object that lies here whole, and whose SHA-256 is known."""

    item: RemoteObject
    path: Path
    size: int
    sha256: str


def download(source: Source, listing: Listing, folder: Path, where: str, max_bytes: int) -> list[Fetched]:
    """Every object of the listing as a verified file in ``folder``, in the order of the listing.

    An object counts as fetched if its size is the listed one and its bytes have the recorded SHA-256 or, where none is
    recorded, the MD5 that its ETag holds. What an earlier, interrupted call left in the folder is used.

    Raises:
        UserError: an object is refused, gone, changed or does not verify after `ATTEMPTS`, the disk is full, or all
            objects together exceed ``max_bytes``.
    """
    with _locked(folder, where):
        done = _already_there(listing, folder)
        missing = [item for item in listing.objects if item.key not in done]
        _check_space(listing, missing, folder, where, max_bytes)
        if missing:
            for fetched in _Transfer(source, folder, where, max_bytes).run(missing, len(done)):
                done[fetched.item.key] = fetched
    return [done[item.key] for item in listing.objects]


def put(folder: Path, item: RemoteObject, file: Path, sha256: str) -> bool:
    """Copies a file that is believed to be this object in this version into the folder, if it has that SHA-256."""
    target = folder / f"{item.key}-{sha256}"
    partial = folder / f"{item.key}.copy"
    if target.exists():
        return True
    try:
        shutil.copyfile(file, partial)
        if file_sha256(partial) == sha256:
            partial.replace(target)
    except OSError:  # it is fetched instead
        pass
    partial.unlink(missing_ok=True)
    return target.exists()


@contextmanager
def _locked(folder: Path, where: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{where}: is being fetched by another process; wait for it") from None
        yield


def _already_there(listing: Listing, folder: Path) -> dict[str, Fetched]:
    """The verified files of the listing's objects; what belongs to no object of the listing is removed."""
    items = {item.key: item for item in listing.objects}
    done: dict[str, Fetched] = {}
    for path in sorted(folder.iterdir()):
        key, _, sha256 = path.name.partition("-")
        if sha256 and (item := items.get(key)):
            if file_sha256(path) == sha256:
                done[key] = Fetched(item, path, path.stat().st_size, sha256)
                continue
        elif path.name == "lock" or (path.suffix in (".partial", ".parts") and path.stem in items):
            continue
        path.unlink()
    return done


def _check_space(listing: Listing, missing: list[RemoteObject], folder: Path, where: str, max_bytes: int) -> None:
    total = sum(item.size or 0 for item in listing.objects)
    if total > max_bytes:
        raise too_large(f"{where}: {total / 2**30:.4g} GiB", max_bytes)
    needed = sum(item.size or 0 for item in missing)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{where}: {needed / 2**20:.0f} MiB to fetch, and {free / 2**20:.0f} MiB are free on the disk of {folder}; "
            "make room"
        )


class _Cancelled(Exception):  # noqa: N818
    """The fetch has failed elsewhere, or was interrupted."""


class _Prefix:
    """The SHA-256 of a file whose parts arrive in nearly their order: whoever brings one takes up what can be."""

    def __init__(self, path: Path, there: set[int]) -> None:
        self._path, self._there = path, there
        self._sha256 = hashlib.sha256()
        self._next = 0
        self._lock = threading.Lock()

    def add(self, number: int) -> None:
        """A part is there. Never waits for another thread: what stays behind is for `finish`."""
        self._there.add(number)
        if self._lock.acquire(blocking=False):
            try:
                self._take_up(lambda: False)
            finally:
                self._lock.release()

    def finish(self, stop: threading.Event) -> Sha256:
        """That of the whole file; all parts are there."""
        with self._lock:
            self._take_up(stop.is_set)
        return self._sha256

    def _take_up(self, is_stopped: Callable[[], bool]) -> None:
        with self._path.open("rb") as file:
            while self._next in self._there:
                if is_stopped():
                    raise _Cancelled
                file.seek(self._next * PART)
                left = PART
                while left and (chunk := file.read(min(CHUNK, left))):
                    left -= len(chunk)
                    self._sha256.update(chunk)
                self._next += 1


@dataclass
class _Large:
    """The state of an object that is fetched in parts. Only the main thread touches it.

    Attributes:
        item: the object.
        missing: numbers of parts still to come.
        parts_md5: number -> MD5 of a part that is there.
        prefix: the SHA-256 of the first parts.
        sha256, md5: what the source said of the whole object.
        attempts: whole fetches that did not verify.
        seen: the SHA-256 of those.
    """

    item: RemoteObject
    missing: set[int]
    parts_md5: dict[int, str]
    prefix: _Prefix
    sha256: str | None = None
    md5: str | None = None
    attempts: int = 0
    seen: set[str] = field(default_factory=set)


class _Transfer:
    """The threads of one download. They are daemons: one that hangs in the network keeps nobody from leaving."""

    def __init__(self, source: Source, folder: Path, where: str, max_bytes: int) -> None:
        self.source, self.folder, self.where, self.max_bytes = source, folder, where, max_bytes
        self.work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self.results: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.stop = threading.Event()

    def run(self, items: list[RemoteObject], num_done: int) -> Iterator[Fetched]:
        total = sum(item.size or 0 for item in items) / 1e6
        larges: dict[str, _Large] = {}
        for item in items:
            if item.size is not None and item.size > PART and item.ranges:
                larges[item.key] = self._start_large(item)
            else:
                self.work.put(lambda item=item: self._fetch_whole(item))  # type: ignore[misc]
        threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(self.source.threads)]
        for thread in threads:
            thread.start()
        arrived, count, of = 0.0, num_done, num_done + len(items)
        try:
            with progress() as bars:
                bar = bars.add_task("fetching", total=max(total, 0.001), note=f"MB, {count} of {of} files")
                while count < of:
                    result = self.results.get()
                    if isinstance(result, BaseException):
                        raise result
                    if isinstance(result, _PartDone):
                        arrived += result.size / 1e6
                        self._part_done(larges[result.key], result)
                    elif isinstance(result, _Verified):
                        if not self._verified(larges[result.key], result):
                            continue
                        count += 1
                        yield Fetched(larges[result.key].item, result.path, result.size, result.sha256)
                    elif isinstance(result, Fetched):
                        arrived += result.size / 1e6
                        count += 1
                        yield result
                    bars.update(bar, completed=min(arrived, total), note=f"MB, {count} of {of} files")
                bars.update(bar, completed=max(total, 0.001))
        finally:
            self.stop.set()
            for _ in threads:
                self.work.put(None)
            for thread in threads:
                thread.join(timeout=2)

    def _serve(self) -> None:
        while (task := self.work.get()) is not None:
            if self.stop.is_set():
                return
            try:
                self.results.put(task())
            except _Cancelled:
                return
            except OSError as error:
                self.results.put(self._disk_error(error))
            except BaseException as error:  # raised again in the main thread
                self.results.put(error)

    def _disk_error(self, error: OSError) -> UserError:
        remedy = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "look at the folder"
        return UserError(
            f"{self.folder}: cannot be written ({error.strerror or error}); {remedy}, then run 'eqreg fetch' again: "
            "it goes on where it stopped"
        )

    def _attempts(self, name: str) -> Iterator[Callable[[InterruptedTransferError], None]]:
        """As many turns as there are attempts, with growing pauses; each gives what to call when it failed."""
        for attempt in range(ATTEMPTS):
            failures: list[InterruptedTransferError] = []
            yield failures.append
            if attempt == ATTEMPTS - 1:
                raise UserError(
                    f"{self.where}: {shown(name)}: {failures[0]}, {ATTEMPTS} times; run 'eqreg fetch' to go on"
                ) from None
            if self.stop.wait(FIRST_WAIT * 2**attempt * random.uniform(0.5, 1.5)):
                raise _Cancelled

    def _pieces(self, reply: Reply, expected: int | None) -> Iterator[bytes]:
        """The chunks, which together must have the expected length."""
        length = 0
        with closing(reply.chunks) as chunks:
            for chunk in chunks:
                if self.stop.is_set():
                    raise _Cancelled
                length += len(chunk)
                if expected is not None and length > expected:
                    raise InterruptedTransferError(f"more than its {expected} bytes")
                if length > self.max_bytes:
                    raise too_large(self.where, self.max_bytes)
                yield chunk
        if expected is not None and length < expected:
            raise InterruptedTransferError(f"cut off after {length} of {expected} bytes")

    def _fetch_whole(self, item: RemoteObject) -> Fetched:
        """A small object, or one that cannot be read in parts."""
        partial = self.folder / f"{item.key}.{threading.get_ident()}.partial"
        seen: set[str] = set()
        for failed in self._attempts(item.name):
            try:
                reply = self.source.read(item, 0, None)
                digests = Digests(item.sha256 or reply.sha256, reply.md5, item.size)
                size = 0
                with partial.open("wb") as file:
                    for chunk in self._pieces(reply, item.size):
                        digests.update(chunk)
                        file.write(chunk)
                        size += len(chunk)
                self._judge(digests, seen)
                path = self.folder / f"{item.key}-{digests.sha256}"
                partial.replace(path)
                return Fetched(item, path, size, digests.sha256)
            except InterruptedTransferError as error:
                failed(error)
        raise AssertionError("attempts end with an error")

    @staticmethod
    def _judge(digests: Digests, seen: set[str]) -> None:
        """Accepts what verifies, what nothing can verify, and what came twice the same where its MD5 is unclear.

        Raises:
            InterruptedTransferError: none of these.
        """
        if digests.agree() is False:
            raise InterruptedTransferError("the bytes that arrived are not those recorded (altered on the way?)")
        if digests.is_doubtful and digests.sha256 not in seen:
            seen.add(digests.sha256)
            raise InterruptedTransferError("the bytes that arrived do not fit the ETag")

    def _start_large(self, item: RemoteObject) -> _Large:
        assert item.size is not None
        partial, journal = self._partial(item)
        there: dict[int, str] = {}
        if partial.is_file() and partial.stat().st_size == item.size and journal.is_file():
            lines = re.findall(r"^(\d+) ([0-9a-f]{32})$", journal.read_text(), re.MULTILINE)
            there = {int(number): md5 for number, md5 in lines}
        else:
            journal.unlink(missing_ok=True)
            with partial.open("wb") as file:
                file.truncate(item.size)
        large = _Large(item, set(range(-(-item.size // PART))) - set(there), there, _Prefix(partial, set(there)))
        self._submit(large)
        return large

    def _partial(self, item: RemoteObject) -> tuple[Path, Path]:
        return self.folder / f"{item.key}.partial", self.folder / f"{item.key}.parts"

    def _submit(self, large: _Large) -> None:
        for number in sorted(large.missing):
            self.work.put(lambda number=number: self._fetch_part(large.item, number, large.prefix))  # type: ignore[misc]
        if not large.missing:  # all was there: one byte tells what is recorded of it
            self.work.put(lambda: self._fetch_part(large.item, 0, large.prefix))
            large.missing = {0}

    def _fetch_part(self, item: RemoteObject, number: int, prefix: _Prefix) -> _PartDone:
        assert item.size is not None
        partial, journal = self._partial(item)
        start, stop = number * PART, min((number + 1) * PART, item.size)
        for failed in self._attempts(item.name):
            try:
                reply = self.source.read(item, start, stop)
                digest = hashlib.md5(usedforsecurity=False)
                with partial.open("r+b") as file:
                    file.seek(start)
                    for chunk in self._pieces(reply, stop - start):
                        digest.update(chunk)
                        file.write(chunk)
                with journal.open("a") as lines:
                    lines.write(f"{number} {digest.hexdigest()}\n")
                prefix.add(number)
                return _PartDone(item.key, number, stop - start, digest.hexdigest(), reply.sha256, reply.md5)
            except InterruptedTransferError as error:
                failed(error)
        raise AssertionError("attempts end with an error")

    def _part_done(self, large: _Large, part: _PartDone) -> None:
        large.missing.discard(part.number)
        large.parts_md5[part.number] = part.part_md5
        large.sha256, large.md5 = part.sha256, part.md5
        if not large.missing:
            # Most large objects were put in parts of this very size: then nothing but the SHA-256 is still to do.
            fits = etag_of_parts([large.parts_md5[number] for number in sorted(large.parts_md5)]) == large.md5
            self.work.put(lambda: self._verify_large(large, None if fits else large.md5))

    def _verify_large(self, large: _Large, md5: str | None) -> _Verified:
        item, seen = large.item, set(large.seen)
        partial, journal = self._partial(item)
        if (recorded := item.sha256 or large.sha256) or md5 is None:
            digests = Digests(recorded, None, item.size, large.prefix.finish(self.stop))
        else:
            digests = Digests(None, md5, item.size)
            with ThreadPoolExecutor(2) as pool:  # SHA-256 and MD5 beside each other
                list(pool.map(lambda update: self._read_through(partial, update), digests.updates))
        path = self.folder / f"{item.key}-{digests.sha256}"
        try:
            self._judge(digests, seen)
        except InterruptedTransferError as error:
            journal.unlink(missing_ok=True)
            return _Verified(item.key, partial, 0, digests.sha256, str(error))
        partial.replace(path)
        journal.unlink(missing_ok=True)
        return _Verified(item.key, path, path.stat().st_size, digests.sha256, None)

    def _read_through(self, path: Path, update: Callable[[bytes], None]) -> None:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                if self.stop.is_set():
                    raise _Cancelled
                update(chunk)

    def _verified(self, large: _Large, result: _Verified) -> bool:
        """Whether a large object is good; if not, it is fetched again, or given up."""
        if result.problem is None:
            return True
        large.attempts += 1
        large.seen.add(result.sha256)
        if large.attempts == ATTEMPTS:
            raise UserError(f"{self.where}: {shown(large.item.name)}: {result.problem}, {ATTEMPTS} times")
        assert large.item.size is not None
        large.missing = set(range(-(-large.item.size // PART)))
        large.prefix = _Prefix(self._partial(large.item)[0], set())
        self._submit(large)
        return False


@dataclass(frozen=True)
class _PartDone:
    key: str
    number: int
    size: int
    part_md5: str
    sha256: str | None
    md5: str | None


@dataclass(frozen=True)
class _Verified:
    key: str
    path: Path
    size: int
    sha256: str
    problem: str | None
