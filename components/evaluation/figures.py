"""Charts of runs and sweeps as PNG files.

Each function returns its figure for inspection. No function uses pyplot. All figures use matplotlib's default style,
because a style set by the user or by a library would change the bytes of the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
"""Okabe and Ito, *Color Universal Design*, 2008: colours that colour-blind readers can distinguish."""

MARKERS = "osD^vP*"
DPI = 120


@style.context("default")
def save_equivariance_bars(path: Path, errors: Mapping[str, Mapping[str, float]]) -> Figure:
    """Save horizontal bars of the relative equivariance error of every layer, one colour for each network.

    Args:
        path: path of the PNG.
        errors: network -> layer -> relative error, as `equivariance_error` returns it. Layers are drawn in the order of
            their first occurrence. "output" is drawn last, at some distance. A layer that a network lacks has no bar.

    Raises:
        ValueError: no networks, or more than there are colours.
    """
    if not 1 <= len(errors) <= len(COLOURS):
        raise ValueError(f"{len(errors)} networks: give 1 to {len(COLOURS)}, or draw several figures")
    names = dict.fromkeys(layer for network in errors.values() for layer in network)
    rows = {layer: float(row) for row, layer in enumerate(name for name in names if name != "output")}
    if "output" in names:
        rows["output"] = len(rows) + 0.6
    thickness = 0.8 / len(errors)
    row_height = max(0.17, 0.08 * len(errors) + 0.06)
    figure, axes = _figure(7.5, 1.6 + row_height * (len(rows) + 1))
    for index, (name, network) in enumerate(errors.items()):
        offset = (index - (len(errors) - 1) / 2) * thickness
        places = [rows[layer] + offset for layer in network]
        axes.barh(places, list(network.values()), height=thickness, color=COLOURS[index], label=name)
    axes.set_yticks(list(rows.values()), list(rows), size=7)
    axes.set_ylim(max(rows.values(), default=0) + 0.7, -0.7)
    axes.set_xlim(left=0)
    axes.set_xlabel("relative equivariance error (0: exact, 1.41: unrelated)")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_title("Equivariance under quarter turns, layer by layer", size=10)
    figure.legend(loc="outside lower center", ncols=min(len(errors), 4), frameon=False, fontsize=8)
    figure.savefig(path, format="png", dpi=DPI)
    return figure


@style.context("default")
def save_trials(path: Path, trials: Sequence[Mapping[str, Any]], title: str = "PSNR, dB") -> Figure:
    """Save the validation score of a sweep's trials over the weight of the penalty, on a logarithmic axis.

    Trials with weight 0 and controls are dashed lines. Trials that were stopped early are hollow markers. A trial far
    below the others is drawn at the lower edge, with its score as a label. The axis label states the number of trials
    without a finite score.

    Args:
        path: path of the PNG.
        trials: mappings with the keys ``weight`` (lambda), ``penalty`` (its kind), ``score`` (validation),
            ``stopped_early`` and ``is_control``.
        title: name of the score, with its unit.
    """
    shown = [trial for trial in trials if math.isfinite(trial["score"])]
    references = [trial for trial in shown if trial["is_control"] or trial["weight"] <= 0]
    drawn = [trial for trial in shown if trial not in references]
    lowest = _lower_edge([trial["score"] for trial in shown])
    figure, axes = _figure(7.5, 4.5)
    axes.set_xscale("log")
    for trial in references:
        axes.axhline(max(trial["score"], lowest), color="black", linestyle="--", linewidth=1)
    for index, penalty in enumerate(dict.fromkeys(trial["penalty"] for trial in drawn)):
        style = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
        for hollow in (False, True):
            chosen = [t for t in drawn if t["penalty"] == penalty and bool(t["stopped_early"]) == hollow]
            axes.plot(
                [trial["weight"] for trial in chosen],
                [max(trial["score"], lowest) for trial in chosen],
                linestyle="",
                markersize=8,
                markerfacecolor="none" if hollow else style["color"],
                label=penalty,
                **style,
            )
    for trial in drawn:
        if trial["score"] < lowest:
            place = (trial["weight"], lowest)
            text = f"↓ {trial['score']:.1f}"
            axes.annotate(text, place, (0, 8), textcoords="offset points", ha="center", size=7)
    _trial_legend(figure, axes, references, any(trial["stopped_early"] for trial in drawn))
    num_left_out = len(trials) - len(shown)
    left_out = f"; {num_left_out} without a finite score not shown" if num_left_out else ""
    axes.set_xlabel(f"weight of the penalty, λ{left_out}")
    axes.set_ylabel(f"validation {title}")
    axes.margins(0.08)
    axes.grid(alpha=0.3)
    axes.set_title(f"Trials: {len(trials)} (one seed: not evidence)", size=10)
    figure.savefig(path, format="png", dpi=DPI)
    return figure


@style.context("default")
def save_history(path: Path, history: Mapping[int, Mapping[str, float]], title: str = "PSNR, dB") -> Figure:
    """Save the training loss (logarithmic) and the validation score against the step.

    Args:
        path: path of the PNG.
        history: step -> metrics; ``task_loss`` and ``val_score`` are drawn where they are present.
        title: name of the score, with its unit.
    """
    figure, axes = _figure(7.5, 5.0, num_rows=2)
    panels = (("task_loss", "training loss"), ("val_score", f"validation {title}"))
    for panel, (key, label), colour in zip(axes, panels, COLOURS, strict=False):
        steps = sorted(step for step, metrics in history.items() if key in metrics)
        panel.plot(steps, [history[step][key] for step in steps], color=colour, marker="o", markersize=3)
        panel.set_ylabel(label)
        panel.grid(alpha=0.3, which="both")
    axes[0].set_yscale("log")
    axes[0].set_title("Training", size=10)
    axes[1].set_xlabel("step")
    figure.savefig(path, format="png", dpi=DPI)
    return figure


def _figure(width: float, height: float, num_rows: int = 1) -> tuple[Figure, Any]:
    """Create a figure, with sizes in inches, and its axes: one, or an array with a shared x axis."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(num_rows, sharex=True)


def _lower_edge(figures: Sequence[float]) -> float:
    """Return the lower edge of the chart: ``quartile - (best - quartile) - 0.5 dB`` with the lower quartile.

    Collapsed trials lie below this edge.
    """
    if not figures:
        return 0.0
    quartile, best = np.quantile(figures, [0.25, 1])
    return float(2 * quartile - best - 0.5)


def _trial_legend(figure: Figure, axes: Axes, references: Sequence[Mapping[str, Any]], has_hollow: bool) -> None:
    """Draw the legend: one entry per penalty, one for hollow markers and one for the lines."""
    handles: list[Any] = axes.get_legend_handles_labels()[0]
    entries = {
        line.get_label(): Line2D([], [], color=line.get_color(), marker=line.get_marker(), linestyle="")
        for line in handles
    }
    if has_hollow:
        entries["stopped early"] = Line2D([], [], color="grey", marker="o", mfc="none", linestyle="")
    if references:
        figures = ", ".join(f"{trial['score']:.2f}" for trial in references)
        entries[f"weight 0: {figures}"] = Line2D([], [], color="black", linestyle="--", linewidth=1)
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
