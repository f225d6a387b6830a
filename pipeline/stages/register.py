"""Stage 6: registers results/train/model.safetensors in the MLflow model registry.

The new version becomes champion if it is better on the validation images. The stage runs in every ``dvc repro``,
because no file shows whether the registry still holds the model. If the registry holds it, the stage does nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.brief import first_line
from pipeline.config.schema import Params
from pipeline.console import console
from pipeline.errors import UserError, fault_of_machine
from pipeline.model_file import load_model, model_sha256
from pipeline.paths import EVALUATE, MODEL, PACKED, REGISTER, existing, replaced_folder
from pipeline.tracking.registry import CHALLENGER, CHAMPION, REASON, UNCHANGED, Registry, Version
from pipeline.tracking.results import lineage_tags, log_registration, log_results
from pipeline.tracking.store import Store

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Decision:
    """The decision about the alias of the new version.

    Attributes:
        alias: alias that the new version gets.
        reason: reason for it, in one line.
    """

    alias: str
    reason: str


def register(params: Params) -> None:
    """Registers the model unless the registry holds it already, and decides which version is the champion."""
    existing(MODEL, "train")
    metrics = json.loads(existing(EVALUATE / "metrics.json", "evaluate").read_text())
    digest = model_sha256(MODEL)
    registry = Registry(Store(params.task))
    known, champion = registry.find(digest), registry.champion()
    if known and champion and (known.number == champion.number or registry.has_files(champion)):
        console.print(f"{registry.name} version {known.number} is this model already: nothing to do")
        _write(registry, known.number, Decision(" and ".join(known.aliases), registry.reason(known.number)))
        return
    network, _ = load_model(MODEL)
    decision = decide(params, network, registry, champion)
    run_id = log_results(registry.store, params.fetch.source)
    tags = lineage_tags(registry.store, run_id) | {REASON: decision.reason} | figures_as_tags(metrics)
    version = known or registry.add(run_id, network, digest, tags, MODEL)
    registry.point(decision.alias, version.number)
    registry.tag(version.number, REASON, decision.reason)
    log_registration(registry.store, run_id, registry.name, version.number, decision.alias, decision.reason)
    _write(registry, version.number, decision)
    console.print(f"{registry.name} version {version.number}: {decision.alias} ({decision.reason})")


def decide(params: Params, network: nn.Module, registry: Registry, champion: Version | None) -> Decision:
    """Decides whether the new version becomes champion or challenger.

    The new version becomes champion if there is no champion, if the champion's files are gone or damaged, if it fails
    on the validation images, or if the new version is better on the present validation set. Better means that the mean
    paired difference of the scores exceeds ``register.margin`` and that its whole interval is above 0. With one scene
    there is no interval, and the new version becomes challenger. Test metrics are not used.

    Args:
        params: checked params.
        network: network of the new version.
        registry: registry of the task's models.
        champion: present champion; None if there is none.

    Raises:
        UserError: the champion cannot be reached, or this machine cannot load or run it. It then keeps its alias.
    """
    if champion is None:
        return Decision(CHAMPION, "there was no champion")
    rival = registry.load(champion)
    if rival is None:
        return Decision(CHAMPION, f"champion version {champion.number} does not load")
    from components.data.packs import Pack
    from components.evaluation.statistics import clustered_interval
    from pipeline.training_job import validation_scores

    validation = Pack(PACKED / "val")
    task = params.build_task()
    own = validation_scores(network, task, validation, range(len(validation)))
    try:
        its = validation_scores(rival, task, validation, range(len(validation)))
    except Exception as error:
        if isinstance(error, OSError) or fault_of_machine(error):
            raise UserError(
                f"champion version {champion.number} cannot be measured here ({fault_of_machine(error) or error})\n"
                f"{UNCHANGED}"
            ) from error
        return Decision(CHAMPION, f"champion version {champion.number} does not run ({first_line(error)})")
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
    """Writes .eqreg/register/decision.json: the version, alias and reason of the model in results/train."""
    with replaced_folder(REGISTER) as folder:
        record = {"name": registry.name, "version": version, "alias": decision.alias, "reason": decision.reason}
        (folder / "decision.json").write_text(json.dumps(record, indent=1) + "\n")


def figures_as_tags(metrics: dict[str, Any]) -> dict[str, str]:
    """Returns the test metrics as text tags of the registered version."""
    return {
        f"eqreg.test.{method}.{metric}": f"{figure:.4f}"
        for method in ("input", "classical", "restored")
        for metric, figure in metrics["test"][method].items()
    }


__all__ = ["Decision", "decide", "register"]
