"""Sweeps by real Ray Tune, killed in every way: they end, and end the same."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import yaml

from pipeline.stages.tune import tune
from pipeline.study.database import StudyStorage
from tests.pipeline.workspace import Workspace, descendants, wait_for

STEPS, GRACE = 120, 20
Start = Callable[[], subprocess.Popen[str]]

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, packed: Path) -> Workspace:
    changes = {"tune.steps": STEPS, "tune.grace_steps": GRACE, "tune.concurrent": 1, "tune.trials": 3}
    return Workspace(tmp_path_factory.mktemp("sweeping"), {**changes, "train.batch_size": 32}, packed)


@pytest.fixture
def sweep_here(workspace: Workspace, shared_ray: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Runs a sweep in this process."""
    return lambda: tune(workspace.here(monkeypatch))


@pytest.fixture
def start(workspace: Workspace) -> Iterator[Start]:
    """Starts a sweep; none outlives the test."""
    begun: list[subprocess.Popen[str]] = []

    def begin() -> subprocess.Popen[str]:
        begun.append(workspace.start("eqreg", "tune"))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()


def trials_of(workspace: Workspace, study: str, address: str | None = None) -> list[optuna.trial.FrozenTrial]:
    """What a study's database holds; nothing before it is there."""
    path = workspace.folder / ".eqreg/tune/studies.db"
    if address is None and not path.exists():
        return []
    storage = StudyStorage(address or f"sqlite:///{path}").optuna
    if study not in optuna.get_all_study_names(storage):
        return []
    return optuna.load_study(study_name=study, storage=storage).get_trials()


def has_reached(workspace: Workspace, study: str, number: int, step: int) -> Callable[[], bool]:
    """Asked often, so by the shortest way."""
    path = workspace.folder / ".eqreg/tune/studies.db"

    def condition() -> bool:
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
                found = database.execute(
                    "select a.value_json from trial_user_attributes a join trials t on t.trial_id = a.trial_id"
                    " join studies s on s.study_id = t.study_id"
                    " where s.study_name = ? and t.number = ? and a.key = 'progress'",
                    (study, number),
                ).fetchone()
        except sqlite3.OperationalError:  # it is not there, or its tables are being made
            return False
        return found is not None and bool(json.loads(found[0]).get("step", 0) >= step)

    return condition


def outcomes(trials: list[optuna.trial.FrozenTrial]) -> list[Any]:
    """All that a sweep comes to: params, state, and the score at every report."""
    return [(t.user_attrs["params"], t.state.name, t.user_attrs["progress"]["scores"], t.values) for t in trials]


def histories(workspace: Workspace, study: str) -> dict[int, list[int]]:
    """Number of a trial -> steps at which MLflow has its validation score, every entry."""
    with sqlite3.connect(workspace.folder / "mlflow.db") as database:
        found = database.execute(
            "select n.value, m.step from tags s join tags n on n.run_uuid = s.run_uuid and n.key = 'eqreg.trial'"
            " left join metrics m on m.run_uuid = s.run_uuid and m.key = 'validation/psnr'"
            " where s.key = 'eqreg.study' and s.value like ? order by 1, 2",
            (f"{study}-%",),
        ).fetchall()
    steps: dict[int, list[int]] = {}
    for number, step in found:
        steps.setdefault(int(number), []).append(step)
    return steps


def statuses(workspace: Workspace, study: str) -> Counter[str]:
    with sqlite3.connect(workspace.folder / "mlflow.db") as database:
        found = database.execute(
            "select r.status from runs r join tags s on s.run_uuid = r.run_uuid"
            " where s.key = 'eqreg.study' and s.value like ?",
            (f"{study}-%",),
        ).fetchall()
    return Counter(status for (status,) in found)


def trial_processes(driver: int) -> list[psutil.Process]:
    """The processes in which trials of a driver run, by the name that Ray gives them."""
    found = []
    for process in descendants(driver):
        try:
            if "ImplicitFunc" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_whatever_is_killed_the_sweep_ends_and_ends_the_same(
    workspace: Workspace, start: Start, sweep_here: Callable[[], None]
) -> None:
    workspace.set({"tune.study": "whole"})
    sweep_here()
    whole = trials_of(workspace, "whole")
    table = (workspace.folder / "results/tune/trials.csv").read_bytes()

    workspace.set({"tune.study": "broken"})
    first = start()
    output: list[str] = []
    reader = threading.Thread(target=lambda: output.append(first.communicate()[0]))
    reader.start()
    wait_for(has_reached(workspace, "broken", 0, 2 * GRACE), 240)
    for process in trial_processes(first.pid):
        process.kill()
    wait_for(has_reached(workspace, "broken", 1, 2 * GRACE), 240)
    running = trial_processes(first.pid)
    first.kill()
    reader.join()
    _, alive = psutil.wait_procs(running, timeout=300)
    assert (len(running), alive) == (1, [])
    killed = trials_of(workspace, "broken")
    assert [trial.state.name for trial in killed] == ["COMPLETE", "RUNNING"]
    sweep_here()

    broken = trials_of(workspace, "broken")
    assert outcomes(broken) == outcomes(whole)
    assert broken[0].datetime_complete == killed[0].datetime_complete  # it was not repeated
    resumed = [trial.user_attrs["progress"].get("resumed_at", []) for trial in broken]
    assert [len(steps) for steps in resumed] == [1, 1, 0, 0]
    assert all(steps[0] >= GRACE for steps in resumed[:2])
    assert (workspace.folder / "results/tune/trials.csv").read_bytes() == table
    steps = [list(range(GRACE, trial.user_attrs["progress"]["step"] + 1, GRACE)) for trial in whole]
    assert histories(workspace, "whole") == dict(enumerate(steps))
    assert histories(workspace, "broken") == dict(enumerate(steps))
    assert statuses(workspace, "broken") == statuses(workspace, "whole")
    assert statuses(workspace, "whole")["RUNNING"] == 0
    assert not list((workspace.folder / ".eqreg").rglob("*.pt"))  # checkpoints go with their trials


@pytest.mark.slow
def test_trials_can_be_added_later(workspace: Workspace, sweep_here: Callable[[], None]) -> None:
    before = trials_of(workspace, "whole")
    workspace.set({"tune.study": "whole", "tune.trials": len(before)})
    sweep_here()
    after = trials_of(workspace, "whole")
    assert outcomes(after[:-1]) == outcomes(before)
    assert len(after) == len(before) + 1
    assert sum(statuses(workspace, "whole").values()) == len(after) + 1  # and the sweep's own run
    workspace.set({"tune.trials": 3})


@pytest.mark.slow
def test_two_drivers_at_once_share_the_trials_and_both_have_the_whole_table(
    workspace: Workspace, postgres: str, start: Start
) -> None:
    workspace.set({"tune.study": "shared", "tune.study_storage": postgres, "tune.trials": 4})
    both = [start() for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    workspace.set({"tune.study_storage": None, "tune.trials": 3})
    assert [process.returncode for process in both] == [0, 0], outputs
    trials = trials_of(workspace, "shared", postgres)
    assert len(trials) == 5
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    assert len({trial.user_attrs["owner"] for trial in trials}) == 2
    assert sorted(histories(workspace, "shared")) == list(range(5))
    assert sum(statuses(workspace, "shared").values()) == 5 + 1
    for output in outputs:
        numbers = re.findall(r"^ *(\d+)(?: control)?(?: best)? +[\d.]+ .*\d *$", output, re.MULTILINE)
        assert numbers == [str(number) for number in range(5)], output


def test_trials_that_fail_are_recorded_with_the_reason_and_do_not_end_the_sweep(
    workspace: Workspace, sweep_here: Callable[[], None]
) -> None:
    arms = {
        "good": {"seed": 1},
        "diverging": {"train.learning_rate": 1e30, "train.gradient_clip": 1e30},
        "too_large": {"network.width": 400_000},
        "killed": {"train.batch_size": 256, "equivariance.weight": 0.0},  # never stopped early
    }
    space = {"search": "grid", "arm": {"variants": arms}}
    (workspace.folder / "tune_spaces/failing.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
    workspace.set({"tune.study": "failing", "tune.space": "failing", "tune.trials": 4, "cluster.max_failures": 0})
    killer = threading.Thread(target=kill_the_fourth, args=(workspace,))
    killer.start()
    sweep_here()
    killer.join()
    good, diverging, too_large, killed = trials_of(workspace, "failing")
    assert good.state.name == "COMPLETE"
    assert "no longer finite" in diverging.user_attrs["failure"]
    assert too_large.user_attrs["failure"].startswith("out of memory")
    assert killed.user_attrs["failure"].startswith("its process was lost")
    assert {trial.state.name for trial in (diverging, too_large, killed)} == {"FAIL"}
    assert statuses(workspace, "failing") == {"FINISHED": 2, "FAILED": 3}
    best = yaml.safe_load((workspace.folder / "results/tune/best.yaml").read_text())
    assert best["params"] == {"seed": 1}


def kill_the_fourth(workspace: Workspace) -> None:
    """Kills the process of trial 3 of the sweep that runs here."""
    wait_for(has_reached(workspace, "failing", 3, GRACE), 240)
    for victim in trial_processes(os.getpid()):
        victim.kill()


@pytest.mark.slow
def test_trials_of_several_workers_train_together_and_may_be_stopped(
    workspace: Workspace, sweep_here: Callable[[], None]
) -> None:
    arms = {"good": {"seed": 0}, "bad": {"train.learning_rate": 1e-6}, "after": {"equivariance.weight": 0.0}}
    space = {"search": "grid", "arm": {"variants": arms}}
    (workspace.folder / "tune_spaces/stopping.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
    changes = {"tune.steps": 16, "tune.grace_steps": 4, "tune.space": "stopping", "network.norm": "none"}
    workspace.set({**changes, "tune.study": "workers", "tune.num_workers": 2})
    sweep_here()
    workspace.set({"tune.study": "alone", "tune.num_workers": 1})
    sweep_here()
    together, alone = trials_of(workspace, "workers"), trials_of(workspace, "alone")
    assert [trial.state.name for trial in together] == ["COMPLETE", "PRUNED", "COMPLETE"]
    for one, other in zip(together, alone, strict=True):  # the global batch is the same, and so is what is learnt
        assert one.state == other.state
        scores, same_scores = (dict(trial.user_attrs["progress"]["scores"]) for trial in (one, other))
        assert scores == pytest.approx(same_scores, abs=1e-3)
    assert not list((workspace.folder / ".eqreg").rglob("*.pt"))
