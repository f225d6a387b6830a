"""``eqreg ablate``: data/packed and the control arms -> results/ablate: does symmetry help here, and which part of it?

Two sweeps, each a study that is gone on with when the command is given again: every candidate weight on validation,
then every arm with its best one and fresh seeds, measured on the test images. No test figure decides anything.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.evaluation.arms import Arm, Candidate
from components.training.global_batch import count_pairs
from pipeline.ablation_plan import ARM, SEED, Point, arms_of, candidates, comparison, selection, winner
from pipeline.ablation_results import columns_of, conditions_of, print_ablation, write_ablation
from pipeline.console import progress
from pipeline.errors import UserError
from pipeline.interrupts import interrupts_first
from pipeline.job import TrainingJob
from pipeline.lineage import trace
from pipeline.measure import layer_names
from pipeline.params import Params, check_params, read_values, set_value
from pipeline.paths import ABLATE, PACKED, PARAMS, existing, replaced_folder
from pipeline.spaces import Space, load_space
from pipeline.storage.delivery import Delivery, deliver
from pipeline.storage.places import open_place
from pipeline.tracking.store import Store
from pipeline.tracking.sweeps import SweepLog
from pipeline.tune import sweep_settings

if TYPE_CHECKING:
    from pipeline.cluster.study import Trial


def ablate(params: Params) -> None:
    """Trains and measures the arms of ``ablate.space``, and writes and prints the table."""
    values, origin = read_values(PARAMS), f"ablate.space: {params.ablate.space}"
    job = TrainingJob(params, PACKED.resolve())
    space = load_space(params.ablate.space, values, lambda: layer_names(job), key="ablate.space")
    arms = arms_of(space, origin)
    for part in ("train", "val", "test"):
        existing(PACKED / part, "preprocess")
    job.check([params.tune.num_workers])
    images = _images_a_step(arms, values, job.packed, origin)
    open_place(sweep_settings(params).storage).check()
    delivery = deliver(PACKED, params.cluster.storage, params.cluster.cache)
    with interrupts_first(), ExitStack() as stack:
        phases = _Phases(params, values, delivery, stack)
        table, seeds = _run(params, values, space, arms, phases)
        if not (measured := [rows for arm in table for rows in arm.rows.values()]):
            raise UserError(
                "ablate: what its runs have measured is no longer in cluster.storage: set it to where it was, or name "
                "another tune.study"
            )
        rows = measured[0]
        columns, conditions = columns_of(rows, job.task), conditions_of(params, images, seeds)
        with replaced_folder(ABLATE) as folder:
            write_ablation(folder, table, columns, conditions)
        phases.end(ABLATE)
    print_ablation(table, columns, conditions, ABLATE)


def _run(
    params: Params, values: dict[str, Any], space: Space, arms: Mapping[str, Sequence[Point]], phases: _Phases
) -> tuple[list[Arm], list[int]]:
    """(all arms with what their runs measured, the seeds)."""
    from pipeline.cluster.session import ray_session

    with ray_session(params.cluster, dashboard=params.tune.num_workers > 1):
        tried = phases.run("weights", space.only(selection(arms)), measures=False)
        outcomes = [
            (trial.choices, None if trial.failure else trial.metrics["val_score"], trial.failure) for trial in tried
        ]
        results = {arm: candidates(arm, points, outcomes) for arm, points in arms.items()}
        chosen = {arm: point for arm, points in arms.items() if (point := winner(points, results[arm]))}
        origin = f"ablate.space: {params.ablate.space}"
        compared, seeds = comparison(chosen, values, params.seed, params.ablate.seeds, origin)
        runs = phases.run("arms", compared, measures=True)
    if all(run.failure for run in runs):
        raise UserError(
            f"all {len(runs)} runs failed, the first one: {runs[0].failure}\n"
            "they stay in their study: change what made them fail, and also tune.study if it was not in params.yaml"
        )
    return [_arm(arm, chosen.get(arm), results[arm], runs) for arm in arms], seeds


def _images_a_step(arms: Mapping[str, Sequence[Point]], values: dict[str, Any], packed: Path, origin: str) -> int:
    """The same for all arms; refuses those that cannot be built, and arms that see more than others."""
    images = {}
    for arm, points in arms.items():
        changed = copy.deepcopy(values)
        for key, value in points[0].changes.items():
            set_value(changed, key, value)
        params = check_params(changed, f"{origin}: arm {arm}")
        job = TrainingJob(params, packed)
        try:
            job.regularizer(job.network())
        except ValueError as error:
            raise UserError(f"{origin}: arm {arm} cannot be built ({error}): take it out of the space") from error
        pairing, fraction = params.equivariance.pairing, params.equivariance.pair_fraction
        images[arm] = params.train.batch_size
        if pairing == "append":
            images[arm] += count_pairs(params.train.batch_size, pairing, fraction)
    least, most = min(images, key=lambda arm: images[arm]), max(images, key=lambda arm: images[arm])
    if images[least] != images[most]:
        raise UserError(
            f"{origin}: arm {most} trains on {images[most]} images a step, and arm {least} on {images[least]}: give "
            "all as many (train.batch_size, and equivariance.pairing: replace)"
        )
    return images[most]


class _Phases:
    """The two sweeps, with what they have in common."""

    def __init__(self, params: Params, values: dict[str, Any], delivery: Delivery, stack: ExitStack) -> None:
        self._params, self._delivery, self._stack = params, delivery, stack
        steps = params.ablate.steps
        train = {
            "steps": steps,
            "validate_every": steps,  # nothing is stopped early, so only the end counts
            "warmup_steps": min(params.train.warmup_steps, steps // 4),
        }
        equivariance = {"warmup_steps": min(params.equivariance.warmup_steps, steps // 4)}
        self._values = values | {
            "train": values["train"] | train,
            "equivariance": values["equivariance"] | equivariance,
        }
        self._logs: list[tuple[SweepLog, list[Trial], dict[int, list[tuple[int, float]]]]] = []

    def run(self, phase: str, space: Space, measures: bool) -> list[Trial]:
        """The trials of the space's points, those of earlier calls of the command too."""
        points = space.grid()
        if not points:
            return []
        from pipeline.cluster.sweep import open_study, sweep

        steps = self._params.ablate.steps
        settings = sweep_settings(
            self._params,
            study="auto" if self._params.tune.study == "auto" else f"{self._params.tune.study}-{phase}",
            num_trials=len(points),
            steps=steps,
            grace_steps=steps,
            objectives=("score",),
            measures=measures,
        )
        study = open_study(self._values, self._delivery.hash, space, settings)
        log = SweepLog(Store(self._params.task), trace(self._params).tags(), study.name, study.key, study.locked())
        kept = {trial.number: steps for trial in study.trials() if trial.choices in points}
        self._stack.enter_context(log.ended_if_broken_off())
        with progress() as bars:
            bar = bars.add_task(
                f"ablating: {phase}", total=len(points) * steps, completed=sum(kept.values()), note=study.name
            )

            def on_result(trial: Trial, rows: Sequence[tuple[int, dict[str, float]]]) -> None:
                log.add(trial, rows)
                kept[trial.number] = steps if trial.has_ended else trial.steps
                outcome = trial.failure or trial.params.get(ARM) or trial.choices.get(ARM, "")
                bars.update(bar, completed=sum(kept.values()), note=str(outcome)[:60])

            trials = sweep(self._values, self._delivery, space, settings, on_result, study)
            bars.update(bar, completed=len(points) * steps, note="")
        self._logs.append((log, trials, study.scores()))
        return [trial for trial in trials if trial.choices in points]

    def end(self, folder: Path) -> None:
        """Keeps the tables with both sweeps."""
        for log, trials, scores in self._logs:
            log.end(trials, scores, folder)


def _arm(name: str, chosen: Point | None, tried: Sequence[Candidate], runs: Sequence[Trial]) -> Arm:
    own = {run.choices[SEED]: run for run in runs if run.choices[ARM] == name}
    return Arm(
        name,
        chosen.weight if chosen else None,
        tried,
        {seed: run.rows for seed, run in sorted(own.items()) if run.rows is not None},
        {seed: run.failure or "not measured" for seed, run in sorted(own.items()) if run.rows is None},
    )
