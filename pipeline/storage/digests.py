"""What tells that bytes are those that lie at the source: a recorded SHA-256, or the MD5 in the ETag of S3."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

# In MiB, of the usual programs: nothing else says how an object put in parts was cut.
_PART_SIZES = (
    5,
    6,
    7,
    8,
    10,
    12,
    15,
    16,
    20,
    24,
    25,
    32,
    40,
    48,
    50,
    64,
    80,
    96,
    100,
    128,
    200,
    250,
    256,
    500,
    512,
    1024,
)


class Sha256(Protocol):
    """What `hashlib.sha256` gives."""

    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


class Digests:
    """SHA-256 and, if it is asked for, MD5 of an object's bytes as they pass by.

    Args:
        sha256: recorded at the source; with it the MD5 is not looked at.
        md5: HEX or HEX-N, as in `Reply`.
        size: of the object, if known.
        so_far: SHA-256 of bytes that passed before.
    """

    def __init__(self, sha256: str | None, md5: str | None, size: int | None, so_far: Sha256 | None = None) -> None:
        self._recorded = sha256
        self._sha256 = so_far or hashlib.sha256()
        self._md5 = None if sha256 else md5
        self._parts: dict[int, _PartsMd5] = {}
        if self._md5 and "-" in self._md5 and size is not None:
            self._parts = {side: _PartsMd5(side) for side in part_sizes(size, int(self._md5.split("-")[1]))}
        self._whole = hashlib.md5(usedforsecurity=False) if self._md5 and "-" not in self._md5 else None

    def update(self, chunk: bytes) -> None:
        for update in self.updates:
            update(chunk)

    @property
    def updates(self) -> list[Callable[[bytes], None]]:
        """What `update` does, apart: each may go through the bytes in a thread of its own."""
        return [self._sha256.update] + ([self._update_md5] if self._whole or self._parts else [])

    def _update_md5(self, chunk: bytes) -> None:
        if self._whole:
            self._whole.update(chunk)
        for parts in self._parts.values():
            parts.update(chunk)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def agree(self) -> bool | None:
        """Whether the bytes are those recorded; None where nothing recorded can tell."""
        if self._recorded:
            return self.sha256 == self._recorded.lower()
        if self._whole:
            return self._whole.hexdigest() == self._md5
        if self._md5:  # in parts of a size that is not recorded: equal for one size is proof, equal for none is not
            return True if any(parts.hexdigest() == self._md5 for parts in self._parts.values()) else None
        return None

    @property
    def is_doubtful(self) -> bool:
        """Whether there is an MD5 of parts that could not be matched."""
        return self.agree() is None and self._md5 is not None


def etag_of_parts(parts_md5: Sequence[str]) -> str:
    """What S3 calls an object that was put in parts of these MD5s, HEX each: HEX-N."""
    joined = b"".join(bytes.fromhex(part) for part in parts_md5)
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts_md5)}"


def part_sizes(size: int, num_parts: int) -> list[int]:
    """The usual part sizes of which ``num_parts`` make an object of ``size`` bytes."""
    sides = [side << 20 for side in _PART_SIZES] + [size]
    return [side for side in sides if side and -(-size // side) == num_parts]


class _PartsMd5:
    """The MD5 of the MD5s of parts, as S3 has it."""

    def __init__(self, side: int) -> None:
        self.side = side
        self._digests: list[str] = []
        self._current = hashlib.md5(usedforsecurity=False)
        self._left = side

    def update(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            piece, view = view[: self._left], view[self._left :]
            self._current.update(piece)
            self._left -= len(piece)
            if not self._left:
                self._end()

    def _end(self) -> None:
        self._digests.append(self._current.hexdigest())
        self._current, self._left = hashlib.md5(usedforsecurity=False), self.side

    def hexdigest(self) -> str:
        if self._left < self.side:
            self._end()
        return etag_of_parts(self._digests)
