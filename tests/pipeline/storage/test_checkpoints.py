"""Whatever is killed or damaged, the newest good checkpoint is found; and what is not needed goes."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.folder_store import FolderStore
from pipeline.storage.open_store import open_store
from pipeline.storage.store import ArtifactStore
from tests.pipeline.conftest import ROOT
from tests.pipeline.services import Bucket

pytestmark = pytest.mark.process

RUN = "runs/one"


@pytest.fixture(params=["folder", "s3"])
def artifact_store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if request.param == "folder":
        return open_store(str(tmp_path / "place"))
    bucket: Bucket = request.getfixturevalue("bucket")
    return open_store(bucket.address("place"))


@pytest.fixture
def folder(tmp_path: Path) -> FolderStore:
    artifact_store = open_store(str(tmp_path / "place"))
    assert isinstance(artifact_store, FolderStore)
    return artifact_store


def content(step: int) -> bytes:
    return random.Random(step).randbytes(50_000)


def steps(artifact_store: ArtifactStore) -> list[int]:
    """As an outsider finds them, by their names."""
    return [int(name.split("/")[-1].split("_")[0].removeprefix("step-")) for name in artifact_store.names(RUN)]


def path_of(artifact_store: FolderStore, step: int) -> Path:
    (path,) = Path(artifact_store.address, RUN).glob(f"step-{step:08d}_*")
    return path


def flip(path: Path, at: int = 1000) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_the_name_holds_step_score_and_sum(folder: FolderStore) -> None:
    checkpoints = Checkpoints(folder, RUN, keep_best=1)
    checkpoints.save(200, b"abc", 29.2413)
    checkpoints.save(400, b"abd", None)
    assert folder.names("") == [
        f"{RUN}/step-00000200_29.2413_{hashlib.sha256(b'abc').hexdigest()}.pt",
        f"{RUN}/step-00000400_none_{hashlib.sha256(b'abd').hexdigest()}.pt",
    ]


def test_the_newest_two_and_the_best_are_kept(artifact_store: ArtifactStore) -> None:
    checkpoints = Checkpoints(artifact_store, RUN, keep_best=2)
    scores = [21.0, 29.0, 25.0, 30.5, 29.0, 2e-7, -4.0, 12.5]
    for number, score in enumerate(scores, start=1):
        checkpoints.save(number, content(number), score)
        assert number in steps(artifact_store)
        assert number == 1 or number - 1 in steps(artifact_store)
        best = sorted(range(1, number + 1), key=lambda step: (scores[step - 1], step), reverse=True)[:2]
        assert steps(artifact_store) == sorted({number, number - 1, *best} - {0})
    assert checkpoints.newest() == (8, content(8))
    assert steps(artifact_store) == [4, 5, 7, 8]
    assert checkpoints.damaged == []


def test_without_scores_none_is_kept_as_a_best_one(artifact_store: ArtifactStore) -> None:
    checkpoints = Checkpoints(artifact_store, RUN, keep_best=3)
    for step, score in enumerate([None, float("nan"), float("inf"), None]):
        checkpoints.save(step, content(step), score)
    assert steps(artifact_store) == [2, 3]
    assert checkpoints.newest() == (3, content(3))


def test_nothing_there_is_no_checkpoint(artifact_store: ArtifactStore) -> None:
    checkpoints = Checkpoints(artifact_store, RUN, keep_best=1)
    assert checkpoints.newest() is None
    checkpoints.discard()


def test_another_process_goes_on(artifact_store: ArtifactStore) -> None:
    first = Checkpoints(artifact_store, RUN, keep_best=1)
    first.save(1, content(1), 10.0)
    first.save(2, content(2), 5.0)
    second = pickle.loads(pickle.dumps(Checkpoints(artifact_store, RUN, keep_best=1)))
    assert second.newest() == (2, content(2))
    second.save(3, content(3), 7.0)
    assert steps(artifact_store) == [1, 2, 3]
    second.save(4, content(4), 7.0)
    assert steps(artifact_store) == [1, 3, 4]


def test_a_step_done_again_replaces_its_checkpoint(artifact_store: ArtifactStore) -> None:
    checkpoints = Checkpoints(artifact_store, RUN, keep_best=1)
    checkpoints.save(1, content(1), 1.0)
    checkpoints.save(2, content(2), 9.0)
    checkpoints.save(2, content(2), 9.0)
    assert steps(artifact_store) == [1, 2]
    checkpoints.save(2, b"other", 3.0)  # although the first had the better score
    assert steps(artifact_store) == [1, 2]
    assert checkpoints.newest() == (2, b"other")


def test_runs_of_one_place_do_not_touch_each_other(artifact_store: ArtifactStore) -> None:
    one, two = Checkpoints(artifact_store, RUN, keep_best=0), Checkpoints(artifact_store, "runs/one-more", keep_best=0)
    for step in range(4):
        one.save(step, content(step), None)
        two.save(step + 10, content(step + 10), None)
    assert one.newest() == (3, content(3))
    assert two.newest() == (13, content(13))
    one.discard()
    assert one.newest() is None
    assert two.newest() == (13, content(13))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, cut, empty])
def test_a_damaged_newest_one_is_passed_over_and_listed(folder: FolderStore, damage: object) -> None:
    assert callable(damage)
    saving = Checkpoints(folder, RUN, keep_best=1)
    saving.save(1, content(1), 1.0)
    saving.save(2, content(2), 2.0)
    path = path_of(folder, 2)
    damage(path)
    checkpoints = Checkpoints(folder, RUN, keep_best=1)
    assert checkpoints.newest() == (1, content(1))
    assert checkpoints.damaged == [path.name]


def test_a_damaged_one_on_the_server_is_passed_over(bucket: Bucket) -> None:
    checkpoints = Checkpoints(open_store(bucket.address("p")), RUN, keep_best=0)
    checkpoints.save(1, content(1), None)
    checkpoints.save(2, content(2), None)
    name = f"step-00000002_none_{hashlib.sha256(content(2)).hexdigest()}.pt"
    bucket.put(f"p/{RUN}/{name}", content(2)[:-1] + b"?")
    assert checkpoints.newest() == (1, content(1))
    assert checkpoints.damaged == [name]


def test_a_damaged_one_is_mended_when_its_step_is_done_again(folder: FolderStore) -> None:
    checkpoints = Checkpoints(folder, RUN, keep_best=1)
    checkpoints.save(1, content(1), 1.0)
    checkpoints.save(2, content(2), 2.0)
    flip(path_of(folder, 2))
    assert checkpoints.newest() == (1, content(1))
    checkpoints.save(2, content(2), 2.0)
    assert checkpoints.newest() == (2, content(2))
    assert checkpoints.damaged == []
    assert steps(folder) == [1, 2]


def test_the_last_good_one_stays_while_there_is_none_newer_beside_the_one_just_written(folder: FolderStore) -> None:
    """Else a second accident, now to the one just written, would take all."""
    first = Checkpoints(folder, RUN, keep_best=0)
    first.save(1, content(1), None)
    first.save(2, content(2), None)
    flip(path_of(folder, 2))
    other = Checkpoints(folder, RUN, keep_best=0)  # which does not know
    other.save(3, content(3), None)
    assert 1 in steps(folder)
    flip(path_of(folder, 3))
    assert Checkpoints(folder, RUN, keep_best=0).newest() == (1, content(1))


def test_later_steps_are_left_to_those_who_made_them(folder: FolderStore) -> None:
    """A worker that was believed dead and saves late."""
    checkpoints = Checkpoints(folder, RUN, keep_best=0)
    late = Checkpoints(folder, RUN, keep_best=0)
    for step in (1, 2, 3, 4):
        checkpoints.save(step, content(step), None)
    late.save(2, content(2), None)
    assert checkpoints.newest() == (4, content(4))
    assert {3, 4} <= set(steps(folder))


def test_foreign_files_are_left_alone(folder: FolderStore) -> None:
    foreign = [
        "README", "step-00000009_none_abc.pt", f"step-00000009_30.0_{'A' * 64}.pt", f"step-9_30.0_{'a' * 64}.pt",
        f"step-00000009_nan_{'a' * 64}.pt", f"deeper/step-00000009_30.0_{'a' * 64}.pt",
        f"step-00000009_30.0_{'a' * 64}.pt.copy",
    ]  # fmt: skip
    for name in foreign:
        folder.write(f"{RUN}/{name}", b"foreign")
    checkpoints = Checkpoints(folder, RUN, keep_best=0)
    for step in (1, 2, 3):
        checkpoints.save(step, content(step), None)
    assert checkpoints.newest() == (3, content(3))
    assert checkpoints.damaged == []
    checkpoints.discard()
    assert folder.names(RUN) == sorted(f"{RUN}/{name}" for name in foreign)


def test_the_new_one_is_there_before_an_old_one_goes(folder: FolderStore) -> None:
    there: list[list[int]] = []

    class Watched(FolderStore):
        def delete(self, name: str) -> None:
            there.append(steps(self))
            super().delete(name)

    checkpoints = Checkpoints(Watched(folder.address), RUN, keep_best=0)
    for step in (1, 2, 3, 4):
        checkpoints.save(step, content(step), None)
    assert there == [[1, 2, 3], [2, 3, 4]]


SAVER = """
import random, sys
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.open_store import open_store
checkpoints = Checkpoints(open_store(sys.argv[1]), "runs/one", keep_best=1)
found = checkpoints.newest()
step = found[0] if found else 0
print("ready", step, flush=True)
while True:
    step += 1
    checkpoints.save(step, random.Random(step).randbytes(4_000_000), float(step % 7))
    print(step, flush=True)
"""


def test_a_saver_killed_anywhere_has_lost_at_most_the_step_it_was_at(artifact_store: ArtifactStore) -> None:
    chance = random.Random(1)
    said = 0
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", SAVER, artifact_store.address],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                ready = int(process.stdout.readline().removeprefix("ready "))
                time.sleep(chance.uniform(0.0, 0.6))
            finally:
                process.kill()
            lines = re.findall(r"\d+(?=\n)", process.stdout.read())
        # An S3 server may put an object in its place after the death of the one who sent it, and after we looked.
        assert ready in (said, said + 1)
        said = int(lines[-1]) if lines else ready
        checkpoints = Checkpoints(artifact_store, RUN, keep_best=1)
        found = checkpoints.newest()
        if found is not None:
            step, data = found
            assert step in (said, said + 1)  # written whole, but killed before it could say so
            assert data == random.Random(step).randbytes(4_000_000)
            said = step
        assert checkpoints.damaged == []
        # Killed before the removal, it leaves one more than it keeps.
        assert len(steps(artifact_store)) <= 5
    assert said > 6
