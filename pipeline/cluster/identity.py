"""What decides the results of a study, by part, so that trials of different things never meet in one."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from pipeline.deciding import deciding_hash
from pipeline.job import CARRIED_OUT
from pipeline.spaces import WEIGHT, Space

DECIDING = ("pipeline.cluster.trial", "pipeline.cluster.study")
"""The modules that decide what comes of a trial, and which trials there are."""


def study_identity(
    values: dict[str, Any], data: str, space: Space, rules: dict[str, Any], measures: bool
) -> dict[str, str]:
    """Part -> digest: data, params, space, rules (of ``tune``) and code.

    Args:
        values: plain params of the trials.
        data: hash of the packs.
        space: what is searched.
        rules: how trials are run, compared and stopped.
        measures: whether trials are measured on the test images as ``evaluate`` says.
    """
    task = values["tasks"][values["task"]]
    chosen = {
        "task": values["task"],
        "seed": values["seed"],
        "colour": values["preprocess"]["colour"],
        "tasks": task if measures else {key: task[key] for key in ("degradation", "rotations")},
        "network": values["network"],
        "equivariance": {
            key: value
            for key, value in values["equivariance"].items()
            if not (f"equivariance.{key}" == WEIGHT and _always_chooses_weight(space))
        },
        "train": {key: value for key, value in values["train"].items() if key not in CARRIED_OUT},
        "evaluate": values["evaluate"] if measures else None,
    }
    parts: dict[str, Any] = {
        "data": data,
        "params": chosen,
        "space": space.identity,
        "rules": {**rules, "measures": measures},
        "code": [deciding_hash(*DECIDING), torch.__version__],
    }
    return {name: _digest(json.dumps(part, sort_keys=True, default=str).encode()) for name, part in parts.items()}


def auto_name(task: str, identity: dict[str, str]) -> str:
    """The name of the study of this identity."""
    return f"{task}-{_digest(json.dumps(identity, sort_keys=True).encode())}"


def _always_chooses_weight(space: Space) -> bool:
    return any(
        parameter.key == WEIGHT and any(not each.when for _, each in parameter.alternatives)
        for parameter in space.parameters
    )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]
