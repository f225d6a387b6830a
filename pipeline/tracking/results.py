"""Puts results/train and results/evaluate into MLflow, so that a new or emptied store is filled from files alone."""

from __future__ import annotations

import csv
import json
from typing import Any

import yaml

from pipeline.lineage import UNKNOWN, Lineage
from pipeline.model_hash import model_metadata, model_sha256
from pipeline.paths import EVALUATE, MODEL, TRAIN, existing
from pipeline.tracking.store import MODEL_TAG, TRAINING_TAG, Store, flatten
from pipeline.training_identity import TrainingIdentity

_LOGGED = "eqreg.evaluated"


def log_results(store: Store) -> str:
    """Gives the id of the run that belongs to results/train, with its history, test figures and pictures in it."""
    run_id = training_run(store)
    resolved = (TRAIN / "params.yaml").read_text()
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


def training_run(store: Store) -> str:
    """The id of the run that trained results/train/model.safetensors.

    It is found by the SHA-256 of the model, also where the file came from the cache of DVC. If the store was out
    of reach when the training ended, it is the run of a training of the same data, params and code. If the store knows
    neither, a run is begun, whose commit is "unknown".
    """
    sha256 = model_sha256(existing(MODEL, "train"))
    # Files of earlier versions say nothing of what made them.
    hashes = model_metadata(MODEL).get("hashes") or dict.fromkeys(("data", "params", "code"), UNKNOWN)
    training = TrainingIdentity(**hashes).id
    if known := store.run_of_model(sha256, training):
        return known
    found = store.find({"eqreg.kind": "pipeline", TRAINING_TAG: training})
    if found and MODEL_TAG not in found.data.tags:
        run_id = str(found.info.run_id)
    else:
        lineage = Lineage(UNKNOWN, "", hashes["data"], hashes["params"])
        run_id = store.parent_run(lineage.tags() | {TRAINING_TAG: training})
    store.set_tag(run_id, MODEL_TAG, sha256)
    return run_id


def lineage_tags(store: Store, run_id: str) -> dict[str, str]:
    """What made the model of a run, as its tags say: commit, data, params."""
    tags = store.tags(run_id)
    return {key: tags[key] for key in (*Lineage("", "", "", "").tags(), TRAINING_TAG) if key in tags}


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
