"""Checkpoints of one run at a place, of which there is a good one whatever happens.

A checkpoint is one object; its name holds step, score and SHA-256, so one atomic write is all there is to commit:

    PREFIX/step-00000200_29.2413_<64 hexadecimal digits>.pt          _none_ where there is no score
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.storage.places import Place

_NAME = re.compile(r"step-(\d{8,})_(none|-?\d+(?:\.\d+)?(?:e[+-]\d+)?)_([0-9a-f]{64})\.pt")


@dataclass(frozen=True)
class _Record:
    name: str
    step: int
    score: float | None
    sha256: str


class Checkpoints:
    """What a run goes on from. One process saves; any may read.

    Args:
        place: where they are.
        prefix: of their names, the run's own.
        keep_best: how many of those with the largest scores are kept beside the newest two.

    Attributes:
        damaged: names of those that were passed over, their bytes not having the SHA-256 of their name.
    """

    def __init__(self, place: Place, prefix: str, keep_best: int) -> None:
        self.place, self.prefix, self.keep_best = place, prefix, keep_best
        self.damaged: list[str] = []
        self._good: set[str] = set()  # names of those that this process has written or verified

    def save(self, step: int, data: bytes, score: float | None) -> None:
        """Writes a checkpoint, in place of an earlier one of this step; then removes what need not be kept.

        Kept are this one, the newest older one that is good, and the ``keep_best`` with the largest scores. Those of
        later steps are left alone unless they are known to be damaged.

        Args:
            step: that it was made after.
            data: its bytes.
            score: the larger, the better; None, and what is not finite, is never among the best.

        Raises:
            UserError: the place refuses.
        """
        score = None if score is None or not math.isfinite(score) else float(score)
        sha256 = hashlib.sha256(data).hexdigest()
        written = _Record(f"step-{step:08d}_{'none' if score is None else score}_{sha256}.pt", step, score, sha256)
        self.place.write(self._object(written), data)
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
                self.place.delete(self._object(record))

    def newest(self) -> tuple[int, bytes] | None:
        """(step, bytes) of the newest checkpoint that is good; None where there is none.

        Raises:
            UserError: the place refuses.
        """
        for record in self._records():
            if (data := self._read(record)) is not None:
                return record.step, data
        return None

    def discard(self) -> None:
        """Removes all checkpoints of the run, so that it begins anew."""
        for record in reversed(self._records()):  # the oldest first: what is left after an interruption makes sense
            self.place.delete(self._object(record))
        self.damaged.clear()
        self._good.clear()

    def _records(self) -> list[_Record]:
        """The newest first; what is called otherwise is no checkpoint."""
        records = []
        for name in self.place.names(self.prefix):
            if found := _NAME.fullmatch(name.removeprefix(f"{self.prefix}/")):
                step, score, sha256 = found.groups()
                records.append(_Record(found[0], int(step), None if score == "none" else float(score), sha256))
        return sorted(records, key=lambda record: (record.step, record.sha256), reverse=True)

    def _is_good(self, record: _Record) -> bool:
        return record.name in self._good or (record.name not in self.damaged and self._read(record) is not None)

    def _read(self, record: _Record) -> bytes | None:
        """The bytes, if they are there and good. What seems damaged is read once more: it may be the way here."""
        for _ in range(2):
            try:
                data = self.place.read(self._object(record))
            except FileNotFoundError:  # removed since it was listed
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
    """Those with a score, the best first, of equals the newest."""
    scored = [(record.score, record.step, record) for record in records if record.score is not None]
    return [record for _, _, record in sorted(scored, key=lambda each: each[:2], reverse=True)]
