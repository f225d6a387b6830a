"""Stage 3: searches a space on data/packed and writes results/tune.

The results are the best trial as a patch of params, a table of all trials, and figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.schema import Params
from pipeline.console import console, progress
from pipeline.errors import UserError
from pipeline.measurement import layer_names
from pipeline.paths import PACKED, SCRATCH, TUNE, existing, replaced_folder
from pipeline.process_state import interrupts_first
from pipeline.provenance.lineage import trace
from pipeline.search_space.space import Space, load_space
from pipeline.stages.sweep_results import print_table, write_results
from pipeline.storage.open_store import open_store
from pipeline.storage.staged_packs import StagedPacks, deliver
from pipeline.tracking.runs.sweeps import SweepLog
from pipeline.tracking.store import Store
from pipeline.training_job import TrainingJob

if TYPE_CHECKING:
    from pipeline.cluster.sweep import SweepSettings
    from pipeline.study.study import Study, Trial


def tune(params: Params) -> None:
    """Searches the space with short trainings; one of them is the control (weight 0 on the same pairs).

    A sweep that was stopped or killed resumes, because its study keeps the trials. A later run may request more trials
    of the same study.
    """
    score = params.build_task().score.title
    if params.tune.trials == 0:
        with replaced_folder(TUNE) as folder:
            write_results(folder, [], params, score)
        console.print("tune.trials is 0: no sweep")
        return
    job = TrainingJob(params, PACKED.resolve())
    space = load_space(params.tune.space, params, lambda: layer_names(job))
    for part in ("train", "val"):
        existing(PACKED / part, "preprocess")
    job.check([params.tune.num_workers])
    settings = sweep_settings(params)
    open_store(settings.storage).check()
    staged = deliver(PACKED, params.cluster.storage, params.cluster.cache)
    of_trials = trial_params(params)
    with interrupts_first():
        from pipeline.cluster.sweep import open_study

        study = open_study(of_trials, staged.hash, space, settings)
        log = SweepLog(Store(params.task), trace(params.hash).tags(), study.name, study.key, study.locked())
        with log.running():
            trials = _run(params, of_trials, staged, space, settings, study, log)
            with replaced_folder(TUNE) as folder:
                write_results(folder, trials, of_trials, score, params.tune.objectives)
                _save_figures(folder, study, params.tune.objectives, score)
            log.end(trials, study.scores(), TUNE)
    print_table(trials, of_trials, score, params.tune.objectives)


def trial_params(params: Params) -> Params:
    """Returns the params with the intervals of the trials.

    The trials have fewer steps. They report, validate and save a checkpoint every ``tune.grace_steps`` steps, which
    includes every step at which a trial may be stopped.
    """
    tune = params.tune
    intervals = dict.fromkeys(("report_every", "validate_every", "checkpoint_every"), tune.grace_steps)
    warmup_steps = {
        "train": min(params.train.warmup_steps, tune.steps // 4),
        "equivariance": min(params.equivariance.warmup_steps, tune.steps // 4),
    }
    return params.patched(
        {f"train.{key}": value for key, value in {"steps": tune.steps, **intervals}.items()}
        | {f"{section}.warmup_steps": steps for section, steps in warmup_steps.items()}
    )


def sweep_settings(params: Params, **changes: Any) -> SweepSettings:
    """Returns the settings of a sweep from the ``tune`` and ``cluster`` params, with the given changes."""
    from pipeline.cluster.sweep import SweepSettings

    chosen: dict[str, Any] = {
        "study": params.tune.study,
        "study_storage": params.tune.study_storage,
        "num_trials": params.tune.trials,
        "steps": params.tune.steps,
        "grace_steps": params.tune.grace_steps,
        "reduction_factor": params.tune.reduction_factor,
        "objectives": tuple(params.tune.objectives),
        "num_workers": params.tune.num_workers,
        "gpu_share": params.tune.gpu_share,
        "concurrent": params.tune.concurrent,
        "seed": params.seed,
        "max_failures": params.cluster.max_failures,
        "storage": params.cluster.storage or str(SCRATCH.resolve()),
        "measures": False,
    }
    return SweepSettings(**chosen | changes)


def _run(
    params: Params,
    of_trials: Params,
    staged: StagedPacks,
    space: Space,
    settings: SweepSettings,
    study: Study,
    log: SweepLog,
) -> list[Trial]:
    """Runs the sweep and shows its progress on the console."""
    from pipeline.cluster.session import ray_session
    from pipeline.cluster.sweep import sweep

    kept = study.trials()
    steps = {trial.number: params.tune.steps for trial in kept}
    if kept:
        console.print(f"study {study.name}: {len(kept)} trials are there already")
    study.make_decisions()  # ends the trials that a driver left open when it died
    if study.is_complete(params.tune.trials):
        _refuse_failures(kept, study.name)
        return kept
    total = max(params.tune.trials + study.has_control, len(kept)) * params.tune.steps
    with progress() as bars, ray_session(params.cluster, dashboard=params.tune.num_workers > 1):
        bar = bars.add_task("tuning", total=total, note=f"study {study.name}")

        def on_result(trial: Trial, reports: Sequence[tuple[int, dict[str, float]]]) -> None:
            log.add(trial, reports)
            steps[trial.number] = params.tune.steps if trial.has_ended else trial.steps
            reached = trial.metrics.get("val_score")
            outcome = "failed" if trial.failure else "begun" if reached is None else f"{reached:.2f}"
            bars.update(bar, completed=sum(steps.values()), note=f"trial {trial.number}: {outcome}")

        trials = sweep(of_trials, staged, space, settings, on_result, study)
        bars.update(bar, completed=total, note="")
    _refuse_failures(trials, study.name)
    return trials


def _refuse_failures(trials: Sequence[Trial], study: str) -> None:
    if all(trial.failure for trial in trials):
        raise UserError(
            f"all {len(trials)} trials failed, the first one: {trials[0].failure}\n"
            f"they stay in study {study}: change what made them fail, and also tune.study if it was not in params.yaml"
        )


def _save_figures(folder: Path, study: Study, objectives: Sequence[str], score: str) -> None:
    from pipeline.study.plots import save_figures

    for line in save_figures(folder, study.without_control(), study.with_control(), objectives, score):
        console.print(line)
