"""Stage 6: results/train/model.safetensors -> the MLflow registry; the alias moves if validation says so.

Runs in every ``dvc repro``, since no file can say whether the registry still holds the model. Where it does,
nothing is done.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.console import console
from pipeline.model_hash import model_sha256
from pipeline.params import Params
from pipeline.paths import EVALUATE, MODEL, PACKED, REGISTER, existing, replaced_folder
from pipeline.tracking.registry import CHALLENGER, CHAMPION, REASON, Registry, Version
from pipeline.tracking.results import lineage_tags, log_results
from pipeline.tracking.store import Store

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Decision:
    """Which alias the new version gets, and why, in one line."""

    alias: str
    reason: str


def register(params: Params) -> None:
    """Registers the model unless the registry holds it already, and decides who is champion."""
    existing(MODEL, "train")
    metrics = json.loads(existing(EVALUATE / "metrics.json", "evaluate").read_text())
    digest = model_sha256(MODEL)
    registry = Registry(Store(params.task))
    known, champion = registry.find(digest), registry.champion()
    if known and champion and (known.number == champion.number or registry.has_files(champion)):
        console.print(f"{registry.name} version {known.number} is this model already: nothing to do")
        _write(registry, known.number, Decision(" and ".join(known.aliases), registry.reason(known.number)))
        return
    from pipeline.job import load_model

    network, _ = load_model(MODEL)
    decision = decide(params, network, registry, champion)
    run_id = log_results(registry.store)
    tags = lineage_tags(registry.store, run_id) | {REASON: decision.reason} | figures_as_tags(metrics)
    version = known or registry.add(run_id, network, digest, tags)
    registry.point(decision.alias, version.number)
    registry.tag(version.number, REASON, decision.reason)
    _write(registry, version.number, decision)
    console.print(f"{registry.name} version {version.number}: {decision.alias} ({decision.reason})")


def decide(params: Params, network: nn.Module, registry: Registry, champion: Version | None) -> Decision:
    """Champion if there is none that loads, or if it is beaten on the present validation set by more than the margin,
    with the whole paired interval above 0. Test figures take no part.
    """
    if champion is None:
        return Decision(CHAMPION, "there was no champion")
    rival = registry.load(champion)
    if rival is None:
        return Decision(CHAMPION, f"champion version {champion.number} does not load")
    from components.data.packs import Pack
    from components.evaluation.statistics import clustered_interval
    from pipeline.job import validation_scores

    validation = Pack(PACKED / "val")
    task = params.build_task()
    own = validation_scores(network, task, validation, range(len(validation)))
    try:
        its = validation_scores(rival, task, validation, range(len(validation)))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Decision(CHAMPION, f"champion version {champion.number} does not run ({reason})")
    differences = [mine - other for mine, other in zip(own, its, strict=True)]
    scenes = [entry.scene for entry in validation.entries]
    interval = clustered_interval(differences, scenes, seed=params.seed)
    shown = f"{interval.mean:+.3f} ({task.score.title}) on validation"
    if interval.low is None:
        return Decision(CHALLENGER, f"{shown} to version {champion.number}, no interval with one scene")
    shown += f" [{interval.low:+.3f}, {interval.high:+.3f}] to version {champion.number}"
    wins = interval.mean > params.register_.margin and interval.low > 0
    return Decision(CHAMPION if wins else CHALLENGER, f"{shown}, margin {params.register_.margin:g}")


def _write(registry: Registry, version: str, decision: Decision) -> None:
    """.eqreg/register/decision.json: what the registry says of the model in results/train."""
    with replaced_folder(REGISTER) as folder:
        record = {"name": registry.name, "version": version, "alias": decision.alias, "reason": decision.reason}
        (folder / "decision.json").write_text(json.dumps(record, indent=1) + "\n")


def figures_as_tags(metrics: dict[str, Any]) -> dict[str, str]:
    """The test figures, for people to read."""
    return {
        f"eqreg.test.{method}.{metric}": f"{figure:.4f}"
        for method in ("input", "classical", "restored")
        for metric, figure in metrics["test"][method].items()
    }


__all__ = ["Decision", "decide", "register"]
