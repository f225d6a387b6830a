"""`eqreg ablate` as a user runs it: killed on the way, given again, and asked for more seeds."""

from __future__ import annotations

import csv
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
import pytest
import yaml

from pipeline.commands.ablate import ablate
from pipeline.errors import UserError
from tests.pipeline.workspace import Workspace, descendants, wait_for

pytestmark = pytest.mark.ray

ARMS: dict[str, Any] = {
    "plain": {"train.rotations": True, "equivariance.pairing": "none", "equivariance.weight": 0.0},
    "pairs": {"train.rotations": True, "equivariance.weight": 0.0},
    "regular": {"train.rotations": True, "equivariance.penalty": "regular"},
    "wild": {"train.learning_rate": 1e30, "train.gradient_clip": 1e30, "equivariance.weight": 0.0},
}
SPACE: dict[str, Any] = {
    "search": "grid",
    "arm": {"variants": ARMS},
    "equivariance.weight": {"distribution": "choice", "values": [1e30, 0.01], "when": {"arm": "regular"}},
}
COMMAND = ("eqreg", "ablate")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, packed: Path) -> Workspace:
    small = {"ablate.space": "arms", "ablate.steps": 12, "ablate.seeds": 2, "train.num_workers": 1}
    return Workspace(tmp_path_factory.mktemp("ablation"), small, packed)


@pytest.fixture
def workspace(made: Workspace) -> Workspace:
    """Without what another test did with it."""
    for folder in (".eqreg/tune", ".eqreg/sweeps", "results/ablate"):
        shutil.rmtree(made.folder / folder, ignore_errors=True)
    (made.folder / "tune_spaces/arms.yaml").write_text(yaml.safe_dump(SPACE, sort_keys=False))
    made.set({"ablate.seeds": 2})
    return made


def trials_of(workspace: Workspace, asks_for: str) -> list[optuna.trial.FrozenTrial]:
    """Those of the study that asks for a parameter; none before it has begun."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    database = workspace.folder / ".eqreg/tune/studies.db"
    if not database.exists():
        return []
    storage = f"sqlite:///{database}"
    for name in optuna.get_all_study_names(storage):
        trials = optuna.load_study(study_name=name, storage=storage).trials
        if any(asks_for in trial.params for trial in trials):
            return trials
    return []


def has_compared(workspace: Workspace, number: int) -> bool:
    """Whether so many runs have ended. Asked often, so by the shortest way."""
    try:
        database = f"file:{workspace.folder / '.eqreg/tune/studies.db'}?mode=ro"
        with closing(sqlite3.connect(database, uri=True)) as connection:
            (count,) = connection.execute(
                "select count(*) from trials t join trial_params p on p.trial_id = t.trial_id"
                " where p.param_name = 'seed' and t.state in ('COMPLETE', 'PRUNED', 'FAIL')"
            ).fetchone()
    except sqlite3.OperationalError:  # it is not there, or its tables are being made
        return False
    return int(count) >= number


def table(workspace: Workspace) -> dict[tuple[str, str], dict[str, str]]:
    with (workspace.folder / "results/ablate/table.csv").open(newline="") as file:
        return {(line["arm"], line["set"]): line for line in csv.DictReader(file)}


def measured(workspace: Workspace) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """(arm, seed) -> what its run has kept of every image."""
    (folder,) = {path.parents[2] for path in workspace.folder.glob(".eqreg/sweeps/*/trials/*/rows.json")}
    found = {}
    for trial in trials_of(workspace, "seed"):
        path = folder / f"trials/{trial.number}/rows.json"
        if path.exists():
            found[trial.params["arm"], trial.params["seed"]] = json.loads(path.read_text())
    return found


@pytest.mark.slow
def test_an_ablation_that_was_killed_goes_on_and_its_table_is_what_was_measured(
    workspace: Workspace, shared_ray: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = workspace.start(*COMMAND)
    wait_for(lambda: has_compared(workspace, 2), 240, first)
    everyone = descendants(first.pid)
    first.kill()
    psutil.wait_procs(everyone, timeout=10)  # its trials end when they miss it
    before = {t.number: t.datetime_complete for t in trials_of(workspace, "seed") if t.state.is_finished()}
    chosen_before = [trial.datetime_complete for trial in trials_of(workspace, "equivariance.weight")]
    assert not (workspace.folder / "results/ablate").exists()

    ablate(workspace.here(monkeypatch))
    assert "Difference to pairs:" in capsys.readouterr().out
    trials = trials_of(workspace, "seed")
    assert sorted((trial.params["arm"], trial.params["seed"]) for trial in trials) == [
        (arm, seed) for arm in sorted(ARMS) for seed in (1, 2)
    ]
    assert {number: trials[number].datetime_complete for number in before} == before
    assert [trial.datetime_complete for trial in trials_of(workspace, "equivariance.weight")] == chosen_before

    found, rows = table(workspace), measured(workspace)
    for arm in ("plain", "regular"):
        for title, group in (("test", "test"), ("test, turned", "rotated"), ("sigma_35", "out_of_distribution")):
            differences = [
                own["psnr"] - other["psnr"]
                for seed in (1, 2)
                for own, other in zip(rows[arm, seed], rows["pairs", seed], strict=True)
                if own["group"] == group and (title != "sigma_35" or own["condition"] == title)
            ]
            line = found[arm, title]
            assert float(line["minus_pairs"]) == pytest.approx(np.mean(differences), abs=1e-9)
            assert float(line["minus_pairs_low"]) <= np.mean(differences) <= float(line["minus_pairs_high"])
            assert line["minus_pairs_seeds"] == "2"
    assert (found["wild", "test"]["failed"], found["wild", "test"]["mean"]) == ("2", "")
    assert (found["regular", "test"]["weight"], found["regular", "test"]["trials"]) == ("0.01", "2")
    with (workspace.folder / "results/ablate/weights.csv").open(newline="") as file:
        weights = list(csv.DictReader(file))
    far_too_large, right = weights
    assert float(far_too_large["validation_score"]) < float(right["validation_score"])
    assert [(line["weight"], line["chosen"]) for line in weights] == [("1e+30", "False"), ("0.01", "True")]
    text = " ".join((workspace.folder / "results/ablate/table.txt").read_text().split())
    assert "12 steps of 8 images of 24 x 24 pixels" in text
    assert "2 runs did not come to their end" in text
    assert "wild, seed 1: the loss is no longer finite" in text or "wild, seed 1: the gradient is no longer" in text
    assert (workspace.folder / "results/ablate/figure.png").stat().st_size > 1000

    workspace.set({"ablate.seeds": 3})
    assert "Difference to pairs:" in workspace.run(*COMMAND)
    again = trials_of(workspace, "seed")
    assert [trial.datetime_complete for trial in again[: len(trials)]] == [trial.datetime_complete for trial in trials]
    assert sorted((trial.params["arm"], trial.params["seed"]) for trial in again[len(trials) :]) == [
        (arm, 3) for arm in sorted(ARMS)
    ]
    assert table(workspace)["regular", "test"]["minus_pairs_seeds"] == "3"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"equivariance.layers": {"nowhere.*": "regular"}}, ["arm other cannot be built", "nowhere.*"]),
        ({"equivariance.pairing": "append"}, ["arm other trains on 10 images a step, and arm plain on 8"]),
        ({"train.batch_size": 4}, ["arm plain trains on 8 images a step, and arm other on 4"]),
    ],
)
def test_arms_that_cannot_be_or_are_not_equal_are_refused_before_any_work(
    workspace: Workspace, changes: dict[str, Any], parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"other": {"equivariance.weight": 0.0, **changes}}
    space = SPACE | {"arm": {"variants": ARMS | other}}
    (workspace.folder / "tune_spaces/arms.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
    with pytest.raises(UserError) as error:
        ablate(workspace.here(monkeypatch))
    told = " ".join(str(error.value).split())
    assert "ablate.space: arms: " in told
    assert all(part in told for part in parts), told
    assert not (workspace.folder / ".eqreg/tune").exists()
