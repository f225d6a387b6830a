"""Images of validations show fixed pairs as the network gives them, and change nothing of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.data.packs import Entry, Pack, write_pack
from components.evaluation.crops import side_by_side
from components.training.loop import Metrics
from components.training.state import TrainingState
from pipeline.training_job import MOST_SHOWN, TrainingJob
from tests.pipeline.conftest import Project

pytestmark = pytest.mark.unit

SIDE = 24
SMALL = {
    "train.steps": 6,
    "train.validate_every": 2,
    "train.report_every": 1,
    "train.warmup_steps": 1,
    "train.batch_size": 4,
    "train.patch_size": 16,
    "network": {"name": "dncnn", "width": 4, "depth": 3, "norm": "batch"},
    "equivariance.warmup_steps": 1,
}


@pytest.fixture
def job(project: Project, tmp_path: Path) -> TrainingJob:
    """A training on noise, with two scenes to validate on: the first has three images."""
    random = np.random.default_rng(3)
    folder = tmp_path / "packed"
    for part, names in {"train": ["t-0"], "val": ["a-0", "a-1", "a-2", "b-0"]}.items():
        clean = [random.integers(30, 225, (3, SIDE, SIDE)).astype(np.uint8) for _ in names]
        noisy = [(image / 255 + random.normal(0, 0.1, image.shape)).astype(np.float32) for image in clean]
        (folder / part).mkdir(parents=True)
        entries = [Entry(name, name[0], SIDE, SIDE) for name in names]
        write_pack(folder / part, entries, clean, None if part == "train" else noisy)
    project.set(SMALL)
    return TrainingJob(project.params(), folder)


def _trained(job: TrainingJob, show: Any) -> tuple[TrainingState, list[tuple[int, Metrics]]]:
    reports: list[tuple[int, Metrics]] = []
    state = job.run(lambda *report: reports.append(report), lambda *kept: None, show=show)
    for _, metrics in reports:
        metrics.pop("images_per_second")
    return state, reports


def test_a_training_with_images_is_that_without_to_the_bit(job: TrainingJob) -> None:
    shown: list[tuple[int, list[np.ndarray]]] = []
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002 - that nobody draws from it
    state, reports = _trained(job, lambda *images: shown.append(images))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    plain, plain_reports = _trained(job, None)
    assert reports == plain_reports
    for network in ("network", "averaged"):
        found, expected = (getattr(each, network).state_dict() for each in (state, plain))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [step for step, _ in shown] == [2, 4, 6]


def test_the_images_are_of_each_scene_first_and_are_what_the_averaged_network_gives(job: TrainingJob) -> None:
    shown: list[list[np.ndarray]] = []
    state, _ = _trained(job, lambda step, images: shown.append(images))
    network = state.averaged.module.eval()
    pairs = list(job.task.pairs(Pack(job.packed / "val"), [0, 3, 1]))  # a, b, and one more of a
    for image, (_, inputs, clean) in zip(shown[-1], pairs, strict=True):
        with torch.inference_mode():
            restored = network(torch.from_numpy(inputs.copy())[None])[0].numpy()
        np.testing.assert_array_equal(image, side_by_side(inputs, restored, clean))
    network.train()
    job.crops(network)
    assert network.training


@pytest.mark.parametrize("every", [1, 7, 50])
def test_a_long_run_shows_images_of_some_validations_and_of_the_last(project: Project, every: int) -> None:
    steps = 10_001
    job = TrainingJob(project.params(train__steps=steps, train__validate_every=every), Path("packed"))
    shown = [step for step in (*range(every, steps, every), steps) if job.shows_at(step)]
    assert len(shown) <= MOST_SHOWN + 1
    assert len(shown) >= min(MOST_SHOWN, steps // every) / 2
    assert shown[-1] == steps


def test_a_classification_shows_none(project: Project) -> None:
    job = TrainingJob(project.params(task="classify"), Path("packed"))
    assert not job.shows_at(job.params.train.steps)
