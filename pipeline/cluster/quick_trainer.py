"""A Ray Train trainer that starts faster, because it leaves out processes that eqreg does not need.

Beside the workers and their controller, Ray Train 2.60 starts four processes. The first serves data sets of Ray Data.
The second requests nodes from an autoscaler. The third watches for nodes that will be preempted. The fourth frees the
workers' resources if the controller dies. Each is a Python process that imports Ray and other packages, and the
controller waits for the second before it starts the workers. eqreg uses no data sets of Ray. If Ray was started on this
machine only, there are no other nodes to request or to lose, and all resources are freed when the command ends.
``benchmarks/start.py`` measures the time saved.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.train.torch import TorchTrainer

from pipeline.cluster.controller import FixedHere, LossPolicy, NoDatasets
from pipeline.compat import ENABLE_PREEMPTION_WATCHER, DatasetsCallback, PlacementGroupCleanerCallback
from pipeline.process_state import changed_environment


class QuickTrainer(TorchTrainer):
    """A TorchTrainer without data sets, which does not restart workers after a full disk.

    With ``is_local`` it also sends no requests to an autoscaler, and outside of trials it starts no process that frees
    the workers' resources.

    It replaces private parts of Ray 2.60: two callbacks, the scaling policy that sends requests to the autoscaler, and
    the failure policy that decides whether to restart. A test checks their names.
    """

    def __init__(self, *arguments: Any, is_local: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._is_local = is_local and not self.scaling_config.elasticity_enabled

    def _create_default_callbacks(self) -> list[Any]:
        is_trial = ray.get_runtime_context().get_actor_id() is not None  # other trials may need its resources
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
        with changed_environment({ENABLE_PREEMPTION_WATCHER: "0"}):  # Ray passes it to the controller
            return super()._initialize_and_run_controller(**parts)
