"""What of ours runs in the process of Ray Train's controller.

Workers start only after the controller has imported what it was given. Neither torch nor the networks are imported
here, nor in what this imports: that took seven seconds of one core, while all others waited.
"""

from __future__ import annotations

from typing import Any

from ray.exceptions import OutOfDiskError
from ray.train import TrainingFailedError, UserCallback
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.util.queue import Queue


class LossWatcher(UserCallback):
    """Tells the driver that workers were lost."""

    def __init__(self, mailbox: Queue) -> None:
        self._mailbox = mailbox

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        if any(map(is_full_disk, worker_exceptions.values())):
            return  # no worker was lost, and the run ends with this
        ranks = sorted(worker_exceptions, key=lambda rank: (_is_consequence(worker_exceptions[rank]), rank))
        error = worker_exceptions[ranks[0]]
        reason = "no longer reaches another worker" if _is_consequence(error) else last_line(error)
        self._mailbox.put(("lost", f"worker {ranks[0]}: {reason}"))


class StartWatcher(ControllerCallback):
    """Tells the driver that workers are to be started, at first, after a loss or in another number."""

    def __init__(self, mailbox: Queue) -> None:
        self._mailbox = mailbox

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        self._mailbox.put(("starting", None))


class LossPolicy(DefaultFailurePolicy):
    """Tries again after a loss of workers, but not where a disk is full."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        if any(map(is_full_disk, getattr(training_failed_error, "worker_failures", {}).values())):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class NoDatasets(WorkerGroupCallback):
    """Workers are told that there are no data sets of Ray Data."""

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        return {"dataset_shard_provider": [None] * len(workers)}


class FixedHere(FixedScalingPolicy):
    """So many workers, without requests to an autoscaler."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Nothing is requested."""

    def _maybe_send_resource_request(self) -> None:
        """Nothing is requested."""


def is_full_disk(error: BaseException) -> bool:
    """Whether a worker failed because a disk is full, which another try would find so."""
    from pipeline.errors import FULL, FullDiskError

    error = getattr(error, "_base_exc", error)  # what Ray's UserExceptionWithTraceback holds
    is_full = isinstance(error, OSError) and error.errno in FULL
    return is_full or isinstance(error, FullDiskError | OutOfDiskError)


def _is_consequence(error: BaseException) -> bool:
    """Whether a worker only failed because it no longer reached another."""
    return any(word in str(error) for word in ("gloo", "NCCL", "ProcessGroup"))


def last_line(error: BaseException) -> str:
    """Of its message, 300 characters at most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
