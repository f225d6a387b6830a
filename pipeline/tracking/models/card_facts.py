"""The facts of a model card, collected from the results when a model is registered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import yaml

from components.data.packs import Pack
from components.evaluation.model_cost import count_multiply_adds, count_parameters, measure_cost
from components.formats import KEY
from components.inference.contract import Contract
from components.tasks import Task
from pipeline.config.schema import Params
from pipeline.model_file import model_metadata
from pipeline.paths import MANIFEST, MODEL, PACKED, TRAIN
from pipeline.tracking.models.model_card import FORMAT
from pipeline.tracking.store import without_password

if TYPE_CHECKING:
    from torch import nn


def collect_facts(params: Params, network: nn.Module, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Collects what the card says; measures time and memory of the network on this machine.

    Args:
        params: checked params.
        network: the registered network, in evaluation mode.
        metrics: of ``results/evaluate/metrics.json``.

    Returns:
        JSON's types: "network", "training", "data", "metrics", "titles", "cost" and "contract" among others.
    """
    task = params.build_task()
    metadata = model_metadata(MODEL)
    trained = yaml.safe_load((TRAIN / "params.yaml").read_text())
    return {
        KEY: FORMAT,
        "task": params.task,
        "network": metadata["network"],
        "steps": metadata.get("steps"),
        "training": _training(trained, params.task),
        "others": _others(params),
        "data": _data(task, metadata),
        "metrics": metrics,
        "titles": [[metric.key, metric.title, metric.digits] for metric in task.metrics],
        "options": task.restore_options,
        "contract": _contract(network, params.task, metadata),
        "cost": {
            "parameters": count_parameters(network),
            "multiply_adds_per_pixel": count_multiply_adds(network),
            "file_bytes": MODEL.stat().st_size,
            "measured": asdict(measure_cost(network)),
        },
    }


def _contract(network: nn.Module, task: str, metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the network takes and gives; None if no kind of model has its channels."""
    try:
        return Contract.of_network(network, task, metadata).as_dict()
    except ValueError:
        return None


def _training(trained: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The params that describe the training, from results/train/params.yaml."""
    chosen, section = trained.get("equivariance", {}), trained.get("tasks", {}).get(task, {})
    return {
        "degradation": section.get("degradation"),
        "colour": trained.get("preprocess", {}).get("colour"),
        "penalty": {key: chosen.get(key) for key in ("weight", "weight_unit", "penalty", "group", "pairing")},
    }


def _others(params: Params) -> list[str]:
    """The names of the out-of-distribution degradations."""
    section = params.values["tasks"][params.task]
    return sorted(section.get("out_of_distribution") or {})


def _data(task: Task, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The source, the hash, and the numbers and sizes of the images of each split that is on this machine."""
    data: dict[str, Any] = {"hash": (metadata.get("hashes") or {}).get("data", "unknown")}
    if MANIFEST.exists():
        data["source"] = without_password(str(json.loads(MANIFEST.read_text()).get("source", "")))
    for split in ("train", "val", "test"):
        if not (PACKED / split / "index.json").exists():
            continue
        pack = Pack(PACKED / split)
        sides = [(entry.height, entry.width) for entry in pack.entries]
        data[split] = {
            "images": len(pack),
            "scenes": len({entry.scene for entry in pack.entries}),
            "smallest": min(map(min, sides), default=0),
            "largest": max(map(max, sides), default=0),
        }
        if split == "train":
            data["has_given_pairs"] = pack.holds_pairs and not task.is_simulated_ahead
    return data
