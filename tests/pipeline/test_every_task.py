"""Every task from files on disk to a table of figures, in this process: each stage's own function, on tiny data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from components.tasks import TASKS
from components.training.loop import TrainingDivergedError
from components.training.worker import Worker
from pipeline.config.schema import load_params
from pipeline.paths import PACKED
from pipeline.stages.fetch import fetch
from pipeline.stages.preprocess import preprocess
from pipeline.tracking.store import Store
from pipeline.training_job import TrainingJob
from tests.pipeline.conftest import Project
from tests.pipeline.files_to_figures import DATA, OF_TASK, SMALL, batches, run_from_files_to_figures

pytestmark = pytest.mark.process


@pytest.mark.parametrize("name", list(TASKS))
def test_a_task_runs_from_files_to_figures(
    name: str, project: Project, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    run_from_files_to_figures(name, {**SMALL, "task": name, **OF_TASK.get(name, {})}, project, capsys)


def test_the_score_of_validation_is_that_of_a_network_that_does_nothing(project: Project) -> None:
    Path("source").mkdir()
    DATA["images"](Path("source"))
    project.set({**SMALL, "task": "super_resolution"})
    params = load_params()
    fetch(params)
    preprocess(params)
    job = TrainingJob(params, PACKED.resolve())

    network = job.network()  # its residual is zero at first: it enlarges by bicubic interpolation
    ((inputs, reference, _),) = batches(job)
    enlarged = torch.nn.functional.interpolate(inputs, scale_factor=2, mode="bicubic", align_corners=False)
    expected = job.task.compute_score(enlarged, inputs, torch.from_numpy(reference)[None]).item()
    assert job.validate(network, Worker.current())["val_score"] == pytest.approx(expected, abs=1e-3)

    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingDivergedError, match="validation: the network gives values that are not finite for"):
        job.validate(network, Worker.current())
