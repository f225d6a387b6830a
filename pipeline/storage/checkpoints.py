"""Checkpoints of one run in an artifact store; after the first save there is always a valid one.

A checkpoint is one object, whose name holds its step, score and SHA-256. A single atomic write therefore commits it:

    PREFIX/step-00000200_29.2413_<64 hexadecimal digits>.pt          _none_ if there is no score
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.storage.store import ArtifactStore

_NAME = re.compile(r"step-(\d{8,})_(none|-?\d+(?:\.\d+)?(?:e[+-]\d+)?)_([0-9a-f]{64})\.pt")


@dataclass(frozen=True)
class _Record:
    name: str
    step: int
    score: float | None
    sha256: str


class Checkpoints:
    """The checkpoints that a run resumes from. One process saves them; any process may read them.

    Args:
        artifact_store: store of the checkpoints.
        prefix: prefix of their names, which is unique to the run.
        keep_best: number of checkpoints with the largest scores that are kept beside the newest two.

    Attributes:
        damaged: names of checkpoints that were skipped because their bytes do not have the SHA-256 in their name.
    """

    def __init__(self, artifact_store: ArtifactStore, prefix: str, keep_best: int) -> None:
        self.artifact_store, self.prefix, self.keep_best = artifact_store, prefix, keep_best
        self.damaged: list[str] = []
        self._good: set[str] = set()  # names of the checkpoints that this process has written or verified

    def save(self, step: int, data: bytes, score: float | None) -> None:
        """Writes a checkpoint, replaces an earlier one of the same step, and removes checkpoints that are not kept.

        This checkpoint, the newest older valid one, and the ``keep_best`` with the largest scores are kept. Checkpoints
        of later steps are kept, too, unless they are known to be damaged.

        Args:
            step: number of training steps before the checkpoint.
            data: bytes of the checkpoint.
            score: score of the checkpoint; larger is better. A checkpoint whose score is None or not finite is never
                among the best.

        Raises:
            UserError: the artifact store refuses or does not answer.
        """
        score = None if score is None or not math.isfinite(score) else float(score)
        sha256 = hashlib.sha256(data).hexdigest()
        written = _Record(f"step-{step:08d}_{'none' if score is None else score}_{sha256}.pt", step, score, sha256)
        self.artifact_store.write(self._object(written), data)
        self._good.add(written.name)
        if written.name in self.damaged:
            self.damaged.remove(written.name)
        records = self._records()
        kept = {written} | {record for record in records if record.step > step and record.name not in self.damaged}
        if older := next((record for record in records if record.step < step and self._is_good(record)), None):
            kept.add(older)
        others = {record for record in records if record.step != step and record.name not in self.damaged}
        kept.update(_best(others | {written})[: self.keep_best])
        for record in records:
            if record not in kept:
                self.artifact_store.delete(self._object(record))

    def newest(self) -> tuple[int, bytes] | None:
        """Returns (step, bytes) of the newest valid checkpoint; None if there is none.

        Raises:
            UserError: the artifact store refuses or does not answer.
        """
        for record in self._records():
            if (data := self._read(record)) is not None:
                return record.step, data
        return None

    def discard(self) -> None:
        """Removes all checkpoints of the run, so that it starts from the beginning."""
        for record in reversed(self._records()):  # oldest first, so that an interruption leaves the newest checkpoints
            self.artifact_store.delete(self._object(record))
        self.damaged.clear()
        self._good.clear()

    def _records(self) -> list[_Record]:
        """Lists the checkpoints, the newest first; objects with other names are ignored."""
        records = []
        for name in self.artifact_store.names(self.prefix):
            if found := _NAME.fullmatch(name.removeprefix(f"{self.prefix}/")):
                step, score, sha256 = found.groups()
                records.append(_Record(found[0], int(step), None if score == "none" else float(score), sha256))
        return sorted(records, key=lambda record: (record.step, record.sha256), reverse=True)

    def _is_good(self, record: _Record) -> bool:
        return record.name in self._good or (record.name not in self.damaged and self._read(record) is not None)

    def _read(self, record: _Record) -> bytes | None:
        """Reads a checkpoint; None if it is missing or damaged.

        A damaged checkpoint is read once more, because the transfer may have damaged the bytes.
        """
        for _ in range(2):
            try:
                data = self.artifact_store.read(self._object(record))
            except FileNotFoundError:  # it was removed after the listing
                return None
            if hashlib.sha256(data).hexdigest() == record.sha256:
                self._good.add(record.name)
                return data
        self._good.discard(record.name)
        if record.name not in self.damaged:
            self.damaged.append(record.name)
        return None

    def _object(self, record: _Record) -> str:
        return f"{self.prefix}/{record.name}"


def _best(records: Iterable[_Record]) -> list[_Record]:
    """Sorts the checkpoints that have a score, the best first; of equal scores the newest first."""
    scored = [(record.score, record.step, record) for record in records if record.score is not None]
    return [record for _, _, record in sorted(scored, key=lambda each: each[:2], reverse=True)]
