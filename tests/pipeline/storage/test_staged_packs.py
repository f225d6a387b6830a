"""Packs reach a node once, whole and verified, however many ask and whoever is killed; else it is said why not."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from components.data.packs import Pack
from pipeline.errors import UserError
from pipeline.provenance.lineage import data_hash
from pipeline.storage.open_store import open_store
from pipeline.storage.staged_packs import StagedPacks, deliver
from pipeline.training_job import TrainingJob
from tests.pipeline.conftest import ROOT, Project
from tests.pipeline.packs import PACKS, make_packs
from tests.pipeline.proxy import Proxy
from tests.pipeline.services import Bucket, files_below, start_ready

pytestmark = pytest.mark.process


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return make_packs(tmp_path / "packed")


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "shared")
    bucket: Bucket = request.getfixturevalue("bucket")
    return bucket.address("project")


def pack_files(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_below(folder).items() if name.endswith((".safetensors", "index.json"))}


def flip(path: Path) -> None:
    """Turns a bit in the middle; size and time of the file stay."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each shard is hashed from now on, whoever does it."""
    counts: Counter[str] = Counter()
    digest = hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        path = Path(file.name)
        if path.suffix == ".safetensors":
            counts[f"{path.parent.name}/{path.name}"] += 1
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return counts


def test_packs_are_hashed_once_before_a_training(
    packed: Path, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the check, whatever the numbers of workers: neither their delivery nor a worker hashes them again."""
    job = TrainingJob(project.params(train__patch_size=16, train__batch_size=8), packed)
    counts = _hashed(monkeypatch)
    job.check(range(1, 3))
    used = {f"{part}/{file.name}" for part in ("train", "val") for file in (packed / part).glob("*.safetensors")}
    assert len(used) > 2
    assert counts == dict.fromkeys(used, 1)
    for _ in range(2):
        folder = deliver(packed, None, "unused").obtain()
        TrainingJob(job.params, folder).sampler().batch(0, (0, 1))
        Pack(folder / "val").clean(0)
    assert counts == dict.fromkeys(used, 1)


def test_packs_in_a_storage_are_hashed_when_they_are_brought_there_and_once_on_a_node(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = len([name for name in pack_files(packed) if name.endswith(".safetensors")])
    counts = _hashed(monkeypatch)
    storage, cache = str(tmp_path / "shared"), str(tmp_path / "cache")
    staged = deliver(packed, storage, cache)
    assert sum(counts.values()) == number
    staged.obtain()
    assert sum(counts.values()) == 2 * number
    for _ in range(2):
        deliver(packed, storage, cache).obtain()
    assert sum(counts.values()) == 2 * number


def test_all_packs_arrive_as_they_are(packed: Path, storage: str, tmp_path: Path) -> None:
    staged: StagedPacks = pickle.loads(pickle.dumps(deliver(packed, storage, str(tmp_path / "cache"))))
    folder = staged.obtain()
    assert folder == tmp_path / "cache" / "packs" / data_hash(packed)
    assert pack_files(folder) == pack_files(packed)
    assert len(pack_files(folder)) == len(PACKS) + 3 + 5  # indexes, shards of train, shards of the others
    assert data_hash(folder) == data_hash(packed)
    for name in PACKS:
        Pack(folder / name).verify()
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]


def test_the_cache_may_be_in_the_home_folder_of_the_node(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = deliver(packed, str(tmp_path / "shared"), "~/caches")
    monkeypatch.setenv("HOME", str(tmp_path / "home-of-node"))
    assert staged.obtain().is_relative_to(tmp_path / "home-of-node" / "caches")


def test_packs_are_brought_and_fetched_once(bucket: Bucket, proxy: Proxy, packed: Path, tmp_path: Path) -> None:
    def requests(kind: str) -> list[str]:
        return [line for line in proxy.requests if line.startswith(kind)]

    storage, cache = bucket.address("p"), str(tmp_path / "cache")
    deliver(packed, storage, cache).obtain()
    num_files = len(pack_files(packed))
    assert len(requests("PUT")) == num_files + 1
    assert len([line for line in requests("GET") if "safetensors" in line]) == num_files - len(PACKS)
    proxy.requests.clear()
    staged = deliver(packed, storage, cache)
    assert requests("PUT") == []
    proxy.requests.clear()
    staged.obtain()
    assert proxy.requests == []


def test_other_packs_lie_beside_these(packed: Path, storage: str, tmp_path: Path) -> None:
    first = deliver(packed, storage, str(tmp_path / "cache"))
    other = deliver(make_packs(tmp_path / "other", seed=1), storage, str(tmp_path / "cache"))
    assert first.hash != other.hash
    assert pack_files(other.obtain()) == pack_files(tmp_path / "other")
    assert pack_files(first.obtain()) == pack_files(packed)


OBTAIN = """
import pickle, sys, time
from pathlib import Path
delivery = pickle.loads(Path(sys.argv[1]).read_bytes())
print("ready", flush=True)
while not Path(sys.argv[2]).exists():
    time.sleep(0.01)
print(delivery.obtain(), flush=True)
"""


def start_obtaining(staged: StagedPacks, tmp_path: Path) -> subprocess.Popen[str]:
    """A process that obtains as soon as tmp_path/go exists."""
    (tmp_path / "delivery").write_bytes(pickle.dumps(staged))
    return start_ready(OBTAIN, str(tmp_path / "delivery"), str(tmp_path / "go"))


@pytest.mark.slow
def test_of_several_processes_of_a_node_one_fetches(bucket: Bucket, proxy: Proxy, packed: Path, tmp_path: Path) -> None:
    staged = deliver(packed, bucket.address("p"), str(tmp_path / "cache"))
    processes = [start_obtaining(staged, tmp_path) for _ in range(5)]
    proxy.requests.clear()
    proxy.bytes_per_second = 300e3  # so that the others come while it is under way
    (tmp_path / "go").touch()
    folders = {process.communicate(timeout=300)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0] * 5
    assert folders == {str(tmp_path / "cache" / "packs" / staged.hash)}
    fetched = [line for line in proxy.requests if line.startswith("GET") and "safetensors" in line]
    assert len(fetched) == len(set(fetched)) == len(pack_files(packed)) - len(PACKS)


@pytest.mark.slow
def test_a_node_killed_while_it_fetches_leaves_nothing_that_counts(
    bucket: Bucket, proxy: Proxy, tmp_path: Path
) -> None:
    packed = make_packs(tmp_path / "large", num_images=12, side=400)
    staged = deliver(packed, bucket.address("p"), str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "packs" / staged.hash
    size = sum(map(len, pack_files(packed).values()))
    (tmp_path / "go").touch()
    chance = random.Random(0)
    for _ in range(2):
        process = start_obtaining(staged, tmp_path)
        served, stop_at = proxy.served, chance.uniform(0.1, 0.9) * size
        proxy.bytes_per_second = 6e6
        while proxy.served - served < stop_at:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not folder.exists()
    proxy.bytes_per_second = None
    assert pack_files(staged.obtain()) == pack_files(packed)
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]


DELIVER = """
import sys
from pathlib import Path
from pipeline.storage.staged_packs import deliver
print("ready", flush=True)
deliver(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
"""


def test_a_driver_killed_while_it_brings_the_packs_brings_them_again(bucket: Bucket, tmp_path: Path) -> None:
    packed = make_packs(tmp_path / "large", num_images=40, side=400)
    storage, cache = bucket.address("p"), str(tmp_path / "cache")
    process = subprocess.Popen(
        [sys.executable, "-c", DELIVER, str(packed), storage, cache],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    artifact_store = open_store(storage)
    while len(artifact_store.names("packs")) < 5:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    half = StagedPacks(data_hash(packed), packed, artifact_store, cache)
    with pytest.raises(UserError, match=r"bill\.json: is not there, as .* reads it; run the stage again"):
        half.obtain()
    assert pack_files(deliver(packed, storage, cache).obtain()) == pack_files(packed)


def flip_at(storage: str, wanted: str, tmp_path: Path) -> str:
    """Turns a bit of an object at a place; gives its name."""
    artifact_store = open_store(storage)
    name = next(name for name in artifact_store.names("packs") if name.endswith(wanted))
    artifact_store.download(name, tmp_path / "object")
    flip(tmp_path / "object")
    artifact_store.upload(tmp_path / "object", name)
    return name


@pytest.mark.parametrize("wanted", ["train/images-00001.safetensors", "val/index.json", "bill.json"])
def test_a_flipped_bit_at_the_place_is_noticed_and_mended_by_the_next_run(
    packed: Path, storage: str, tmp_path: Path, wanted: str
) -> None:
    staged = deliver(packed, storage, str(tmp_path / "cache"))
    name = flip_at(storage, wanted, tmp_path)
    with pytest.raises(UserError) as caught:
        staged.obtain()
    text = str(caught.value)
    assert text.startswith(f"cluster.storage: {storage}: ")
    assert name in text or "bill" in wanted  # a flipped bit of the bill accuses another file
    assert f"as {os.uname().nodename} reads it; run the stage again" in text
    assert not (tmp_path / "cache" / "packs" / staged.hash).exists()
    assert pack_files(deliver(packed, storage, str(tmp_path / "cache")).obtain()) == pack_files(packed)


def test_a_bill_of_other_packs_does_not_pass(packed: Path, tmp_path: Path) -> None:
    storage = str(tmp_path / "shared")
    first = deliver(packed, storage, str(tmp_path / "cache"))
    other = deliver(make_packs(tmp_path / "other", seed=1), storage, str(tmp_path / "cache"))
    shutil.rmtree(tmp_path / "shared" / "packs" / first.hash)
    shutil.copytree(tmp_path / "shared" / "packs" / other.hash, tmp_path / "shared" / "packs" / first.hash)
    with pytest.raises(UserError, match=rf"packs/{first.hash}: holds other packs than its name says"):
        first.obtain()


def test_a_byte_altered_on_the_way_is_fetched_again(bucket: Bucket, proxy: Proxy, packed: Path, tmp_path: Path) -> None:
    staged = deliver(packed, bucket.address("p"), str(tmp_path / "cache"))
    wanted = (packed / "train" / "images-00002.safetensors").read_bytes()[2000:2032]
    times = 1

    def alter(data: bytes) -> bytes:
        nonlocal times
        if times and wanted in data:
            times -= 1
            return data.replace(wanted, bytes([wanted[0] ^ 1]) + wanted[1:])
        return data

    proxy.alter = alter
    assert pack_files(staged.obtain()) == pack_files(packed)
    assert times == 0


def test_a_file_that_is_gone_at_the_place_is_brought_again(packed: Path, storage: str, tmp_path: Path) -> None:
    staged = deliver(packed, storage, str(tmp_path / "cache"))
    open_store(storage).delete(f"packs/{staged.hash}/test/images-00000.safetensors")
    assert pack_files(deliver(packed, storage, str(tmp_path / "cache")).obtain()) == pack_files(packed)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def alter(path: Path) -> None:
    """As another program would: the size stays, the time does not."""
    flip(path)
    path.touch()


@pytest.mark.parametrize("damage", [shorten, alter, Path.unlink])
@pytest.mark.parametrize("file", ["train/images-00000.safetensors", "val/index.json", "verified.json"])
def test_a_damaged_copy_is_fetched_again(packed: Path, tmp_path: Path, damage: Any, file: str) -> None:
    staged = deliver(packed, str(tmp_path / "shared"), str(tmp_path / "cache"))
    folder = staged.obtain()
    damage(folder / file)
    assert staged.obtain() == folder
    assert pack_files(folder) == pack_files(packed)
    assert data_hash(folder) == staged.hash


def test_bytes_of_a_copy_are_read_once(packed: Path, tmp_path: Path) -> None:
    """A bit flipped behind the back of the file system is not looked for each time: that would read everything."""
    staged = deliver(packed, str(tmp_path / "shared"), str(tmp_path / "cache"))
    shard = staged.obtain() / "train" / "images-00000.safetensors"
    flip(shard)
    before = shard.read_bytes()
    assert staged.obtain() == shard.parents[1]
    assert shard.read_bytes() == before


def test_packs_read_in_place_are_those_of_the_driver(packed: Path, tmp_path: Path) -> None:
    staged = deliver(packed, None, str(tmp_path / "cache"))
    assert staged.obtain() == packed
    assert not (tmp_path / "cache").exists()
    host = os.uname().nodename
    packed.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"cluster\.storage: null: {host} sees no folder at {packed}; share that"):
        staged.obtain()
    make_packs(packed, seed=1)
    with pytest.raises(
        UserError, match=rf"{host} sees other packs \({data_hash(packed)}, the driver's are {staged.hash}\) at"
    ):
        staged.obtain()


def test_packs_that_are_missing_or_damaged_here_are_not_delivered(packed: Path, tmp_path: Path) -> None:
    storage, cache = str(tmp_path / "shared"), str(tmp_path / "cache")
    with pytest.raises(UserError, match=r"nothing: no packed images here; run 'eqreg preprocess' first"):
        deliver(tmp_path / "nothing", storage, cache)
    flip(packed / "val" / "images-00000.safetensors")
    with pytest.raises(UserError, match=r"val/images-00000\.safetensors: damaged, its SHA-256 .* 'eqreg preprocess'"):
        deliver(packed, storage, cache)
    assert open_store(storage).names("") == []
    (packed / "val" / "images-00000.safetensors").unlink()
    for artifact_store in (storage, None):
        with pytest.raises(UserError, match=r"images-00000\.safetensors: this shard is missing"):
            deliver(packed, artifact_store, cache)


FULL = """
import pickle, resource, shutil, sys
from pathlib import Path
from pipeline.errors import UserError
delivery = pickle.loads(Path(sys.argv[1]).read_bytes())
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
try:
    delivery.obtain()
except UserError as error:
    print(error)
"""


def test_a_node_without_room_says_so_and_keeps_nothing(packed: Path, storage: str, tmp_path: Path) -> None:
    staged = deliver(packed, storage, str(tmp_path / "cache"))
    (tmp_path / "delivery").write_bytes(pickle.dumps(staged))
    output = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "delivery")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    cache = tmp_path / "cache" / "packs"
    assert output == (
        f"cluster.cache: {cache}: cannot be written on {os.uname().nodename} (File too large); make room there, or set "
        "cluster.cache to another folder\n"
    )
    assert [path.name for path in cache.iterdir()] == [f"{staged.hash}.lock"]


def test_packs_larger_than_the_disk_are_not_begun(packed: Path, tmp_path: Path) -> None:
    staged = deliver(packed, str(tmp_path / "shared"), str(tmp_path / "cache"))
    manifest = tmp_path / "shared" / "packs" / staged.hash / "bill.json"
    free = shutil.disk_usage(tmp_path).free
    manifest.write_text(re.sub(r"\[\s*\d+", f"[{free // 4}", manifest.read_text()))
    with pytest.raises(
        UserError, match=r"cluster\.cache: .* MiB of packs are to come, and \d+ MiB are free on .*; make"
    ):
        staged.obtain()


def test_a_cache_that_cannot_be_made_is_named(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(
        UserError, match=r"cluster\.cache: .*/cache/packs: cannot be written on .*; look at that folder"
    ):
        deliver(packed, str(tmp_path / "shared"), str(tmp_path / "cache")).obtain()
