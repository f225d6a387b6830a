"""A study is told from another by all that decides its results, and by nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import load_params
from pipeline.search_space.space import WEIGHT, Space, build_space
from pipeline.study.fingerprint import auto_name, study_fingerprint

pytestmark = pytest.mark.unit

PARAMS = load_params(Path(__file__).parents[3] / "params.yaml")
WEIGHTS = {"distribution": "log_uniform", "low": 0.003, "high": 0.3}


def space(**more: Any) -> Space:
    return build_space("test", {WEIGHT: WEIGHTS} | more, PARAMS, "test")


def identity(
    key: str | None = None, value: Any = None, data: str = "data", own: Space | None = None, **rules: Any
) -> dict[str, str]:
    params = PARAMS.patched({key: value}) if key else PARAMS
    measures = rules.pop("measures", False)
    return study_fingerprint(params, data, own or space(), {"steps": 80} | rules, measures)


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        (identity("train.learning_rate", 0.001), "params"),
        (identity("tasks.denoise.degradation.sigma", 30), "params"),
        (identity("seed", 1), "params"),
        (identity("preprocess.colour", "grey"), "params"),
        (identity(data="other"), "data"),
        (identity(steps=81), "rules"),
        (identity(own=space(**{"network.width": {"distribution": "choice", "values": [8, 16]}})), "space"),
    ],
)
def test_what_decides_makes_another_study(changed: dict[str, str], part: str) -> None:
    before = identity()
    assert [name for name in before if before[name] != changed[name]] == [part]
    assert auto_name("denoise", before) != auto_name("denoise", changed)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tune.trials", 40),
        ("tune.concurrent", 7),
        ("train.num_workers", 2),
        ("cluster.address", "auto"),
        ("evaluate.tile", 128),
        ("tasks.derain.rotations", True),
        (WEIGHT, 0.5),
    ],
)
def test_what_does_not_decide_does_not(key: str, value: Any) -> None:
    assert identity(key, value) == identity()


def test_a_weight_that_is_not_always_searched_decides() -> None:
    penalty = {"equivariance.penalty": {"distribution": "choice", "values": ["regular", "rotation"]}}
    sometimes = {WEIGHT: WEIGHTS | {"when": {"equivariance.penalty": "regular"}}}
    own = build_space("test", penalty | sometimes, PARAMS, "test")
    assert identity(WEIGHT, 0.5, own=own) != identity(own=own)


def test_of_trials_that_are_measured_on_the_test_images_the_tiles_decide() -> None:
    assert identity("evaluate.tile", 128, measures=True) != identity(measures=True)


def test_the_name_is_the_task_and_12_digits() -> None:
    task, _, digits = auto_name("denoise", identity()).partition("-")
    assert task == "denoise"
    assert len(bytes.fromhex(digits)) == 6
