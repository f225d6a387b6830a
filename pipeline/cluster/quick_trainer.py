"""Ray Train without what a training of ours has no use for, so that it starts sooner.

Beside the workers and their controller, Ray Train 2.60 starts a process for data sets of Ray Data, one that asks an
autoscaler for nodes, one that watches for nodes that will be taken away, and one that frees the workers' room if the
controller dies. Each of them is a Python that imports Ray, and more; the controller waits for the second before it
starts the workers. Nothing here has data sets of Ray, and where Ray was started on this machine alone, there are no
other nodes to ask for or to lose, and all room is free when the command ends.
``benchmarks/start.py`` measures what it saves.
"""

from __future__ import annotations

import os
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import ENABLE_PREEMPTION_WATCHER_ENV_VAR

from pipeline.cluster.controller import FixedHere, LossPolicy, NoDatasets


class QuickTrainer(TorchTrainer):
    """A TorchTrainer without data sets, which does not try again where a disk is full.

    With ``is_local`` it is also without an autoscaler, and outside of trials without a cleaner.

    Private parts of Ray 2.60 are replaced: two callbacks, the policy that sends requests to the autoscaler and the one
    that says whether to try again. A test holds their names.
    """

    def __init__(self, *arguments: Any, is_local: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._is_local = is_local and not self.scaling_config.elasticity_enabled

    def _create_default_callbacks(self) -> list[Any]:
        is_trial = ray.get_runtime_context().get_actor_id() is not None  # then others may need its room
        return [
            NoDatasets() if isinstance(callback, DatasetsCallback) else callback
            for callback in super()._create_default_callbacks()
            if is_trial or not self._is_local or not isinstance(callback, PlacementGroupCleanerCallback)
        ]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        parts["failure_policy"] = LossPolicy(self.run_config.failure_config)
        if not self._is_local:
            return super()._initialize_and_run_controller(**parts)
        parts["scaling_policy"] = FixedHere(self.scaling_config)
        before = os.environ.get(ENABLE_PREEMPTION_WATCHER_ENV_VAR)
        os.environ[ENABLE_PREEMPTION_WATCHER_ENV_VAR] = "0"  # Ray hands it on to the controller
        try:
            return super()._initialize_and_run_controller(**parts)
        finally:
            if before is None:
                del os.environ[ENABLE_PREEMPTION_WATCHER_ENV_VAR]
            else:
                os.environ[ENABLE_PREEMPTION_WATCHER_ENV_VAR] = before
