"""Where inputs and outputs are: files, folders, and prefixes of a bucket."""

from __future__ import annotations

import glob
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.storage.s3_store import S3Store

REMOTE = "s3://"


def is_remote(address: str) -> bool:
    """Returns whether an address is in a bucket."""
    return address.startswith(REMOTE)


def joined(place: str, name: str) -> str:
    """Returns the path or address of a name below a folder or a prefix."""
    return f"{place.rstrip('/')}/{name}" if is_remote(place) else str(Path(place) / name)


def read(address: str) -> bytes:
    """Reads a file or an object.

    Raises:
        ValueError: it does not exist or cannot be read; the message begins with the address.
        UserError: the server refuses the operation or does not answer.
    """
    try:
        if is_remote(address):
            bucket, name = _parts(address)
            return bucket_store(bucket, "INPUT").read(name)
        return Path(address).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{address}: there is no such {'object' if is_remote(address) else 'file'}") from None
    except OSError as error:
        raise ValueError(f"{address}: cannot be read ({error.strerror or error})") from error


def write(address: str, data: bytes) -> None:
    """Writes a file or an object; it is complete or absent.

    Raises:
        UserError: it cannot be written.
    """
    if is_remote(address):
        bucket, name = _parts(address)
        bucket_store(bucket, "OUTPUT").write(name, data)
        return
    path = Path(address)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be written ({error.strerror})") from error
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def remove_partial_files(target: Path) -> None:
    """Removes what killed processes left at an output file or below an output folder; the caller holds its lock."""
    left = (
        target.rglob(".*.partial") if target.is_dir() else target.parent.glob(f".{glob.escape(target.name)}.*.partial")
    )
    for path in left:
        with suppress(OSError):
            path.unlink()


def names_below(prefix: str, key: str) -> list[str]:
    """Lists the objects below a prefix of a bucket with one listing, as names relative to it.

    Args:
        prefix: ``s3://BUCKET/PREFIX``.
        key: what messages call it: "INPUT" or "OUTPUT".

    Raises:
        UserError: the server refuses the operation or does not answer.
    """
    bucket, beginning = _parts(prefix.rstrip("/"))
    names = bucket_store(bucket, key).names(beginning)
    return [name.removeprefix(f"{beginning}/") for name in names]


def _parts(address: str) -> tuple[str, str]:
    """Returns the address of the bucket, and the name of the object in it."""
    bucket, _, name = address.removeprefix(REMOTE).partition("/")
    return f"{REMOTE}{bucket}", name


@cache
def bucket_store(bucket: str, key: str) -> S3Store:
    """Connects to a bucket once in a process, for all of its folders."""
    from pipeline.storage.s3_store import S3Store  # boto3 is slow to import

    return S3Store(bucket, key)
