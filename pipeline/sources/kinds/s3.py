"""Objects of an S3 bucket as a source; an object is read in the version that was listed.

boto3's transfer manager reads a large object in parts, several at a time.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError, FlexibleChecksumError
from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError, S3ValidationError
from s3transfer.manager import TransferManager
from s3transfer.subscribers import BaseSubscriber

from pipeline.errors import UserError
from pipeline.sources.checksums import CRCS, Recorded
from pipeline.sources.daemon_executor import DaemonExecutor
from pipeline.sources.names import HEAD, check_names, choose, is_scan, shown
from pipeline.sources.s3_client import INTERRUPTIONS, Connection, code_of, plain, status_of
from pipeline.sources.source import CHUNK, InterruptedTransferError, Listing, RemoteObject, Reply
from pipeline.sources.sums_files import LARGEST, MANIFEST, SUMS, read_sums

THREADS = 16
ATTEMPTS = 4  # at each request; with boto3's pauses they bridge an outage of the server of about 4 s
PART = 8 << 20  # bytes; a larger object is read in parts of this size

TRANSFER = TransferConfig(
    multipart_threshold=PART,
    multipart_chunksize=PART,
    max_concurrency=THREADS,
    num_download_attempts=2,  # of each part, beside those of each request and those of the whole object
    max_io_queue=8,
    io_chunksize=512 << 10,
    preferred_transfer_client="classic",
)

_GONE = frozenset({"NoSuchKey", "404", "NoSuchVersion"})
_CHANGED = frozenset({"PreconditionFailed", "412", "InvalidRange", "416"})


class EmptyObjectError(UserError):
    """A range of an object without bytes was asked for."""


class Bucket(Connection):
    """A source of every object of a known kind below a prefix, or of the one object that the address names."""

    threads = THREADS
    is_local = False

    def __init__(self, address: str, key: str = "fetch.source") -> None:
        super().__init__(address, key, 2 * self.threads, ATTEMPTS)  # the transfer manager has as many threads
        self._is_folder = address.endswith("/")
        self._transfers = TransferManager(self.client, TRANSFER, executor_cls=DaemonExecutor)

    def listing(self) -> Listing:
        """Lists the objects of a known kind; see `Source.listing`."""
        records = self._records()
        if any(record["Key"] == self.prefix for record in records):
            self.prefix, _, name = self.prefix.rpartition("/")
            objects = [self._object(record) for record in records if record["Key"] == self.key(name)]
            check_names([name], self.where)
            return Listing(objects, is_file=True)
        start = len(self.key(""))
        records = [record for record in records if not record["Key"].endswith("/")]
        by_name = {record["Key"][start:]: record for record in records}
        taken, skipped = choose(by_name, self._find_scans, self.where)
        sums: dict[str, str] = {}
        for name in (MANIFEST, SUMS):
            if name in by_name and by_name[name]["Size"] <= LARGEST:
                sums |= read_sums(name, self._content(name, None), self.where)
        return Listing([replace(self._object(by_name[name]), sha256=sums.get(name)) for name in taken], skipped)

    def read(self, item: RemoteObject, start: int) -> Reply:
        """Reads a whole object (the listed ones have no ranges) if it has the listed ETag; see `Source.read`."""
        chunks, save = None, None
        if item.size is not None and item.size > PART:
            response = self._request(self.client.head_object, item, ChecksumMode="ENABLED")
            save = partial(self._save, item)
        else:
            response = self._request(self.client.get_object, item)
            chunks = self._chunks(response["Body"], item)
        # The ETag of an object that is encrypted with a customer key (SSE-C) or by KMS is not an MD5.
        sse = str(response.get("ServerSideEncryption", ""))
        is_opaque = "SSECustomerAlgorithm" in response or sse.startswith("aws:kms")
        md5 = item.etag if item.etag and re.fullmatch(r"[0-9a-f]{32}(-[1-9]\d{0,4})?", item.etag) else None
        recorded = str(response.get("Metadata", {}).get("sha256", "")).lower()
        sha256 = recorded if re.fullmatch(r"[0-9a-f]{64}", recorded) else _checksum(response, "SHA256")
        crcs = [(name, int(value, 16)) for name in CRCS if (value := _checksum(response, name))]
        return Reply(chunks, Recorded(sha256, crcs[0] if crcs else None, None if is_opaque else md5), save)

    def _request(self, call: Any, item: RemoteObject, **arguments: Any) -> dict[str, Any]:
        if item.etag:
            arguments["IfMatch"] = f'"{item.etag}"'
        with self._errors(item.name):
            response: dict[str, Any] = call(Bucket=self.bucket, Key=self.key(item.name), **arguments)
            return response

    def _chunks(self, body: Any, item: RemoteObject) -> Generator[bytes]:
        with closing(body), self._errors(item.name):
            while chunk := body.read(CHUNK):
                yield chunk

    def _save(self, item: RemoteObject, path: Path, tell: Callable[[int], None]) -> None:
        with self._errors(item.name):
            subscribers = [_Subscriber(item, tell)]
            self._transfers.download(self.bucket, self.key(item.name), str(path), subscribers=subscribers).result()

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Converts errors of the server and of the connection.

        Raises:
            InterruptedTransferError: another attempt may succeed.
            UserError: another attempt would fail, too.
        """
        try:
            yield
        except ClientError as error:
            raise self._as_user_error(error, name) from None
        except S3DownloadFailedError:  # the transfer manager raises this for one reason only
            raise self._changed(name) from None
        except RetriesExceededError as error:
            raise InterruptedTransferError(f"{plain(error.last_exception)} from {self.server}") from None
        except (*INTERRUPTIONS, FlexibleChecksumError, S3ValidationError) as error:
            # Timeouts, TLS and proxies: botocore's own errors of these kinds inherit from OSError.
            is_of_connection = isinstance(error, BotoCoreError | ConnectionError | TimeoutError)
            if isinstance(error, OSError) and not is_of_connection:
                raise  # an error of the local file
            raise InterruptedTransferError(f"{plain(error)} from {self.server}") from None
        except BotoCoreError as error:
            raise self.failure(error) from None

    def _records(self) -> list[dict[str, Any]]:
        """Returns the records of the object that the prefix names, or else of all objects below the prefix.

        A record holds the key, the size and the ETag.
        """
        try:
            if self.prefix and not self._is_folder:
                # If there is an object with this key, it comes first in the listing.
                first = self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)
                if (records := first.get("Contents", [])) and records[0]["Key"] == self.prefix and records[0]["Size"]:
                    return list(records)
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.key(""))
            records = [record for page in pages for record in page.get("Contents", [])]
        except ClientError as error:
            raise self._as_user_error(error, "") from None
        except INTERRUPTIONS as error:
            raise self.interruption(error) from None
        except BotoCoreError as error:
            raise self.failure(error) from None
        if not records:
            raise UserError(f"{self.where}: nothing there; look at the prefix (the bucket exists on {self.server})")
        return records

    def _object(self, record: dict[str, Any]) -> RemoteObject:
        name = record["Key"][len(self.key("")) :]
        return RemoteObject(name, record["Size"], record["ETag"].strip('"'), ranges=False)

    def _find_scans(self, names: list[str]) -> list[bool]:
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(lambda name: is_scan(self._content(name, HEAD)), names))

    def _content(self, name: str, stop: int | None) -> bytes:
        """Reads a small object, or its first ``stop`` bytes."""
        for attempt in range(3):
            try:
                item = RemoteObject(name, None)
                range_of_bytes = {} if stop is None else {"Range": f"bytes=0-{stop - 1}"}
                body = self._request(self.client.get_object, item, **range_of_bytes)["Body"]
                with closing(self._chunks(body, item)) as chunks:
                    return b"".join(chunks)
            except InterruptedTransferError as error:
                if attempt == 2:
                    raise UserError(f"{self.where}: {shown(name)}: {error}; try again") from None
            except EmptyObjectError:
                return b""
        raise AssertionError("the last attempt raises")

    def _as_user_error(self, error: ClientError, name: str) -> Exception:
        """Converts an error response of the server.

        Returns:
            An InterruptedTransferError if another attempt may succeed, else a UserError.
        """
        code, status = code_of(error), status_of(error)
        if name and code in _GONE:
            return UserError(f"{self.where}: {shown(name)}: gone since it was listed; run 'eqreg fetch' again")
        if name and (code == "InvalidRange" or status == 416):
            return EmptyObjectError(f"{self.where}: {shown(name)}: empty")
        if name and code in _CHANGED:
            return self._changed(name)
        if name and (status >= 500 or status in (408, 429)):
            return InterruptedTransferError(f"answer {status} from {self.server}")
        return self.refusal(error, name)

    def _changed(self, name: str) -> UserError:
        return UserError(
            f"{self.where}: {shown(name)}: changed at the source while it was fetched; run 'eqreg fetch' again"
        )


class _Subscriber(BaseSubscriber):
    """Tells the transfer manager what the listing says, so that it need not ask, and others how many bytes arrive."""

    def __init__(self, item: RemoteObject, tell: Callable[[int], None]) -> None:
        self._item, self._tell = item, tell

    def on_queued(self, future: Any, **_: Any) -> None:
        future.meta.provide_transfer_size(self._item.size)
        future.meta.provide_object_etag(f'"{self._item.etag}"' if self._item.etag else None)

    def on_progress(self, future: Any, bytes_transferred: int, **_: Any) -> None:
        self._tell(bytes_transferred)


def _checksum(response: dict[str, Any], name: str) -> str | None:
    """Returns S3's checksum of the whole object, as hexadecimal digits; None if it has none or only one of parts."""
    value = str(response.get(f"Checksum{name}", ""))
    if not value or "-" in value or response.get("ChecksumType") == "COMPOSITE":
        return None
    return base64.b64decode(value).hex()
