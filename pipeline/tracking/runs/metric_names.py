"""The names of metrics in MLflow. Its pages group metrics by the part before the slash.

    train/task_loss, train/learning_rate, ...   of a report of a training
    validation/psnr                             of a validation: the score of the task
    test/restored/psnr, rotated/restored/psnr   of the test images
    test/gain_over_classical/psnr               mean over the images; with _low and _high, the interval over scenes

MLflow holds about twenty metrics of a run. All others are in the files that the run has as artifacts: the penalty of
each layer in ``train/history.csv``, every figure of the test images in ``evaluate/metrics.json``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

TASK_LOSS = "train/task_loss"
"""Every report has it."""

STEP_COST = "train/step_cost"
_MEASURED = {
    "equivariance_error": "validation/equivariance_error",
    "layer_error": "validation/layer_error",
    "step_time": "train/step_time",
}
"""Metric that is measured at the end of a trial -> name in MLflow."""
_MOST_RESTORED = 3


def validation(score: str) -> str:
    """The name of the validation score; ``score`` is the key of the task's first metric."""
    return f"validation/{score}"


def of_report(metrics: Mapping[str, float], score: str) -> dict[str, float]:
    """The metrics of a report, under their names in MLflow.

    Args:
        metrics: as the training loop reports them.
        score: key of the task's first metric.
    """
    names = {"val_score": validation(score)}
    return {names.get(key, f"train/{key}"): value for key, value in metrics.items() if "/" not in key}


def of_trial(metrics: Mapping[str, float]) -> dict[str, float]:
    """What is measured at the end of a trial, under the names in MLflow."""
    return {name: metrics[key] for key, name in _MEASURED.items() if key in metrics}


def of_evaluation(metrics: Mapping[str, Any], score: str) -> dict[str, float]:
    """The metrics of the test images that MLflow holds.

    Args:
        metrics: content of ``results/evaluate/metrics.json``.
        score: key of the task's first metric.
    """
    return dict(_of_evaluation(metrics, score))


def _of_evaluation(metrics: Mapping[str, Any], score: str) -> Iterator[tuple[str, float]]:
    test = metrics["test"]
    keys = dict.fromkeys([score, *test["restored"]])
    for key in list(keys)[:_MOST_RESTORED]:
        yield f"test/restored/{key}", test["restored"][key]
    for method in ("input", "classical"):
        yield f"test/{method}/{score}", test[method][score]
    for over, interval in test.get("gain", {}).get(score, {}).items():
        yield f"test/gain_{over}/{score}", interval["mean"]
        if over == "over_classical" and interval["low"] is not None:  # None with too few scenes
            yield from ((f"test/gain_{over}/{score}_{end}", interval[end]) for end in ("low", "high"))
    for group in ("rotated", "out_of_distribution"):
        if group in metrics:
            yield f"{group}/restored/{score}", metrics[group]["restored"][score]
    if errors := metrics.get("equivariance_error"):
        yield "test/equivariance_error", errors["output"]
