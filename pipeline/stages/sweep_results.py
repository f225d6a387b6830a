"""Writes the results of a sweep to results/tune.

These are the best trial as a patch of params, a table of all trials, the Pareto front and a figure.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich import box
from rich.table import Table

from pipeline.config.schema import Params
from pipeline.console import console
from pipeline.paths import BEST
from pipeline.search_space.space import WEIGHT

if TYPE_CHECKING:
    from pipeline.study.study import Trial

NOTE = "one seed: not evidence"
_PENALTY = "equivariance.penalty"
# Objective -> (metric, whether a lower value is better).
_METRICS = {
    "score": ("val_score", False),
    "equivariance_error": ("equivariance_error", True),
    "step_time": ("step_time", True),
}
_ERRORS = {"layer_error": "layers", "equivariance_error": "output"}
"""Metric of a finished trial -> where the equivariance error is measured (in the layers or at the output)."""


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """Returns the finished trial with the highest validation score; it may be the control."""
    return max(finished(trials), key=lambda trial: trial.metrics["val_score"], default=None)


def finished(trials: Sequence[Trial]) -> list[Trial]:
    """Returns the trials that ran to their end: neither stopped early nor failed."""
    return [trial for trial in trials if not trial.stopped_early and trial.failure is None]


def pareto_front(trials: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
    """Returns the finished trials that no other finished trial dominates.

    A trial dominates another one if it is at least as good in every objective and better in one.
    """

    def losses(trial: Trial) -> list[float]:
        chosen = [_METRICS[objective] for objective in objectives]
        return [trial.metrics[metric] if less else -trial.metrics[metric] for metric, less in chosen]

    def beats(one: list[float], other: list[float]) -> bool:
        return one != other and all(a <= b for a, b in zip(one, other, strict=True))

    of_all = [(trial, losses(trial)) for trial in finished(trials)]
    return [trial for trial, own in of_all if not any(beats(other, own) for _, other in of_all)]


def write_results(
    folder: Path, trials: Sequence[Trial], params: Params, score: str, objectives: Sequence[str] = ("score",)
) -> None:
    """Writes best.yaml, trials.csv, trials.png if there are trials, and pareto.csv if there are several objectives.

    Args:
        folder: folder for the files.
        trials: trials of the sweep; none if there was no sweep.
        params: of the sweep.
        score: title of the score.
        objectives: names of the objectives.
    """
    best, control = best_trial(trials), _control(trials)
    keys = sorted({key for trial in trials for key in trial.params})
    measured = [*_ERRORS, *(["step_time"] if "step_time" in objectives else [])]
    summary: dict[str, Any] = {"params": dict(best.params) if best else {}, "note": NOTE if best else "no sweep"}
    if best:
        summary |= {"trial": best.number, "val_score": round(best.metrics["val_score"], 4)}
        if (difference := difference_to(best, control)) is not None:  # it is None, for example, if the control failed
            summary["difference_to_control"] = round(difference, 4)
    (folder / BEST.name).write_text(yaml.safe_dump(summary, sort_keys=False))
    with (folder / "trials.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        columns = ["trial", "control", *keys, "steps", "val_score", "difference_to_control", *measured]
        writer.writerow([*columns, "stopped_early", "failure"])
        for trial in trials:
            cells = [trial.params.get(key, params.value(key)) for key in keys]
            figures = [trial.metrics.get("val_score"), difference_to(trial, control)]
            others = [trial.metrics.get(metric) for metric in measured]
            ended = [trial.stopped_early, trial.failure]
            writer.writerow([trial.number, trial.is_control, *cells, trial.steps, *figures, *others, *ended])
    if len(objectives) > 1:
        _write_front(folder / "pareto.csv", trials, params, keys, objectives)
    if trials:
        from components.evaluation.figures import save_trials

        save_trials(
            folder / "trials.png",
            [
                {
                    "weight": _value(trial, params, WEIGHT),
                    "penalty": _value(trial, params, _PENALTY),
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
    """A finished trial, as read from ``trials.csv``.

    Attributes:
        number: number of the trial.
        steps: number of training steps.
        weight: weight of the penalty, as text; None if the sweep did not vary it.
        penalty: name of the penalty, as text; None if the sweep did not vary it.
        score: validation score.
        layer_error: relative equivariance error of the layers under quarter turns.
        output_error: relative equivariance error of the output under quarter turns.
    """

    number: int
    steps: int
    weight: str | None
    penalty: str | None
    score: float
    layer_error: float
    output_error: float


def best_and_control(folder: Path) -> tuple[Compared, Compared] | None:
    """Reads the best trial with a penalty and the control.

    The control is the trial without a penalty; it trains on the same pairs for the same number of steps.

    Args:
        folder: folder that holds ``trials.csv``.

    Returns:
        (best trial, control); None if there was no sweep or one of the two did not finish.
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


def print_table(trials: Sequence[Trial], params: Params, score: str, objectives: Sequence[str]) -> None:
    """Prints the table of trials on the console.

    Args:
        trials: trials of the sweep.
        params: of the sweep.
        score: title of the score.
        objectives: names of the objectives.
    """
    control, best = _control(trials), best_trial(trials)
    front = pareto_front(trials, objectives) if len(objectives) > 1 else []
    table = Table(title=f"trials ({NOTE})", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0))
    titles = dict(_ERRORS)
    if "step_time" in objectives:
        titles["step_time"] = "step time"
    for column in ("trial", "weight", "penalty", "steps", score, "to control", *titles.values()):
        is_score = column == score  # this column may hold the long text of a failure
        table.add_column(column, justify="right", no_wrap=not is_score, min_width=5 if is_score else None)
    for trial in trials:
        difference = difference_to(trial, control)
        mark = " control" if trial.is_control else ""
        mark += " best" if trial is best else " front" if any(trial is other for other in front) else ""
        reached = trial.metrics.get("val_score")
        others = [trial.metrics.get(metric) for metric in titles]
        table.add_row(
            f"{trial.number}{mark}",
            "0" if trial.is_control else f"{_value(trial, params, WEIGHT):.3g}",
            "" if trial.is_control else str(_value(trial, params, _PENALTY)),
            f"{trial.steps}{' stopped' if trial.stopped_early else ''}",
            trial.failure or ("" if reached is None else f"{reached:.2f}"),
            "" if difference is None or trial.is_control else f"{difference:+.2f}",
            *("" if value is None else f"{value:.3f}" for value in others),
        )
    console.print(table)
    console.print("on validation images; layers, output: equivariance error under quarter turns")


def difference_to(trial: Trial, control: Trial | None) -> float | None:
    """Returns the difference of the validation score to the control.

    Returns:
        None if there is no control, if either trial failed, or if the two did different numbers of steps.
    """
    if control is None or trial.failure or control.failure or trial.steps != control.steps:
        return None
    return trial.metrics["val_score"] - control.metrics["val_score"]


def _write_front(
    path: Path, trials: Sequence[Trial], params: Params, keys: Sequence[str], objectives: Sequence[str]
) -> None:
    """Writes all finished trials with their objectives and params, and whether they are on the Pareto front."""
    front = {trial.number for trial in pareto_front(trials, objectives)}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "control", "on_front", *objectives, *keys])
        for trial in finished(trials):
            figures = [trial.metrics[_METRICS[objective][0]] for objective in objectives]
            cells = [_value(trial, params, key) for key in keys]
            writer.writerow([trial.number, trial.is_control, trial.number in front, *figures, *cells])


def _control(trials: Sequence[Trial]) -> Trial | None:
    return next((trial for trial in trials if trial.is_control), None)


def _value(trial: Trial, params: Params, key: str) -> Any:
    return trial.params.get(key, params.value(key))
