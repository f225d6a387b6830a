"""Verifies that received bytes equal those at the source, by what is recorded there."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    from awscrt import checksums as _awscrt  # of boto3[crt]
except ImportError:
    _awscrt = None

CRCS: dict[str, Callable[[Any, int], int]] = {"CRC32": zlib.crc32}
"""Name of a CRC of S3 -> function of a buffer and of the CRC of the bytes before it."""
if _awscrt:
    CRCS |= {"CRC64NVME": _awscrt.crc64nvme, "CRC32C": _awscrt.crc32c}

_CHUNK = 1 << 18  # bytes of one read; they stay in the processor's cache

# Part sizes in MiB of common programs for multipart uploads, the most common first; S3 does not record it.
_PART_SIZES = (
    8, 5, 6, 7, 10, 12, 15, 16, 20, 24, 25, 32, 40, 48, 50, 64, 80, 96, 100, 128, 200, 250, 256, 500, 512, 1024,
)  # fmt: skip


@dataclass(frozen=True)
class Recorded:
    """The sums of an object that are recorded at the source; the first that there is decides.

    Attributes:
        sha256: SHA-256.
        crc: CRC that S3 has computed: a name in `CRCS` and the value.
        md5: MD5; ``HEX-N`` is the MD5 of the MD5s of N parts, as in the ETag of a multipart upload to S3.
    """

    sha256: str | None = None
    crc: tuple[str, int] | None = None
    md5: str | None = None


def verify(path: Path, recorded: Recorded, pool: Executor) -> tuple[str, bool | None]:
    """Computes the SHA-256 of a file and the sum that decides, side by side.

    Args:
        path: the file.
        recorded: what is recorded of it.
        pool: threads for the sums.

    Returns:
        The SHA-256, as hexadecimal digits, and whether the bytes are those recorded; None if the records cannot decide.
        The size of the parts is not recorded beside an MD5 of parts: a match for one size is a proof, no match proves
        nothing.
    """
    sha256 = pool.submit(_digest, hashlib.sha256(), path)
    agrees: bool | None = None
    if recorded.sha256:
        agrees = sha256.result() == recorded.sha256.lower()
    elif recorded.crc:
        agrees = _crc(recorded.crc[0], path) == recorded.crc[1]
    elif recorded.md5:
        md5, _, num_parts = recorded.md5.partition("-")
        if not num_parts:
            agrees = _md5(path) == md5
        else:
            size = path.stat().st_size
            sides = part_sizes(size, int(num_parts))
            agrees = any(_etag(path, range(0, size, side), side, pool) == recorded.md5 for side in sides) or None
    return sha256.result(), agrees


def etag_of_parts(parts_md5: Sequence[str]) -> str:
    """Returns the ETag, HEX-N, of an S3 object that was uploaded in N parts with these MD5s (HEX each)."""
    joined = b"".join(bytes.fromhex(part) for part in parts_md5)
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts_md5)}"


def part_sizes(size: int, num_parts: int) -> list[int]:
    """Returns the common part sizes in bytes for which an object of ``size`` bytes has ``num_parts`` parts."""
    sides = [side << 20 for side in _PART_SIZES] + [size]
    return [side for side in sides if side and -(-size // side) == num_parts]


def _etag(path: Path, starts: range, side: int, pool: Executor) -> str:
    return etag_of_parts(list(pool.map(lambda start: _md5(path, start, side), starts)))


def _md5(path: Path, start: int = 0, length: int | None = None) -> str:
    return _digest(hashlib.md5(usedforsecurity=False), path, start, length)


def _digest(digest: Any, path: Path, start: int = 0, length: int | None = None) -> str:
    for chunk in _chunks(path, start, length):
        digest.update(chunk)
    return str(digest.hexdigest())


def _crc(name: str, path: Path) -> int:
    crc = 0
    for chunk in _chunks(path, 0, None):
        crc = CRCS[name](chunk, crc)
    return crc


def _chunks(path: Path, start: int, length: int | None) -> Iterator[memoryview]:
    """Yields the bytes of a file, or of a part of it, in one buffer that each step fills anew."""
    left = path.stat().st_size - start if length is None else length
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while left and (size := file.readinto(buffer[: min(_CHUNK, left)])):
            left -= size
            yield buffer[:size]
