"""Stage 3: data/packed and a space -> results/tune: the best trial as a patch of params, all trials, a figure."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.table import Table

from pipeline.console import console, progress
from pipeline.errors import UserError
from pipeline.job import TrainingJob
from pipeline.lineage import Lineage, trace
from pipeline.params import Params, get_value, read_values
from pipeline.paths import BEST, PACKED, PARAMS, SCRATCH, TUNE, existing, replaced_folder
from pipeline.spaces import WEIGHT, Space, load_space
from pipeline.tracking.store import PARENT_TAG, Store

if TYPE_CHECKING:
    from pipeline.cluster.sweep import Trial

NOTE = "one seed: not evidence"
_PENALTY = "equivariance.penalty"


def tune(params: Params) -> None:
    """Searches the space with short one-worker trainings, the control (weight 0, same pairs) among them."""
    values, score = read_values(PARAMS), params.build_task().score.title
    if params.tune.trials == 0:
        with replaced_folder(TUNE) as folder:
            _write(folder, [], values, score)
        console.print("tune.trials is 0: no sweep")
        return
    space = load_space(params.tune.space, values)
    for part in ("train", "val"):
        existing(PACKED / part, "preprocess")
    TrainingJob(params, PACKED.resolve()).check(num_workers=1)
    log = _TrialLog(Store(params.task), trace(params))
    with log.ended_if_broken_off():
        trials = _run(params, _trial_values(values, params), space, log)
    with replaced_folder(TUNE) as folder:
        _write(folder, trials, values, score)
    log.end(trials, TUNE)
    _print(trials, values, score)


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the highest validation score of those that ran to their end; the control may be it."""
    finished = [trial for trial in trials if not trial.stopped_early and trial.failure is None]
    return max(finished, key=lambda trial: trial.metrics["val_score"], default=None)


def _trial_values(values: dict[str, Any], params: Params) -> dict[str, Any]:
    """params.yaml with the trials' own rhythm: shorter, and a report wherever one may be stopped."""
    train = values["train"] | {
        "steps": params.tune.steps,
        "report_every": params.tune.grace_steps,
        "validate_every": params.tune.grace_steps,
        "checkpoint_every": params.tune.steps,
        "warmup_steps": min(params.train.warmup_steps, params.tune.steps // 4),
    }
    equivariance = values["equivariance"] | {
        "warmup_steps": min(params.equivariance.warmup_steps, params.tune.steps // 4)
    }
    return values | {"train": train, "equivariance": equivariance}


def _run(params: Params, values: dict[str, Any], space: Space, log: _TrialLog) -> list[Trial]:
    """The sweep itself, with its progress on the console."""
    from pipeline.cluster.session import ray_session

    total = (params.tune.trials + 1) * params.tune.steps
    storage = (SCRATCH / "tune").resolve()
    with progress() as bars, ray_session(params.cluster.address, dashboard=True):
        from pipeline.cluster.sweep import SweepSettings, sweep

        bar = bars.add_task("tuning", total=total, note="starting Ray")
        steps: dict[int, int] = {}

        def on_result(number: int, config: dict[str, Any], step: int, metrics: dict[str, float]) -> None:
            log.add(number, config, step, metrics)
            steps[number] = step
            outcome = f"{metrics['val_score']:.2f}" if metrics else "failed"
            bars.update(bar, completed=sum(steps.values()), note=f"trial {number}: {outcome}")

        chosen = params.tune
        settings = SweepSettings(
            chosen.trials, chosen.steps, chosen.grace_steps, chosen.concurrent, params.seed, storage
        )
        trials = sweep(values, PACKED.resolve(), space, settings, on_result)
        bars.update(bar, completed=total, note="")
    shutil.rmtree(storage, ignore_errors=True)
    if all(trial.failure for trial in trials):
        raise UserError(f"all {len(trials)} trials failed, the first one: {trials[0].failure}")
    return trials


class _TrialLog:
    """Every trial as an MLflow run nested under the parent run of the lineage."""

    def __init__(self, store: Store, lineage: Lineage) -> None:
        self._store, self._tags = store, lineage.tags()
        self._parent = store.parent_run(self._tags)
        store.delete_trials(self._parent)  # of an earlier sweep of the same lineage, which this one repeats
        self._runs: dict[int, str] = {}

    def add(self, number: int, config: dict[str, Any], step: int, metrics: dict[str, float]) -> None:
        """Logs one report of a trial."""
        if number not in self._runs:
            kind = {"eqreg.kind": "trial", PARENT_TAG: self._parent, "eqreg.control": str("control" in config).lower()}
            params = {key: value for key, value in config.items() if key != "control"}
            self._runs[number] = self._store.begin(f"trial-{number}", self._tags | kind, params)
        self._store.log(self._runs[number], step, metrics)

    def ended_if_broken_off(self) -> AbstractContextManager[None]:
        """Marks the trials begun so far as FAILED or KILLED if the sweep breaks off."""
        return self._store.ended_if_broken_off(self._runs.values())

    def end(self, trials: Sequence[Trial], folder: Path) -> None:
        """Marks the trials as what they became and keeps the sweep's tables and figure."""
        for trial in trials:
            if trial.number in self._runs:
                status = "FAILED" if trial.failure else "KILLED" if trial.stopped_early else "FINISHED"
                self._store.end(self._runs[trial.number], status)
                if trial.failure:
                    self._store.set_tag(self._runs[trial.number], "eqreg.failure", trial.failure)
        self._store.log_files(self._parent, folder, "tune")


def _write(folder: Path, trials: Sequence[Trial], values: dict[str, Any], score: str) -> None:
    """best.yaml, trials.csv and, if there are trials, trials.png."""
    best, control = best_trial(trials), next((trial for trial in trials if trial.is_control), None)
    keys = sorted({key for trial in trials for key in trial.params})
    summary: dict[str, Any] = {
        "params": dict(best.params) if best else {},
        "note": NOTE if best else "no sweep",
    }
    if best and control:
        summary |= {"trial": best.number, "val_score": round(best.metrics["val_score"], 4)}
        if (difference := _difference(best, control)) is not None:  # the control may have failed
            summary["difference_to_control"] = round(difference, 4)
    (folder / BEST.name).write_text(yaml.safe_dump(summary, sort_keys=False))
    with (folder / "trials.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "trial",
                "control",
                *keys,
                "steps",
                "val_score",
                "difference_to_control",
                "stopped_early",
                "failure",
            ]
        )
        for trial in trials:
            cells = [trial.params.get(key, get_value(values, key)) for key in keys]
            reached, difference = trial.metrics.get("val_score"), _difference(trial, control)
            writer.writerow(
                [
                    trial.number,
                    trial.is_control,
                    *cells,
                    trial.steps,
                    reached,
                    difference,
                    trial.stopped_early,
                    trial.failure,
                ]
            )
    if trials:
        from components.evaluation.figures import save_trials

        save_trials(
            folder / "trials.png",
            [
                {
                    "weight": trial.params[WEIGHT],
                    "penalty": trial.params.get(_PENALTY, get_value(values, _PENALTY)),
                    "score": trial.metrics["val_score"],
                    "stopped_early": trial.stopped_early,
                    "is_control": trial.is_control,
                }
                for trial in trials
                if trial.failure is None
            ],
            score,
        )


def _print(trials: Sequence[Trial], values: dict[str, Any], score: str) -> None:
    control, best = next(trial for trial in trials if trial.is_control), best_trial(trials)
    table = Table(title=f"trials ({NOTE})", title_justify="left")
    for column in ("trial", "weight", "penalty", "steps", f"validation {score}", "to control"):
        table.add_column(column, justify="right")
    for trial in trials:
        difference = _difference(trial, control)
        table.add_row(
            f"{trial.number}{' best' if trial is best else ''}",
            "0 (control)" if trial.is_control else f"{trial.params[WEIGHT]:.4g}",
            "" if trial.is_control else str(trial.params.get(_PENALTY, get_value(values, _PENALTY))),
            f"{trial.steps}{' stopped' if trial.stopped_early else ''}",
            trial.failure or f"{trial.metrics['val_score']:.2f}",
            "" if difference is None or trial.is_control else f"{difference:+.2f}",
        )
    console.print(table)


def _difference(trial: Trial, control: Trial | None) -> float | None:
    """To the control, at the same number of steps; None where they did not do the same number."""
    if control is None or trial.failure or control.failure or trial.steps != control.steps:
        return None
    return trial.metrics["val_score"] - control.metrics["val_score"]
