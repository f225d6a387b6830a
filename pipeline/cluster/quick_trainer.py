"""Ray Train without what a training of ours has no use for, so that it starts sooner.

Beside the workers and their controller, Ray Train 2.60 starts a process for data sets of Ray Data, one that asks an
autoscaler for nodes, and one that watches for nodes that will be taken away. Each of them is a Python that imports Ray,
two also Ray Data; the controller waits for the second before it starts the workers. Nothing here has data sets of Ray,
and where Ray was started on this machine alone, there are no other nodes to ask for or to lose.
``benchmarks/start.py`` measures what it saves.
"""

from __future__ import annotations

import os
from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.constants import ENABLE_PREEMPTION_WATCHER_ENV_VAR
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy


class QuickTrainer(TorchTrainer):
    """A TorchTrainer without data sets; with ``is_local`` also without an autoscaler.

    Private parts of Ray 2.60 are replaced: the callback that starts the process for data sets, and the policy that
    sends requests to the autoscaler. A test holds both names.
    """

    def __init__(self, *arguments: Any, is_local: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._is_local = is_local and not self.scaling_config.elasticity_enabled

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [_NoDatasets() if isinstance(callback, DatasetsCallback) else callback for callback in callbacks]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        if not self._is_local:
            return super()._initialize_and_run_controller(**parts)
        parts["scaling_policy"] = _FixedHere(self.scaling_config)
        before = os.environ.get(ENABLE_PREEMPTION_WATCHER_ENV_VAR)
        os.environ[ENABLE_PREEMPTION_WATCHER_ENV_VAR] = "0"  # Ray hands it on to the controller
        try:
            return super()._initialize_and_run_controller(**parts)
        finally:
            if before is None:
                del os.environ[ENABLE_PREEMPTION_WATCHER_ENV_VAR]
            else:
                os.environ[ENABLE_PREEMPTION_WATCHER_ENV_VAR] = before


class _NoDatasets(WorkerGroupCallback):
    """Workers are told that there are no data sets."""

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        return {"dataset_shard_provider": [None] * len(workers)}


class _FixedHere(FixedScalingPolicy):
    """So many workers, without requests to an autoscaler."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Nothing is requested."""

    def _maybe_send_resource_request(self) -> None:
        """Nothing is requested."""
