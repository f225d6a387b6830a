"""What is verified, and how; and what becomes of a disk that is full."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.errors import UserError
from pipeline.sources.checksums import CRCS, Recorded, part_sizes, verify
from pipeline.sources.download import download
from pipeline.sources.kinds.folder import Folder
from pipeline.stages.fetch import fetch
from tests.pipeline.conftest import ROOT, Project
from tests.pipeline.services import MIB, RAW, check_raw, files_below, settings, start_ready

pytestmark = pytest.mark.process


def etag_of(data: bytes, part: int) -> str:
    """By the definition: MD5 of the concatenated binary MD5s of the parts, and their number."""
    parts = [data[start : start + part] for start in range(0, len(data), part)]
    return f"{hashlib.md5(b''.join(hashlib.md5(p).digest() for p in parts)).hexdigest()}-{len(parts)}"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.mark.parametrize("part", [5 * MIB, 8 * MIB, 64 * MIB])
@pytest.mark.parametrize("size", [17 * MIB + 1, 24 * MIB])
def test_the_etag_of_parts_is_recognised_without_knowing_their_size(
    tmp_path: Path, pool: ThreadPoolExecutor, part: int, size: int
) -> None:
    data, path = random.Random(size).randbytes(size), tmp_path / "a.bin"
    for altered, verdict in ((data, True), (data[:-1] + bytes([data[-1] ^ 1]), None)):
        path.write_bytes(altered)
        sha256, agrees = verify(path, Recorded(md5=etag_of(data, part)), pool)
        assert agrees is verdict
        assert sha256 == hashlib.sha256(altered).hexdigest()


@pytest.mark.parametrize(
    ("sha256", "crc", "md5", "verdict"),
    [
        (hashlib.sha256(b"123456789").hexdigest().upper(), ("CRC32", 0), "0" * 32, True),
        ("0" * 64, ("CRC32", 0xCBF43926), hashlib.md5(b"123456789").hexdigest(), False),
        (None, ("CRC32", 0xCBF43926), "0" * 32, True),  # the check value that is published with CRC-32
        (None, ("CRC32", 0xCBF43927), hashlib.md5(b"123456789").hexdigest(), False),
        (None, None, hashlib.md5(b"123456789").hexdigest(), True),
        (None, None, "0" * 32, False),
        (None, None, None, None),
    ],
)
def test_the_first_sum_that_is_recorded_decides_alone(
    tmp_path: Path,
    pool: ThreadPoolExecutor,
    sha256: str | None,
    crc: tuple[str, int] | None,
    md5: str | None,
    verdict: bool | None,
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"123456789")
    assert verify(path, Recorded(sha256, crc, md5), pool) == (hashlib.sha256(b"123456789").hexdigest(), verdict)


@pytest.mark.parametrize("name", CRCS)  # CRC32, and more if awscrt is installed
def test_each_crc_has_the_check_value_that_is_published_with_it(
    tmp_path: Path, pool: ThreadPoolExecutor, name: str
) -> None:
    check = {"CRC32": 0xCBF43926, "CRC64NVME": 0xAE8B14860A799888, "CRC32C": 0xE3069283}[name]
    assert CRCS[name](b"6789", CRCS[name](b"12345", 0)) == check
    path = tmp_path / "a.bin"
    path.write_bytes(b"123456789")
    assert [verify(path, Recorded(crc=(name, crc)), pool)[1] for crc in (check, check ^ 1)] == [True, False]


def test_only_part_sizes_that_give_the_number_of_parts_are_tried() -> None:
    assert part_sizes(20 * MIB, 3) == [8 * MIB, 7 * MIB]
    assert 100 * MIB in part_sizes(1000 * MIB, 10)
    assert part_sizes(20 * MIB, 1)[-1] == 20 * MIB
    assert part_sizes(0, 1) == []


def test_a_disk_that_fills_up_is_named_and_the_fetch_goes_on_later(project: Project) -> None:
    """A limit on the size of files stands for the disk: the kernel refuses the same writes."""
    folder = project.folder / "source"
    folder.mkdir()
    contents = {"a.png": b"a", "large.bin": random.Random(0).randbytes(3 * MIB)}
    (folder / "a.png").write_bytes(contents["a.png"])
    fetch(settings("source"))
    before = files_below(RAW)
    (folder / "large.bin").write_bytes(contents["large.bin"])
    code = (
        "import resource, signal\n"
        "from tests.pipeline.services import settings\n"
        "from pipeline.errors import UserError\n"
        "from pipeline.stages.fetch import fetch\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try:\n    fetch(settings('source'))\nexcept UserError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "cannot be written (File too large); make room, then run 'eqreg fetch' again" in run.stdout
    assert files_below(RAW) == before
    assert [entry.name for entry in RAW.parent.iterdir()] == ["raw"]
    fetch(settings("source"))
    check_raw(contents)


def test_a_copy_that_was_interrupted_is_finished_with_what_is_there(tmp_path: Path) -> None:
    data = random.Random(0).randbytes(5 * MIB)
    (tmp_path / "a.bin").write_bytes(data)
    source = Folder(tmp_path / "a.bin")
    listing = source.listing()
    partial = tmp_path / f"cache/{listing.objects[0].key}.partial"
    partial.parent.mkdir()
    partial.write_bytes(data[: 2 * MIB + 1])
    chunks = source.read(listing.objects[0], 2 * MIB + 1).chunks
    assert chunks is not None
    assert b"".join(chunks) == data[2 * MIB + 1 :]
    fetched = download(source, listing, partial.parent, "here", 8 * MIB)
    assert fetched[0].path.read_bytes() == data
    assert fetched[0].sha256 == hashlib.sha256(data).hexdigest()
    assert not partial.exists()


def test_the_room_that_is_needed_does_not_count_what_has_arrived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(3 * MIB))
    source = Folder(tmp_path / "a.bin")
    listing = source.listing()
    partial = tmp_path / f"cache/{listing.objects[0].key}.partial"
    partial.parent.mkdir()
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=MIB))
    with pytest.raises(UserError, match=r"here: 3 MiB to fetch, and 1 MiB are free on the disk of .*; make room"):
        download(source, listing, partial.parent, "here", 8 * MIB)
    partial.write_bytes(bytes(2 * MIB))
    assert download(source, listing, partial.parent, "here", 8 * MIB)[0].size == 3 * MIB


@pytest.mark.parametrize("ending", ["as it should", "killed"])
def test_a_folder_is_not_filled_by_two_at_once_and_is_free_when_the_other_ends(tmp_path: Path, ending: str) -> None:
    source = tmp_path / "a.png"
    source.write_bytes(b"a")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pipeline.sources.download import _locked\n"
        "with _locked(Path(sys.argv[1]), 'there'):\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    folder = Folder(source)
    other = start_ready(code, str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"^here: is being fetched by another process; wait for it$"):
        download(folder, folder.listing(), tmp_path / "cache", "here", MIB)
    if ending == "killed":
        other.kill()
    else:
        assert other.stdin is not None
        other.stdin.close()
    other.wait(timeout=300)
    assert download(folder, folder.listing(), tmp_path / "cache", "here", MIB)[0].path.read_bytes() == b"a"


def test_finished_files_of_an_earlier_run_are_kept_only_if_they_are_whole(tmp_path: Path) -> None:
    folder, cache = tmp_path / "source", tmp_path / "cache"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(name.encode())
    source = Folder(folder)
    first = download(source, source.listing(), cache, "here", MIB)
    times = {file.item.name: file.path.stat().st_mtime_ns for file in first}
    first[1].path.write_bytes(b"x.png")
    (cache / "0123-4567").write_bytes(b"of an older version")
    second = download(source, source.listing(), cache, "here", MIB)
    assert [file.path.read_bytes() for file in second] == [b"a.png", b"b.png"]
    assert second[0].path.stat().st_mtime_ns == times["a.png"]
    assert {entry.name for entry in cache.iterdir()} == {"lock", *(file.path.name for file in second)}


def test_a_file_that_changes_while_it_is_copied_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    source = Folder(tmp_path)
    listing = source.listing()
    (tmp_path / "a.png").write_bytes(b"b")
    os.utime(tmp_path / "a.png", ns=(1, 1))
    with pytest.raises(UserError, match=r"a\.png: changed while it was copied; run 'eqreg fetch' again"):
        download(source, listing, tmp_path / "cache", "here", MIB)


def test_a_folder_larger_than_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(bytes(MIB + 1))
    source = Folder(tmp_path)
    with pytest.raises(UserError, match=r"here: .* GiB: more than .* GiB; raise fetch\.max_gib if it is meant"):
        download(source, source.listing(), tmp_path / "cache", "here", MIB)
