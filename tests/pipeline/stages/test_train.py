"""Training by real Ray Train workers survives what happens to processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pipeline.errors import UserError
from pipeline.stages.train import _alone, train
from tests.conftest import NO_RAY
from tests.files import digests
from tests.pipeline.services import Bucket
from tests.pipeline.training_runs import damage, forget, history, reported, saved, weights, workers_of
from tests.pipeline.workspace import Workspace, descendants, wait_for

pytestmark = pytest.mark.ray
STEPS, CHECKPOINT_EVERY = 400, 40
EVERY_REPORT = list(range(5, STEPS + 1, 5))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, packed: Path) -> Workspace:
    """With packs, ready to train for a while with three workers that share two cores."""
    changes = {
        "train.steps": STEPS,
        "train.checkpoint_every": CHECKPOINT_EVERY,
        "train.num_workers": 3,
        "train.batch_size": 16,
        "cluster.cpus_per_worker": 0.5,
        "tune.trials": 0,
    }
    return Workspace(tmp_path_factory.mktemp("training"), changes, packed)


@pytest.fixture
def train_here(
    prepared: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[], str]:
    """Trains in this process; gives what it printed."""

    def run() -> str:
        prepared.here(monkeypatch)
        capsys.readouterr()
        train()
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def left_alone(prepared: Workspace, shared_ray: None) -> tuple[str, list[tuple[int, float]]]:
    """(weights, history) of a run that nothing happens to; its checkpoints: the best and the last."""
    forget(prepared)
    with pytest.MonkeyPatch.context() as patch:
        prepared.here(patch)
        train()
    assert [step for step, _ in history(prepared)] == EVERY_REPORT
    return weights(prepared), history(prepared)


@dataclass(frozen=True)
class Storage:
    """Where a run keeps its checkpoints: the project's folder, or S3."""

    workspace: Workspace
    bucket: Bucket | None

    def newest(self) -> int:
        """The step of the newest checkpoint."""
        if self.bucket is None:
            return max(saved(self.workspace))
        return int(Path(self._object()).name.split("_")[0].removeprefix("step-"))

    def damage_newest(self) -> None:
        if self.bucket is None:
            (file,) = (self.workspace.folder / ".eqreg/train").glob(f"*/step-{self.newest():08d}_*.pt")
            damage(file)
            return
        name = self._object()
        data = bytearray(self.bucket.client.get_object(Bucket=self.bucket.name, Key=name)["Body"].read())
        data[len(data) // 2] ^= 1
        self.bucket.put(name, bytes(data))

    def _object(self) -> str:
        assert self.bucket is not None
        objects = self.bucket.client.list_objects_v2(Bucket=self.bucket.name, Prefix="runs/train/")["Contents"]
        return str(max(item["Key"] for item in objects if item["Key"].endswith(".pt")))


@pytest.fixture
def storage(prepared: Workspace, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    """S3, where there is a server; what is tested on a folder alone is in test_checkpoints, test_store."""
    chosen: Bucket | None = None
    if os.environ.get("EQREG_TEST_S3_ENDPOINT"):
        chosen = request.getfixturevalue("bucket")
        prepared.set({"cluster.storage": chosen.address("runs"), "cluster.cache": str(tmp_path / "cache")})
    yield Storage(prepared, chosen)
    prepared.set({"cluster.storage": None})


@pytest.mark.slow
def test_workers_and_the_command_killed_and_a_checkpoint_damaged_the_run_ends_with_the_same_bytes(
    prepared: Workspace,
    left_alone: tuple[str, list[tuple[int, float]]],
    storage: Storage,
    train_here: Callable[[], str],
) -> None:
    forget(prepared)
    records = Path(tempfile.mkdtemp(prefix="eq"))  # a short path: Ray's sockets lie below it
    process = prepared.start("eqreg", "train", RAY_TMPDIR=str(records))
    wait_for(lambda: reported(prepared) >= 60, 240, process)
    first, *others = workers_of(process.pid)
    assert len(others) == 2
    before = reported(prepared)
    first.send_signal(signal.SIGKILL)  # any of the ranks
    wait_for(lambda: reported(prepared) > before + CHECKPOINT_EVERY, 240, process)
    everyone, training = descendants(process.pid), workers_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait(300)
    assert psutil.wait_procs(training, timeout=300)[1] == []  # none saves another checkpoint
    newest = storage.newest()
    assert newest >= reported(prepared) - CHECKPOINT_EVERY
    storage.damage_newest()
    output = train_here()
    assert "damaged; an older checkpoint is used" in output
    assert f"3 workers go on after step {newest - CHECKPOINT_EVERY}" in output
    assert weights(prepared) == left_alone[0]
    assert history(prepared) == left_alone[1]
    assert storage.newest() == STEPS
    assert psutil.wait_procs(everyone, timeout=300)[1] == []  # Ray's own end later than it
    if storage.bucket:
        assert saved(prepared) == []  # nothing here
        secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
        kept = [file for folder in (prepared.folder, records) for file in folder.rglob("*") if file.is_file()]
        assert any(file.is_relative_to(records) and file.suffix == ".log" for file in kept)
        assert [file for file in kept if secret in file.read_bytes()] == []
    shutil.rmtree(records)


@pytest.mark.slow
def test_a_stopped_command_leaves_no_process_and_goes_on_when_it_is_run_again(
    prepared: Workspace, left_alone: tuple[str, list[tuple[int, float]]], train_here: Callable[[], str]
) -> None:
    forget(prepared)
    process = prepared.start("dvc", "repro", "--single-item", "train")
    wait_for(lambda: reported(prepared) >= 100, 240, process)
    everyone = descendants(process.pid)
    assert len(everyone) > 3
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "Traceback" not in output, output
    _, alive = psutil.wait_procs(everyone, timeout=300)
    assert alive == []
    assert "go on after step" in train_here()
    assert weights(prepared) == left_alone[0]
    assert history(prepared) == left_alone[1]


def test_a_finished_run_is_taken_up_at_once_with_the_same_bytes(
    prepared: Workspace, left_alone: tuple[str, list[tuple[int, float]]]
) -> None:
    """Whatever is new in comments; a line that decides begins another run."""
    assert STEPS in saved(prepared)
    folder = prepared.folder / "results/train"
    before = digests(folder)
    shutil.rmtree(folder)
    for name in ("components/training/loop.py", "components/evaluation/figures.py", "pipeline/stages/train.py"):
        path = prepared.folder / name
        path.write_text(f"# A comment.\n{path.read_text()}")
    command = ("python", "-m", "pipeline.cli", "train")  # with the code of this folder
    before_it = os.times()
    assert "its result is taken up" in prepared.run(*command, RAY_TMPDIR=NO_RAY)
    after_it = os.times()  # of processors: others run beside this test
    assert after_it.children_user + after_it.children_system - before_it.children_user - before_it.children_system < 20
    assert digests(folder) == before
    assert weights(prepared) == left_alone[0]
    assert history(prepared) == left_alone[1]
    assert len(saved(prepared)) <= 3  # the best, the last and the one before
    loop = prepared.folder / "components/training/loop.py"
    loop.write_text(f"{loop.read_text()}\n\nDECIDES = True\n")
    assert "Ray does not start" in prepared.run(*command, expect=2, RAY_TMPDIR=NO_RAY)
    assert digests(folder) == before


def test_more_workers_than_the_machine_can_hold_are_refused_with_what_there_is(
    prepared: Workspace, train_here: Callable[[], str]
) -> None:
    prepared.set({"cluster.cpus_per_worker": 500})
    with pytest.raises(UserError, match=r"^train.num_workers: 3 workers with 500 CPU each were asked for;") as error:
        train_here()
    assert "the cluster has room for 0" in str(error.value)
    assert len(str(error.value).splitlines()) <= 2
    prepared.set({"cluster.cpus_per_worker": 0.5})


def test_no_cluster_at_the_address_is_said_in_a_line(prepared: Workspace) -> None:
    prepared.set({"cluster.address": "127.0.0.1:1"})
    output = prepared.run("eqreg", "train", expect=2)
    assert "cluster.address: 127.0.0.1:1: no Ray cluster answers there" in output
    assert len(output.strip().splitlines()) <= 2, output
    prepared.set({"cluster.address": "local"})


def test_a_storage_that_cannot_be_written_is_refused_before_anything_starts(
    prepared: Workspace, train_here: Callable[[], str]
) -> None:
    (prepared.folder / "file").write_text("no folder")
    prepared.set({"cluster.storage": str(prepared.folder / "file")})
    with pytest.raises(UserError, match=r"cluster\.storage") as error:
        train_here()
    assert len(str(error.value).splitlines()) <= 2
    prepared.set({"cluster.storage": None})


def test_a_balanced_run_ends_with_a_model_and_logs_the_lambda_it_has_found(
    prepared: Workspace, shared_ray: None, train_here: Callable[[], str]
) -> None:
    forget(prepared)
    prepared.set({"train.num_workers": 2, "train.steps": 40, "equivariance.balance": 0.05})
    assert "40 steps with 2 workers" in train_here()
    assert json.loads((prepared.folder / "results/train/metrics.json").read_text())["steps"] == 40
    assert len({value for _, value in history(prepared, "train/lambda")}) > 3  # it moves
    prepared.set({"train.steps": STEPS, "equivariance.balance": None})


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_with_a_remedy(
    prepared: Workspace,
) -> None:
    """The command itself: nothing of what Ray says of it reaches the user."""
    model = prepared.folder / "results/train/model.safetensors"
    before = model.read_bytes() if model.exists() else None
    prepared.set({"train.learning_rate": 1e30, "train.gradient_clip": 1e30})
    output = prepared.run("eqreg", "train", expect=2)
    assert "train.learning_rate" in output
    assert "Traceback" not in output, output
    assert (model.read_bytes() if model.exists() else None) == before


def test_a_batch_with_fewer_pairs_than_workers_is_refused_before_anything_starts(
    prepared: Workspace, train_here: Callable[[], str]
) -> None:
    prepared.set({"train.num_workers": 5, "train.learning_rate": 0.001, "train.gradient_clip": 1.0})
    with pytest.raises(UserError, match=r"train\.batch_size") as error:
        train_here()
    assert len(str(error.value).splitlines()) <= 2


def test_a_second_command_with_the_same_params_is_refused_until_the_first_ends_or_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    holds = "import sys; from pipeline.stages.train import _alone\nwith _alone('runs/a'): print(1); sys.stdin.read()"
    command = [sys.executable, "-u", "-c", holds]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout
        assert first.stdout.readline() == b"1\n"
        for _ in range(2):
            with pytest.raises(
                UserError, match=r"^\.eqreg/runs/a\.lock: another command trains with the same params; "
            ):
                _alone("runs/a")
        with _alone("runs/b"):
            pass
        first.kill()
        first.wait()
        with _alone("runs/a"), pytest.raises(UserError, match="another command trains"):
            _alone("runs/a")
        with _alone("runs/a"):
            pass
