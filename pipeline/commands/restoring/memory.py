"""What is restored already: a file in ``.eqreg/restore`` for each place of outputs, so that a second run goes on.

A result is done if its input, its mask, the model and the options are those of the record, and the file that was
written is still there with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from components.brief import short_digest
from pipeline.commands.restoring.places import is_remote, joined, names_below
from pipeline.console import console
from pipeline.errors import UserError
from pipeline.paths import SCRATCH

FOLDER = SCRATCH / "restore"


class Memory:
    """The records of one place of outputs: a line of JSON for each result.

    Attributes:
        file: where the records are; None if no file can be written there.

    Args:
        file: see above.
        prefix: of a bucket, if the outputs are there. Its objects are listed once.

    Raises:
        UserError: the server of the outputs refuses the listing or does not answer.
    """

    def __init__(self, file: Path | None, prefix: str = "") -> None:
        self.file = file
        self._records: dict[str, dict[str, str]] = {}
        if file is not None and file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError, KeyError, TypeError):  # the line that a killed run did not finish
                    record = json.loads(line)
                    self._records[record["target"]] = record
        if prefix and self._records:
            there = {joined(prefix, name) for name in names_below(prefix, "OUTPUT")}
            self._records = {target: record for target, record in self._records.items() if target in there}

    def is_done(self, target: str, fingerprint: str) -> bool:
        """Returns whether a result was written from these inputs and is still there."""
        record = self._records.get(_key(target))
        if record is None or record.get("fingerprint") != fingerprint:
            return False
        if is_remote(target):
            return True  # it was there when the bucket was listed
        return Path(target).is_file() and sha256(Path(target).read_bytes()) == record.get("sha256")

    def part_of(self, target: str) -> Memory:
        """Returns the record of one result alone, which another process can use."""
        part = Memory(None)
        if record := self._records.get(_key(target)):
            part._records[_key(target)] = record
        return part

    def add(self, target: str, fingerprint: str, result_sha256: str) -> None:
        """Records a result, on disk at once."""
        record = {"target": _key(target), "fingerprint": fingerprint, "sha256": result_sha256}
        self._records[_key(target)] = record
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


@contextmanager
def memory_of(target: str) -> Iterator[Memory]:
    """Opens the records of a place of outputs; another ``eqreg restore`` into the same place must wait for the end.

    Args:
        target: file, folder or address of the outputs.

    Raises:
        UserError: another process restores into this place, or the server of the outputs refuses the listing or does
            not answer.
    """
    from filelock import FileLock, Timeout

    file = FOLDER / f"{short_digest(_key(target))}.jsonl"
    lock = FileLock(file.with_suffix(".lock"))
    try:
        FOLDER.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{target}: another eqreg restore writes there; wait until it has ended") from None
    except OSError as error:
        console.print(f"{FOLDER} cannot be written ({error.strerror}): a second run will restore all again")
        yield Memory(None)
        return
    try:
        yield Memory(file, target if is_remote(target) else "")
    finally:
        lock.release()


def _key(target: str) -> str:
    return target if is_remote(target) else str(Path(target).resolve())


def sha256(data: bytes) -> str:
    """Returns the SHA-256 of bytes, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
