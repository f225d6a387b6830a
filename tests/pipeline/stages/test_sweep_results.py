"""What is made of a sweep's trials: the best, the front, the tables, the figures."""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optuna
import pytest
import yaml
from matplotlib import pyplot as plt
from PIL import Image

from pipeline.config.schema import load_params
from pipeline.stages.sweep_results import (
    Compared,
    best_and_control,
    best_trial,
    pareto_front,
    print_table,
    write_results,
)
from pipeline.study.plots import LEAST, save_figures, slices
from pipeline.study.study import Trial

pytestmark = pytest.mark.unit

PARAMS = load_params(Path(__file__).parents[3] / "params.yaml").patched({"equivariance.weight": 0.03})


def trial(number: int, psnr: float, *, stopped: bool = False, failure: str | None = None) -> Trial:
    return Trial(number, {}, number == 0, stopped, 8, {"val_score": psnr}, failure)


def test_the_best_trial_is_the_best_of_those_that_ran_to_their_end() -> None:
    found = [trial(0, 27.0), trial(1, 28.0), trial(2, 29.0, stopped=True), trial(3, 30.0, failure="NaN")]
    assert best_trial(found) is found[1]
    assert best_trial(found[2:]) is None


def test_a_sweep_whose_control_failed_keeps_its_table_and_claims_no_difference(tmp_path: Path) -> None:
    failed = Trial(0, {}, True, False, 0, {}, "NaN")
    best = Trial(1, {"equivariance.weight": 0.1}, False, False, 8, {"val_score": 28.0}, None)
    write_results(tmp_path, [failed, best], PARAMS, "PSNR, dB")
    summary = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert summary["params"] == {"equivariance.weight": 0.1}
    assert "difference_to_control" not in summary
    with (tmp_path / "trials.csv").open(newline="") as file:
        assert [row["failure"] for row in csv.DictReader(file)] == ["NaN", ""]


def test_each_trial_is_one_line_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"val_score": 26.34, "layer_error": 1.234, "equivariance_error": 0.0123456}
    chosen = {"equivariance.weight": 0.0123456, "equivariance.penalty": "rotation"}
    trials = [
        Trial(0, {}, True, False, 80, metrics, None),
        Trial(12, chosen, False, False, 80, metrics | {"val_score": 27.0}, None),
        Trial(13, chosen, False, True, 30, metrics, None),
    ]
    print_table(trials, PARAMS, "PSNR, dB", ["score"])
    found = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in found if line[:9].strip()[:1].isdigit()]
    assert rows == [
        ["0", "control", "0", "80", "26.34", "1.234", "0.012"],
        ["12", "best", "0.0123", "rotation", "80", "27.00", "+0.66", "1.234", "0.012"],
        ["13", "0.0123", "rotation", "30", "stopped", "26.34", "1.234", "0.012"],
    ]
    assert max(map(len, found)) <= 80


def test_the_best_trial_with_a_penalty_is_put_beside_the_control(tmp_path: Path) -> None:
    def ended(number: int, score: float, error: float, *, stopped: bool = False, failure: str | None = None) -> Trial:
        metrics = {"val_score": score, "layer_error": error, "equivariance_error": error / 10}
        params = {} if number == 0 else {"equivariance.weight": number / 100}
        return Trial(number, params, number == 0, stopped, 8, metrics, failure)

    assert best_and_control(tmp_path) is None
    others = [ended(1, 27, 0.3), ended(2, 28, 0.4), ended(3, 29, 0.5, stopped=True), ended(4, 30, 0.6, failure="NaN")]
    write_results(tmp_path, [ended(0, 28.5, 1.2), *others], PARAMS, "PSNR, dB")
    best, control = best_and_control(tmp_path) or (None, None)
    assert best == Compared(2, 8, "0.02", None, 28, 0.4, 0.04)
    assert control == Compared(0, 8, "0.03", None, 28.5, 1.2, 0.12)
    write_results(tmp_path, others, PARAMS, "PSNR, dB")
    assert best_and_control(tmp_path) is None


@pytest.mark.parametrize("objectives", [["score", "equivariance_error"], ["score", "equivariance_error", "step_time"]])
def test_the_front_is_optunas(objectives: list[str]) -> None:
    values = np.random.default_rng(0).integers(0, 30, (60, len(objectives))).astype(float)
    directions = ["maximize", "minimize", "minimize"][: len(objectives)]
    study = optuna.create_study(directions=directions)
    names = ["val_score", "equivariance_error", "step_time"][: len(objectives)]
    trials = []
    for number, row in enumerate(values):
        study.add_trial(optuna.trial.create_trial(values=list(row)))
        trials.append(Trial(number, {}, False, False, 8, dict(zip(names, map(float, row), strict=True)), None))
    front = {each.number for each in pareto_front(trials, objectives)}
    assert front == {each.number for each in study.best_trials}
    assert 1 < len(front) < 60


def _studies(num_trials: int) -> optuna.Study:
    """A score that hangs on ``big`` alone."""
    study = optuna.create_study(directions=["maximize", "minimize"])
    generator = np.random.default_rng(0)
    space = {name: optuna.distributions.FloatDistribution(0, 1) for name in ("big", "small")}
    for _ in range(num_trials):
        params = {name: float(generator.uniform()) for name in space}
        values = [10 * params["big"], params["small"]]
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, values=values))
    return study


def _style() -> dict[str, Any]:
    return {name: value for name, value in dict(matplotlib.rcParams).items() if not name.startswith("backend")}


def test_figures_are_drawn_where_there_are_trials_enough(tmp_path: Path) -> None:
    study, style = _studies(12), _style()
    assert save_figures(tmp_path, study, study, ["score", "equivariance_error"], "PSNR, dB") == []
    for name in ("importances", "slices", "pareto"):
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))
        assert pixels.min() < 100
        assert min(pixels.shape) > 200
    assert _style() == style  # Optuna's is not left behind


def test_too_few_trials_give_a_line_and_no_figure(tmp_path: Path) -> None:
    study = _studies(1)
    lines = save_figures(tmp_path, study, study, ["score", "equivariance_error"], "PSNR, dB")
    assert [line.split(":")[0] for line in lines] == ["no importances.png", "no slices.png"]
    few = _studies(LEAST - 1)
    assert [line.split(":")[0] for line in save_figures(tmp_path, few, few, ["score", "equivariance_error"], "")] == [
        "no importances.png"
    ]
    assert not (tmp_path / "importances.png").exists()


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_labels_of_the_slices_do_not_overlap() -> None:
    matplotlib.use("agg")
    names = ("equivariance.layer_weights.decay", "equivariance.penalty", "equivariance.weight")
    study = optuna.create_study(direction="maximize")
    for number in range(4):
        values = dict(
            zip(names, (0.6 + 0.05 * number, ("regular", "rotation")[number % 2], 0.01 * 2**number), strict=True)
        )
        distributions = {
            names[0]: optuna.distributions.FloatDistribution(0.5, 1),
            names[1]: optuna.distributions.CategoricalDistribution(["regular", "rotation"]),
            names[2]: optuna.distributions.FloatDistribution(0.005, 0.5, log=True),
        }
        study.add_trial(optuna.create_trial(params=values, distributions=distributions, value=26.0 + number))
    panels = np.ravel(slices(study, names, "PSNR"))
    panels[0].figure.canvas.draw()
    titles = sorted((axes.xaxis.label.get_window_extent() for axes in panels), key=lambda box: box.x0)
    assert all(left.x1 <= right.x0 for left, right in pairwise(titles))
    assert max(box.y0 for box in titles) < min(axes.get_window_extent().y0 for axes in panels)
    plt.close(panels[0].figure)
