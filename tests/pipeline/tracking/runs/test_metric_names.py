"""MLflow has about twenty metrics of a run, in groups."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.tracking.runs.metric_names import of_evaluation, of_report, of_trial

pytestmark = pytest.mark.unit

SCORES = {"psnr": 30.0, "ssim": 0.9, "psnr_y": 31.0, "ssim_y": 0.91}
REPORT = ["task_loss", "learning_rate", "gradient_norm", "images_per_second", "penalty", "lambda", "weight"]
REPORT += ["gradient_ratio", "val_score"]


def evaluation(low: float | None = 0.5) -> dict[str, Any]:
    """results/evaluate/metrics.json of a task with out-of-distribution images."""
    interval = {"mean": 1.0, "low": low, "high": None if low is None else 1.5}
    group = {
        "input": SCORES,
        "classical": SCORES,
        "restored": SCORES,
        "scenes": 3,
        "gain": {metric: {"over_input": interval, "over_classical": interval} for metric in SCORES},
        "conditions": {"90": {"restored": SCORES}},
    }
    groups = dict.fromkeys(("test", "rotated", "out_of_distribution"), group)
    return {**groups, "classical_method": {"name": "x"}, "equivariance_error": {"conv1": 0.2, "output": 0.1}}


def test_a_report_has_its_names_and_the_layers_stay_in_the_file() -> None:
    report = dict.fromkeys(REPORT, 1.0) | {"penalty/down.0.conv1": 2.0}
    found = of_report(report, "psnr")
    assert found.pop("validation/psnr") == 1.0
    assert found.keys() == {f"train/{key}" for key in REPORT if key != "val_score"}


def test_a_run_has_about_twenty_metrics_and_each_group_its_score() -> None:
    found = of_evaluation(evaluation(), "psnr")
    assert found["test/restored/psnr"] == found["rotated/restored/psnr"] == found["out_of_distribution/restored/psnr"]
    assert {key: found[key] for key in found if "gain" in key} == {
        "test/gain_over_input/psnr": 1.0,
        "test/gain_over_classical/psnr": 1.0,
        "test/gain_over_classical/psnr_low": 0.5,
        "test/gain_over_classical/psnr_high": 1.5,
    }
    assert found["test/equivariance_error"] == 0.1
    assert 18 <= len(found) + len(of_report(dict.fromkeys(REPORT, 1.0), "psnr")) + 1 <= 25


def test_the_score_is_there_whatever_its_place_and_an_interval_only_where_there_is_one() -> None:
    found = of_evaluation(evaluation(low=None), "ssim_y")
    assert found["test/restored/ssim_y"] == 0.91
    assert [key for key in found if key.endswith(("low", "high"))] == []


def test_results_with_the_test_images_alone_are_enough() -> None:
    few = {"test": dict.fromkeys(("input", "classical", "restored"), SCORES)}
    assert of_evaluation(few, "psnr").keys() >= {"test/input/psnr", "test/restored/psnr"}


def test_what_a_trial_measures_at_its_end_is_of_validation() -> None:
    measured = {"val_score": 1.0, "equivariance_error": 0.1, "layer_error": 0.2, "step_time": 0.3}
    assert of_trial(measured) == {
        "validation/equivariance_error": 0.1,
        "validation/layer_error": 0.2,
        "train/step_time": 0.3,
    }
