"""What decides the results of a study, by part, so that trials of different things never meet in one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.code_hash import code_hash
from pipeline.spaces import WEIGHT, Space

# Beside what decides a training.
_CODE = (
    "cluster/asha.py",
    "cluster/study.py",
    "cluster/trial.py",
    "distributions.py",
    "measure.py",
    "space_parsing.py",
    "spaces.py",
)
# Of train: what changes how a run is carried out, and not what comes of it.
_CARRIED_OUT = ("num_workers", "keep_best")


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
        "train": {key: value for key, value in values["train"].items() if key not in _CARRIED_OUT},
        "evaluate": values["evaluate"] if measures else None,
    }
    parts: dict[str, Any] = {
        "data": data,
        "params": chosen,
        "space": space.identity,
        "rules": {**rules, "measures": measures},
        "code": _code(),
    }
    return {name: _digest(json.dumps(part, sort_keys=True, default=str).encode()) for name, part in parts.items()}


def auto_name(task: str, identity: dict[str, str]) -> str:
    """The name of the study of this identity."""
    return f"{task}-{_digest(json.dumps(identity, sort_keys=True).encode())}"


def _code() -> list[str]:
    root = Path(__file__).parents[1]
    return [code_hash(), *(_digest(path.read_bytes()) for name in _CODE for path in root.glob(name))]


def _always_chooses_weight(space: Space) -> bool:
    return any(
        parameter.key == WEIGHT and any(not each.when for _, each in parameter.alternatives)
        for parameter in space.parameters
    )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]
