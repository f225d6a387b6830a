"""``eqreg summary``: what the last run measured, as a table, and where to look next."""

from __future__ import annotations

import json

from rich.table import Table

from pipeline.console import console
from pipeline.params import Params
from pipeline.paths import EVALUATE, REGISTER, TUNE, existing

_SHOWN = {"test": "test", "rotated": "rotated by 90, 180, 270", "out_of_distribution": "out of distribution"}


def summary(params: Params) -> None:
    """Prints the figures of results/evaluate, and the files and commands that say more."""
    metrics = json.loads(existing(EVALUATE / "metrics.json", "evaluate").read_text())
    name = metrics["classical_method"]["name"].replace("_", " ")
    table = Table(title=f"{params.task}: mean over the images, PSNR in dB / SSIM, RGB", title_justify="left")
    for column in ("", "degraded", name, "restored", "gain over degraded, dB [95 %]", f"over {name}"):
        table.add_column(column, justify="left" if not column else "right")
    for group, title in _SHOWN.items():
        if group not in metrics:
            continue
        means, gain = metrics[group], metrics[group]["gain"]
        cells = [f"{means[m]['psnr']:.2f} / {means[m]['ssim']:.3f}" for m in ("input", "classical", "restored")]
        table.add_row(title, *cells, _interval(gain["over_input"]), _interval(gain["over_classical"]))
    console.print(table)
    console.print("Intervals are bootstrapped over scenes; with few scenes they are too narrow.")
    errors = metrics["equivariance_error"]
    console.print(f"equivariance error (relative residual under quarter turns): output {errors['output']:.4f}")
    console.print(f"pictures   {EVALUATE}/strip-*.png, {EVALUATE}/equivariance.png, {TUNE}/trials.png")
    console.print(f"tables     {EVALUATE}/images.csv, {EVALUATE}/metrics.json, {TUNE}/trials.csv")
    if (REGISTER / "decision.json").exists():
        decision = json.loads((REGISTER / "decision.json").read_text())
        console.print(
            f"registry   models:/{decision['name']}/{decision['version']}, {decision['alias']}: {decision['reason']}"
        )
    console.print(f"try it     eqreg restore PHOTO.jpg CLEAN.png --model models:/eqreg-{params.task}@champion")
    console.print("look       make ui (MLflow on this machine), dvc plots show, dvc metrics show")


def _interval(gain: dict[str, float | None]) -> str:
    if gain["low"] is None:
        return f"{gain['mean']:+.2f}"
    return f"{gain['mean']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}]"
