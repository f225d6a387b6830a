"""Objects of an S3 bucket, on AWS or any compatible server. Who asks, and which server, boto3 finds out by itself.

That is: ``AWS_ACCESS_KEY_ID`` and its kin, ``AWS_PROFILE``, ~/.aws, roles of the machine; ``AWS_ENDPOINT_URL_S3`` or
``AWS_ENDPOINT_URL`` or ``endpoint_url`` of the profile. Messages of the server are not passed on, only their codes:
they may repeat keys.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import boto3
import urllib3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    ResponseStreamingError,
    SSOError,
)

from pipeline.errors import UserError
from pipeline.storage.names import HEAD, check_names, choose, is_scan, shown
from pipeline.storage.objects import CHUNK, InterruptedTransferError, Listing, RemoteObject, Reply
from pipeline.storage.sums import LARGEST, MANIFEST, SUMS, read_sums

THREADS = 16
CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 30.0  # seconds; of silence, the second

_INTERRUPTIONS = (
    ConnectionError, HTTPClientError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError,
    urllib3.exceptions.HTTPError, OSError,
)  # fmt: skip
_NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, SSOError)
_REFUSED = frozenset(
    {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "401", "403",
     "AuthorizationHeaderMalformed", "AllAccessDisabled", "RequestTimeTooSkewed"}
)  # fmt: skip
_GONE = frozenset({"NoSuchKey", "404", "NoSuchVersion"})
_CHANGED = frozenset({"PreconditionFailed", "412", "InvalidRange", "416"})
_CREDENTIALS = (
    "give them by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or ~/.aws; the server by AWS_ENDPOINT_URL"
)


# Part of an exception's name -> what happened.
_WORDS = {
    "ConnectTimeout": "no connection in time",
    "EndpointConnection": "no answer",
    "NewConnection": "no answer",
    "Proxy": "a proxy that fails",
    "SSL": "no trusted TLS",
    "Timeout": "silence",
    "IncompleteRead": "a cut-off",
    "Checksum": "bytes with a wrong checksum",
}


class Bucket:
    """Every object of a known kind below a prefix, or the one object that the address names."""

    threads = THREADS
    is_local = False

    def __init__(self, address: str, key: str = "fetch.source") -> None:
        self.where = f"{key}: {address}"
        self.bucket, _, prefix = address.removeprefix("s3://").partition("/")
        self.prefix = prefix.strip("/")
        self._is_folder = prefix.endswith("/")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", self.bucket):
            raise UserError(f"{self.where}: '{self.bucket}' is no name of a bucket; use s3://BUCKET/PREFIX")
        self.client = self._open_client()
        self.server = _server(self.client.meta.endpoint_url)

    def listing(self) -> Listing:
        records = self._records()
        if any(record["Key"] == self.prefix for record in records):
            self.prefix, _, name = self.prefix.rpartition("/")
            objects = [self._object(record) for record in records if record["Key"] == self._key(name)]
            check_names([name], self.where)
            return Listing(objects, is_file=True)
        start = len(self._key(""))
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
            reply = self.client.get_object(Bucket=self.bucket, Key=self._key(item.name), **arguments)
        except ClientError as error:
            raise self._refusal(error, item.name) from None
        except _INTERRUPTIONS as error:
            raise InterruptedTransferError(f"{_plain(error)} from {self.server}") from None
        except BotoCoreError as error:
            raise self._failure(error) from None
        # The ETag of an object that the server encrypts with a key of its own is not an MD5.
        is_opaque = "SSECustomerAlgorithm" in reply or str(reply.get("ServerSideEncryption", "")).startswith("aws:kms")
        md5 = item.etag if item.etag and re.fullmatch(r"[0-9a-f]{32}(-[1-9]\d{0,4})?", item.etag) else None
        recorded = str(reply.get("Metadata", {}).get("sha256", "")).lower()
        sha256 = recorded if re.fullmatch(r"[0-9a-f]{64}", recorded) else None
        return Reply(_chunks(reply["Body"], self.server), sha256, None if is_opaque else md5)

    def _open_client(self) -> Any:
        try:
            session = boto3.Session()
            options = {"retries": {"mode": "standard", "total_max_attempts": 3}, "max_pool_connections": self.threads}
            options |= {"connect_timeout": CONNECT_TIMEOUT, "read_timeout": READ_TIMEOUT}
            client = session.client("s3", config=Config(**options))
            own = (client.meta.config.s3 or {}).get("addressing_style")
            host = urlsplit(client.meta.endpoint_url).hostname or ""
            if own is None and not re.search(r"\.amazonaws\.com(\.cn)?$", host):
                # Servers other than Amazon's seldom have a host name for each bucket.
                client = session.client("s3", config=Config(s3={"addressing_style": "path"}, **options))
            return client
        except NoRegionError:
            raise UserError(f"{self.where}: no region; give it by AWS_DEFAULT_REGION or in ~/.aws/config") from None
        except ProfileNotFound:
            raise UserError(f"{self.where}: AWS_PROFILE names a profile that ~/.aws does not have") from None
        except _NO_CREDENTIALS as error:
            raise self._failure(error) from None
        except (BotoCoreError, ValueError) as error:
            raise UserError(
                f"{self.where}: boto3 refuses its settings ({type(error).__name__}): see AWS_ENDPOINT_URL and ~/.aws"
            ) from None

    def _records(self) -> list[dict[str, Any]]:
        """Name, size and ETag of the object that the prefix names, or else of all objects below it."""
        try:
            if self.prefix and not self._is_folder:
                # The object itself, if there is one, comes first in order.
                first = self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)
                if (records := first.get("Contents", [])) and records[0]["Key"] == self.prefix and records[0]["Size"]:
                    return list(records)
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._key(""))
            records = [record for page in pages for record in page.get("Contents", [])]
        except ClientError as error:
            raise self._refusal(error, "") from None
        except _INTERRUPTIONS as error:
            raise UserError(
                f"{self.where}: {_plain(error)} from {self.server}; look at AWS_ENDPOINT_URL and the network, try again"
            ) from None
        except BotoCoreError as error:
            raise self._failure(error) from None
        if not records:
            raise UserError(f"{self.where}: nothing there; look at the prefix (the bucket exists on {self.server})")
        return records

    def _object(self, record: dict[str, Any]) -> RemoteObject:
        return RemoteObject(record["Key"][len(self._key("")) :], record["Size"], record["ETag"].strip('"'))

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

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
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        at = f"{self.where}: {shown(name)}" if name else self.where
        if code == "NoSuchBucket" or (code == "404" and not name):
            return UserError(f"{at}: there is no bucket '{self.bucket}' on {self.server}; look at AWS_ENDPOINT_URL")
        if code in _REFUSED:
            return UserError(f"{at}: {self.server} refuses the credentials ({code}); {_CREDENTIALS}")
        if code in _GONE:
            return UserError(f"{at}: gone since it was listed; run 'eqreg fetch' again")
        if code in _CHANGED:
            return UserError(f"{at}: changed at the source while it was fetched; run 'eqreg fetch' again")
        if name and (status >= 500 or status in (408, 429)):
            return InterruptedTransferError(f"answer {status} from {self.server}")
        return UserError(f"{at}: {self.server} refuses ({re.sub(r'[^A-Za-z0-9]', '', code)[:40] or status})")

    def _failure(self, error: BotoCoreError) -> UserError:
        if isinstance(error, _NO_CREDENTIALS):
            return UserError(f"{self.where}: no credentials; {_CREDENTIALS}")
        return UserError(f"{self.where}: {self.server}: {_plain(error)}; look at AWS_ENDPOINT_URL and ~/.aws")


def _chunks(body: Any, server: str) -> Generator[bytes]:
    try:
        while chunk := body.read(CHUNK):
            yield chunk
    except _INTERRUPTIONS as error:
        raise InterruptedTransferError(f"{_plain(error)} from {server}") from None
    except BotoCoreError as error:  # a checksum of the transfer that does not fit
        raise InterruptedTransferError(f"{_plain(error)} from {server}") from None
    finally:
        body.close()


def _plain(error: Exception) -> str:
    """What happened, in words without addresses."""
    name = type(error).__name__
    for sign, words in _WORDS.items():
        if sign in name:
            return words
    return "a broken connection" if isinstance(error, _INTERRUPTIONS) else name


def _server(endpoint: str) -> str:
    """Scheme, host and port of an endpoint, which may hold a password."""
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
