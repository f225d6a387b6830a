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
from PIL import Image

from pipeline.errors import UserError
from pipeline.stages.tune import tune
from tests.files import digests
from tests.pipeline.workspace import Workspace, descendants, wait_for

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, packed: Path) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("tuning"), packed=packed)


def trials(workspace: Workspace, name: str = "trials.csv") -> list[dict[str, str]]:
    with (workspace.folder / "results/tune" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_trials_that_diverge_are_recorded_and_a_sweep_that_is_done_gives_the_same_again(
    workspace: Workspace, shared_ray: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {
        "equivariance.weight": {"distribution": "log_uniform", "low": 0.01, "high": 0.1},
        "train.learning_rate": {"distribution": "choice", "values": [1e30]},
        "train.gradient_clip": {"distribution": "choice", "values": [1e30]},
    }
    (workspace.folder / "tune_spaces/broken.yaml").write_text(yaml.safe_dump(space))
    workspace.set({"tune.space": "broken", "tune.trials": 2})
    tune(workspace.here(monkeypatch))
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

    before = (workspace.folder / "results/tune/trials.csv").read_bytes()
    (workspace.folder / "results/tune/trials.csv").unlink()
    capsys.readouterr()
    monkeypatch.setattr("pipeline.cluster.session.ray_session", None)  # would fail
    tune(workspace.here(monkeypatch))
    assert "3 trials are there already" in capsys.readouterr().out
    assert (workspace.folder / "results/tune/trials.csv").read_bytes() == before
    with sqlite3.connect(workspace.folder / "mlflow.db") as database:
        kinds = database.execute("select value, count(*) from tags where key = 'eqreg.kind' group by 1").fetchall()
    assert dict(kinds) == {"pipeline": 1, "sweep": 1, "trial": 3}


def test_several_objectives_give_a_front(
    workspace: Workspace, shared_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    objectives = ["score", "equivariance_error", "step_time"]
    workspace.set({"tune.space": "lambda", "tune.trials": 2, "tune.objectives": objectives})
    tune(workspace.here(monkeypatch))
    workspace.set({"tune.objectives": ["score"]})
    found = trials(workspace, "pareto.csv")
    ended = [trial for trial in trials(workspace) if trial["stopped_early"] == "False"]
    assert [trial["trial"] for trial in found] == [trial["trial"] for trial in ended]
    assert all(0 < float(trial["equivariance_error"]) < 2 for trial in found)
    assert all(0 < float(trial["step_time"]) < 10 for trial in found)
    losses = {
        trial["trial"]: (-float(trial["score"]), float(trial["equivariance_error"]), float(trial["step_time"]))
        for trial in found
    }
    beaten = {
        one
        for one, own in losses.items()
        for other in losses.values()
        if other != own and all(theirs <= mine for theirs, mine in zip(other, own, strict=True))
    }
    assert {trial["trial"] for trial in found if trial["on_front"] == "False"} == beaten
    Image.open(workspace.folder / "results/tune/pareto.png").verify()


@pytest.mark.slow
def test_a_sweep_that_is_stopped_says_so_and_leaves_results_and_processes_as_they_were(workspace: Workspace) -> None:
    before = digests(workspace.folder / "results/tune")
    workspace.set({"tune.trials": 2, "tune.steps": 4000})
    process = workspace.start("eqreg", "tune")

    def is_running() -> bool:
        with sqlite3.connect(workspace.folder / "mlflow.db") as database:
            found = database.execute("select count(*) from runs where status = 'RUNNING' and name like 'trial-%'")
            return bool(found.fetchone()[0])

    wait_for(is_running, 240, process)
    everyone = descendants(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "Traceback" not in output, output
    _, alive = psutil.wait_procs(everyone, timeout=300)
    assert alive == []
    assert digests(workspace.folder / "results/tune") == before
    assert not is_running()
    workspace.set({"tune.steps": 8})


def test_zero_trials_leave_an_empty_table_and_no_patch(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.set({"tune.trials": 0})
    tune(workspace.here(monkeypatch))
    assert trials(workspace) == []
    assert yaml.safe_load((workspace.folder / "results/tune/best.yaml").read_text())["params"] == {}
    assert not (workspace.folder / "results/tune/trials.png").exists()


def test_an_unknown_space_is_refused_with_the_known_ones_and_leaves_results_alone(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(Path(workspace.folder / "results/tune").iterdir())
    workspace.set({"tune.trials": 2, "tune.space": "lamda"})
    with pytest.raises(UserError, match="lambda"):
        tune(workspace.here(monkeypatch))
    assert sorted(Path(workspace.folder / "results/tune").iterdir()) == before


def test_a_database_that_does_not_answer_is_refused_before_anything_starts(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "postgresql://nobody@127.0.0.1:1/nothing"
    workspace.set({"tune.space": "lambda", "tune.study_storage": address})
    params = workspace.here(monkeypatch)
    workspace.set({"tune.study_storage": None})
    with pytest.raises(UserError, match=f"^tune.study_storage: {address}") as error:
        tune(params)
    assert len(str(error.value).splitlines()) <= 2
