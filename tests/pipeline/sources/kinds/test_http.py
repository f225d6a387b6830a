"""Files and archives by URL, from a real web server that can be told to misbehave."""

from __future__ import annotations

import hashlib
import http.server
import io
import random
import re
import shutil
import signal
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import pytest

from pipeline.errors import UserError
from pipeline.sources.download import ATTEMPTS, download
from pipeline.sources.kinds.http import Download
from pipeline.stages.fetch import changes_at_source, fetch
from tests.pipeline.conftest import Project
from tests.pipeline.services import MIB, RAW, check_raw, files_below, manifest, settings, start_fetch

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("project", "quick")]


def noise(num_bytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(num_bytes)


def zipped(contents: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return file.getvalue()


class Usage(NamedTuple):
    """As of `shutil.disk_usage`."""

    total: int
    used: int
    free: int


class Site:
    """What the server has, and how it behaves.

    Attributes:
        files: path -> bytes.
        ranges, etags, lengths: whether it has these.
        statuses: answered to the next requests, instead of the file.
        cuts: how many answers are broken off half way.
        most: bytes after which these answers are broken off, if that is less than half.
        locations: path -> where it leads on to.
        pace: seconds a 64 KiB piece takes.
        knows_if_range: whether it answers with a range to a request that has If-Range, and not with the whole file.
        served: bytes of files that were sent, or are being sent.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges = self.etags = self.lengths = True
        self.statuses: list[int] = []
        self.cuts = 0
        self.most = 1 << 40
        self.locations: dict[str, str] = {}
        self.pace = 0.0
        self.knows_if_range = True
        self.served = 0
        self.requests: list[dict[str, str]] = []
        self.address = ""


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(self.path)
            site.requests.append(dict(self.headers))
            if site.statuses:
                return self._empty(site.statuses.pop(0))
            if path in site.locations:
                return self._empty(302, Location=site.locations[path])
            if path not in site.files:
                return self._empty(404)
            data = site.files[path]
            etag = f'"{hashlib.md5(data).hexdigest()}"'
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            is_current = self.headers.get("If-Range", etag) == etag
            status, start, stop = 200, 0, len(data)
            is_known = site.knows_if_range or "If-Range" not in self.headers
            if wanted and site.ranges and is_current and is_known:
                status, start, stop = 206, int(wanted[1]), min(int(wanted[2]) + 1, len(data))
                if start >= len(data):
                    return self._empty(416)
            self.send_response(status)
            if site.etags:
                self.send_header("ETag", etag)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            if site.lengths:
                self.send_header("Content-Length", str(stop - start))
            else:
                self.send_header("Connection", "close")
            self._send(data[start:stop])

        def _send(self, data: bytes) -> None:
            is_cut = len(data) > 1 and site.cuts > 0
            site.cuts -= is_cut
            data_sent = data[: min(len(data) // 2, site.most)] if is_cut else data
            try:
                # Bytes count before they are sent, and the first of them before the headers: a reader may be content
                # with the headers, and may look at the count before this thread goes on.
                for start in range(0, max(1, len(data_sent)), 1 << 16):
                    piece = data_sent[start : start + (1 << 16)]
                    site.served += len(piece)
                    if start == 0:
                        self.end_headers()
                    self.wfile.write(piece)
                    time.sleep(site.pace)
            except OSError:
                is_cut = True
            if is_cut or not site.lengths:
                self.close_connection = True

        def _empty(self, status: int, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield site
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("lengths", [True, False])
def test_an_archive_is_unpacked(site: Site, ranges: bool, lengths: bool) -> None:
    contents = {"a.png": noise(1000), "sub/b.npz": noise(10 * MIB)}
    site.files["/data/set.zip"] = data = zipped(contents)
    site.ranges, site.lengths = ranges, lengths
    fetch(settings(f"{site.address}/data/set.zip"))
    check_raw(contents)
    assert manifest()["images_archive"] == {
        "name": "set.zip",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "etag": f'"{hashlib.md5(data).hexdigest()}"',
    }


def test_one_file_is_taken_as_it_is(site: Site) -> None:
    site.files["/a b.png"] = noise(100)
    fetch(settings(f"{site.address}/a%20b.png"))
    check_raw({"a b.png": noise(100)})


def test_an_empty_file_arrives(site: Site) -> None:
    site.files["/a.csv"] = b""
    fetch(settings(f"{site.address}/a.csv"))
    check_raw({"a.csv": b""})


def test_auxiliary_files_lie_beside_the_images(site: Site, tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/k.npy").write_bytes(b"k")
    site.files["/a.png"] = b"a"
    params = settings(f"{site.address}/a.png", auxiliary=str(tmp_path / "kernels"))
    fetch(params)
    check_raw({"a.png": b"a"})
    check_raw({"k.npy": b"k"}, "auxiliary")
    assert manifest()["auxiliary_source"] == str(tmp_path / "kernels")
    assert changes_at_source(params) == []
    (tmp_path / "kernels/k.npy").write_bytes(b"K")
    site.files["/a.png"] = b"A"
    assert changes_at_source(params) == ["changed: a.png", "changed: k.npy"]
    with pytest.raises(UserError, match=r"^fetch\.auxiliary: nowhere: there is no such folder"):
        fetch(settings(f"{site.address}/a.png", auxiliary="nowhere"))


def test_a_sum_in_the_address_is_checked(site: Site) -> None:
    site.files["/a.png"] = noise(100)
    good = hashlib.sha256(noise(100)).hexdigest()
    fetch(settings(f"{site.address}/a.png#sha256={good.upper()}"))
    check_raw({"a.png": noise(100)})
    with pytest.raises(UserError, match=r"a\.png: the bytes that arrived are not those recorded"):
        fetch(settings(f"{site.address}/a.png#sha256={'0' * 64}"))
    with pytest.raises(UserError, match=r"'#sha256=12' is not #sha256= and 64 hexadecimal digits"):
        fetch(settings(f"{site.address}/a.png#sha256=12"))


@pytest.mark.parametrize("ranges", [True, False])
def test_cut_connections_are_taken_up_again(site: Site, ranges: bool) -> None:
    site.files["/a.bin"] = noise(20 * MIB)
    site.ranges, site.cuts = ranges, 3
    fetch(settings(f"{site.address}/a.bin"))
    assert site.cuts == 0
    check_raw({"a.bin": noise(20 * MIB)})


def test_a_connection_that_is_always_cut_ends_with_the_file_named(site: Site) -> None:
    site.files["/a.bin"] = noise(MIB)
    site.cuts = 100
    with pytest.raises(UserError, match=r"a\.bin: (a broken connection|cut off after \d+ of 1048576 bytes), 5 times"):
        fetch(settings(f"{site.address}/a.bin"))


def test_a_killed_fetch_goes_on_where_it_stopped(site: Site, project: Project) -> None:
    data = noise(48 * MIB)
    site.files["/a.bin"] = data
    site.pace = 0.01
    process = start_fetch(project, f"{site.address}/a.bin")
    while site.served < 34 * MIB:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    site.pace, served = 0.0, site.served
    fetch(settings(f"{site.address}/a.bin"))
    check_raw({"a.bin": data})
    # What has arrived is taken up, but for what was on its way.
    assert site.served - served < 48 * MIB - 34 * MIB + 6 * MIB


def test_a_file_of_which_everything_arrived_before_a_kill_is_taken_up(site: Site) -> None:
    site.files["/a.bin"] = data = noise(3 * MIB)
    source = Download(f"{site.address}/a.bin")
    listing = source.listing()
    partial = Path(f"cache/{listing.objects[0].key}.partial")
    for there in (data, data[:-1], data[:MIB], b""):
        shutil.rmtree("cache", ignore_errors=True)
        partial.parent.mkdir()
        partial.write_bytes(there)
        served = site.served
        fetched = download(source, listing, partial.parent, "here", 4 * MIB)
        assert fetched[0].path.read_bytes() == data
        assert fetched[0].sha256 == hashlib.sha256(data).hexdigest()
        assert site.served - served == max(1, len(data) - len(there))


def test_a_server_that_answers_with_the_whole_file_to_a_request_for_the_rest_gives_the_file(site: Site) -> None:
    site.files["/a.bin"] = data = noise(3 * MIB)
    site.knows_if_range = False
    site.cuts = 1
    fetch(settings(f"{site.address}/a.bin"))
    check_raw({"a.bin": data})
    assert len([headers for headers in site.requests if "If-Range" in headers]) == 1


def test_a_damaged_beginning_is_dropped_if_the_sum_is_known(site: Site) -> None:
    site.files["/a.bin"] = data = noise(3 * MIB)
    source = Download(f"{site.address}/a.bin#sha256={hashlib.sha256(data).hexdigest()}")
    listing = source.listing()
    partial = Path(f"cache/{listing.objects[0].key}.partial")
    partial.parent.mkdir()
    partial.write_bytes(b"x" + data[1:MIB])
    fetched = download(source, listing, partial.parent, "here", 4 * MIB)
    assert fetched[0].path.read_bytes() == data
    assert site.served == 1 + 2 * MIB + 3 * MIB


def test_a_connection_that_is_cut_again_and_again_goes_on_while_there_is_progress(site: Site) -> None:
    site.files["/a.bin"] = data = noise(150 * MIB)
    site.cuts = ATTEMPTS + 2
    site.most = 17 * MIB
    fetch(settings(f"{site.address}/a.bin"))
    assert site.cuts == 0
    check_raw({"a.bin": data})
    assert site.served < 151 * MIB


def test_a_busy_server_is_asked_again(site: Site) -> None:
    site.files["/a.png"] = b"a"
    site.statuses = [503, 429]
    fetch(settings(f"{site.address}/a.png"))
    check_raw({"a.png": b"a"})


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, r"not there \(answer 404\); look at the address"),
        (401, r"refused \(401\); if it needs a password, put it into ~/\.netrc"),
        (403, r"refused \(403\)"),
        (500, r"answer 500; look at the address and the network"),
    ],
)
def test_answers_that_are_no_file_are_named(site: Site, status: int, message: str) -> None:
    site.files["/a.png"] = b"a"
    site.statuses = [status] * 20
    with pytest.raises(UserError, match=message):
        fetch(settings(f"{site.address}/a.png"))
    assert not RAW.exists()


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"fetch\.source: http://127\.0\.0\.1:9/a\.zip: no connection; look at"):
        fetch(settings("http://127.0.0.1:9/a.zip"))


def test_a_page_instead_of_an_archive_is_refused(site: Site) -> None:
    site.files["/set.zip"] = b"<html>Please log in</html>"
    with pytest.raises(UserError, match=r"set\.zip: neither an archive nor a file of a known kind"):
        fetch(settings(f"{site.address}/set.zip"))
    assert not RAW.exists()


def test_redirects_are_followed_within_the_web_only(site: Site) -> None:
    site.files["/real.png"] = b"a"
    site.locations = {
        "/a.png": "/real.png",
        "/file.png": "file:///etc/passwd",
        "/ftp.png": "ftp://127.0.0.1/x",
        "/round.png": "/round.png",
    }
    fetch(settings(f"{site.address}/a.png"))
    check_raw({"a.png": b"a"})
    for name in ("file", "ftp", "round"):
        with pytest.raises(UserError, match=r"or one it leads on to, that cannot be followed"):
            fetch(settings(f"{site.address}/{name}.png"))


def test_a_file_that_changes_while_it_is_fetched_is_noticed(site: Site) -> None:
    site.files["/a.bin"] = noise(20 * MIB)
    site.pace, site.cuts = 0.01, 1

    def change() -> None:
        while site.served < MIB:
            time.sleep(0.005)
        site.files["/a.bin"] = noise(20 * MIB, 1)

    thread = threading.Thread(target=change)
    thread.start()
    with pytest.raises(UserError, match=r"changed at the source while it was fetched; run 'eqreg fetch' again"):
        fetch(settings(f"{site.address}/a.bin"))
    thread.join()
    site.pace = 0.0
    fetch(settings(f"{site.address}/a.bin"))
    check_raw({"a.bin": noise(20 * MIB, 1)})


def test_what_has_no_version_is_never_taken_from_an_earlier_run(site: Site) -> None:
    site.etags = False
    site.files["/set.zip"] = zipped({"a.png": b"a"})[:-1]
    with pytest.raises(UserError, match=r"damaged or cut off"):
        fetch(settings(f"{site.address}/set.zip"))
    site.files["/set.zip"] = zipped({"a.png": b"b"})[:-1] + b"\0"
    fetch(settings(f"{site.address}/set.zip"))
    check_raw({"a.png": b"b"})


def test_an_archive_that_arrived_damaged_is_fetched_anew(site: Site) -> None:
    site.files["/set.zip"] = zipped({"a.png": b"a"})[:-1]
    for _ in range(2):
        served = site.served
        with pytest.raises(UserError, match=r"damaged or cut off"):
            fetch(settings(f"{site.address}/set.zip"))
        assert site.served - served > 50


def test_more_than_the_limit_is_refused_whether_the_server_says_so_or_not(site: Site) -> None:
    site.files["/a.bin"] = noise(40 * MIB)
    for has_lengths in (True, False):
        site.lengths = site.ranges = has_lengths
        served = site.served
        with pytest.raises(UserError, match=r"GiB; raise fetch\.max_gib if it is meant"):
            fetch(settings(f"{site.address}/a.bin", max_gib=1 / 1024))
        assert site.served - served < (2 if has_lengths else 20 * MIB)


@pytest.mark.parametrize(
    "address",
    [
        "https://someone:hush@127.0.0.1/a.zip",
        "http://hush@127.0.0.1/a.zip",
        "https://127.0.0.1/a.zip?X-Amz-Signature=hush",
        "https://127.0.0.1/a.zip?x=1&access_token=hush",
        "https://127.0.0.1/a.zip?sig=hush",
        "dvc:https://someone:hush@127.0.0.1/r.git#data",
    ],
)
def test_credentials_in_the_address_are_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(UserError, match=r"with a user, password, token or signature in it") as caught:
        fetch(settings(address))
    assert "hush" not in str(caught.value)
    assert not any(b"hush" in data for data in files_below(Path()).values())


def test_a_password_of_netrc_is_used_and_never_written(
    site: Site, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = project.folder.parent / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password hush-hush\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    site.files["/a.png"] = b"a"
    process = start_fetch(project, f"{site.address}/a.png")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert all(request["Authorization"].startswith("Basic ") for request in site.requests)
    assert "hush" not in output
    assert not any(b"hush" in data for data in files_below(project.folder).values())


@pytest.mark.parametrize("scheme", ["ftp", "gs", "file"])
def test_other_schemes_are_refused(scheme: str) -> None:
    with pytest.raises(UserError, match=f"'{scheme}' is not supported; use builtin, a path, s3://, https://"):
        fetch(settings(f"{scheme}://host/a.zip"))


def test_a_full_disk_is_said_before_anything_is_fetched(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.files["/a.bin"] = noise(2 * MIB)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(10, 9, 1))
    with pytest.raises(UserError, match=r"2 MiB to fetch, and 0 MiB are free on the disk of"):
        fetch(settings(f"{site.address}/a.bin"))
    assert site.served < 2
