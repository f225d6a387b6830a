"""Optuna's figures of a study: parameter importances, slices through the search space, and the Pareto front."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

DPI = 120
LEAST = 4
"""Smallest number of trials for which importances are meaningful."""

_MOST_SLICES = 12
_TITLES = {"equivariance_error": "equivariance error", "step_time": "seconds a step"}


def save_figures(
    folder: Path, proposals: optuna.Study, whole: optuna.Study, objectives: Sequence[str], score: str
) -> list[str]:
    """Saves importances.png, slices.png and, for several objectives, pareto.png.

    Args:
        folder: the figures are written there.
        proposals: the study without the control, because the control has no choices.
        whole: the study with the control.
        objectives: names of the objectives.
        score: title of the validation score.

    Returns:
        One line for each of importances.png and slices.png that was not made.
    """
    import matplotlib
    from matplotlib import style

    matplotlib.use("agg")
    left_out = []
    titles = [f"validation {score}" if name == "score" else _TITLES[name] for name in objectives]
    finished = proposals.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    varied = [
        name
        for name in dict.fromkeys(name for trial in finished for name in trial.params)
        if len({trial.params[name] for trial in finished if name in trial.params}) > 1
    ]
    shared = [name for name in varied if all(name in trial.params for trial in finished)]
    with warnings.catch_warnings(), style.context("default"):  # Optuna sets another style for the whole process
        warnings.simplefilter("ignore")
        if len(finished) < LEAST or not shared or len({trial.values[0] for trial in finished}) < 2:
            left_out.append(f"no importances.png: {len(finished)} proposals ran to their end, too few to compare")
        else:
            _save_importances(folder / "importances.png", proposals, shared, titles, len(finished))
        if len(finished) < 2 or not varied:
            left_out.append(f"no slices.png: {len(finished)} proposals ran to their end, too few to compare")
        else:
            _save(slices(proposals, varied[:_MOST_SLICES], titles[0]), folder / "slices.png")
        if len(objectives) > 1:
            axes = optuna.visualization.matplotlib.plot_pareto_front(whole, target_names=titles)
            _save(axes, folder / "pareto.png")
    return left_out


def _save_importances(path: Path, study: optuna.Study, names: Sequence[str], titles: Sequence[str], count: int) -> None:
    import matplotlib.pyplot as plt

    figure, every = plt.subplots(
        1, len(titles), figsize=(5.5 * len(titles), 1.2 + 0.45 * len(names)), squeeze=False, layout="constrained"
    )
    for number, (axes, title) in enumerate(zip(every[0], titles, strict=True)):
        importances = optuna.importance.get_param_importances(
            study,
            params=list(names),
            target=lambda trial, number=number: trial.values[number],
            evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
        )
        ordered = sorted(importances, key=lambda name: importances[name])
        axes.barh(ordered, [importances[name] for name in ordered], color="0.4")
        axes.set_xlabel(f"share of the variance of {title}")
        axes.set_title(f"fANOVA of {count} trials{': few, so take it as a hint' if count < 20 else ''}", size=9)
    figure.savefig(path, format="png", dpi=DPI)
    plt.close(figure)


def slices(study: optuna.Study, names: Sequence[str], title: str) -> Any:
    """Returns the axes of the slices through the search space, or their array.

    Args:
        study: the study.
        names: the params that are shown.
        title: title of the first objective.
    """
    import numpy as np

    axes = optuna.visualization.matplotlib.plot_slice(
        study, params=list(names), target=lambda trial: trial.values[0], target_name=title
    )
    for each in np.ravel(axes):  # the panels are narrow: with one part of the key in a line, the labels do not overlap
        each.set_xlabel(each.get_xlabel().replace(".", ".\n"))
        each.tick_params(axis="x", which="both", labelrotation=60)
    return axes


def _save(axes: Any, path: Path) -> None:
    """Saves the figure of these axes, or of an array of axes."""
    import matplotlib.pyplot as plt
    import numpy as np

    figure = np.ravel(axes)[0].get_figure()
    figure.savefig(path, format="png", dpi=DPI, bbox_inches="tight")
    plt.close(figure)
