"""A training in MLflow: the metrics of its reports, its validation images, and the load of the machine.

A store that does not answer ends the logging and not the training; `pipeline.tracking.runs.results` logs the metrics
that are missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from components.brief import first_line
from pipeline.console import console
from pipeline.errors import UserError
from pipeline.tracking.runs import metric_names
from pipeline.tracking.store import Store, answering

if TYPE_CHECKING:
    import numpy as np

_SYSTEM_METRICS = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"


class TrainingLog:
    """Logs each step once and in order, even if steps are reported again after a recovery.

    Args:
        store: the store of the task.
        run_id: run of the training.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        self._store, self._run_id = store, run_id
        self._logged = store.last_step(run_id, metric_names.TASK_LOSS)
        self._answers = True

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of a report."""
        if self._try(
            step, lambda: self._store.log(self._run_id, step, metric_names.of_report(metrics, self._store.score.key))
        ):
            self._logged = step

    def show(self, step: int, images: Sequence[np.ndarray]) -> None:
        """Logs images ``(H, W, 3)`` of a validation, which MLflow shows with a slider of steps.

        It is called before the report of the same step.
        """

        def log() -> None:
            with answering(self._store.uri):
                for number, image in enumerate(images, 1):
                    self._store.client.log_image(self._run_id, image, key=f"validation/{number}", step=step)

        self._try(step, log)

    def _try(self, step: int, log: Callable[[], None]) -> bool:
        """Logs what belongs to a step, and returns whether it is logged now."""
        if step <= self._logged or not self._answers:
            return False
        try:
            log()
        except UserError as error:
            self._answers = False  # every further attempt would wait for the same timeout
            console.print(f"{first_line(error)}\ntraining goes on; evaluate will log the steps that are missing")
        return self._answers


@contextmanager
def system_metrics(store: Store, run_id: str) -> Iterator[None]:
    """Logs the load of this machine while the block runs: processors, memory, disk, network, and NVIDIA GPUs.

    The metrics are MLflow's own, ``system/...``, every 10 s (``MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL``). GPUs need
    the package ``nvidia-ml-py``. ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false`` turns them off. An error of the store
    ends them.
    """
    if os.environ.get(_SYSTEM_METRICS, "true").lower() not in ("true", "1"):
        yield
        return
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    class Monitor(SystemMetricsMonitor):
        """MLflow's, from step 1 on: what a run has of step 0 becomes a metric of the model that it logs."""

        step = 0

        def publish_metrics(self, metrics: Mapping[str, float]) -> None:
            self.step += 1
            store.log(run_id, self.step, {f"system/{key}": value for key, value in metrics.items()})
            for part in self.monitors:
                part.clear_metrics()

    monitor = None
    with suppress(UserError), answering(store.uri):
        monitor = Monitor(run_id, tracking_uri=store.uri)
        monitor.step = max(0, store.last_step(run_id, "system/cpu_utilization_percentage"))
        monitor.start()
    try:
        yield
    finally:
        if monitor:
            monitor.finish()
