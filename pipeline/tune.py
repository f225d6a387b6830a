"""Stage 3: data/packed and a space -> results/tune: the best trial as a patch of params, all trials, figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.equivariance.layers import named_layers, requested_fields
from pipeline.console import console, progress
from pipeline.errors import UserError
from pipeline.interrupts import interrupts_first
from pipeline.job import TrainingJob
from pipeline.lineage import trace
from pipeline.params import Params, read_values
from pipeline.paths import PACKED, PARAMS, SCRATCH, TUNE, existing, replaced_folder
from pipeline.spaces import Space, load_space
from pipeline.storage.delivery import Delivery, deliver
from pipeline.storage.places import open_place
from pipeline.sweep_results import print_table, write_results
from pipeline.tracking.store import Store
from pipeline.tracking.sweeps import SweepLog

if TYPE_CHECKING:
    from pipeline.cluster.study import Study, Trial
    from pipeline.cluster.sweep import SweepSettings


def tune(params: Params) -> None:
    """Searches the space with short trainings, the control (weight 0, same pairs) among them.

    A sweep that was stopped or killed goes on; its study keeps what it has. More trials may be asked for later.
    """
    values, score = read_values(PARAMS), params.build_task().score.title
    if params.tune.trials == 0:
        with replaced_folder(TUNE) as folder:
            write_results(folder, [], values, score)
        console.print("tune.trials is 0: no sweep")
        return
    job = TrainingJob(params, PACKED.resolve())
    space = load_space(params.tune.space, values, lambda: _layers(job))
    for part in ("train", "val"):
        existing(PACKED / part, "preprocess")
    job.check([params.tune.num_workers])
    settings = sweep_settings(params)
    open_place(settings.storage).check()
    delivery = deliver(PACKED, params.cluster.storage, params.cluster.cache)
    values = trial_values(values, params)
    with interrupts_first():
        from pipeline.cluster.sweep import open_study

        study = open_study(values, delivery.hash, space, settings)
        log = SweepLog(Store(params.task), trace(params).tags(), study.name, study.key, study.locked())
        with log.ended_if_broken_off():
            trials = _run(params, values, delivery, space, settings, study, log)
            with replaced_folder(TUNE) as folder:
                write_results(folder, trials, values, score, params.tune.objectives)
                _save_figures(folder, study, params.tune.objectives, score)
            log.end(trials, study.scores(), TUNE)
    print_table(trials, values, score, params.tune.objectives)


def trial_values(values: dict[str, Any], params: Params) -> dict[str, Any]:
    """params.yaml with the trials' own rhythm: shorter, and a report and a checkpoint wherever one may be stopped."""
    train = values["train"] | {
        "steps": params.tune.steps,
        "report_every": params.tune.grace_steps,
        "validate_every": params.tune.grace_steps,
        "checkpoint_every": params.tune.grace_steps,
        "warmup_steps": min(params.train.warmup_steps, params.tune.steps // 4),
    }
    equivariance = values["equivariance"] | {
        "warmup_steps": min(params.equivariance.warmup_steps, params.tune.steps // 4)
    }
    return values | {"train": train, "equivariance": equivariance}


def sweep_settings(params: Params, **changes: Any) -> SweepSettings:
    """``tune`` and ``cluster`` of the params as a sweep wants them, with changes."""
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
    values: dict[str, Any],
    delivery: Delivery,
    space: Space,
    settings: SweepSettings,
    study: Study,
    log: SweepLog,
) -> list[Trial]:
    """The sweep itself, with its progress on the console."""
    from pipeline.cluster.session import ray_session
    from pipeline.cluster.sweep import sweep

    kept = study.trials()
    steps = {trial.number: params.tune.steps for trial in kept}
    if kept:
        console.print(f"study {study.name}: {len(kept)} trials are there already")
    study.settle()  # what a driver that died had not come to
    if study.is_complete(params.tune.trials):
        _refuse_failures(kept, study.name)
        return kept
    total = max(params.tune.trials + study.has_control, len(kept)) * params.tune.steps
    with progress() as bars, ray_session(params.cluster, dashboard=params.tune.num_workers > 1):
        bar = bars.add_task("tuning", total=total, note=f"study {study.name}")

        def on_result(trial: Trial, rows: Sequence[tuple[int, dict[str, float]]]) -> None:
            log.add(trial, rows)
            steps[trial.number] = params.tune.steps if trial.has_ended else trial.steps
            reached = trial.metrics.get("val_score")
            outcome = "failed" if trial.failure else "begun" if reached is None else f"{reached:.2f}"
            bars.update(bar, completed=sum(steps.values()), note=f"trial {trial.number}: {outcome}")

        trials = sweep(values, delivery, space, settings, on_result, study)
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
    from pipeline.cluster.sweep_figures import save_figures

    for line in save_figures(folder, study.without_control(), study.with_control(), objectives, score):
        console.print(line)


def _layers(job: TrainingJob) -> list[str]:
    """The names of the layers that the penalty may take."""
    return list(requested_fields(named_layers(job.network()), job.params.equivariance.layers))
