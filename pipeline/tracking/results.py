"""Puts results/train and results/evaluate into MLflow, so that a new or emptied store is filled from files alone."""

from __future__ import annotations

import csv
import json
from typing import Any

import yaml

from pipeline.paths import EVALUATE, TRAIN, existing
from pipeline.tracking.store import Store, flatten

_LOGGED = "eqreg.evaluated"


def log_results(store: Store) -> str:
    """Gives the id of the run that belongs to results/train, with its history, test figures and pictures in it."""
    lineage: dict[str, str] = json.loads(existing(TRAIN / "lineage.json", "train").read_text())
    resolved = (TRAIN / "params.yaml").read_text()
    run_id = store.parent_run(lineage)
    store.log_params(run_id, yaml.safe_load(resolved), resolved)
    last_step = store.last_step(run_id, "task_loss")
    for step, metrics in _history():
        if step > last_step:
            store.log(run_id, step, metrics)
    if (EVALUATE / "metrics.json").exists():
        text = (EVALUATE / "metrics.json").read_text()
        if store.tag(run_id, _LOGGED) != _digest(text):
            figures = {key: value for key, value in flatten(json.loads(text)).items() if isinstance(value, int | float)}
            store.log(run_id, 0, figures)
            store.log_files(run_id, EVALUATE, "evaluate")
            store.set_tag(run_id, _LOGGED, _digest(text))
    store.end(run_id)
    return run_id


def _digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _history() -> list[tuple[int, dict[str, float]]]:
    with (TRAIN / "history.csv").open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    return [
        (int(row["step"]), {key: float(value) for key, value in row.items() if key != "step" and value != ""})
        for row in rows
    ]
