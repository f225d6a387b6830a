"""The time that is measured is that of the steps between the first and the last, with the penalty and without."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from components.data.packs import Entry, write_pack
from pipeline.stages.step_cost import ROUNDS, _steps, step_cost
from pipeline.stages.step_cost import STEPS as STEPS_OF_A_ROUND
from pipeline.training_job import TrainingJob
from tests.pipeline.conftest import Project

pytestmark = pytest.mark.unit

STEPS, SHORT_S, LONG_S = 5, 0.05, 2.0


class Pausing(TrainingJob):
    """Its network waits in each forward: long in the first and in the last."""

    def network(self) -> nn.Module:
        network, calls = super().network(), []

        def wait(*_: Any) -> None:
            calls.append(1)
            time.sleep(LONG_S if len(calls) in (1, STEPS + 2) else SHORT_S)

        network.register_forward_pre_hook(wait)
        return network


@pytest.mark.parametrize("is_plain", [True, False])
def test_the_steps_between_the_first_and_the_last_are_timed(project: Project, tmp_path: Path, is_plain: bool) -> None:
    random, folder = np.random.default_rng(3), tmp_path / "packed/train"
    folder.mkdir(parents=True)
    clean = [random.integers(30, 225, (3, 32, 32)).astype(np.uint8)]
    noisy = [(image / 255 + random.normal(0, 0.1, image.shape)).astype(np.float32) for image in clean]
    write_pack(folder, [Entry("a", "a", 32, 32)], clean, noisy)
    changes = {"train.batch_size": 4, "train.patch_size": 16}
    steps = _steps(Pausing(project.params(**changes), folder.parent), is_plain=is_plain)
    assert STEPS * SHORT_S <= steps(STEPS) < LONG_S


SMALL: dict[str, Any] = {
    "network__name": "dncnn",
    "network__width": 8,
    "network__depth": 4,
    "equivariance__weight": 0.1,
    "train__patch_size": 16,
    "train__batch_size": 4,
    "train__report_every": 1,
    "train__validate_every": 2,
    "train__checkpoint_every": 1,
}


@pytest.fixture
def job(project: Project) -> TrainingJob:
    """Reports, validates and saves all the time, if it is let."""
    for part in ("train", "val"):
        folder = project.folder / "packed" / part
        folder.mkdir(parents=True)
        images = [np.random.default_rng(number).integers(0, 256, (3, 32, 32), dtype=np.uint8) for number in range(4)]
        write_pack(folder, [Entry(f"i{number}", f"s{number}", 32, 32) for number in range(4)], images)
    return TrainingJob(project.params(**SMALL), project.folder / "packed")


def test_the_ratio_is_that_of_as_many_steps_with_and_without_the_penalty(
    job: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[bool, int]] = []

    def steps(job: TrainingJob, *, is_plain: bool) -> Any:
        return lambda count: asked.append((is_plain, count)) or (0.1 if is_plain else 0.3) * count

    monkeypatch.setattr("pipeline.stages.step_cost._steps", steps)
    assert step_cost(job) == pytest.approx([3.0] * ROUNDS)
    assert asked == [(True, 1), (False, 1), *([(True, STEPS_OF_A_ROUND), (False, STEPS_OF_A_ROUND)] * ROUNDS)]


def test_without_a_penalty_nothing_is_measured(job: TrainingJob, project: Project) -> None:
    assert step_cost(replace(job, params=project.params(equivariance__weight=0.0))) is None
