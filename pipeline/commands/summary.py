"""``eqreg summary``: prints the metrics of the last run as a table, and names the files with more details."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from pipeline.config.schema import Params
from pipeline.console import console
from pipeline.paths import EVALUATE, REGISTER, TUNE, existing
from pipeline.provenance.same_bytes import same_bytes
from pipeline.stages.step_cost import recorded_step_cost
from pipeline.stages.sweep_results import best_and_control

if TYPE_CHECKING:
    from collections.abc import Mapping

    from components.tasks.base import Metric

_MOST_METRICS = 3
_GROUPS = {"test": "test", "rotated": "test, turned", "out_of_distribution": "out of distribution"}


def summary(params: Params) -> None:
    """Prints the metrics of results/evaluate, and the files and commands that show more."""
    metrics = json.loads(existing(EVALUATE / "metrics.json", "evaluate").read_text())
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    scenes = metrics["test"]["scenes"]
    for column in ("", "degraded", "classical", "restored", f"gain [{scenes} scenes]"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    task = params.build_task()
    for metric in task.metrics[:_MOST_METRICS]:
        table.add_section()
        table.add_row(metric.title)
        for group, group_title in _GROUPS.items():
            if group in metrics:
                methods, digits = ("input", "classical", "restored"), metric.digits
                means = [f"{metrics[group][method][metric.key]:.{digits}f}" for method in methods]
                gain = _interval(metrics[group]["gain"][metric.key]["over_input"], digits)
                table.add_row(group_title, *means, gain)
    console.print(table)
    classical = ", ".join(str(value).replace("_", " ") for value in metrics["classical_method"].values())
    console.print(f"{params.task}; means over images. classical: {classical}, the best on validation")
    console.print("gain: restored over degraded; interval: 95 % of bootstraps over scenes, too narrow with few scenes")
    if conventions := metrics.get("conventions"):
        _print_conventions(conventions)
    errors = metrics["equivariance_error"]
    console.print(f"equivariance error (relative residual under quarter turns): output {errors['output']:.4f}")
    _print_sweep(task.score)
    if cost := recorded_step_cost():
        console.print(
            f"time: a training step with the penalty takes {cost['step_cost']:.2f} "
            f"[{cost['step_cost_low']:.2f}, {cost['step_cost_high']:.2f}] times as long as one without "
            f"({cost['rounds']} rounds: median, quartiles; other work on the machine raises it: benchmarks/overhead.py)"
        )
    console.print(f"pictures   {EVALUATE}/comparison-*.png, {EVALUATE}/equivariance.png, {TUNE}/trials.png")
    console.print(f"tables     {EVALUATE}/images.csv, {EVALUATE}/metrics.json, {TUNE}/trials.csv")
    if (REGISTER / "decision.json").exists():
        decision = json.loads((REGISTER / "decision.json").read_text())
        alias = decision["alias"] or "without an alias now"
        console.print(f"registry   models:/{decision['name']}/{decision['version']}, {alias}: {decision['reason']}")
    if task.input_kind == "images":
        options = task.restore_options
        model = f"--model models:/eqreg-{params.task}@champion"
        console.print(f"try it     eqreg restore PHOTO.jpg CLEAN.png {model}{options}")
    console.print("look       make ui (MLflow on this machine), dvc plots show, dvc metrics show")
    if line := same_bytes():
        console.print(f"repeats    {line}")


def _print_conventions(conventions: Mapping[str, Mapping[str, float]]) -> None:
    """Prints the PSNR of the restored test images as the scripts of other projects compute it."""
    own, *of_rain, of_channels = (f"{name} {values['psnr']:.2f}" for name, values in conventions.items())
    console.print(
        f"PSNR by convention, dB: of Y {own}, by other projects' scripts for rain {', '.join(of_rain)}; of all "
        f"channels {of_channels}"
    )


def _print_sweep(score: Metric) -> None:
    """Prints the effect of the penalty in the sweep: the best trial with it and the control, at equal steps."""
    compared = best_and_control(TUNE)
    if compared is None:
        return
    best, control = compared
    named = [part for part in (best.penalty, best.weight and f"weight {float(best.weight):.3g}") if part]
    rows = {"weight 0": control, f"trial {best.number}{': ' if named else ''}{', '.join(named)}": best}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    titles = (score.title, "error of layers", "error of output")
    for column in (f"sweep: {control.steps} steps each", *titles):
        table.add_column(column, justify="right" if column in titles else "left", no_wrap=True)
    for name, trial in rows.items():
        errors = [f"{error:.3f}" for error in (trial.layer_error, trial.output_error)]
        table.add_row(name, f"{trial.score:.{score.digits}f}", *errors)
    console.print(table)
    console.print("on validation; error: relative residual under quarter turns, 0 is exact, 1.41 unrelated")
    console.print("one seed each: no evidence on the score; eqreg ablate compares over seeds")


def _interval(gain: dict[str, float | None], digits: int) -> str:
    if gain["low"] is None:
        return f"{gain['mean']:+.{digits}f}"
    return f"{gain['mean']:+.{digits}f} [{gain['low']:.{digits}f}, {gain['high']:.{digits}f}]"
