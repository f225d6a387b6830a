"""The fingerprint of a study: hashes of everything that decides its results.

Trials with different fingerprints are never mixed in one study.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from components.brief import short_digest
from components.registry import module_of
from pipeline.config.schema import Params
from pipeline.config.values import CHOSEN_BY_NAME
from pipeline.provenance.code_hash import deciding_hash
from pipeline.search_space.space import WEIGHT, Space
from pipeline.training_job import CARRIED_OUT

DECIDING = ("pipeline.cluster.trial", "pipeline.study.study")
"""The modules that decide the result of a trial, and which trials there are."""


def study_fingerprint(params: Params, data: str, space: Space, rules: dict[str, Any], measures: bool) -> dict[str, str]:
    """Part of the fingerprint -> digest. The parts are data, params, space, rules (of ``tune``) and code.

    Args:
        params: of the trials.
        data: hash of the packs.
        space: the search space.
        rules: how trials are run, compared and stopped.
        measures: whether trials are measured on the test images with the ``evaluate`` params.
    """
    values = params.resolved
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
        "code": [deciding_hash(*DECIDING, *_modules(params, space)), torch.__version__],
    }
    return {name: short_digest(json.dumps(part, sort_keys=True, default=str)) for name, part in parts.items()}


def _modules(params: Params, space: Space) -> list[str]:
    """Returns the modules of what the params choose by name, and of all members that the space may choose."""
    found = set(params.modules)
    for key, registry in CHOSEN_BY_NAME.items():
        if any(each in (key, f"{key}.name") for parameter in space.parameters for each in parameter.keys):
            found |= {module_of(registry, name) for name in registry}
    return sorted(found)


def auto_name(task: str, identity: dict[str, str]) -> str:
    """The name of the study with this fingerprint, for ``tune.study: auto``."""
    return f"{task}-{short_digest(json.dumps(identity, sort_keys=True))}"


def _always_chooses_weight(space: Space) -> bool:
    return any(
        parameter.key == WEIGHT and any(not each.when for _, each in parameter.alternatives)
        for parameter in space.parameters
    )
