"""ASHA in the study's words does what Ray Tune's own does."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler

from pipeline.study.asha import keep, rungs

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("reduction_factor", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_the_same_trials_go_on_as_by_rays_scheduler(reduction_factor: int, seed: int) -> None:
    steps, grace = 80, 5
    ray = AsyncHyperBandScheduler(
        time_attr="step",
        metric="score",
        mode="max",
        max_t=10 * steps,
        grace_period=grace,
        reduction_factor=reduction_factor,
    )
    generator = np.random.default_rng(seed)
    reached: dict[int, list[float]] = {rung: [] for rung in rungs(grace, reduction_factor, steps)}
    compared = stopped = 0
    for number in range(40):
        trial = SimpleNamespace(trial_id=str(number))
        ray.on_trial_add(None, trial)
        for step in range(grace, steps, grace):
            score = float(generator.normal(step / 10))
            goes_on = step not in reached or keep(score, reached[step], reduction_factor)
            if step in reached:
                reached[step].append(score)
                compared += 1
            expected = ray.on_trial_result(None, trial, {"step": step, "score": score}) == "CONTINUE"
            assert goes_on == expected, (number, step)
            if not goes_on:
                stopped += 1
                break
    assert compared > 50
    assert stopped > 10


def test_rungs_are_powers_below_the_last_step() -> None:
    assert rungs(30, 2, 80) == [30, 60]
    assert rungs(5, 3, 45) == [5, 15]
    assert rungs(80, 2, 80) == []


def test_the_first_goes_on_and_what_is_no_number_does_not() -> None:
    assert keep(-100.0, [], 2)
    assert not keep(math.nan, [], 2)
    assert not keep(math.nan, [1.0], 2)
    assert keep(2.0, [math.nan, 1.0, math.nan], 2)
    assert keep(1.0, [math.nan], 2)
    assert keep(1.0, [1.0, 1.0], 4)
