"""Training by real Ray Train workers survives what happens to processes."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from pathlib import Path

import psutil
import pytest

from tests.pipeline.workspace import Workspace, descendants, wait_for

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """With packs, ready to train for a while."""
    made = Workspace(
        tmp_path_factory.mktemp("training"), {"train.steps": 600, "train.checkpoint_every": 40, "tune.trials": 0}
    )
    made.run("eqreg", "fetch")
    made.run("eqreg", "preprocess")
    return made


def train_workers(pid: int) -> list[psutil.Process]:
    """The processes that train: Ray names them after their actor."""
    found = []
    for process in descendants(pid):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()) or "RayTrainWorker" in process.name():
                found.append(process)
        except psutil.Error:
            continue
    return found


def steps_done(workspace: Workspace) -> int:
    journals = list((workspace.folder / ".eqreg/train").glob("*.jsonl"))
    lines = [line for journal in journals for line in journal.read_text().splitlines()]
    return max((json.loads(line)["step"] for line in lines[:-1]), default=0)


def history(workspace: Workspace) -> list[int]:
    with sqlite3.connect(workspace.folder / "mlflow.db") as database:
        query = "select step from metrics where key = 'task_loss' order by step"
        return [step for (step,) in database.execute(query)]


def forget(workspace: Workspace) -> None:
    (workspace.folder / "mlflow.db").unlink(missing_ok=True)


def test_a_killed_worker_is_replaced_and_the_run_ends_with_all_its_steps(prepared: Workspace) -> None:
    forget(prepared)
    process = prepared.start("eqreg", "train")
    wait_for(lambda: steps_done(prepared) >= 100, 120)
    workers = train_workers(process.pid)
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert json.loads((prepared.folder / "results/train/metrics.json").read_text())["steps"] == 600
    assert history(prepared) == list(range(5, 601, 5))


def test_a_killed_command_goes_on_where_it_was_and_a_stopped_one_leaves_no_process(prepared: Workspace) -> None:
    forget(prepared)
    prepared.set({"train.learning_rate": 0.001})  # another run
    process = prepared.start("eqreg", "train")
    wait_for(lambda: steps_done(prepared) >= 150, 120)
    everyone = descendants(process.pid)
    assert len(everyone) > 3
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in output, output
    _, alive = psutil.wait_procs(everyone, timeout=20)
    assert alive == []
    done = steps_done(prepared)
    output = prepared.run("eqreg", "train")
    assert history(prepared) == list(range(5, 601, 5))
    assert "goes on after step" in output
    assert done >= 150


def test_a_balanced_run_ends_with_a_model_and_logs_the_lambda_it_has_found(prepared: Workspace) -> None:
    forget(prepared)
    prepared.set({"train.learning_rate": 0.002, "train.steps": 40, "equivariance.balance": 0.05})
    prepared.run("eqreg", "train")
    assert json.loads((prepared.folder / "results/train/metrics.json").read_text())["steps"] == 40
    with sqlite3.connect(prepared.folder / "mlflow.db") as database:
        found = {value for (value,) in database.execute("select value from metrics where key = 'lambda'")}
    assert len(found) > 3  # it moves
    prepared.set({"train.steps": 600, "equivariance.balance": None})


def test_a_loss_that_is_not_finite_ends_with_a_remedy(prepared: Workspace) -> None:
    model = prepared.folder / "results/train/model.safetensors"
    before = model.read_bytes() if model.exists() else None
    prepared.set({"train.learning_rate": 1e30, "train.gradient_clip": 1e30})
    output = prepared.run("eqreg", "train", expect=2)
    assert "train.learning_rate" in output
    assert "Traceback" not in output, output
    assert (model.read_bytes() if model.exists() else None) == before


def test_a_batch_that_workers_cannot_share_is_refused_before_anything_starts(
    prepared: Workspace, tmp_path: Path
) -> None:
    prepared.set({"train.batch_size": 9, "train.learning_rate": 0.001, "train.gradient_clip": 1.0})
    output = prepared.run("eqreg", "train", expect=2)
    assert "train.batch_size" in output
    assert len(output.strip().splitlines()) <= 2
