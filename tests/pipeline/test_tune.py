"""Sweeps by real Ray Tune: failures are recorded and do not end them; none is wanted with 0 trials."""

from __future__ import annotations

import csv
import os
import signal
import sqlite3
from pathlib import Path

import psutil
import pytest
import yaml

from pipeline.cluster.sweep import Trial
from pipeline.tune import _write, best_trial
from tests.pipeline.workspace import Workspace, descendants, wait_for


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("tuning"))
    made.run("eqreg", "fetch")
    made.run("eqreg", "preprocess")
    return made


def trials(workspace: Workspace) -> list[dict[str, str]]:
    with (workspace.folder / "results/tune/trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.end_to_end
def test_trials_that_diverge_are_recorded_and_do_not_end_the_sweep(workspace: Workspace) -> None:
    space = {
        "equivariance.weight": {"distribution": "log_uniform", "low": 0.01, "high": 0.1},
        "train.learning_rate": {"distribution": "choice", "values": [1e30]},
        "train.gradient_clip": {"distribution": "choice", "values": [1e30]},
    }
    (workspace.folder / "tune_spaces/broken.yaml").write_text(yaml.safe_dump(space))
    workspace.set({"tune.space": "broken"})
    workspace.run("eqreg", "tune")
    control, *others = trials(workspace)
    assert control["control"] == "True"
    assert control["failure"] == ""
    assert len(others) == 2
    assert all("no longer finite" in trial["failure"] for trial in others)
    best = yaml.safe_load((workspace.folder / "results/tune/best.yaml").read_text())
    assert best["params"] == {"equivariance.weight": 0.0}
    with sqlite3.connect(workspace.folder / "mlflow.db") as database:
        failed = database.execute("select count(*) from runs where status = 'FAILED'").fetchone()
    assert failed == (2,)


@pytest.mark.end_to_end
def test_a_sweep_that_is_stopped_says_so_and_leaves_results_and_processes_as_they_were(workspace: Workspace) -> None:
    before = {path.name: path.read_bytes() for path in (workspace.folder / "results/tune").iterdir()}
    workspace.set({"tune.space": "lambda", "tune.steps": 4000})
    process = workspace.start("eqreg", "tune")

    def is_running() -> bool:
        with sqlite3.connect(workspace.folder / "mlflow.db") as database:
            found = database.execute("select count(*) from runs where status = 'RUNNING' and name like 'trial-%'")
            return bool(found.fetchone()[0])

    wait_for(is_running, 90)
    everyone = descendants(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in output, output
    _, alive = psutil.wait_procs(everyone, timeout=20)
    assert alive == []
    assert {path.name: path.read_bytes() for path in (workspace.folder / "results/tune").iterdir()} == before
    assert not is_running()
    workspace.set({"tune.steps": 8})


def test_zero_trials_leave_an_empty_table_and_no_patch(workspace: Workspace) -> None:
    workspace.set({"tune.trials": 0})
    assert "no sweep" in workspace.run("eqreg", "tune")
    assert trials(workspace) == []
    assert yaml.safe_load((workspace.folder / "results/tune/best.yaml").read_text())["params"] == {}
    assert not (workspace.folder / "results/tune/trials.png").exists()


def test_an_unknown_space_is_refused_with_the_known_ones_and_leaves_results_alone(workspace: Workspace) -> None:
    before = sorted(Path(workspace.folder / "results/tune").iterdir())
    workspace.set({"tune.trials": 2, "tune.space": "lamda"})
    assert "lambda" in workspace.run("eqreg", "tune", expect=2)
    assert sorted(Path(workspace.folder / "results/tune").iterdir()) == before


def trial(number: int, psnr: float, *, stopped: bool = False, failure: str | None = None) -> Trial:
    return Trial(number, {}, number == 0, stopped, 8, {"val_score": psnr}, failure)


def test_the_best_trial_is_the_best_of_those_that_ran_to_their_end() -> None:
    found = [trial(0, 27.0), trial(1, 28.0), trial(2, 29.0, stopped=True), trial(3, 30.0, failure="NaN")]
    assert best_trial(found) is found[1]
    assert best_trial(found[2:]) is None


def test_a_sweep_whose_control_failed_keeps_its_table_and_claims_no_difference(tmp_path: Path) -> None:
    failed = Trial(0, {}, True, False, 0, {}, "NaN")
    best = Trial(1, {"equivariance.weight": 0.1}, False, False, 8, {"val_score": 28.0}, None)
    _write(tmp_path, [failed, best], {"equivariance": {"weight": 0.03}}, "PSNR, dB")
    summary = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert summary["params"] == {"equivariance.weight": 0.1}
    assert "difference_to_control" not in summary
    with (tmp_path / "trials.csv").open(newline="") as file:
        assert [row["failure"] for row in csv.DictReader(file)] == ["NaN", ""]
