"""A folder and a bucket as places: objects are there whole or not at all, and what fails is said in a line."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import signal
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.storage.folder_store import FolderStore
from pipeline.storage.open_store import open_store
from pipeline.storage.store import ArtifactStore
from tests.pipeline.proxy import Proxy
from tests.pipeline.services import MIB, Bucket, start_ready

pytestmark = pytest.mark.process


@pytest.fixture(params=["folder", "s3"])
def artifact_store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """A folder that did not exist, and a prefix of an empty bucket on the real server."""
    if request.param == "folder":
        return open_store(str(tmp_path / "shared" / "place"))
    bucket: Bucket = request.getfixturevalue("bucket")
    return open_store(bucket.address("some/prefix"))


def test_what_is_written_is_read_listed_and_deleted(artifact_store: ArtifactStore) -> None:
    contents = {"a/b/c.pt": b"c", "a/b.pt": b"", "a b/ü.pt": b"u" * 1000, "d": b"d"}
    for name, data in contents.items():
        artifact_store.write(name, data)
    assert {name: artifact_store.read(name) for name in artifact_store.names("")} == contents
    assert artifact_store.names("a") == ["a/b.pt", "a/b/c.pt"]
    assert artifact_store.names("a/b") == ["a/b/c.pt"]
    assert artifact_store.names("nothing/here") == []
    artifact_store.write("d", b"other")
    assert artifact_store.read("d") == b"other"
    artifact_store.delete("a/b/c.pt")
    artifact_store.delete("a/b/c.pt")
    artifact_store.delete("never/there")
    assert artifact_store.names("a") == ["a/b.pt"]
    with pytest.raises(FileNotFoundError):
        artifact_store.read("a/b/c.pt")


def test_a_place_travels_to_other_processes(artifact_store: ArtifactStore) -> None:
    artifact_store.write("a", b"here")
    copy = pickle.loads(pickle.dumps(artifact_store))
    assert copy.address == artifact_store.address
    assert copy.read("a") == b"here"


def test_large_files_travel_in_parts_and_unchanged(artifact_store: ArtifactStore, tmp_path: Path) -> None:
    data = random.Random(0).randbytes(40 * MIB + 17)
    (tmp_path / "file").write_bytes(data)
    artifact_store.upload(tmp_path / "file", "large/file")
    artifact_store.download("large/file", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    artifact_store.write("large/bytes", data)
    assert artifact_store.read("large/bytes") == data
    with pytest.raises(FileNotFoundError):
        artifact_store.download("large/other", tmp_path / "other")


def test_a_large_file_is_put_in_parts_on_the_server(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(20 * MIB))
    open_store(bucket.address("p")).upload(tmp_path / "file", "file")
    # The ETag of an object in N parts ends in -N.
    assert bucket.client.head_object(Bucket=bucket.name, Key="p/file")["ETag"].strip('"').endswith("-3")


def test_the_check_leaves_nothing_behind(artifact_store: ArtifactStore) -> None:
    artifact_store.check()
    assert artifact_store.names("") == []


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../../x", "a//b", "./a", "a\nb", "x" * 300])
def test_names_that_lead_elsewhere_are_refused(artifact_store: ArtifactStore, name: str) -> None:
    for call in (
        lambda: artifact_store.write(name, b""),
        lambda: artifact_store.read(name),
        lambda: artifact_store.delete(name),
    ):
        with pytest.raises(ValueError, match=r"path|name"):
            call()
    assert artifact_store.names("") == []


def test_other_objects_of_the_bucket_are_not_of_the_place(bucket: Bucket) -> None:
    bucket.put_all({"pre/a": b"a", "prefix/b": b"b", "c": b"c", "pre/folder/": b""})
    assert open_store(bucket.address("pre")).names("") == ["a"]
    assert open_store(bucket.address("pre/")).names("") == ["a"]


def test_several_processes_may_write_one_object_and_readers_see_one_of_them_whole(tmp_path: Path) -> None:
    artifact_store = FolderStore(str(tmp_path))
    wholes = [bytes([number]) * 200_000 for number in range(4)]
    artifact_store.write("x/y", wholes[0])
    with ThreadPoolExecutor(5) as pool:
        writing = [
            pool.submit(lambda data=data: [artifact_store.write("x/y", data) for _ in range(30)]) for data in wholes
        ]
        while not all(each.done() for each in writing):
            assert artifact_store.read("x/y") in wholes
        for each in writing:
            each.result()
    assert [file.name for file in (tmp_path / "x").iterdir()] == ["y"]


def test_a_folder_may_be_emptied_while_another_process_writes_into_it(tmp_path: Path) -> None:
    artifact_store = FolderStore(str(tmp_path))

    def write_and_delete(name: str) -> None:
        for _ in range(200):
            artifact_store.write(f"a/b/{name}", b"x")
            assert artifact_store.read(f"a/b/{name}") == b"x"
            artifact_store.delete(f"a/b/{name}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write_and_delete, "1234"))
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys
from pipeline.storage.open_store import open_store
place = open_store(sys.argv[1])
print("ready", flush=True)
number = 0
while True:
    number += 1
    place.write("object", bytes([number % 251]) * 30_000_000)
"""


def test_a_writer_that_is_killed_leaves_the_object_whole(artifact_store: ArtifactStore) -> None:
    chance = random.Random(3)
    for _ in range(4):
        process = start_ready(WRITER, artifact_store.address)
        time.sleep(chance.uniform(0.05, 1.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if artifact_store.names(""):
            data = artifact_store.read("object")
            assert len(data) == 30_000_000
            assert len(set(data)) == 1
    assert artifact_store.names("") in ([], ["object"])


def test_what_killed_writers_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    artifact_store = FolderStore(str(tmp_path))
    old, young = tmp_path / ".object.0123456789abcdef.partial", tmp_path / ".object.fedcba9876543210.partial"
    for file, age in ((old, 4000), (young, 100)):
        file.write_bytes(b"half")
        os.utime(file, (time.time() - age,) * 2)
    assert artifact_store.names("") == []
    artifact_store.write("object", b"whole")
    assert not old.exists()
    assert young.exists()
    assert artifact_store.names("") == ["object"]


def test_bytes_are_on_the_disk_before_they_get_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        fsync(descriptor)
        calls.append(("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))

    def note_replace(source: Path, target: Path) -> None:
        replace(source, target)
        calls.append(("replace", f"{source} {target}"))

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    open_store(str(tmp_path / "p")).write("a/b", b"data")
    partial = next(what.split()[0] for call, what in calls if call == "replace")
    assert calls == [
        ("fsync", str(tmp_path)),  # the name of p
        ("fsync", str(tmp_path / "p")),  # the name of a
        ("fsync", partial),
        ("replace", f"{partial} {tmp_path}/p/a/b"),
        ("fsync", str(tmp_path / "p/a")),
    ]


def refusals(artifact_store: ArtifactStore, path: Path) -> list[str]:
    """What each of the calls that change something says."""
    path.write_bytes(b"data")
    calls: list[Callable[[], None]] = [
        lambda: artifact_store.write("a/b", b"data"),
        lambda: artifact_store.upload(path, "a/b"),
        artifact_store.check,
    ]
    texts = []
    for call in calls:
        with pytest.raises(UserError) as caught:
            call()
        texts.append(str(caught.value))
        assert texts[-1].startswith(f"cluster.storage: {artifact_store.address}")
        assert texts[-1].count("\n") < 2
    return texts


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cluster\.storage: .*/file/place: cannot be made on .* \(File exists\)"):
        open_store(str(tmp_path / "file" / "place"))


def test_a_node_that_does_not_see_the_folder_says_so_and_makes_none(tmp_path: Path) -> None:
    artifact_store = FolderStore(str(tmp_path / "not-mounted"))
    texts = refusals(artifact_store, tmp_path / "file")
    for call in (lambda: artifact_store.read("a"), lambda: artifact_store.names("")):
        with pytest.raises(UserError) as caught:
            call()
        texts.append(str(caught.value))
    for text in texts:
        assert f"on {os.uname().nodename} (there is no such folder); mount it there" in text
    assert not (tmp_path / "not-mounted").exists()


def test_a_folder_that_may_not_be_written_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("public")
    for parent in (folder, *folder.parents):
        if parent == Path(tempfile.gettempdir()):
            break
        parent.chmod(0o755)
    artifact_store = open_store(str(folder / "place"))
    (folder / "place").chmod(0o555)
    (folder / "file").write_bytes(b"")
    (folder / "file").chmod(0o666)
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        texts = refusals(artifact_store, folder / "file")
    finally:
        os.seteuid(was)
    for text in texts:
        assert "(Permission denied); every node must be allowed to read and write there" in text


FULL = """
import resource, sys
from pathlib import Path
from pipeline.errors import UserError
from pipeline.storage.open_store import open_store
place = open_store(sys.argv[1])
place.write("a", b"old")
Path(sys.argv[2]).write_bytes(bytes(90_000))
print("ready", flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for call in (lambda: place.write("a", bytes(90_000)), lambda: place.upload(Path(sys.argv[2]), "a")):
    try:
        call()
    except UserError as error:
        print(error)
print(place.read("a"), place.names(""))
"""


def test_a_file_that_finds_no_room_leaves_the_old_one_and_no_rest(tmp_path: Path) -> None:
    folder = tmp_path / "place"
    output = start_ready(FULL, str(folder), str(tmp_path / "file")).communicate()[0].splitlines()
    host = os.uname().nodename
    assert output == [f"cluster.storage: {folder}: a: cannot be written on {host} (File too large); make room"] * 2 + [
        "b'old' ['a']"
    ]
    assert [file.name for file in folder.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, r"refuses the credentials \((Sig\w+|403)\); give"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, r"no credentials; give them by"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, r"no answer from http://127\.0\.0\.1:9; look at AWS_ENDPOINT_URL"),
    ],
)  # fmt: skip
def test_a_server_that_cannot_be_used_is_named(
    bucket: Bucket, aws: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, str | None], message: str
) -> None:
    aws.setattr("pipeline.storage.s3_store.ATTEMPTS", 2)
    for name, value in changes.items():
        aws.delenv(name) if value is None else aws.setenv(name, value)
    artifact_store = open_store(bucket.address("x"))
    for text in refusals(artifact_store, tmp_path / "file"):
        assert re.search(message, text), text


def test_a_bucket_that_is_not_there_is_no_missing_object(bucket: Bucket) -> None:
    artifact_store = open_store("s3://no-such-bucket-here/x")
    for call in (
        lambda: artifact_store.read("a"),
        lambda: artifact_store.names(""),
        lambda: artifact_store.write("a", b""),
    ):
        with pytest.raises(UserError, match=r"there is no bucket 'no-such-bucket-here' on http"):
            call()


def test_a_bucket_that_allows_reading_alone_is_refused_by_the_check(bucket: Bucket) -> None:
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:PutObject",
        "Resource": f"arn:aws:s3:::{bucket.name}/*",
    }
    bucket.put("x/a", b"a")
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    bucket.client.put_bucket_policy(Bucket=bucket.name, Policy=json.dumps(policy))
    artifact_store = open_store(bucket.address("x"))
    assert artifact_store.read("a") == b"a"
    with pytest.raises(UserError, match=rf"cluster\.storage: {artifact_store.address}: check/.*\(AccessDenied\)"):
        artifact_store.check()


def test_cut_connections_are_taken_up_again(bucket: Bucket, proxy: Proxy, tmp_path: Path) -> None:
    data = random.Random(0).randbytes(20 * MIB)
    bucket.put_in_parts("x/large", data)
    artifact_store = open_store(bucket.address("x"))
    proxy.cut, proxy.cuts_left = 3 * MIB, 4
    assert artifact_store.read("large") == data
    assert proxy.cuts_left < 0


def test_connections_that_are_always_cut_end_in_an_error(bucket: Bucket, proxy: Proxy) -> None:
    bucket.put("x/a", bytes(300_000))
    proxy.cut, proxy.cuts_left = 100_000, 10**6
    with pytest.raises(UserError, match=r"(a broken connection|a cut-off) from http.*try again"):
        open_store(bucket.address("x")).read("a")
