"""The private parts of Ray Train that the quick trainer replaces are there, and are replaced."""

from __future__ import annotations

import pytest
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

from pipeline.cluster.quick_trainer import QuickTrainer, _FixedHere, _NoDatasets

pytestmark = pytest.mark.unit


def test_the_policy_replaces_methods_that_ray_has() -> None:
    for name in ("after_controller_start", "_maybe_send_resource_request"):
        assert callable(getattr(FixedScalingPolicy, name))
        assert getattr(_FixedHere, name) is not getattr(FixedScalingPolicy, name)
    for name in ("_create_default_callbacks", "_initialize_and_run_controller"):
        assert callable(getattr(TorchTrainer, name))
        assert getattr(QuickTrainer, name) is not getattr(TorchTrainer, name)


def test_workers_are_told_that_there_are_no_datasets() -> None:
    assert hasattr(DatasetsCallback, "before_init_train_context")
    assert _NoDatasets().before_init_train_context(["a", "b"]) == {"dataset_shard_provider": [None, None]}


@pytest.mark.parametrize("num_workers", [2, (1, 2)])
def test_an_elastic_run_still_asks_for_nodes(num_workers: int | tuple[int, int]) -> None:
    trainer = QuickTrainer(
        print,
        is_local=True,
        scaling_config=ScalingConfig(num_workers=num_workers),
        run_config=RunConfig(name="test", storage_path="/nowhere"),
    )
    assert trainer._is_local is (num_workers == 2)
