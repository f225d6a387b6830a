"""``eqreg ablate``: compares the control arms on data/packed and writes results/ablate.

The ablation shows whether symmetry helps on these data, and which part of the method contributes. It consists of two
sweeps. The first one measures every candidate weight on the validation images. The second one trains every arm with its
best weight and fresh seeds and measures it on the test images. Each sweep is a study, which resumes when the command is
run again. No decision depends on a test metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from components.evaluation.ablation.arms import Arm, Candidate
from components.training.global_batch import count_pairs
from pipeline.commands.ablation_plan import (
    ARM,
    SEED,
    Point,
    arms_of,
    candidate_results,
    comparison_space,
    points_to_try,
    winner,
)
from pipeline.commands.ablation_results import columns_of, conditions_of, print_ablation, write_ablation
from pipeline.config.schema import Params
from pipeline.console import progress
from pipeline.errors import UserError
from pipeline.measurement import layer_names
from pipeline.paths import ABLATE, PACKED, existing, replaced_folder
from pipeline.process_state import interrupts_first
from pipeline.provenance.lineage import trace
from pipeline.search_space.space import Space, load_space
from pipeline.stages.tune import sweep_settings
from pipeline.storage.open_store import open_store
from pipeline.storage.staged_packs import StagedPacks, deliver
from pipeline.tracking.runs.sweeps import SweepLog
from pipeline.tracking.store import Store
from pipeline.training_job import TrainingJob

if TYPE_CHECKING:
    from pipeline.study.study import Trial


def ablate(params: Params) -> None:
    """Trains and measures the arms of ``ablate.space``, then writes and prints the results.

    Raises:
        UserError: the space cannot be used for an ablation, all runs failed, or their measurements are missing.
    """
    origin = f"ablate.space: {params.ablate.space}"
    job = TrainingJob(params, PACKED.resolve())
    space = load_space(params.ablate.space, params, lambda: layer_names(job), key="ablate.space")
    arms = arms_of(space, origin)
    for part in ("train", "val", "test"):
        existing(PACKED / part, "preprocess")
    job.check([params.tune.num_workers])
    images = _images_a_step(arms, params, job.packed, origin)
    open_store(sweep_settings(params).storage).check()
    staged = deliver(PACKED, params.cluster.storage, params.cluster.cache)
    with interrupts_first(), ExitStack() as stack:
        phases = _Phases(params, staged, stack)
        table, seeds = _run(params, space, arms, phases)
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
    params: Params, space: Space, arms: Mapping[str, Sequence[Point]], phases: _Phases
) -> tuple[list[Arm], list[int]]:
    """Runs both sweeps.

    Returns:
        (all arms with the measurements of their runs, the seeds).
    """
    from pipeline.cluster.session import ray_session

    with ray_session(params.cluster, dashboard=params.tune.num_workers > 1):
        tried = phases.run("weights", space.only(points_to_try(arms)), measures=False)
        outcomes = [
            (trial.choices, None if trial.failure else trial.metrics["val_score"], trial.failure) for trial in tried
        ]
        results = {arm: candidate_results(arm, points, outcomes) for arm, points in arms.items()}
        chosen = {arm: point for arm, points in arms.items() if (point := winner(points, results[arm]))}
        origin = f"ablate.space: {params.ablate.space}"
        compared, seeds = comparison_space(chosen, params, params.ablate.seeds, origin)
        runs = phases.run("arms", compared, measures=True)
    if all(run.failure for run in runs):
        raise UserError(
            f"all {len(runs)} runs failed, the first one: {runs[0].failure}\n"
            "they stay in their study: change what made them fail, and also tune.study if it was not in params.yaml"
        )
    return [_arm(arm, chosen.get(arm), results[arm], runs) for arm in arms], seeds


def _images_a_step(arms: Mapping[str, Sequence[Point]], params: Params, packed: Path, origin: str) -> int:
    """Returns the number of images in a training step, which must be the same for all arms.

    Raises:
        UserError: an arm cannot be built, or an arm trains on more images in a step than another one.
    """
    images = {}
    for arm, points in arms.items():
        of_arm = params.patched(points[0].changes, f"{origin}: arm {arm}")
        job = TrainingJob(of_arm, packed)
        try:
            job.regularizer(job.network())
        except ValueError as error:
            raise UserError(f"{origin}: arm {arm} cannot be built ({error}): take it out of the space") from error
        pairing, fraction = of_arm.equivariance.pairing, of_arm.equivariance.pair_fraction
        images[arm] = of_arm.train.batch_size
        if pairing == "append":
            images[arm] += count_pairs(of_arm.train.batch_size, pairing, fraction)
    least, most = min(images, key=lambda arm: images[arm]), max(images, key=lambda arm: images[arm])
    if images[least] != images[most]:
        raise UserError(
            f"{origin}: arm {most} trains on {images[most]} images a step, and arm {least} on {images[least]}: give "
            "all as many (train.batch_size, and equivariance.pairing: replace)"
        )
    return images[most]


class _Phases:
    """The two sweeps and the settings that they share."""

    def __init__(self, params: Params, staged: StagedPacks, stack: ExitStack) -> None:
        self._params, self._staged, self._stack = params, staged, stack
        steps = params.ablate.steps
        self._of_trials = params.patched(
            {
                "train.steps": steps,
                "train.validate_every": steps,  # no trial is stopped early, so only the last validation counts
                "train.warmup_steps": min(params.train.warmup_steps, steps // 4),
                "equivariance.warmup_steps": min(params.equivariance.warmup_steps, steps // 4),
            }
        )
        self._logs: list[tuple[SweepLog, list[Trial], dict[int, list[tuple[int, float]]]]] = []

    def run(self, phase: str, space: Space, measures: bool) -> list[Trial]:
        """Runs a sweep over the points of a space.

        Args:
            phase: name of the sweep, "weights" or "arms".
            space: grid of the points.
            measures: whether the trials are measured on the test images.

        Returns:
            The trials of these points, including those of earlier calls of the command.
        """
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
        study = open_study(self._of_trials, self._staged.hash, space, settings)
        log = SweepLog(Store(self._params.task), trace(self._params.hash).tags(), study.name, study.key, study.locked())
        kept = {trial.number: steps for trial in study.trials() if trial.choices in points}
        self._stack.enter_context(log.running())
        with progress() as bars:
            bar = bars.add_task(
                f"ablating: {phase}", total=len(points) * steps, completed=sum(kept.values()), note=study.name
            )

            def on_result(trial: Trial, reports: Sequence[tuple[int, dict[str, float]]]) -> None:
                log.add(trial, reports)
                kept[trial.number] = steps if trial.has_ended else trial.steps
                outcome = trial.failure or trial.params.get(ARM) or trial.choices.get(ARM, "")
                bars.update(bar, completed=sum(kept.values()), note=str(outcome)[:60])

            trials = sweep(self._of_trials, self._staged, space, settings, on_result, study)
            bars.update(bar, completed=len(points) * steps, note="")
        self._logs.append((log, trials, study.scores()))
        return [trial for trial in trials if trial.choices in points]

    def end(self, folder: Path) -> None:
        """Ends both sweeps in MLflow and stores the tables of ``folder`` with them."""
        for log, trials, scores in self._logs:
            log.end(trials, scores, folder)


def _arm(name: str, chosen: Point | None, tried: Sequence[Candidate], runs: Sequence[Trial]) -> Arm:
    own = {run.choices[SEED]: run for run in runs if run.choices[ARM] == name}
    return Arm(
        name,
        chosen.weight if chosen else None,
        tried,
        {seed: run.measurements for seed, run in sorted(own.items()) if run.measurements is not None},
        {seed: run.failure or "not measured" for seed, run in sorted(own.items()) if run.measurements is None},
    )
