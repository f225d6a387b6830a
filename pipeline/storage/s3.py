"""Objects of an S3 bucket as a source: listed, and read in the version that was listed."""

from __future__ import annotations

import re
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from pipeline.errors import UserError
from pipeline.storage.names import HEAD, check_names, choose, is_scan, shown
from pipeline.storage.objects import CHUNK, InterruptedTransferError, Listing, RemoteObject, Reply
from pipeline.storage.s3_client import INTERRUPTIONS, Connection, code_of, plain, status_of
from pipeline.storage.sums import LARGEST, MANIFEST, SUMS, read_sums

THREADS = 16

_GONE = frozenset({"NoSuchKey", "404", "NoSuchVersion"})
_CHANGED = frozenset({"PreconditionFailed", "412", "InvalidRange", "416"})


class Bucket(Connection):
    """Every object of a known kind below a prefix, or the one object that the address names."""

    threads = THREADS
    is_local = False

    def __init__(self, address: str, key: str = "fetch.source") -> None:
        super().__init__(address, key, self.threads)
        self._is_folder = address.endswith("/")

    def listing(self) -> Listing:
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

    def read(self, item: RemoteObject, start: int, stop: int | None) -> Reply:
        arguments: dict[str, Any] = {"IfMatch": f'"{item.etag}"'} if item.etag else {}
        if stop is not None:
            arguments["Range"] = f"bytes={start}-{stop - 1}"
        try:
            reply = self.client.get_object(Bucket=self.bucket, Key=self.key(item.name), **arguments)
        except ClientError as error:
            raise self._refusal(error, item.name) from None
        except INTERRUPTIONS as error:
            raise InterruptedTransferError(f"{plain(error)} from {self.server}") from None
        except BotoCoreError as error:
            raise self.failure(error) from None
        # The ETag of an object that the server encrypts with a key of its own is not an MD5.
        is_opaque = "SSECustomerAlgorithm" in reply or str(reply.get("ServerSideEncryption", "")).startswith("aws:kms")
        md5 = item.etag if item.etag and re.fullmatch(r"[0-9a-f]{32}(-[1-9]\d{0,4})?", item.etag) else None
        recorded = str(reply.get("Metadata", {}).get("sha256", "")).lower()
        sha256 = recorded if re.fullmatch(r"[0-9a-f]{64}", recorded) else None
        return Reply(_chunks(reply["Body"], self.server), sha256, None if is_opaque else md5)

    def _records(self) -> list[dict[str, Any]]:
        """Name, size and ETag of the object that the prefix names, or else of all objects below it."""
        try:
            if self.prefix and not self._is_folder:
                # The object itself, if there is one, comes first in order.
                first = self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)
                if (records := first.get("Contents", [])) and records[0]["Key"] == self.prefix and records[0]["Size"]:
                    return list(records)
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.key(""))
            records = [record for page in pages for record in page.get("Contents", [])]
        except ClientError as error:
            raise self._refusal(error, "") from None
        except INTERRUPTIONS as error:
            raise self.interruption(error) from None
        except BotoCoreError as error:
            raise self.failure(error) from None
        if not records:
            raise UserError(f"{self.where}: nothing there; look at the prefix (the bucket exists on {self.server})")
        return records

    def _object(self, record: dict[str, Any]) -> RemoteObject:
        return RemoteObject(record["Key"][len(self.key("")) :], record["Size"], record["ETag"].strip('"'))

    def _find_scans(self, names: list[str]) -> list[bool]:
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(lambda name: is_scan(self._content(name, HEAD)), names))

    def _content(self, name: str, stop: int | None) -> bytes:
        """A small object, or the beginning of one."""
        for attempt in range(3):
            try:
                with closing(self.read(RemoteObject(name, None), 0, stop).chunks) as chunks:
                    return b"".join(chunks)
            except InterruptedTransferError as error:
                if attempt == 2:
                    raise UserError(f"{self.where}: {shown(name)}: {error}; try again") from None
            except UserError:
                if stop is not None:  # an empty object has no beginning
                    return b""
                raise
        raise AssertionError("the last attempt raises")

    def _refusal(self, error: ClientError, name: str) -> Exception:
        """What an answer of the server means: a UserError, or that trying again may help."""
        code, status = code_of(error), status_of(error)
        if name and code in _GONE:
            return UserError(f"{self.where}: {shown(name)}: gone since it was listed; run 'eqreg fetch' again")
        if name and code in _CHANGED:
            return UserError(
                f"{self.where}: {shown(name)}: changed at the source while it was fetched; run 'eqreg fetch' again"
            )
        if name and (status >= 500 or status in (408, 429)):
            return InterruptedTransferError(f"answer {status} from {self.server}")
        return self.refusal(error, name)


def _chunks(body: Any, server: str) -> Generator[bytes]:
    try:
        while chunk := body.read(CHUNK):
            yield chunk
    except INTERRUPTIONS as error:
        raise InterruptedTransferError(f"{plain(error)} from {server}") from None
    except BotoCoreError as error:  # a checksum of the transfer that does not fit
        raise InterruptedTransferError(f"{plain(error)} from {server}") from None
    finally:
        body.close()
