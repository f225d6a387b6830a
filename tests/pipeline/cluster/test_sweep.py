"""What Ray Tune says of its trials, in our words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.cluster.sweep import CONTROL, _Announcer, _Order, _trial


def _result(config: dict[str, Any], metrics: dict[str, Any] | None = None, error: str | None = None) -> Any:
    return SimpleNamespace(config=config, metrics=metrics or {}, error=RuntimeError(error) if error else None)


def test_a_trial_that_ran_to_its_end_or_was_stopped_early_keeps_what_it_last_reported() -> None:
    done = _trial(0, _result({CONTROL: True, "equivariance.weight": 0.0}, {"step": 100, "val_score": 25.5}), 100)
    assert (done.is_control, done.steps, done.stopped_early, done.failure) == (True, 100, False, None)
    assert (done.params, done.metrics) == ({"equivariance.weight": 0.0}, {"val_score": 25.5})
    stopped = _trial(1, _result({"equivariance.weight": 0.5}, {"step": 40, "val_score": 20}), 100)
    assert (stopped.is_control, stopped.steps, stopped.stopped_early) == (False, 40, True)


@pytest.mark.parametrize(
    "result",
    [
        _result({"equivariance.weight": 0.5}, error="the process\nwas lost"),
        _result({"equivariance.weight": 0.5}, {"step": 40, "val_score": 0.0, "failure": "was lost"}),
    ],
)
def test_a_trial_that_failed_is_not_taken_for_one_that_was_stopped(result: Any) -> None:
    trial = _trial(2, result, 100)
    assert (trial.number, trial.stopped_early, trial.failure) == (2, False, "was lost")


def test_the_score_that_ranks_a_diverged_trial_last_is_announced_to_nobody() -> None:
    heard: list[tuple[Any, ...]] = []
    order = _Order()
    announcer = _Announcer(order, lambda *report: heard.append(report))
    trial = SimpleNamespace(trial_id="a", config={"equivariance.weight": 0.5})
    good = {"step": 40, "val_score": 25.0, "penalty/down.0.conv1": 0.5, "training_iteration": 1, "done": False}
    announcer.on_trial_result(1, [], trial, good)
    announcer.on_trial_result(2, [], trial, {"step": 40, "val_score": 0.0, "failure": "not finite"})
    config = {"equivariance.weight": 0.5}
    assert heard == [(0, config, 40, {"val_score": 25.0, "penalty/down.0.conv1": 0.5}), (0, config, 40, {})]
