"""One file or archive at a URL; an address that ends with ``#sha256=HEX`` fixes the SHA-256 of its bytes."""

from __future__ import annotations

import re
import secrets
from collections.abc import Generator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import requests
from urllib3.exceptions import HTTPError

from pipeline.errors import UserError
from pipeline.sources.names import check_names
from pipeline.sources.source import CHUNK, InterruptedTransferError, Listing, RemoteObject, Reply

TIMEOUT = (10, 30)  # seconds to connect, and seconds without a received byte
ATTEMPTS = 3  # for the first request; the transfer counts its own attempts

_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})


class Download:
    """A source of one file on a web server; an interrupted transfer resumes if the server supports ranges.

    Credentials come from ~/.netrc only. Redirects are followed, but not from https to http.
    """

    threads = 1
    is_local = False

    def __init__(self, address: str, key: str = "fetch.source") -> None:
        self.where = f"{key}: {address}"
        self.url, _, fragment = address.partition("#")
        sha256 = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
        if fragment and not sha256:
            raise UserError(f"{self.where}: '#{fragment[:20]}' is not #sha256= and 64 hexadecimal digits")
        self.sha256 = sha256[1].lower() if sha256 else None
        if not urlsplit(self.url).hostname:
            raise UserError(f"{self.where}: names no host; use https://HOST/PATH")
        self.session = requests.Session()

    def listing(self) -> Listing:
        """Lists the one file; see `Source.listing`."""
        name = unquote(PurePosixPath(urlsplit(self.url).path).name) or "download"
        check_names([name], self.where)
        for attempt in range(ATTEMPTS):
            try:
                item = replace(self._look(), name=name, sha256=self.sha256)
                # A file without a version gets a random stamp, so that it is not confused with an earlier one.
                return Listing([item if item.etag else replace(item, stamp=secrets.token_hex())], is_file=True)
            except InterruptedTransferError as error:
                if attempt == ATTEMPTS - 1:
                    raise UserError(f"{self.where}: {error}; look at the address and the network") from None
        raise AssertionError("the last attempt raises")

    def read(self, item: RemoteObject, start: int) -> Reply:
        """Reads the file from a byte on, if it still has the listed version; see `Source.read`."""
        return Reply(self._chunks(item, start))

    def _chunks(self, item: RemoteObject, start: int) -> Generator[bytes]:
        headers = {}
        if start and item.size is not None:
            headers = {"Range": f"bytes={start}-{item.size - 1}", "If-Range": item.etag or ""}
        with self._get(headers) as response:
            if _version(response) != item.etag:
                raise UserError(f"{self.where}: changed at the source while it was fetched; run 'eqreg fetch' again")
            is_whole = response.status_code == 200
            if start and not is_whole and _range(response)[:2] != (start, item.size):
                raise InterruptedTransferError(f"another range than bytes {start} to {item.size}")
            left_out = start if is_whole else 0  # a server may answer with the whole file, such as without If-Range
            try:
                for chunk in response.iter_content(CHUNK):
                    if kept := chunk[left_out:]:
                        yield kept
                    left_out = max(0, left_out - len(chunk))
            except (requests.RequestException, HTTPError, OSError):
                raise InterruptedTransferError("a broken connection") from None

    def _look(self) -> RemoteObject:
        """Requests the first byte to find the size, the version and whether the server supports ranges."""
        with self._get({"Range": "bytes=0-0"}, {416}) as response:
            if response.status_code != 416:
                return _described(response)
        with self._get({}) as response:  # the file is empty and has no first byte
            return _described(response)

    def _get(self, headers: dict[str, str], also: set[int] | None = None) -> requests.Response:
        try:
            response = self.session.get(
                self.url, headers={"Accept-Encoding": "identity", **headers}, stream=True, timeout=TIMEOUT
            )
        except (requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL, requests.TooManyRedirects):
            raise UserError(f"{self.where}: an address, or one it leads on to, that cannot be followed") from None
        except requests.exceptions.SSLError:
            raise UserError(f"{self.where}: no trusted TLS; REQUESTS_CA_BUNDLE names other certificates") from None
        except requests.RequestException as error:
            silent = isinstance(error, requests.Timeout)
            raise InterruptedTransferError("no answer in time" if silent else "no connection") from None
        status = response.status_code
        is_downgraded = self.url.startswith("https:") and not response.url.startswith("https:")
        if status in (200, 206) or status in (also or ()):
            if not is_downgraded:
                return response
            response.close()
            raise UserError(f"{self.where}: leads on to an address without TLS; use that one, with #sha256=")
        response.close()
        if status in _TEMPORARY:
            raise InterruptedTransferError(f"answer {status}")
        if status in (401, 403, 407):
            raise UserError(f"{self.where}: refused ({status}); if it needs a password, put it into ~/.netrc")
        raise UserError(f"{self.where}: not there (answer {status}); look at the address")


def _described(response: requests.Response) -> RemoteObject:
    version = _version(response)
    if response.status_code == 206:
        size = _range(response)[2]
        # Ranges may only be combined if a version that is not a weak ETag shows that they belong together.
        return RemoteObject("", size, version, ranges=size is not None and _is_strong(version))
    length = response.headers.get("Content-Length", "")
    is_plain = "Content-Encoding" not in response.headers
    return RemoteObject("", int(length) if is_plain and length.isdigit() else None, version, ranges=False)


def _version(response: Any) -> str | None:
    """Returns the ETag, else the time of the last change, else None."""
    version: str | None = response.headers.get("ETag") or response.headers.get("Last-Modified")
    return version


def _is_strong(version: str | None) -> bool:
    return version is not None and not version.startswith("W/")


def _range(response: Any) -> tuple[int, int, int | None]:
    """Returns (start, stop, size of the whole file) from ``Content-Range``; ``stop`` is not included."""
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not match:
        raise InterruptedTransferError("a part without a range")
    return int(match[1]), int(match[2]) + 1, None if match[3] == "*" else int(match[3])
