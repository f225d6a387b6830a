"""The packed images of a run as MLflow's datasets: which data, from where, and what for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.paths import PACKED
from pipeline.tracking.store import Store, answering, without_password

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

CONTEXTS = {"train": "train", "val": "validation", "test": "test"}
"""Folder in data/packed -> context in MLflow."""


def dataset_name(task: str, part: str) -> str:
    """The name of a dataset in MLflow; ``part`` is its folder in data/packed."""
    return f"{task} {CONTEXTS[part]}"


def log_datasets(
    store: Store, run_id: str, data_hash: str, source: str, parts: Sequence[str] = tuple(CONTEXTS)
) -> None:
    """Logs the packs of data/packed as datasets of a run. A dataset that the run has already is not added again.

    Args:
        store: the store.
        run_id: the run.
        data_hash: hash of data/packed, the digest of the datasets.
        source: ``fetch.source``; passwords in it are left out.
        parts: folders in data/packed; one that does not exist is left out.
    """
    found = [part for part in parts if (PACKED / part / "index.json").exists()]
    with answering(store.uri):
        store.client.log_inputs(run_id, [_input(store.task, part, data_hash, source) for part in found])


def _input(task: str, part: str, data_hash: str, source: str) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    from components.data.packs import Pack

    entries = Pack(PACKED / part).entries
    kind, described = _source(without_password(source))
    profile = {"images": len(entries), "scenes": len({entry.scene for entry in entries})}
    dataset = Dataset(dataset_name(task, part), data_hash, kind, json.dumps(described), profile=json.dumps(profile))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", CONTEXTS[part])])


def _source(address: str) -> tuple[str, dict[str, str]]:
    """(type, description) of a source, by MLflow's own types where it has one."""
    if address.startswith("s3://"):
        return "s3", {"uri": address}
    if address.startswith(("http://", "https://")):
        return "http", {"url": address}
    if address == "builtin" or address.startswith("dvc:"):
        return address.partition(":")[0], {"uri": address}
    return "local", {"uri": address}
