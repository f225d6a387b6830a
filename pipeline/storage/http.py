"""One file, or one archive, by its URL. ``#sha256=HEX`` at the end of the address is what its bytes must have."""

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
from pipeline.storage.names import check_names
from pipeline.storage.objects import CHUNK, InterruptedTransferError, Listing, RemoteObject, Reply

TIMEOUT = (10, 30)  # seconds to connect, and of silence
ATTEMPTS = 3  # at the first request; the transfer has attempts of its own

_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})


class Download:
    """A file on the web, with resumption where the server has ranges.

    Credentials come from ~/.netrc alone; redirects are followed, from https to https only.
    """

    threads = 4
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
        name = unquote(PurePosixPath(urlsplit(self.url).path).name) or "download"
        check_names([name], self.where)
        for attempt in range(ATTEMPTS):
            try:
                item = replace(self._look(), name=name, sha256=self.sha256)
                # What has no version must not be taken for another.
                return Listing([item if item.etag else replace(item, stamp=secrets.token_hex())], is_file=True)
            except InterruptedTransferError as error:
                if attempt == ATTEMPTS - 1:
                    raise UserError(f"{self.where}: {error}; look at the address and the network") from None
        raise AssertionError("the last attempt raises")

    def read(self, item: RemoteObject, start: int, stop: int | None) -> Reply:
        headers = {}
        if stop is not None:
            headers["Range"] = f"bytes={start}-{stop - 1}"
            headers["If-Range"] = item.etag or ""
        response = self._get(headers)
        if _version(response) != item.etag:
            response.close()
            raise UserError(f"{self.where}: changed at the source while it was fetched; run 'eqreg fetch' again")
        if stop is not None and (response.status_code != 206 or _range(response)[:2] != (start, stop)):
            response.close()
            raise InterruptedTransferError(f"another range than bytes {start} to {stop}")
        return Reply(_chunks(response))

    def _look(self) -> RemoteObject:
        """Size, version and whether there are ranges, by asking for the first byte."""
        with self._get({"Range": "bytes=0-0"}, {416}) as response:
            if response.status_code != 416:
                return _described(response)
        with self._get({}) as response:  # there is no first byte
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


def _chunks(response: requests.Response) -> Generator[bytes]:
    try:
        yield from response.iter_content(CHUNK)
    except (requests.RequestException, HTTPError, OSError):
        raise InterruptedTransferError("a broken connection") from None
    finally:
        response.close()


def _described(response: requests.Response) -> RemoteObject:
    version = _version(response)
    if response.status_code == 206:
        size = _range(response)[2]
        # Parts may only be put together if the server says that they are of one version.
        return RemoteObject("", size, version, ranges=size is not None and _is_strong(version))
    length = response.headers.get("Content-Length", "")
    is_plain = "Content-Encoding" not in response.headers
    return RemoteObject("", int(length) if is_plain and length.isdigit() else None, version, ranges=False)


def _version(response: Any) -> str | None:
    """The ETag, else the time of the last change, else None."""
    version: str | None = response.headers.get("ETag") or response.headers.get("Last-Modified")
    return version


def _is_strong(version: str | None) -> bool:
    return version is not None and not version.startswith("W/")


def _range(response: Any) -> tuple[int, int, int | None]:
    """(start, stop, size of the whole) of ``Content-Range``; stop is not included."""
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not match:
        raise InterruptedTransferError("a part without a range")
    return int(match[1]), int(match[2]) + 1, None if match[3] == "*" else int(match[3])
