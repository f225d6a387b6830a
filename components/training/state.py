"""The state of a training run: everything that changes from step to step, saved and restored whole.

Randomness is not in it: batches, turns and noise are functions of the step.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from components.equivariance import BalancedWeight, PenaltyWeight
from components.training.settings import TrainingSettings, ema_update
from components.training.worker import Worker

_FILE = "state.pt"


class TrainingState:
    """Network, averaged weights, optimiser, penalty weight and the number of steps done."""

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

    def save(self, folder: Path) -> None:
        """Writes the checkpoint into a folder of its own: under another name first, with its SHA-256 beside it."""
        content = io.BytesIO()
        torch.save(
            {
                "network": self.network.state_dict(),
                "averaged": self.averaged.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "penalty_weight": self.penalty_weight.state_dict(),
                "step": self.step,
            },
            content,
        )
        data = content.getvalue()
        for name, part in ((_FILE, data), (f"{_FILE}.sha256", hashlib.sha256(data).hexdigest().encode())):
            temporary = folder / f".{name}.partial"
            temporary.write_bytes(part)
            temporary.replace(folder / name)

    def load(self, folder: Path) -> None:
        """Restores what ``save`` wrote.

        Raises:
            ValueError: the checkpoint is missing, incomplete or damaged.
        """
        try:
            data = (folder / _FILE).read_bytes()
            recorded = (folder / f"{_FILE}.sha256").read_text()
        except OSError as error:
            raise ValueError(f"{folder}: no complete checkpoint ({error})") from error
        if hashlib.sha256(data).hexdigest() != recorded:
            raise ValueError(f"{folder / _FILE}: damaged, its SHA-256 is not the recorded one")
        saved: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        self.network.load_state_dict(saved["network"])
        self.averaged.load_state_dict(saved["averaged"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.penalty_weight.load_state_dict(saved["penalty_weight"])
        self.step = saved["step"]
