"""The state of a training run: everything that changes from step to step, saved and restored as a whole.

The state contains no random state, because batches, elements and noise are functions of the step.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from components.brief import first_line
from components.equivariance import BalancedWeight, PenaltyWeight
from components.formats import KEY, check_format
from components.training.settings import TrainingSettings, ema_update
from components.training.worker import Worker, arranged

FORMAT = 1
"""Version of the layout of a checkpoint."""

_UNFIT = (RuntimeError, LookupError, TypeError, AttributeError, ValueError, EOFError, pickle.UnpicklingError)
"""What torch and Python raise for bytes that are no checkpoint, and for one with other content than expected."""


@dataclass(frozen=True)
class TrainingResult:
    """The result of a run so far.

    Attributes:
        network: the network with the averaged weights.
        step: number of finished steps.
        history: all reports, ``{"step": s, metric: value}`` each.
    """

    network: nn.Module
    step: int
    history: list[dict[str, float]]

    @classmethod
    def from_bytes(cls, data: bytes, network: nn.Module) -> TrainingResult:
        """Load a checkpoint of ``TrainingState.to_bytes`` into a network of the same architecture.

        No code in the checkpoint is executed.

        Raises:
            ValueError: the data are not a checkpoint, or the checkpoint is of another network.
        """
        with _checkpoint(data) as saved:
            averaged = {name.removeprefix("module."): value for name, value in saved["averaged"].items()}
            del averaged["n_averaged"]
            network.load_state_dict(averaged)
            return cls(network, saved["step"], saved["history"])


class TrainingState:
    """The state that a run saves in a checkpoint.

    Attributes:
        network: the network that is trained.
        averaged: the network with the averaged weights.
        optimizer: the optimizer.
        penalty_weight: the weight of the penalty.
        step: number of finished steps.
        last_task_loss: task loss of the previous step over all workers; NaN before the first step.
        history: all reports so far, ``{"step": s, metric: value}`` each. A resumed run thus has the earlier reports.
    """

    def __init__(
        self,
        network: nn.Module,
        penalty_weight: PenaltyWeight | BalancedWeight,
        settings: TrainingSettings,
        worker: Worker,
    ) -> None:
        self.network = arranged(network.to(worker.device), worker.memory_format)
        self.averaged = AveragedModel(self.network, multi_avg_fn=ema_update(settings.ema_decay), use_buffers=True)
        self.optimizer = settings.optimizer.build(
            self.network.parameters(), settings.learning_rate, settings.weight_decay
        )
        self.penalty_weight = penalty_weight
        self.step = 0
        self.last_task_loss = math.nan
        self.history: list[dict[str, float]] = []

    def to_bytes(self) -> bytes:
        """Return a checkpoint. The caller that stores it is responsible for its integrity."""
        content = io.BytesIO()
        torch.save(
            {
                KEY: FORMAT,
                "network": self.network.state_dict(),
                "averaged": self.averaged.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "penalty_weight": self.penalty_weight.state_dict(),
                "step": self.step,
                "last_task_loss": self.last_task_loss,
                "history": self.history,
            },
            content,
        )
        return content.getvalue()

    def from_bytes(self, data: bytes) -> None:
        """Restore the state from a checkpoint of ``to_bytes``.

        No code in the checkpoint is executed.

        Raises:
            ValueError: the data are not a checkpoint, or the checkpoint is of another network.
        """
        with _checkpoint(data) as saved:
            self.network.load_state_dict(saved["network"])
            self.averaged.load_state_dict(saved["averaged"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.penalty_weight.load_state_dict(saved["penalty_weight"])
            self.step, self.last_task_loss, self.history = saved["step"], saved["last_task_loss"], saved["history"]

    @property
    def result(self) -> TrainingResult:
        """The result of the run so far; its network is the averaged network itself, not a copy."""
        return TrainingResult(self.averaged.module, self.step, self.history)


@contextmanager
def _checkpoint(data: bytes) -> Iterator[dict[str, Any]]:
    """Load a checkpoint; errors in loading or using its content become a ValueError that it does not fit this run."""
    try:
        saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        check_format(saved, FORMAT, "it")
        yield saved
    except _UNFIT as error:
        raise ValueError(f"a checkpoint that does not fit this run ({first_line(error)})") from error
