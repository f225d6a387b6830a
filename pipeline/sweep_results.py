"""What a sweep leaves in results/tune: the best trial as a patch of params, all trials, the Pareto front, a figure."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich import box
from rich.table import Table

from pipeline.console import console
from pipeline.params import get_value
from pipeline.paths import BEST
from pipeline.spaces import WEIGHT

if TYPE_CHECKING:
    from pipeline.cluster.study import Trial

NOTE = "one seed: not evidence"
_PENALTY = "equivariance.penalty"
# Objective -> (metric, whether less is better).
_METRICS = {
    "score": ("val_score", False),
    "equivariance_error": ("equivariance_error", True),
    "step_time": ("step_time", True),
}
_ERRORS = {"layer_error": "layers", "equivariance_error": "output"}
"""Metric of each trial that ran to its end -> whose equivariance error it is."""


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the highest validation score of those that ran to their end; the control may be it."""
    return max(finished(trials), key=lambda trial: trial.metrics["val_score"], default=None)


def finished(trials: Sequence[Trial]) -> list[Trial]:
    """Those that ran to their end."""
    return [trial for trial in trials if not trial.stopped_early and trial.failure is None]


def pareto_front(trials: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
    """Those that ran to their end and than which none is as good in every objective and better in one."""

    def losses(trial: Trial) -> list[float]:
        chosen = [_METRICS[objective] for objective in objectives]
        return [trial.metrics[metric] if less else -trial.metrics[metric] for metric, less in chosen]

    def beats(one: list[float], other: list[float]) -> bool:
        return one != other and all(a <= b for a, b in zip(one, other, strict=True))

    of_all = [(trial, losses(trial)) for trial in finished(trials)]
    return [trial for trial, own in of_all if not any(beats(other, own) for _, other in of_all)]


def write_results(
    folder: Path, trials: Sequence[Trial], values: dict[str, Any], score: str, objectives: Sequence[str] = ("score",)
) -> None:
    """best.yaml, trials.csv and, if there are trials, trials.png; of several objectives also pareto.csv."""
    best, control = best_trial(trials), _control(trials)
    keys = sorted({key for trial in trials for key in trial.params})
    measured = [*_ERRORS, *(["step_time"] if "step_time" in objectives else [])]
    summary: dict[str, Any] = {"params": dict(best.params) if best else {}, "note": NOTE if best else "no sweep"}
    if best:
        summary |= {"trial": best.number, "val_score": round(best.metrics["val_score"], 4)}
        if (difference := difference_to(best, control)) is not None:  # the control may have failed
            summary["difference_to_control"] = round(difference, 4)
    (folder / BEST.name).write_text(yaml.safe_dump(summary, sort_keys=False))
    with (folder / "trials.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        columns = ["trial", "control", *keys, "steps", "val_score", "difference_to_control", *measured]
        writer.writerow([*columns, "stopped_early", "failure"])
        for trial in trials:
            cells = [trial.params.get(key, get_value(values, key)) for key in keys]
            figures = [trial.metrics.get("val_score"), difference_to(trial, control)]
            others = [trial.metrics.get(metric) for metric in measured]
            ended = [trial.stopped_early, trial.failure]
            writer.writerow([trial.number, trial.is_control, *cells, trial.steps, *figures, *others, *ended])
    if len(objectives) > 1:
        _write_front(folder / "pareto.csv", trials, values, keys, objectives)
    if trials:
        from components.evaluation.figures import save_trials

        save_trials(
            folder / "trials.png",
            [
                {
                    "weight": _value(trial, values, WEIGHT),
                    "penalty": _value(trial, values, _PENALTY),
                    "score": trial.metrics["val_score"],
                    "stopped_early": trial.stopped_early,
                    "is_control": trial.is_control,
                }
                for trial in trials
                if trial.failure is None and "val_score" in trial.metrics
            ],
            score,
        )


@dataclass(frozen=True)
class Compared:
    """A trial that ran to its end, as ``trials.csv`` has it.

    Attributes:
        number: of the trial.
        steps: how many it did.
        weight, penalty: of the penalty; as text, where the sweep varied them.
        score: on validation.
        layer_error, output_error: relative, under quarter turns.
    """

    number: int
    steps: int
    weight: str | None
    penalty: str | None
    score: float
    layer_error: float
    output_error: float


def best_and_control(folder: Path) -> tuple[Compared, Compared] | None:
    """The best trial with a penalty, and the trial without one that saw the same pairs for as many steps.

    Args:
        folder: with ``trials.csv``.

    Returns:
        None where there was no sweep, or one of the two did not run to its end.
    """
    path = folder / "trials.csv"
    if not path.exists():
        return None
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["stopped_early"] == "False" and not row["failure"]]
    of_kind: dict[str, list[Compared]] = {"True": [], "False": []}
    for row in rows:
        if row.get("layer_error"):
            errors = float(row["layer_error"]), float(row["equivariance_error"])
            choice = row.get(WEIGHT), row.get(_PENALTY)
            trial = Compared(int(row["trial"]), int(row["steps"]), *choice, float(row["val_score"]), *errors)
            of_kind[row["control"]].append(trial)
    if not all(of_kind.values()):
        return None
    return max(of_kind["False"], key=lambda trial: trial.score), of_kind["True"][0]


def print_table(trials: Sequence[Trial], values: dict[str, Any], score: str, objectives: Sequence[str]) -> None:
    """The trials on the console."""
    control, best = _control(trials), best_trial(trials)
    front = pareto_front(trials, objectives) if len(objectives) > 1 else []
    table = Table(title=f"trials ({NOTE})", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0))
    titles = dict(_ERRORS)
    if "step_time" in objectives:
        titles["step_time"] = "step time"
    for column in ("trial", "weight", "penalty", "steps", score, "to control", *titles.values()):
        is_score = column == score  # which may be a failure, in many words
        table.add_column(column, justify="right", no_wrap=not is_score, min_width=5 if is_score else None)
    for trial in trials:
        difference = difference_to(trial, control)
        mark = " control" if trial.is_control else ""
        mark += " best" if trial is best else " front" if any(trial is other for other in front) else ""
        reached = trial.metrics.get("val_score")
        others = [trial.metrics.get(metric) for metric in titles]
        table.add_row(
            f"{trial.number}{mark}",
            "0" if trial.is_control else f"{_value(trial, values, WEIGHT):.3g}",
            "" if trial.is_control else str(_value(trial, values, _PENALTY)),
            f"{trial.steps}{' stopped' if trial.stopped_early else ''}",
            trial.failure or ("" if reached is None else f"{reached:.2f}"),
            "" if difference is None or trial.is_control else f"{difference:+.2f}",
            *("" if value is None else f"{value:.3f}" for value in others),
        )
    console.print(table)
    console.print("on validation images; layers, output: equivariance error under quarter turns")


def difference_to(trial: Trial, control: Trial | None) -> float | None:
    """To the control, at the same number of steps; None where they did not do the same number."""
    if control is None or trial.failure or control.failure or trial.steps != control.steps:
        return None
    return trial.metrics["val_score"] - control.metrics["val_score"]


def _write_front(
    path: Path, trials: Sequence[Trial], values: dict[str, Any], keys: Sequence[str], objectives: Sequence[str]
) -> None:
    """All trials that ran to their end, with what was weighed, and whether they are on the front."""
    front = {trial.number for trial in pareto_front(trials, objectives)}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "control", "on_front", *objectives, *keys])
        for trial in finished(trials):
            figures = [trial.metrics[_METRICS[objective][0]] for objective in objectives]
            cells = [_value(trial, values, key) for key in keys]
            writer.writerow([trial.number, trial.is_control, trial.number in front, *figures, *cells])


def _control(trials: Sequence[Trial]) -> Trial | None:
    return next((trial for trial in trials if trial.is_control), None)


def _value(trial: Trial, values: dict[str, Any], key: str) -> Any:
    return trial.params.get(key, get_value(values, key))
