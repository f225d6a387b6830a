"""A bucket on its server, on AWS or any compatible one, and what its refusals mean in words.

Who asks, and which server, boto3 finds out by itself: ``AWS_ACCESS_KEY_ID`` and its kin, ``AWS_PROFILE``, ~/.aws, roles
of the machine; ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL`` or ``endpoint_url`` of the profile. Messages of the
server are not passed on, only their codes: they may repeat keys.
"""

from __future__ import annotations

import re
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
from pipeline.storage.names import shown

CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 30.0  # seconds; of silence, the second

INTERRUPTIONS = (
    ConnectionError, HTTPClientError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError,
    urllib3.exceptions.HTTPError, OSError,
)  # fmt: skip
_NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, SSOError)
_REFUSED = frozenset(
    {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "401", "403",
     "AuthorizationHeaderMalformed", "AllAccessDisabled", "RequestTimeTooSkewed"}
)  # fmt: skip
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


class Connection:
    """A client for one bucket.

    Attributes:
        where: the key of params.yaml and the address, with which every message begins.
        bucket, prefix: of the address; a prefix that ends with a slash has lost it.
        client: boto3's.
        server: scheme, host and port.

    Raises:
        UserError: the address names no bucket, or boto3 lacks a region, a profile or sense in its settings.
    """

    def __init__(self, address: str, key: str, threads: int, attempts: int = 3) -> None:
        self.where = f"{key}: {address}"
        self.bucket, _, prefix = address.removeprefix("s3://").partition("/")
        self.prefix = prefix.strip("/")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", self.bucket):
            raise UserError(f"{self.where}: '{self.bucket}' is no name of a bucket; use s3://BUCKET/PREFIX")
        self.client = self._open(threads, attempts)
        self.server = _server(self.client.meta.endpoint_url)

    def key(self, name: str) -> str:
        """The key of an object, or ("") the beginning of all keys below the prefix."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def refusal(self, error: ClientError, name: str = "") -> UserError:
        """What an answer of the server means."""
        code = code_of(error)
        at = f"{self.where}: {shown(name)}" if name else self.where
        if code == "NoSuchBucket" or (code == "404" and not name):
            return UserError(f"{at}: there is no bucket '{self.bucket}' on {self.server}; look at AWS_ENDPOINT_URL")
        if code in _REFUSED:
            return UserError(f"{at}: {self.server} refuses the credentials ({code}); {_CREDENTIALS}")
        reason = re.sub(r"[^A-Za-z0-9]", "", code)[:40] or status_of(error)
        return UserError(f"{at}: {self.server} refuses ({reason})")

    def failure(self, error: BotoCoreError) -> UserError:
        """What boto3 could not do."""
        if isinstance(error, _NO_CREDENTIALS):
            return UserError(f"{self.where}: no credentials; {_CREDENTIALS}")
        return UserError(f"{self.where}: {self.server}: {plain(error)}; look at AWS_ENDPOINT_URL and ~/.aws")

    def interruption(self, error: Exception) -> UserError:
        """What to say where trying again did not help."""
        return UserError(
            f"{self.where}: {plain(error)} from {self.server}; look at AWS_ENDPOINT_URL and the network, try again"
        )

    def _open(self, threads: int, attempts: int) -> Any:
        try:
            session = boto3.Session()
            options = {"retries": {"mode": "standard", "total_max_attempts": attempts}, "max_pool_connections": threads}
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
        except _NO_CREDENTIALS:
            raise UserError(f"{self.where}: no credentials; {_CREDENTIALS}") from None
        except (BotoCoreError, ValueError) as error:
            raise UserError(
                f"{self.where}: boto3 refuses its settings ({type(error).__name__}): see AWS_ENDPOINT_URL and ~/.aws"
            ) from None


def code_of(error: ClientError) -> str:
    """The code of an answer, as "NoSuchKey"."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: ClientError) -> int:
    """The HTTP status of an answer."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def plain(error: Exception) -> str:
    """What happened, in words without addresses."""
    name = type(error).__name__
    for sign, words in _WORDS.items():
        if sign in name:
            return words
    return "a broken connection" if isinstance(error, INTERRUPTIONS) else name


def _server(endpoint: str) -> str:
    """Scheme, host and port of an endpoint, which may hold a password."""
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
