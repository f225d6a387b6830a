"""A figure of the difference between each control arm and its references."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from components.evaluation.ablation.arms import Arm, Column, difference, mean_of
from components.evaluation.ablation.tables import REFERENCES
from components.evaluation.figures import COLOURS, DPI, MARKERS

MOST_PANELS_A_ROW = 5


@style.context("default")
def save_arms(path: Path, arms: Sequence[Arm], columns: Sequence[Column]) -> Figure:
    """Save one panel per column: the difference of each arm to the references, its interval, and a dot per seed.

    If no reference is among the arms, the panels show the mean of each arm and a dot per seed.

    Args:
        path: path of the PNG.
        arms: the arms, from top to bottom.
        columns: the columns of the table.
    """
    across = min(len(columns), MOST_PANELS_A_ROW)
    down = -(-len(columns) // across)
    height = 1.2 + 0.32 * (len(arms) + 1)
    figure = Figure(figsize=(1.6 + 2.9 * across, 0.6 + height * down), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(down, across, sharey=True, squeeze=False).flat)
    references = [arm for name in REFERENCES for arm in arms if arm.name == name]
    for panel, column in zip(panels, columns, strict=False):
        for index, reference in enumerate(references):
            _draw_differences(panel, arms, reference, column, index, (index - (len(references) - 1) / 2) * 0.3)
        if not references:
            _draw_means(panel, arms, column)
        panel.set_title(column.title, size=9)
        panel.set_yticks(range(len(arms)), [arm.name for arm in arms], size=8)
        panel.set_ylim(len(arms) - 0.5, -0.5)
        panel.tick_params(axis="x", labelsize=7)
        panel.grid(axis="x", alpha=0.3)
    for panel in panels[len(columns) :]:
        panel.set_visible(False)
    if references:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, format="png", dpi=DPI)
    return figure


def _draw_differences(
    panel: Axes, arms: Sequence[Arm], reference: Arm, column: Column, index: int, offset: float
) -> None:
    panel.axvline(0, color="black", linewidth=0.8)
    colour, label = COLOURS[index], f"minus {reference.name}: mean, 95 % interval over scenes, seeds"
    for row, arm in enumerate(arms):
        found = None if arm is reference else difference(arm, reference, column)
        if found is None:
            continue
        place = row + offset
        panel.plot(
            list(found.by_seed.values()), [place] * len(found.by_seed), ".", color=colour, alpha=0.35, markersize=4
        )
        if found.low is not None and found.high is not None:
            panel.plot([found.low, found.high], [place, place], color=colour, linewidth=1.5)
        panel.plot([found.mean], [place], MARKERS[index], color=colour, markersize=5, label=label)
        label = "_"  # one legend entry per reference


def _draw_means(panel: Axes, arms: Sequence[Arm], column: Column) -> None:
    for row, arm in enumerate(arms):
        for seed_rows in arm.rows.values():
            values = [value for _, value in column.of(seed_rows).values()]
            panel.plot([sum(values) / len(values)], [row], ".", color=COLOURS[0], alpha=0.35, markersize=4)
        if mean := mean_of(arm, column):
            panel.plot([mean.mean], [row], MARKERS[0], color=COLOURS[0], markersize=5)
