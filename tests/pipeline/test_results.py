"""A store is filled from results/ alone: an empty one wholly, one with a gap by what it lacks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pipeline.tracking.results import log_results
from pipeline.tracking.store import Store
from tests.pipeline.conftest import Project

LINEAGE = {"eqreg.lineage": "0123456789ab", "eqreg.git_commit": "abc"}


@pytest.mark.parametrize("steps_known", [(), (25,), (25, 50, 75)])
def test_every_step_is_in_the_store_once_whatever_it_knew(
    project: Project, store: Store, steps_known: tuple[int, ...]
) -> None:
    folder = Path("results/train")
    folder.mkdir(parents=True)
    (folder / "lineage.json").write_text(json.dumps(LINEAGE))
    (folder / "params.yaml").write_text(yaml.safe_dump({"seed": 0}))
    rows = "25,0.5,,0.25\n50,0.25,21.5,0.125\n75,0.125,,0.0625\n"
    (folder / "history.csv").write_text(f"step,task_loss,val_score,penalty/down.0.conv1\n{rows}")
    run_id = store.parent_run(LINEAGE)
    for step in steps_known:  # then the server was away
        loss = {25: 0.5, 50: 0.25, 75: 0.125}[step]
        store.log(run_id, step, {"task_loss": loss, "penalty/down.0.conv1": loss / 2})
    for _ in range(2):
        assert log_results(store) == run_id
    for metric, first in (("task_loss", 0.5), ("penalty/down.0.conv1", 0.25)):
        history = store.client.get_metric_history(run_id, metric)
        assert sorted((e.step, e.value) for e in history) == [(25, first), (50, first / 2), (75, first / 4)]
