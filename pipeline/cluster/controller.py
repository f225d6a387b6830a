"""Callbacks and policies that run in the process of Ray Train's controller.

The controller imports them before it starts the workers. This module and its imports must therefore not import torch or
the networks: that import took seven seconds of one core, while all other cores waited.
"""

from __future__ import annotations

from typing import Any

from ray.exceptions import OutOfDiskError
from ray.train import TrainingFailedError, UserCallback
from ray.util.queue import Queue

from pipeline.compat import (
    ControllerCallback,
    DefaultFailurePolicy,
    FailureDecision,
    FixedScalingPolicy,
    WorkerGroupCallback,
    cause_of,
)


class LossWatcher(UserCallback):
    """Sends a message to the driver when workers are lost."""

    def __init__(self, mailbox: Queue) -> None:
        self._mailbox = mailbox

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Sends the first error that is not a consequence of another worker's error."""
        if any(map(is_full_disk, worker_exceptions.values())):
            return  # no worker was lost, and the full disk ends the run
        ranks = sorted(worker_exceptions, key=lambda rank: (_is_consequence(worker_exceptions[rank]), rank))
        error = worker_exceptions[ranks[0]]
        reason = "no longer reaches another worker" if _is_consequence(error) else last_line(error)
        self._mailbox.put(("lost", f"worker {ranks[0]}: {reason}"))


class StartWatcher(ControllerCallback):
    """Sends a message to the driver when workers are about to start: at first, after a loss, or in another number."""

    def __init__(self, mailbox: Queue) -> None:
        self._mailbox = mailbox

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Sends the message."""
        self._mailbox.put(("starting", None))


class LossPolicy(DefaultFailurePolicy):
    """Restarts the workers after a loss, but not after a full disk."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """RAISE if a worker found a full disk; otherwise the decision of Ray's default policy."""
        if any(map(is_full_disk, getattr(training_failed_error, "worker_failures", {}).values())):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class NoDatasets(WorkerGroupCallback):
    """Gives the workers no data sets of Ray Data."""

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        """The arguments of each worker's training context: no provider of data sets."""
        return {"dataset_shard_provider": [None] * len(workers)}


class FixedHere(FixedScalingPolicy):
    """A fixed number of workers, without requests to an autoscaler."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Requests nothing."""

    def _maybe_send_resource_request(self) -> None:
        """Requests nothing."""


def is_full_disk(error: BaseException) -> bool:
    """Whether a worker failed because a disk is full. Another try would fail in the same way."""
    from pipeline.errors import FULL, FullDiskError

    error = cause_of(error)
    is_full = isinstance(error, OSError) and error.errno in FULL
    return is_full or isinstance(error, FullDiskError | OutOfDiskError)


def _is_consequence(error: BaseException) -> bool:
    """Whether a worker failed only because it could no longer reach another worker."""
    return any(word in str(error) for word in ("gloo", "NCCL", "ProcessGroup"))


def last_line(error: BaseException) -> str:
    """The last line of the error's message, at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
