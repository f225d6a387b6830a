"""A prefix of a bucket as a place. Large objects go in parts, several at a time; each is there once it is complete."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from boto3.s3.transfer import S3TransferRetriesExceededError, TransferConfig
from botocore.exceptions import BotoCoreError, ClientError

from pipeline.storage.names import shown, unsafe
from pipeline.storage.places import KEY, probe
from pipeline.storage.s3_client import INTERRUPTIONS, Connection, code_of

THREADS = 8
ATTEMPTS = 5  # about 15 s in which a server may be away
_GONE = frozenset({"NoSuchKey", "404"})
_TRANSFER = TransferConfig(max_concurrency=THREADS, preferred_transfer_client="classic")


class S3Place:
    """Objects below ``s3://BUCKET/PREFIX``. Each process that it comes to finds its own credentials."""

    def __init__(self, address: str) -> None:
        self.address = address
        _ = self._connection  # says at once what boto3 lacks

    def __getstate__(self) -> dict[str, str]:
        return {"address": self.address}

    def names(self, prefix: str) -> list[str]:
        connection = self._connection
        beginning = connection.key(f"{prefix}/" if prefix else "")
        with self._spoken():
            pages = connection.client.get_paginator("list_objects_v2").paginate(
                Bucket=connection.bucket, Prefix=beginning
            )
            keys = [record["Key"] for page in pages for record in page.get("Contents", [])]
        start = len(connection.key(""))
        return sorted(key[start:] for key in keys if not unsafe(key[start:]))

    def read(self, name: str) -> bytes:
        data = io.BytesIO()
        with self._spoken(name):
            self._connection.client.download_fileobj(**self._object(name), Fileobj=data, Config=_TRANSFER)
        return data.getvalue()

    def write(self, name: str, data: bytes) -> None:
        with self._spoken(name):
            self._connection.client.upload_fileobj(**self._object(name), Fileobj=io.BytesIO(data), Config=_TRANSFER)

    def download(self, name: str, path: Path) -> None:
        with path.open("wb") as file, self._spoken(name):
            self._connection.client.download_fileobj(**self._object(name), Fileobj=file, Config=_TRANSFER)

    def upload(self, path: Path, name: str) -> None:
        with path.open("rb") as file, self._spoken(name):
            self._connection.client.upload_fileobj(**self._object(name), Fileobj=file, Config=_TRANSFER)

    def delete(self, name: str) -> None:
        with self._spoken(name):
            self._connection.client.delete_object(**self._object(name))

    def check(self) -> None:
        probe(self)

    @cached_property
    def _connection(self) -> Connection:
        return Connection(self.address, KEY, THREADS, ATTEMPTS)

    def _object(self, name: str) -> dict[str, Any]:
        if reason := unsafe(name):
            raise ValueError(f"{shown(name)}: {reason}")
        return {"Bucket": self._connection.bucket, "Key": self._connection.key(name)}

    @contextmanager
    def _spoken(self, name: str = "") -> Iterator[None]:
        """Refusals of the server in words; an object that is not there is a FileNotFoundError."""
        try:
            yield
        except ClientError as error:
            raise self._refusal(error, name) from None
        except S3TransferRetriesExceededError as error:
            raise self._connection.interruption(error.last_exception) from None
        except INTERRUPTIONS as error:
            if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
                raise  # of the file on this side
            raise self._connection.interruption(error) from None
        except BotoCoreError as error:
            raise self._connection.failure(error) from None

    def _refusal(self, error: ClientError, name: str) -> Exception:
        if not (name and code_of(error) in _GONE):
            return self._connection.refusal(error, name)
        try:  # the answer to a HEAD does not say whether object or bucket is missing
            self._connection.client.head_bucket(Bucket=self._connection.bucket)
        except ClientError as missing:
            return self._connection.refusal(missing)
        except (BotoCoreError, *INTERRUPTIONS) as failed:
            return self._connection.interruption(failed)
        return FileNotFoundError(name)
