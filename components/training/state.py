"""The state of a training run: everything that changes from step to step, saved and restored whole.

Randomness is not in it: batches, turns and noise are functions of the step.
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

from components.equivariance import BalancedWeight, PenaltyWeight
from components.training.settings import TrainingSettings, ema_update
from components.training.worker import Worker


@dataclass(frozen=True)
class TrainingResult:
    """The result of a run so far.

    Attributes:
        network: with the averaged weights.
        step: number of finished steps.
        history: every report, ``{"step": s, metric: value}``.
    """

    network: nn.Module
    step: int
    history: list[dict[str, float]]

    @classmethod
    def from_bytes(cls, data: bytes, network: nn.Module) -> TrainingResult:
        """Reads a checkpoint of ``TrainingState.to_bytes`` into a network of its kind.

        Raises:
            ValueError: it is no checkpoint, or one of another network. Nothing in it is executed.
        """
        with _checkpoint(data) as saved:
            averaged = {name.removeprefix("module."): value for name, value in saved["averaged"].items()}
            del averaged["n_averaged"]
            network.load_state_dict(averaged)
            return cls(network, saved["step"], saved["history"])


class TrainingState:
    """Everything that a run has to keep.

    Attributes:
        network, averaged, optimizer, penalty_weight: what is trained, and with what.
        step: how many are done.
        last_task_loss: of the step before, over all workers; NaN before the first.
        history: every report so far, ``{"step": s, metric: value}``: a run that goes on from here has them all.
    """

    def __init__(
        self,
        network: nn.Module,
        penalty_weight: PenaltyWeight | BalancedWeight,
        settings: TrainingSettings,
        worker: Worker,
    ) -> None:
        self.network = network.to(worker.device).to(memory_format=worker.memory_format)  # type: ignore[call-overload]
        self.averaged = AveragedModel(self.network, multi_avg_fn=ema_update(settings.ema_decay), use_buffers=True)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=settings.learning_rate,
            betas=(0.9, 0.99),  # a shorter memory of squares than 0.999 suits runs of some thousand steps
            weight_decay=settings.weight_decay,
        )
        self.penalty_weight = penalty_weight
        self.step = 0
        self.last_task_loss = math.nan
        self.history: list[dict[str, float]] = []

    def to_bytes(self) -> bytes:
        """A checkpoint. Who keeps it sees to its integrity."""
        content = io.BytesIO()
        torch.save(
            {
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
        """Restores what ``to_bytes`` gave.

        Raises:
            ValueError: it is no checkpoint, or one of another network. Nothing in it is executed.
        """
        with _checkpoint(data) as saved:
            self.network.load_state_dict(saved["network"])
            self.averaged.load_state_dict(saved["averaged"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.penalty_weight.load_state_dict(saved["penalty_weight"])
            self.step, self.last_task_loss, self.history = saved["step"], saved["last_task_loss"], saved["history"]

    @property
    def result(self) -> TrainingResult:
        """The result of the run so far. Its network is the averaged one itself, not a copy."""
        return TrainingResult(self.averaged.module, self.step, self.history)


@contextmanager
def _checkpoint(data: bytes) -> Iterator[dict[str, Any]]:
    """What a checkpoint holds; whatever fails in reading or using it says that it does not fit."""
    try:
        yield torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"a checkpoint that does not fit this run ({reason})") from error
