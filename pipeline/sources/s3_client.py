"""A connection to a bucket on AWS or on a compatible server, and messages for its errors.

boto3 finds the credentials and the server by itself. Credentials come from ``AWS_ACCESS_KEY_ID`` and related variables,
``AWS_PROFILE``, ~/.aws or roles of the machine. The server comes from ``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL`` or
``endpoint_url`` of the profile. Error messages contain only the error code of the server, because its own messages may
contain keys.
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
from pipeline.sources.names import shown

CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 30.0  # seconds to connect, and seconds without a received byte

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
        where: key of params.yaml and address; every message begins with it.
        bucket: name of the bucket.
        prefix: prefix of the keys, without slashes at its ends.
        client: S3 client of boto3.
        server: scheme, host and port of the server.

    Raises:
        UserError: the address names no bucket, or the settings of boto3 are invalid or lack a region, a profile or
            credentials.
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
        """Returns the key of an object; for "" the beginning of all keys below the prefix."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def refusal(self, error: ClientError, name: str = "") -> UserError:
        """Converts an error response of the server to a UserError."""
        code = code_of(error)
        at = f"{self.where}: {shown(name)}" if name else self.where
        if code == "NoSuchBucket" or (code == "404" and not name):
            return UserError(f"{at}: there is no bucket '{self.bucket}' on {self.server}; look at AWS_ENDPOINT_URL")
        if code in _REFUSED:
            return UserError(f"{at}: {self.server} refuses the credentials ({code}); {_CREDENTIALS}")
        reason = re.sub(r"[^A-Za-z0-9]", "", code)[:40] or status_of(error)
        return UserError(f"{at}: {self.server} refuses ({reason})")

    def failure(self, error: BotoCoreError) -> UserError:
        """Converts an error of boto3 to a UserError."""
        if isinstance(error, _NO_CREDENTIALS):
            return UserError(f"{self.where}: no credentials; {_CREDENTIALS}")
        return UserError(f"{self.where}: {self.server}: {plain(error)}; look at AWS_ENDPOINT_URL and ~/.aws")

    def interruption(self, error: Exception) -> UserError:
        """Converts an interrupted transfer to a UserError, after the retries have failed."""
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
                # Servers other than Amazon's rarely have a host name for each bucket.
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
    """Returns the error code of a response, for example "NoSuchKey"."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: ClientError) -> int:
    """Returns the HTTP status of a response."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def plain(error: Exception) -> str:
    """Describes an error in words, without addresses."""
    name = type(error).__name__
    for sign, words in _WORDS.items():
        if sign in name:
            return words
    return "a broken connection" if isinstance(error, INTERRUPTIONS) else name


def _server(endpoint: str) -> str:
    """Returns scheme, host and port of an endpoint, without the password that it may contain."""
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
