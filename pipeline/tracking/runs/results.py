"""Logs results/train and results/evaluate to MLflow.

The files suffice to fill a store that is new or was emptied.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from components.brief import short_digest
from pipeline.model_file import model_metadata, model_sha256
from pipeline.paths import CROPS, EVALUATE, MODEL, TRAIN, existing
from pipeline.provenance.lineage import UNKNOWN, Lineage
from pipeline.provenance.training_fingerprint import TrainingFingerprint
from pipeline.tracking.runs import metric_names, notes
from pipeline.tracking.runs.datasets import dataset_name, log_datasets
from pipeline.tracking.store import MODEL_TAG, TRAINING_TAG, Store, answering

COLUMNS = "degraded, restored, truth, error"
_LOGGED = "eqreg.evaluated"
_LAYOUT = 2  # with it a run that an earlier version of eqreg has logged gets the present names, too


def log_results(store: Store, source: str) -> str:
    """Logs history, test metrics, images, data and a note to the run that belongs to results/train.

    Args:
        store: the store of the task.
        source: ``fetch.source``, which the datasets name.

    Returns:
        The id of the run.
    """
    run_id = training_run(store)
    resolved = (TRAIN / "params.yaml").read_text()
    store.log_params(run_id, yaml.safe_load(resolved), resolved)
    log_datasets(store, run_id, store.tag(run_id, "eqreg.data_hash") or UNKNOWN, source)
    last_step = store.last_step(run_id, metric_names.TASK_LOSS)
    for step, metrics in _history():
        if step > last_step:
            store.log(run_id, step, metric_names.of_report(metrics, store.score.key))
    if (EVALUATE / "metrics.json").exists():
        text = (EVALUATE / "metrics.json").read_text()
        if store.tag(run_id, _LOGGED) != (logged := f"{_LAYOUT}-{short_digest(text)}"):
            _log_evaluation(store, run_id, json.loads(text))
            store.set_tag(run_id, _LOGGED, logged)
    store.end(run_id)
    return run_id


def _log_evaluation(store: Store, run_id: str, metrics: dict[str, Any]) -> None:
    """Logs results/evaluate: metrics, files, a table of test images and the note."""
    score = store.score
    # At the model's own step. When it logs a model, MLflow links what it has of step 0 with it, without the dataset.
    step = int(model_metadata(MODEL).get("steps", 1))
    store.log(run_id, step, metric_names.of_evaluation(metrics, score.key))
    for name in ("history.csv", "history.png", "metrics.json"):
        if (TRAIN / name).exists():
            store.log_file(run_id, TRAIN / name, "train")
    store.log_files(run_id, EVALUATE, "evaluate")
    if rows := _test_images():
        store.log_table(run_id, rows, f"test_images-{short_digest(json.dumps(rows, default=str))}.json")
    notes.write_block(store, run_id, "results", notes.of_results(metrics, score))


def _test_images() -> list[dict[str, Any]]:
    """One row for each crop in results/evaluate: the image's name, scene and scores, and the crop."""
    table = EVALUATE / "images.csv"
    if not table.exists():  # of an earlier version of eqreg
        return []
    with table.open(newline="") as file:
        measured = {row["image"]: row for row in reversed(list(csv.DictReader(file))) if row["group"] == "test"}
    rows = []
    for path in sorted((EVALUATE / CROPS).glob("*.png")):
        if row := measured.get(path.stem):
            scores = {method: float(row[f"{method}_score"]) for method in ("input", "classical", "restored")}
            gain = scores["restored"] - scores["input"]
            rows.append({"image": row["image"], "scene": row["scene"], COLUMNS: path, **scores, "gain": gain})
    return rows


def log_registration(store: Store, run_id: str, name: str, version: str, alias: str, reason: str) -> None:
    """Adds a registered version to the run's note, and links the run's test metrics with the version's model.

    MLflow's page of models then has the metrics as columns, by which it sorts.

    Args:
        store: the store of the task.
        run_id: run of the training.
        name: of the registered model.
        version: its number.
        alias: that the version got.
        reason: for the alias.
    """
    notes.write_block(store, run_id, "registry", notes.of_registration(name, version, alias, reason))
    with answering(store.uri):
        location = store.client.get_model_version(name, version).source or ""
    if found := re.fullmatch(r"models:/(m-\w+)", location):
        link_metrics(store, run_id, found[1])


def link_metrics(store: Store, run_id: str, model_id: str) -> None:
    """Links the metrics of a run's test images with the model that the run has logged, and with their dataset.

    They are logged once more as they are, with the same time, so that the run itself has each once. What the model has
    already stays as it is.

    Args:
        store: the store of the task.
        run_id: the run.
        model_id: id of the logged model.
    """
    from mlflow.entities import Metric

    with answering(store.uri):
        run = store.client.get_run(run_id)
        known = {(entry.key, entry.step) for entry in store.client.get_logged_model(model_id).metrics or ()}
        linked = [
            Metric(key, entry.value, entry.timestamp, entry.step, model_id, *dataset)
            for key, dataset in _linked(run.data.metrics, store.task, run.data.tags.get("eqreg.data_hash", UNKNOWN))
            for entry in store.client.get_metric_history(run_id, key)[-1:]
            if (key, entry.step) not in known
        ]
        store.client.log_batch(run_id, linked)


def _linked(
    metrics: Mapping[str, float], task: str, data_hash: str
) -> Iterator[tuple[str, tuple[str, str] | tuple[None, None]]]:
    """Yields the names of the metrics that describe the model of a run, with (name, digest) of their dataset."""
    parts = {"validation": "val", "test": "test", "rotated": "test", "out_of_distribution": None}
    for key in metrics:
        group = key.partition("/")[0]
        if group in parts:
            part = parts[group]
            yield key, (dataset_name(task, part), data_hash) if part else (None, None)


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
