"""Objects of a real S3 server arrive as they are, whatever happens on the way, or are named."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from botocore.exceptions import BotoCoreError, ConnectTimeoutError, ProxyConnectionError, ReadTimeoutError, SSLError

from pipeline.errors import UserError
from pipeline.sources.download import ATTEMPTS, download
from pipeline.sources.kinds.s3 import Bucket as Objects
from pipeline.sources.source import InterruptedTransferError
from pipeline.stages.fetch import changes_at_source, check, fetch
from tests.pipeline.conftest import ROOT, Project
from tests.pipeline.proxy import Proxy
from tests.pipeline.services import MIB, RAW, Bucket, check_raw, files_below, manifest, settings, start_fetch

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("project")]


def noise(num_bytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(num_bytes)


def test_objects_below_the_prefix_arrive_with_their_sums_and_etags(bucket: Bucket) -> None:
    contents = {"a.png": b"a", "sub/b c.JPG": b"bb", "sub/ü.npz": b"", "list.csv": b"x,y"}
    bucket.put_all(contents, "photos/")
    bucket.put_all({"photos2/other.png": b"o", "photos/.hidden/d.png": b"h", "photos/folder/": b""})
    bucket.put_all({"README.md": b"r", "LICENSE": b"l", "old.PDF": b"p"}, "photos/")
    fetch(settings(bucket.address("photos")))
    check_raw(contents)
    assert manifest()["source"] == bucket.address("photos")
    for record in manifest()["images"]:
        assert record["etag"] == hashlib.md5(contents[record["name"]]).hexdigest()


def test_what_is_left_behind_is_counted_by_suffix(bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    bucket.put_all({"a.png": b"a", "1.md": b"r", "2.md": b"l", "LICENSE": b"l"})
    fetch(settings(bucket.address()))
    assert f"not taken from '{bucket.address()}': 2 .md, 1 no suffix" in capsys.readouterr().out


def test_scans_without_a_suffix_are_known_by_their_first_bytes(bucket: Bucket) -> None:
    scan = bytes(128) + b"DICM" + b"scan"
    bucket.put_all({"IM-0001": scan, "1.2.840.113619": scan, "NOTES": b"text" * 100, "1.2.3": b""})
    fetch(settings(bucket.address()))
    check_raw({"IM-0001": scan, "1.2.840.113619": scan})


@pytest.mark.slow
def test_two_thousand_small_objects(bucket: Bucket) -> None:
    contents = {f"{number % 10}/{number:04}.png": noise(500 + number, number) for number in range(2000)}
    bucket.put_all(contents, "many/")
    fetch(settings(bucket.address("many/")))
    check_raw(contents)


def test_one_large_object_is_fetched_in_bounded_memory(bucket: Bucket, project: Project) -> None:
    data = noise(192 * MIB)
    bucket.put_in_parts("large.bin", data)
    code = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from tests.pipeline.services import settings\n"
        "from pipeline.stages.fetch import fetch\n"
        "fetch(settings(sys.argv[1]))\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "before = peak()\n"
        "fetch(settings(sys.argv[2]))\n"
        "print('peak', before // 1024, 'grown', (peak() - before) // 1024)\n"
    )
    bucket.put("small/a.png", b"a")
    output = subprocess.run(
        [sys.executable, "-c", code, bucket.address("small"), bucket.address("large.bin")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    grown = re.search(r"grown (\d+)", output)
    assert grown is not None
    assert int(grown[1]) < 80, output
    assert (RAW / "images/large.bin").read_bytes() == data
    assert re.fullmatch(r"[0-9a-f]{32}-24", manifest()["images"][0]["etag"])


def test_many_large_objects_are_fetched_side_by_side(bucket: Bucket) -> None:
    contents = {f"{number}.bin": noise(9 * MIB + number, number) for number in range(12)}
    for name, data in contents.items():
        bucket.put_in_parts(name, data)
    fetch(settings(bucket.address()))
    check_raw(contents)


def test_an_address_of_one_object_takes_that_object(bucket: Bucket) -> None:
    bucket.put_all({"set/a.png": b"a", "set/a.png.txt": b"t", "set/b.png": b"b"})
    fetch(settings(bucket.address("set/a.png")))
    check_raw({"a.png": b"a"})


@pytest.mark.usefixtures("quick")
def test_cut_connections_are_taken_up_again(bucket: Bucket, proxy: Proxy) -> None:
    contents = {f"{number}.png": noise(20_000, number) for number in range(40)} | {"large.bin": noise(20 * MIB)}
    bucket.put_all({name: data for name, data in contents.items() if name != "large.bin"})
    bucket.put_in_parts("large.bin", contents["large.bin"])
    proxy.cut, proxy.cuts_left = 300_000, ATTEMPTS - 1  # not more: all of them may strike one part
    fetch(settings(bucket.address()))
    assert proxy.cuts_left < 0
    check_raw(contents)


@pytest.mark.usefixtures("quick")
def test_a_connection_that_is_always_cut_ends_with_the_object_named(bucket: Bucket, proxy: Proxy) -> None:
    bucket.put("a.png", noise(300_000))
    proxy.cut, proxy.cuts_left = 100_000, 10**6
    with pytest.raises(UserError, match=r"a\.png: (a broken connection|a cut-off).*, 5 times; run 'eqreg fetch'"):
        fetch(settings(bucket.address()))
    assert not RAW.exists()


class Altering:
    """Turns one byte of the first pieces that hold the wanted bytes."""

    def __init__(self, wanted: bytes, times: int) -> None:
        self.wanted, self.times = wanted, times

    def __call__(self, data: bytes) -> bytes:
        if self.times and self.wanted in data:
            self.times -= 1
            return data.replace(self.wanted, bytes([self.wanted[0] ^ 1]) + self.wanted[1:])
        return data


def place(bucket: Bucket, how: str, data: bytes) -> None:
    """Puts a.bin so that its bytes can be verified by one means alone."""
    if how == "ETag":
        bucket.put("a.bin", data)
    elif how == "ETag of parts":
        bucket.put_in_parts("a.bin", data)
    elif how == "metadata":
        bucket.put_in_parts("a.bin", data)
        bucket.put("a.bin", data, Metadata={"sha256": hashlib.sha256(data).hexdigest()})
    else:
        bucket.put("a.bin", data)
        bucket.put("SHA256SUMS", f"{hashlib.sha256(data).hexdigest()}  a.bin\n".encode())


HOWS = [("ETag", 5000), ("ETag of parts", 20 * MIB), ("metadata", 5000), ("metadata", 20 * MIB), ("sums", 5000)]


def with_headers(**headers: str) -> Callable[[bytes], bytes]:
    """Adds headers to answers about whole objects, as Amazon's server does."""
    lines = "".join(f"x-amz-{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()).encode()

    def alter(piece: bytes) -> bytes:
        start = re.match(rb"HTTP/1\.1 200 [^\r]*\r\n(?=(.+\r\n)*etag:)", piece, re.IGNORECASE)
        return piece[: start.end()] + lines + piece[start.end() :] if start else piece

    return alter


def crc32(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4)).decode()


@pytest.mark.usefixtures("quick")
def test_the_checksum_of_the_whole_object_that_s3_has_takes_the_place_of_the_md5(bucket: Bucket, proxy: Proxy) -> None:
    """The ETag, of parts of an unusual size, would have to be the same bytes twice."""
    data = noise(20 * MIB)
    bucket.put_in_parts("a.bin", data, part=5 * MIB + 12345)
    altering = Altering(data[2000:2016], times=1)
    add_headers = with_headers(checksum_crc32=crc32(data), checksum_type="FULL_OBJECT")
    proxy.alter = lambda piece: altering(add_headers(piece))
    fetch(settings(bucket.address()))
    assert altering.times == 0
    check_raw({"a.bin": data})
    assert 40 * MIB < proxy.served < 41 * MIB  # once with the altered byte, and once as it is


@pytest.mark.parametrize("size", [5000, 9 * MIB])
@pytest.mark.usefixtures("quick")
def test_another_checksum_of_the_whole_object_than_s3_has_is_an_error_with_the_object_named(
    bucket: Bucket, proxy: Proxy, size: int
) -> None:
    data = noise(size)
    bucket.put("a.bin", data)
    proxy.alter = with_headers(checksum_crc32=crc32(data[1:]), checksum_type="FULL_OBJECT")
    with pytest.raises(UserError, match=r"a\.bin: (the bytes that arrived are not|bytes with a wrong).*, 5 times"):
        fetch(settings(bucket.address()))
    assert not RAW.exists()


def test_a_checksum_of_the_checksums_of_parts_is_not_taken_for_one_of_the_whole(bucket: Bucket, proxy: Proxy) -> None:
    data = noise(20 * MIB)
    bucket.put_in_parts("a.bin", data)
    proxy.alter = with_headers(checksum_crc32=f"{crc32(b'')}-3", checksum_type="COMPOSITE")
    fetch(settings(bucket.address()))
    check_raw({"a.bin": data})


@pytest.mark.parametrize(("how", "size"), HOWS)
@pytest.mark.usefixtures("quick")
def test_a_byte_altered_on_the_way_is_noticed_and_fetched_again(
    bucket: Bucket, proxy: Proxy, how: str, size: int
) -> None:
    data = noise(size)
    place(bucket, how, data)
    proxy.alter = altering = Altering(data[2000:2016], times=1)
    fetch(settings(bucket.address()))
    assert altering.times == 0
    check_raw({"a.bin": data})


@pytest.mark.parametrize(("how", "size"), [("ETag", 5000), ("metadata", 9 * MIB), ("sums", 5000)])
@pytest.mark.usefixtures("quick")
def test_a_byte_that_is_always_altered_ends_with_the_object_named(
    bucket: Bucket, proxy: Proxy, how: str, size: int
) -> None:
    data = noise(size)
    place(bucket, how, data)
    proxy.alter = Altering(data[2000:2016], times=-1)
    with pytest.raises(UserError, match=r"a\.bin: the bytes that arrived are not those recorded.*, 5 times"):
        fetch(settings(bucket.address()))
    assert not RAW.exists()


@pytest.mark.usefixtures("quick")
def test_a_shortened_object_with_a_length_to_match_is_noticed(bucket: Bucket, proxy: Proxy) -> None:
    data = noise(4096)
    bucket.put("a.png", data)
    times = 2

    def shorten(piece: bytes) -> bytes:
        nonlocal times
        if times:
            piece = re.sub(rb"(?i)content-length: 4096", b"Content-Length: 2048", piece)
            if data in piece:
                times -= 1
                return piece[:-2048]
        return piece

    proxy.alter = shorten
    fetch(settings(bucket.address()))
    assert times == 0
    check_raw({"a.png": data})


def test_an_object_whose_recorded_sum_is_another_is_refused(bucket: Bucket, quick: None) -> None:
    bucket.put("a.png", b"a")
    bucket.put("SHA256SUMS", f"{hashlib.sha256(b'b').hexdigest()} *./a.png\n".encode())
    with pytest.raises(UserError, match=r"a\.png: the bytes that arrived are not those recorded"):
        fetch(settings(bucket.address()))


def test_an_object_in_parts_of_an_unusual_size_is_fetched_twice_and_compared(
    bucket: Bucket, proxy: Proxy, quick: None
) -> None:
    data = noise(11 * MIB)
    etag = bucket.put_in_parts("a.bin", data, part=5 * MIB + 12345)
    fetch(settings(bucket.address()))
    check_raw({"a.bin": data})
    assert manifest()["images"][0]["etag"] == etag
    assert 22 * MIB < proxy.served < 24 * MIB


def test_a_manifest_at_the_source_is_checked_and_not_taken_for_data(bucket: Bucket) -> None:
    records = [{"name": "a.png", "sha256": hashlib.sha256(b"a").hexdigest()}]
    bucket.put_all({"images/a.png": b"a", "manifest.json": json.dumps({"images": records}).encode()})
    fetch(settings(bucket.address()))
    check_raw({"images/a.png": b"a"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, r"refuses the credentials \(SignatureDoesNotMatch\); give them by"),
        ({"AWS_ACCESS_KEY_ID": "wrong-key"}, r"refuses the credentials \(InvalidAccessKeyId\); give them by"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, r"no credentials; give them by"),
        ({"AWS_SECRET_ACCESS_KEY": None}, r"no credentials; give them by"),
        ({"AWS_PROFILE": "nobody"}, r"AWS_PROFILE names a profile that ~/\.aws does not have"),
        ({"AWS_ENDPOINT_URL": "nonsense"}, r"boto3 refuses its settings"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, r"no answer from http://127\.0\.0\.1:9; look at AWS_ENDPOINT_URL"),
    ],
)
def test_a_server_that_cannot_be_used_is_an_error_of_two_lines_at_most(
    bucket: Bucket, aws: pytest.MonkeyPatch, changes: dict[str, str | None], message: str
) -> None:
    bucket.put("a.png", b"a")
    for name, value in changes.items():
        aws.delenv(name) if value is None else aws.setenv(name, value)
    start = time.monotonic()
    with pytest.raises(UserError, match=message) as caught:
        fetch(settings(bucket.address()))
    assert str(caught.value).count("\n") < 2
    assert str(caught.value).startswith(f"fetch.source: {bucket.address()}")
    assert time.monotonic() - start < 20
    assert not RAW.exists()


def test_a_server_that_accepts_and_is_silent_is_given_up(bucket: Bucket, aws: pytest.MonkeyPatch) -> None:
    aws.setattr("pipeline.sources.s3_client.READ_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        aws.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(UserError, match=r"silence from http://127\.0\.0\.1:\d+; look at AWS_ENDPOINT_URL"):
            fetch(settings(bucket.address()))


@pytest.mark.parametrize("kind", [ReadTimeoutError, ConnectTimeoutError, SSLError, ProxyConnectionError])
def test_a_connection_that_fails_is_tried_again_and_is_no_error_of_the_disk(
    bucket: Bucket, kind: type[BotoCoreError]
) -> None:
    """These errors of botocore inherit from OSError, as those of a full disk do."""
    assert issubclass(kind, OSError)
    address = "http://user:secret@127.0.0.1:1"
    with pytest.raises(InterruptedTransferError) as caught, Objects(bucket.address())._errors("a.png"):
        raise kind(endpoint_url=address, proxy_url=address, error="e")
    assert "secret" not in str(caught.value)


def test_what_an_earlier_run_left_of_an_object_that_comes_whole_takes_no_room(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("large.bin", data := noise(12 * MIB))
    source = Objects(bucket.address())
    listing = source.listing()
    folder = tmp_path / "cache"
    folder.mkdir()
    left = folder / f"{listing.objects[0].key}.partial"
    left.write_bytes(data)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=MIB))
        with pytest.raises(UserError, match=r"12 MiB to fetch, and 1 MiB are free"):
            download(source, listing, folder, "there", 20 * MIB)
    assert not left.exists()
    assert download(source, listing, folder, "there", 20 * MIB)[0].path.read_bytes() == data


def test_a_possible_scan_that_may_not_be_read_is_an_error_and_not_left_out(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put_all({"IM-0001": bytes(128) + b"DICM"})

    def refused(*arguments: object, **options: object) -> None:
        raise UserError("no permission")

    monkeypatch.setattr("pipeline.sources.kinds.s3.Bucket._request", refused)
    with pytest.raises(UserError, match="no permission"):
        fetch(settings(bucket.address()))


def test_missing_buckets_and_empty_prefixes_are_named(bucket: Bucket) -> None:
    bucket.put_all({"there/a.png": b"a", "texts/a.md": b"a"})
    for address, message in (
        ("s3://no-such-bucket-here/x", r"there is no bucket 'no-such-bucket-here' on http"),
        (bucket.address("ther"), r"nothing there; look at the prefix"),
        (bucket.address("texts"), r"1 files \(1 \.md\), none of a known kind"),
        ("s3://", r"'' is no name of a bucket; use s3://BUCKET/PREFIX"),
    ):
        with pytest.raises(UserError, match=message):
            fetch(settings(address))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["../out.png"], r"\.\./out\.png: a path that leads out of its folder"),
        (["x/../../out.png"], r"a path that leads out of its folder"),
        (["/out.png"], r"/out\.png: an absolute path"),
        (["x//out.png"], r"a path with empty parts"),
        (["x\\out.png"], r"a path of Windows"),
        (["C:/out.png"], r"a path of Windows"),
        (["a\nb.png"], r"a\\nb\.png: a name with control characters"),
        (["a.png", "a.png/b.png"], r"a\.png: is both a file and a folder"),
        ([f"{'x' * 300}.png"], r"too long for a file"),
    ],
)
def test_names_that_must_not_become_paths_are_refused(
    bucket: Bucket, project: Project, names: list[str], message: str
) -> None:
    before = files_below(project.folder.parent)
    for name in names:
        bucket.put(f"set/{name}", b"a")
    with pytest.raises(UserError, match=message):
        fetch(settings(bucket.address("set/")))
    assert files_below(project.folder.parent) == before


def test_a_killed_fetch_goes_on_with_what_is_missing(bucket: Bucket, proxy: Proxy, project: Project) -> None:
    contents = {f"{number:03}.png": noise(30_000, number) for number in range(100)}
    contents |= {f"large{number:02}.bin": noise(9 * MIB, number) for number in range(24)}
    bucket.put_all(contents)
    total = sum(map(len, contents.values()))
    proxy.bytes_per_second = 40e6
    process = start_fetch(project, bucket.address())
    while proxy.served < 0.8 * total:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not RAW.exists()
    whole = [file.stat().st_size for file in Path(".eqreg/fetch").rglob("*-*")]
    assert sum(whole) > 0.1 * total
    proxy.bytes_per_second = None
    served = proxy.served
    process = start_fetch(project, bucket.address())
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    check_raw(contents)
    assert proxy.served - served < total - sum(whole) + MIB
    assert not list(Path(".eqreg/fetch").iterdir())


def test_an_interrupted_fetch_ends_at_once_and_goes_on_later(bucket: Bucket, proxy: Proxy, project: Project) -> None:
    contents = {f"{number:03}.png": noise(100_000, number) for number in range(60)}
    bucket.put_all(contents)
    proxy.bytes_per_second = 1e6
    process = start_fetch(project, bucket.address())
    while proxy.served < 2e6:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "Traceback" not in output
    proxy.bytes_per_second = None
    before = len(proxy.requests)
    fetch(settings(bucket.address()))
    check_raw(contents)
    assert len(proxy.requests) - before < 50


def test_an_interrupt_does_not_wait_for_a_server_that_is_silent(bucket: Bucket, proxy: Proxy, project: Project) -> None:
    bucket.put_in_parts("large.bin", noise(40 * MIB))
    proxy.bytes_per_second = 1e6
    process = start_fetch(project, bucket.address())
    while not list(Path(".eqreg").rglob("*.partial*")) or proxy.served < MIB:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    proxy.bytes_per_second = 1.0
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "Traceback" not in output
    assert not RAW.exists()


def test_a_second_fetch_takes_only_what_changed(
    bucket: Bucket, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = {f"{number:02}.png": noise(50_000, number) for number in range(20)}
    bucket.put_all(contents)
    fetch(settings(bucket.address()))
    contents["07.png"] = noise(50_000, 777)
    contents["new.png"] = noise(50_000, 778)
    bucket.put_all({name: contents[name] for name in ("07.png", "new.png")})
    bucket.delete("03.png")
    del contents["03.png"]
    served = proxy.served
    capsys.readouterr()
    fetch(settings(bucket.address()))
    check_raw(contents)
    assert 100_000 < proxy.served - served < 150_000
    output = capsys.readouterr().out
    for told in ("changed since the last fetch: 07.png", "new since the last fetch: new.png", "gone since the last"):
        assert told in output


def test_a_file_that_was_damaged_here_is_fetched_again(bucket: Bucket) -> None:
    bucket.put_all({"a.png": b"aaaa", "b.png": b"bbbb"})
    fetch(settings(bucket.address()))
    (RAW / "images/a.png").write_bytes(b"aaax")
    fetch(settings(bucket.address()))
    check_raw({"a.png": b"aaaa", "b.png": b"bbbb"})


def test_the_source_is_compared_with_what_was_fetched(bucket: Bucket) -> None:
    bucket.put_all({"a.png": b"a", "b.png": b"b", "c.png": b"c"})
    params = settings(bucket.address())
    with pytest.raises(UserError, match=r"manifest\.json: not there yet; run 'eqreg fetch'"):
        changes_at_source(params)
    fetch(params)
    assert changes_at_source(params) == []
    check(params)
    bucket.put_all({"a.png": b"A", "d.png": b"d"})
    bucket.delete("c.png")
    assert changes_at_source(params) == ["changed: a.png", "new: d.png", "gone: c.png"]
    with pytest.raises(UserError, match=r"changed: a\.png, new: d\.png, gone: c\.png\nrun 'dvc repro --force"):
        check(params)
    assert changes_at_source(settings(bucket.address("other"))) == [
        f"never fetched: fetch.source: {bucket.address('other')}"
    ]


def test_an_object_that_changes_while_it_is_fetched_is_noticed(bucket: Bucket, proxy: Proxy) -> None:
    bucket.put_in_parts("a.bin", noise(40 * MIB))
    other = noise(40 * MIB, 1)
    changed = False

    def change(line: str) -> None:
        nonlocal changed
        if "a.bin" in line and not changed:
            changed = True
            bucket.put_in_parts("a.bin", other)

    proxy.on_request = change
    with pytest.raises(UserError, match=r"a\.bin: changed at the source while it was fetched; run 'eqreg fetch' again"):
        fetch(settings(bucket.address()))
    fetch(settings(bucket.address()))
    check_raw({"a.bin": other})


def test_an_object_that_goes_while_it_is_fetched_is_noticed(bucket: Bucket, proxy: Proxy) -> None:
    bucket.put("a.png", b"a")
    proxy.on_request = lambda line: bucket.delete("a.png") if "a.png" in line else None
    with pytest.raises(UserError, match=r"a\.png: gone since it was listed"):
        fetch(settings(bucket.address()))


def test_objects_that_changed_between_two_runs_are_not_mixed(bucket: Bucket, proxy: Proxy, project: Project) -> None:
    bucket.put_in_parts("a.bin", noise(24 * MIB))
    proxy.bytes_per_second = 8e6
    process = start_fetch(project, bucket.address())
    while not list(Path(".eqreg").rglob("*.partial*")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.kill()
    process.wait()
    proxy.bytes_per_second = None
    data = noise(24 * MIB, 1)
    bucket.put_in_parts("a.bin", data)
    fetch(settings(bucket.address()))
    check_raw({"a.bin": data})


def test_a_disk_that_fills_up_with_a_large_object_is_named_and_leaves_nothing_half_done(bucket: Bucket) -> None:
    """A limit on the size of files stands for the disk: the kernel refuses the same writes."""
    contents = {"a.png": b"a", "large.bin": noise(20 * MIB)}
    bucket.put_all(contents)
    code = (
        "import resource, signal, sys\n"
        "from tests.pipeline.services import settings\n"
        "from pipeline.errors import UserError\n"
        "from pipeline.stages.fetch import fetch\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (12 << 20, 12 << 20))\n"
        "try:\n    fetch(settings(sys.argv[1]))\nexcept UserError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, bucket.address()]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert "cannot be written (File too large); make room, then run 'eqreg fetch' again" in run.stdout
    assert not RAW.exists()
    assert not [file for file in Path(".eqreg").rglob("*.partial*") if file.stat().st_size > 0]
    fetch(settings(bucket.address()))
    check_raw(contents)


def test_one_source_is_not_fetched_by_two_at_once(bucket: Bucket, proxy: Proxy, project: Project) -> None:
    bucket.put("a.png", noise(2 * MIB))
    proxy.bytes_per_second = 1e6
    process = start_fetch(project, bucket.address())
    while not list(Path(".eqreg").rglob("*.partial")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    with pytest.raises(UserError, match=r"is being fetched by another process; wait for it"):
        fetch(settings(bucket.address()))
    proxy.bytes_per_second = None
    assert process.wait(timeout=300) == 0


@pytest.mark.parametrize("failure", ["none", "secret", "bucket", "cut", "endpoint"])
def test_credentials_are_in_no_output_and_no_file(
    bucket: Bucket, proxy: Proxy, project: Project, aws: pytest.MonkeyPatch, failure: str
) -> None:
    bucket.put("a.png", noise(200_000))
    key, secret = bucket.key, bucket.secret
    address = bucket.address()
    if failure == "secret":
        key, secret = "AKIDOFNOBODY", "a-secret-of-nobody"
        aws.setenv("AWS_ACCESS_KEY_ID", key)
        aws.setenv("AWS_SECRET_ACCESS_KEY", secret)
    elif failure == "bucket":
        address = "s3://no-such-bucket-here"
    elif failure == "cut":
        proxy.cut, proxy.cuts_left = 50_000, 10**6
    elif failure == "endpoint":
        aws.setenv("AWS_ENDPOINT_URL", "http://someone:a-password@127.0.0.1:9")
        secret = "a-password"
    aws.setenv("EQREG_DEBUG", "1")  # with tracebacks too
    process = start_fetch(project, address)
    output, _ = process.communicate(timeout=300)
    assert (process.returncode == 0) is (failure == "none")
    texts = [output.encode(), *files_below(project.folder).values()]
    assert not [text for text in texts if key.encode() in text or secret.encode() in text]


@pytest.mark.parametrize("address", ["s3://KEY:hush@bucket/x", "s3://KEY@bucket/x"])
def test_credentials_in_the_address_are_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(UserError, match=r"an address of s3 with a user, password.*AWS_PROFILE") as caught:
        fetch(settings(address))
    assert "hush" not in str(caught.value)
    assert "KEY" not in str(caught.value)


def test_a_profile_may_give_the_endpoint_and_the_credentials(bucket: Bucket, aws: pytest.MonkeyPatch) -> None:
    bucket.put("a.png", b"a")
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        aws.delenv(name)
    Path(os.environ["AWS_CONFIG_FILE"]).write_text(
        f"[profile lab]\nendpoint_url = {bucket.endpoint}\nregion = us-east-1\n"
        f"aws_access_key_id = {bucket.key}\naws_secret_access_key = {bucket.secret}\n"
    )
    aws.setenv("AWS_PROFILE", "lab")
    fetch(settings(bucket.address()))
    check_raw({"a.png": b"a"})
