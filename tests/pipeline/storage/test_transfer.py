"""What is verified, and how; and what becomes of a disk that is full."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.fetch import fetch
from pipeline.storage.digests import Digests, part_sizes
from pipeline.storage.folder import Folder
from pipeline.storage.transfer import download
from tests.pipeline.conftest import ROOT, Project
from tests.pipeline.storage.conftest import MIB, RAW, check_raw, files_below, settings

pytestmark = pytest.mark.process


def etag_of(data: bytes, part: int) -> str:
    """By the definition: MD5 of the concatenated binary MD5s of the parts, and their number."""
    parts = [data[start : start + part] for start in range(0, len(data), part)]
    return f"{hashlib.md5(b''.join(hashlib.md5(p).digest() for p in parts)).hexdigest()}-{len(parts)}"


@pytest.mark.parametrize("part", [5 * MIB, 8 * MIB, 64 * MIB])
@pytest.mark.parametrize("size", [17 * MIB + 1, 24 * MIB])
def test_the_etag_of_parts_is_recognised_without_knowing_their_size(part: int, size: int) -> None:
    data = random.Random(size).randbytes(size)
    for altered, verdict in ((data, True), (data[:-1] + bytes([data[-1] ^ 1]), None)):
        digests = Digests(None, etag_of(data, part), size)
        for start in range(0, size, 1_000_003):  # across the borders of parts
            digests.update(altered[start : start + 1_000_003])
        assert digests.agree() is verdict
        assert digests.sha256 == hashlib.sha256(altered).hexdigest()


def test_a_recorded_sha256_decides_alone() -> None:
    right = hashlib.sha256(b"data").hexdigest()
    for recorded, md5, verdict in (
        (right.upper(), "0" * 32, True),
        ("0" * 64, hashlib.md5(b"data").hexdigest(), False),
        (None, hashlib.md5(b"data").hexdigest(), True),
        (None, "0" * 32, False),
        (None, None, None),
    ):
        digests = Digests(recorded, md5, 4)
        digests.update(b"data")
        assert digests.agree() is verdict
    assert not digests.is_doubtful


def test_only_part_sizes_that_give_the_number_of_parts_are_tried() -> None:
    assert part_sizes(20 * MIB, 3) == [7 * MIB, 8 * MIB]
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
        "from tests.pipeline.storage.conftest import settings\n"
        "from pipeline.errors import UserError\n"
        "from pipeline.fetch import fetch\n"
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
