"""Logs results/train and results/evaluate to MLflow.

The files suffice to fill a store that is new or was emptied.
"""

from __future__ import annotations

import csv
import json
from typing import Any

import yaml

from components.brief import short_digest
from pipeline.model_file import model_metadata, model_sha256
from pipeline.paths import EVALUATE, MODEL, TRAIN, existing
from pipeline.provenance.lineage import UNKNOWN, Lineage
from pipeline.provenance.training_fingerprint import TrainingFingerprint
from pipeline.tracking.store import MODEL_TAG, TRAINING_TAG, Store, flatten

_LOGGED = "eqreg.evaluated"


def log_results(store: Store) -> str:
    """Logs the history, the test metrics and the comparison images to the run that belongs to results/train.

    Returns:
        The id of the run.
    """
    run_id = training_run(store)
    resolved = (TRAIN / "params.yaml").read_text()
    store.log_params(run_id, yaml.safe_load(resolved), resolved)
    last_step = store.last_step(run_id, "task_loss")
    for step, metrics in _history():
        if step > last_step:
            store.log(run_id, step, metrics)
    if (EVALUATE / "metrics.json").exists():
        text = (EVALUATE / "metrics.json").read_text()
        if store.tag(run_id, _LOGGED) != short_digest(text):
            figures = {key: value for key, value in flatten(json.loads(text)).items() if isinstance(value, int | float)}
            store.log(run_id, 0, figures)
            store.log_files(run_id, EVALUATE, "evaluate")
            store.set_tag(run_id, _LOGGED, short_digest(text))
    store.end(run_id)
    return run_id


def training_run(store: Store) -> str:
    """The id of the run that trained results/train/model.safetensors.

    The run is found by the SHA-256 of the model, also if the file came from DVC's cache. If the store could not be
    reached when the training ended, it is the run of a training with the same data, params and code. If the store has
    neither, a new run is created, whose commit is "unknown".
    """
    sha256 = model_sha256(existing(MODEL, "train"))
    # Files of earlier versions of eqreg hold no hashes.
    hashes = model_metadata(MODEL).get("hashes") or dict.fromkeys(("data", "params", "code"), UNKNOWN)
    training = TrainingFingerprint(**hashes).id
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
    """The lineage of a run's model from the tags of the run: commit, data, params and training."""
    tags = store.tags(run_id)
    return {key: tags[key] for key in (*Lineage("", "", "", "").tags(), TRAINING_TAG) if key in tags}


def _history() -> list[tuple[int, dict[str, float]]]:
    with (TRAIN / "history.csv").open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    return [
        (int(row["step"]), {key: float(value) for key, value in row.items() if key != "step" and value != ""})
        for row in rows
    ]
