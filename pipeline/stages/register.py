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
from pipeline.paths import EVALUATE, MODEL, REGISTER, existing, replaced_folder
from pipeline.stages.gates import broken_gate
from pipeline.tracking.models.champions import ChampionChangedError, move_champion
from pipeline.tracking.models.model_card import facts_as_tags, model_card, model_title
from pipeline.tracking.models.registry import CHALLENGER, CHAMPION, REASON, UNCHANGED, Registry, Version
from pipeline.tracking.runs.results import lineage_tags, log_registration, log_results
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
    version = known or _add(params, registry, run_id, network, digest, decision, metrics)
    while not _carry_out(registry, version, decision, champion):
        champion = registry.champion()
        decision = decide(params, network, registry, champion)
    registry.tag(version.number, REASON, decision.reason)
    log_registration(registry.store, run_id, registry.name, version.number, decision.alias, decision.reason)
    _write(registry, version.number, decision)
    console.print(f"{registry.name} version {version.number}: {decision.alias} ({decision.reason})")


def _add(
    params: Params,
    registry: Registry,
    run_id: str,
    network: nn.Module,
    digest: str,
    decision: Decision,
    metrics: dict[str, Any],
) -> Version:
    """Adds a version with its lineage, its figures and its model card."""
    from pipeline.tracking.models.card_facts import collect_facts

    lineage, facts = lineage_tags(registry.store, run_id), collect_facts(params, network, metrics)
    tags = lineage | {REASON: decision.reason} | figures_as_tags(metrics) | facts_as_tags(facts)
    version = registry.add(run_id, network, digest, tags, MODEL)
    registry.describe(
        version.number, model_card(facts, registry.name, version.number, lineage), model_title(params.task)
    )
    return version


def _carry_out(registry: Registry, version: Version, decision: Decision, champion: Version | None) -> bool:
    """Moves the alias; False if another version has become champion since the decision, which then no longer holds."""
    if decision.alias != CHAMPION:
        registry.point(decision.alias, version.number)
        return True
    try:
        before = champion.number if champion else None
        moved = move_champion(registry, version.number, "register", decision.reason, expected=before)
    except ChampionChangedError:
        return False
    for line in moved.conflicts():  # a server has no lock: another version may have become champion meanwhile
        console.print(line, markup=False)
    return True


def decide(params: Params, network: nn.Module, registry: Registry, champion: Version | None) -> Decision:
    """Decides whether the new version becomes champion or challenger.

    The new version becomes champion if there is no champion, if the champion's files are gone or damaged, if it fails
    on the validation images, or if the new version is better on the present validation set. Better means that the mean
    paired difference of the scores exceeds ``register.margin`` and that its whole interval is above 0. With one scene
    there is no interval, and the new version becomes challenger. Test metrics are not used.

    A version that exceeds a bound of ``pipeline.stages.gates`` becomes challenger, also if there is no champion or if
    the champion's files are gone: no champion is better than one that a user has excluded.

    Args:
        params: checked params.
        network: network of the new version.
        registry: registry of the task's models.
        champion: present champion; None if there is none.

    Raises:
        UserError: the champion cannot be reached, or this machine cannot load or run it. It then keeps its alias.
    """
    if (reason := broken_gate(params, network)) is not None:
        return Decision(CHALLENGER, reason)
    if champion is None:
        return Decision(CHAMPION, "there was no champion")
    rival = registry.load(champion)
    if rival is None:
        return Decision(CHAMPION, f"champion version {champion.number} does not load")
    from pipeline.stages.comparison import Validation

    validation = Validation(params)
    own = validation.scores(network)
    try:
        its = validation.scores(rival)
    except Exception as error:
        if isinstance(error, OSError) or fault_of_machine(error):
            raise UserError(
                f"champion version {champion.number} cannot be measured here ({fault_of_machine(error) or error})\n"
                f"{UNCHANGED}"
            ) from error
        return Decision(CHAMPION, f"champion version {champion.number} does not run ({first_line(error)})")
    difference = validation.difference(own, its)
    shown = f"{validation.shown(difference)} to version {champion.number}"
    if difference.low is None:
        return Decision(CHALLENGER, f"{shown}, no interval with one scene")
    wins = difference.mean > params.register_.margin and difference.low > 0
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
