"""The private parts of Ray Train that the quick trainer replaces are there, and are replaced."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

from pipeline.cluster.controller import FixedHere, NoDatasets
from pipeline.cluster.quick_trainer import QuickTrainer

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]


def test_the_policy_replaces_methods_that_ray_has() -> None:
    for name in ("after_controller_start", "_maybe_send_resource_request"):
        assert callable(getattr(FixedScalingPolicy, name))
        assert getattr(FixedHere, name) is not getattr(FixedScalingPolicy, name)
    for name in ("_create_default_callbacks", "_initialize_and_run_controller"):
        assert callable(getattr(TorchTrainer, name))
        assert getattr(QuickTrainer, name) is not getattr(TorchTrainer, name)


def test_workers_are_told_that_there_are_no_datasets() -> None:
    assert hasattr(DatasetsCallback, "before_init_train_context")
    assert NoDatasets().before_init_train_context(["a", "b"]) == {"dataset_shard_provider": [None, None]}


@pytest.mark.parametrize("num_workers", [2, (1, 2)])
def test_an_elastic_run_still_asks_for_nodes(num_workers: int | tuple[int, int]) -> None:
    trainer = QuickTrainer(
        print,
        is_local=True,
        scaling_config=ScalingConfig(num_workers=num_workers),
        run_config=RunConfig(name="test", storage_path="/nowhere"),
    )
    assert trainer._is_local is (num_workers == 2)


@pytest.mark.parametrize("is_trial", [False, True])
@pytest.mark.parametrize("is_local", [False, True])
def test_what_frees_the_room_of_a_dead_controller_is_left_out_where_ray_ends_with_the_command(
    is_local: bool, is_trial: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = "an actor" if is_trial else None
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_actor_id=lambda: actor))
    trainer = QuickTrainer(print, is_local=is_local, run_config=RunConfig(name="test", storage_path="/nowhere"))
    kinds = [type(callback) for callback in trainer._create_default_callbacks()]
    assert (PlacementGroupCleanerCallback in kinds) is (is_trial or not is_local)
    assert DatasetsCallback not in kinds
    assert NoDatasets in kinds


def test_the_controller_imports_neither_torch_nor_the_networks() -> None:
    """Else all workers wait for it: what the driver hands it is unpickled from these modules alone."""
    files = {ROOT / "pipeline/cluster/controller.py", ROOT / "pipeline/cluster/meeting.py"}
    for file in files:
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert [name for name in names if name.split(".")[0] in ("torch", "components", "pipeline")] == [], file
