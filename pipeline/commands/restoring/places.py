"""Where inputs and outputs are: files, folders, and prefixes of a bucket."""

from __future__ import annotations

import glob
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from pipeline.errors import UserError

REMOTE = "s3://"


def is_remote(address: str) -> bool:
    """Returns whether an address is in a bucket."""
    return address.startswith(REMOTE)


def read(address: str) -> bytes:
    """Reads a file or an object.

    Raises:
        ValueError: it does not exist.
        OSError: it cannot be read.
        UserError: the server refuses the operation or does not answer.
    """
    if is_remote(address):
        prefix, _, name = address.rpartition("/")
        try:
            return _bucket(prefix, "INPUT").read(name)
        except FileNotFoundError:
            raise ValueError(f"{address}: there is no such object") from None
    return Path(address).read_bytes()


def write(address: str, data: bytes) -> None:
    """Writes a file or an object; it is complete or absent.

    Raises:
        UserError: it cannot be written.
    """
    if is_remote(address):
        prefix, _, name = address.rpartition("/")
        _bucket(prefix, "OUTPUT").write(name, data)
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


def names_below(prefix: str) -> list[str]:
    """Lists the objects below a prefix of a bucket, as names relative to it.

    Raises:
        UserError: the server refuses the operation or does not answer.
    """
    return [str(name) for name in _bucket(prefix.rstrip("/"), "INPUT").names("")]


def exists(address: str) -> bool:
    """Returns whether a file or an object exists.

    Raises:
        UserError: the server refuses the operation or does not answer.
    """
    if not is_remote(address):
        return Path(address).is_file()
    prefix, _, name = address.rpartition("/")
    return name in _listed(prefix)


@cache
def _listed(prefix: str) -> frozenset[str]:
    return frozenset(_bucket(prefix, "OUTPUT").names(""))


@cache
def _bucket(prefix: str, key: str):  # type: ignore[no-untyped-def]  # boto3 is slow to import
    from pipeline.storage.s3_store import S3Store

    return S3Store(prefix, key)
