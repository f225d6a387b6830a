"""DVC's queue with two workers, and the plots of a training that runs, in a copy of the repository."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import time
from typing import Any

import pytest

from tests.files import digests
from tests.pipeline.workspace import Workspace

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """After one ``dvc repro`` without a sweep, which is committed."""
    made = Workspace(tmp_path_factory.mktemp("experiments"), {"tune.trials": 0})
    made.run("dvc", "repro")
    made.run("git", "commit", "-qam", "lock")
    return made


def rows(workspace: Workspace, query: str) -> list[tuple[Any, ...]]:
    """What the store of the checkout answers."""
    with sqlite3.connect(workspace.folder / "mlflow.db", timeout=30) as database:
        return database.execute(query).fetchall()


def dvc(workspace: Workspace, *words: str) -> str:
    """What a command of DVC prints to stdout. Workers that it leaves behind keep no pipe of this process."""
    with (workspace.folder / ".eqreg/stdout").open("w+") as file:
        subprocess.run(
            ["dvc", *words],
            cwd=workspace.folder,
            env=workspace.environment(),
            stdout=file,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=300,
        )
        file.seek(0)
        return file.read()


def plots(workspace: Workspace) -> dict[str, int]:
    """Plots that ``dvc plots show`` draws from tables, with their numbers of points."""
    shown = json.loads(dvc(workspace, "plots", "show", "--json"))["data"]
    return {
        name: len(drawn[0]["content"]["data"]["values"])
        for name, drawn in shown.items()
        if drawn and drawn[0]["type"] == "vega"
    }


def test_two_workers_of_the_queue_run_two_experiments_at_once(workspace: Workspace) -> None:
    before = digests(workspace.folder / "results")
    for name, steps, weight in (("one", 60, 0.02), ("two", 80, 0.05)):
        changes = ("-S", f"train.steps={steps}", "-S", f"equivariance.weight={weight}")
        dvc(workspace, "exp", "run", "--queue", "--name", name, *changes)
    dvc(workspace, "queue", "start", "-j", "2")
    end = time.monotonic() + 900
    while re.search("Queued|Running", dvc(workspace, "queue", "status")):
        assert time.monotonic() < end, "the queue does not end"
        time.sleep(3)
    for name in ("one", "two"):
        said = dvc(workspace, "queue", "logs", name)
        assert re.search(rf"{name} .*Success", dvc(workspace, "queue", "status")), said
    assert {status for (status,) in rows(workspace, "select status from runs")} == {"FINISHED"}
    reports = rows(workspace, "select count(*) from metrics where key = 'train/task_loss' group by run_uuid")
    assert sorted(reports) == [(8,), (12,), (16,)]  # each step once
    assert rows(workspace, "select count(distinct run_id) from model_versions") == [(3,)]
    assert rows(workspace, "select count(*) from registered_model_aliases where alias = 'champion'") == [(1,)]
    assert digests(workspace.folder / "results") == before  # those of the checkout
    assert workspace.run("git", "status", "--porcelain") == ""


def test_the_plots_of_a_running_training_grow_beside_those_of_the_last_result(workspace: Workspace) -> None:
    results = workspace.folder / "results"
    before = digests(results)
    workspace.set({"train.steps": 1200})
    process = workspace.start("dvc", "repro", "train")
    seen: list[int] = []
    while len(set(seen)) < 3:
        assert process.poll() is None, process.communicate()[0]
        shown = plots(workspace)
        if "training now" in shown:
            assert digests(results / "train") == {
                name.removeprefix("train/"): digest for name, digest in before.items() if name.startswith("train/")
            }
            assert shown["training"] == 8
            seen.append(shown["training now"])
    assert seen == sorted(seen)
    output, _ = process.communicate(timeout=540)
    assert process.returncode == 0, output
    assert not (results / "live").exists()
    shown = plots(workspace)
    assert shown["training"] == 240
    assert "training now" not in shown
    assert sorted(workspace.run("git", "status", "--porcelain").split()) == ["M", "M", "dvc.lock", "params.yaml"]


def test_some_plots_are_images_which_need_no_network(workspace: Workspace) -> None:
    """The others load Vega from the web."""
    page = dvc(workspace, "plots", "show").strip().removeprefix("file://")
    with open(page) as file:  # noqa: PTH123 - an address
        content = file.read()
    for name in ("results_train_history.png", "results_evaluate_equivariance.png"):
        assert f'src="static/workspace_{name}"' in content
    assert workspace.run("git", "status", "--porcelain", "dvc_plots") == ""
