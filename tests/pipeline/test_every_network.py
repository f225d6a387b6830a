"""Every network of the registry through the whole pipeline: what is trained, resumed, swept, exported and explained."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from components.equivariance.layers.tracing import LAYER_TYPES
from components.members import NETWORKS
from components.networks import network_class, takes_named_inputs
from components.tasks import task_class
from components.training.loop import Metrics
from components.training.state import TrainingState
from pipeline.commands.doctor import doctor
from pipeline.commands.export import export
from pipeline.model_file import load_model
from pipeline.paths import EVALUATE, MODEL
from pipeline.search_space.space import load_space
from pipeline.tracking.store import Store
from pipeline.training_job import TrainingJob
from tests.components.networks import small
from tests.pipeline.conftest import Project
from tests.pipeline.files_to_figures import OF_TASK, SMALL, Trained, run_from_files_to_figures

pytestmark = pytest.mark.process


def _task_of(name: str) -> str:
    """A task that gives what the network needs."""
    network = network_class(name)
    if network.is_classifier:
        return "classify"
    return "ct_mar" if "li" in (network.needs or ()) else "denoise"


SLOW = ("mprnet", "restormer")
"""Networks whose export takes a minute."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in NETWORKS]
)
def test_a_network_runs_from_files_to_figures_resumes_and_is_swept_exported_and_explained(
    name: str, project: Project, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    task, settings = _task_of(name), {**small.OWN, **small.SMALL}[name]
    changes = {key: value for key, value in SMALL.items() if not key.startswith("network.")}
    changes |= {"task": task, **OF_TASK.get(task, {}), "network": {"name": name, **settings}}
    trained = run_from_files_to_figures(task, changes, project, capsys)
    _check_that_it_resumes(trained)
    _check_that_it_is_swept(trained.job)

    stored = load_model(MODEL)[1]["network"]
    assert {key: stored[key] for key in settings} == json.loads(json.dumps(settings))  # a file holds lists, not tuples
    if takes_named_inputs(network_class(name)):
        assert set(network_class(name).needs) <= set(stored["inputs"])
    conventions = json.loads((EVALUATE / "metrics.json").read_text()).get("conventions")
    assert (conventions is not None) == task_class(task).has_conventions

    assert export(str(MODEL), "pt2", Path("exported.pt2")).comparison.fault(1e-5) == ""
    diagnosis = doctor(str(MODEL), 32, "C4")
    assert diagnosis.layers
    assert diagnosis.verdict in " ".join(capsys.readouterr().out.split())


def _check_that_it_resumes(trained: Trained) -> None:
    """From the checkpoint in the middle to the same bytes."""

    def report(step: int, metrics: Metrics) -> None: ...

    def checkpoint(state: TrainingState, metrics: Metrics) -> None: ...

    assert list(trained.checkpoints) == [2, 4]
    resumed = trained.job.run(report, checkpoint, resume=trained.checkpoints[2])
    (first, first_spec), (second, second_spec) = (tree_flatten(_saved(each)) for each in (trained.state, resumed))
    assert first_spec == second_spec
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


def _saved(state: TrainingState) -> dict[str, Any]:
    """What the checkpoint of a state holds, but for the speed."""
    saved: dict[str, Any] = torch.load(io.BytesIO(state.to_bytes()), weights_only=True)
    for row in saved["history"]:
        del row["images_per_second"]
    return saved


def _check_that_it_is_swept(job: TrainingJob) -> None:
    """The layers and weights that a shipped space names are there: the regulariser is built for each sample."""
    names = [key for key, module in job.network().named_modules() if isinstance(module, LAYER_TYPES)]
    params = job.params.patched({"train.batch_size": 8}, "the test")
    space = load_space("layer_weights", params, lambda: names)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(5):
        chosen = TrainingJob(params.patched(space.choose(study.ask()), "sample"), job.packed)
        assert chosen.regularizer(chosen.network()) is not None
