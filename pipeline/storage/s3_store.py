"""A prefix of a bucket as an artifact store.

Large objects are uploaded in several parts in parallel. An object appears only when its upload is complete.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from boto3.s3.transfer import S3TransferRetriesExceededError, TransferConfig
from botocore.exceptions import BotoCoreError, ClientError

from pipeline.sources.names import shown, unsafe
from pipeline.sources.s3_client import INTERRUPTIONS, Connection, code_of
from pipeline.storage.store import KEY, probe

THREADS = 8
ATTEMPTS = 5  # these bridge an outage of the server of about 15 s
_GONE = frozenset({"NoSuchKey", "404"})
_TRANSFER = TransferConfig(max_concurrency=THREADS, preferred_transfer_client="classic")


class S3Store:
    """Objects below ``s3://BUCKET/PREFIX``; each process that receives this object finds its own credentials.

    Args:
        address: of the prefix.
        key: what messages call the address, such as the key of params.yaml that holds it.
    """

    def __init__(self, address: str, key: str = KEY) -> None:
        self.address, self.key = address, key
        _ = self._connection  # reports missing settings of boto3 at once

    def __getstate__(self) -> dict[str, str]:
        return {"address": self.address, "key": self.key}

    def names(self, prefix: str) -> list[str]:
        """Lists all names below ``prefix``; see `ArtifactStore.names`."""
        connection = self._connection
        beginning = connection.key(f"{prefix}/" if prefix else "")
        with self._user_errors():
            pages = connection.client.get_paginator("list_objects_v2").paginate(
                Bucket=connection.bucket, Prefix=beginning
            )
            keys = [record["Key"] for page in pages for record in page.get("Contents", [])]
        start = len(connection.key(""))
        return sorted(key[start:] for key in keys if not unsafe(key[start:]))

    def read(self, name: str) -> bytes:
        """Reads an object; see `ArtifactStore.read`."""
        data = io.BytesIO()
        with self._user_errors(name):
            self._connection.client.download_fileobj(**self._object(name), Fileobj=data, Config=_TRANSFER)
        return data.getvalue()

    def write(self, name: str, data: bytes) -> None:
        """Creates or replaces an object; see `ArtifactStore.write`."""
        with self._user_errors(name):
            self._connection.client.upload_fileobj(**self._object(name), Fileobj=io.BytesIO(data), Config=_TRANSFER)

    def download(self, name: str, path: Path) -> None:
        """Copies an object to a file; see `ArtifactStore.download`."""
        with path.open("wb") as file, self._user_errors(name):
            self._connection.client.download_fileobj(**self._object(name), Fileobj=file, Config=_TRANSFER)

    def upload(self, path: Path, name: str) -> None:
        """Copies a file to an object; see `ArtifactStore.upload`."""
        with path.open("rb") as file, self._user_errors(name):
            self._connection.client.upload_fileobj(**self._object(name), Fileobj=file, Config=_TRANSFER)

    def delete(self, name: str) -> None:
        """Deletes an object; see `ArtifactStore.delete`."""
        with self._user_errors(name):
            self._connection.client.delete_object(**self._object(name))

    def check(self) -> None:
        """Writes, reads back and deletes a small object; see `ArtifactStore.check`."""
        probe(self)

    @cached_property
    def _connection(self) -> Connection:
        return Connection(self.address, self.key, THREADS, ATTEMPTS)

    def _object(self, name: str) -> dict[str, Any]:
        if reason := unsafe(name):
            raise ValueError(f"{shown(name)}: {reason}")
        return {"Bucket": self._connection.bucket, "Key": self._connection.key(name)}

    @contextmanager
    def _user_errors(self, name: str = "") -> Iterator[None]:
        """Converts errors of the server to UserErrors; a missing object is a FileNotFoundError."""
        try:
            yield
        except ClientError as error:
            raise self._as_user_error(error, name) from None
        except S3TransferRetriesExceededError as error:
            raise self._connection.interruption(error.last_exception) from None
        except INTERRUPTIONS as error:
            if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
                raise  # an error of the local file
            raise self._connection.interruption(error) from None
        except BotoCoreError as error:
            raise self._connection.failure(error) from None

    def _as_user_error(self, error: ClientError, name: str) -> Exception:
        if not (name and code_of(error) in _GONE):
            return self._connection.refusal(error, name)
        try:  # the response to a HEAD request does not show whether the object or the bucket is missing
            self._connection.client.head_bucket(Bucket=self._connection.bucket)
        except ClientError as missing:
            return self._connection.refusal(missing)
        except (BotoCoreError, *INTERRUPTIONS) as failed:
            return self._connection.interruption(failed)
        return FileNotFoundError(name)
