"""What a training run is told, apart from its data and its network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Literal["l1", "mse", "cross_entropy"]
Tensors = tuple[Tensor, ...] | list[Tensor]
EmaUpdate = Callable[[Tensors, Tensors, Tensor | int], None]


@dataclass(frozen=True)
class TrainingSettings:
    """Optimisation and the rhythm of reports; all counts are in steps of the global batch.

    Attributes:
        steps: how many updates.
        seed: of the turns and shifts of pairs.
        learning_rate: peak of the schedule (AdamW).
        warmup_steps: linear rise of the learning rate from 0.
        weight_decay: of AdamW.
        gradient_clip: largest norm of the whole gradient; larger ones are scaled down to it.
        ema_decay: of the averaged weights, which are the result.
        loss: ``l1`` mean absolute, ``mse`` mean squared error; ``cross_entropy`` of class scores.
        task_on_copies: whether the task loss counts the rotated copies.
        images_at_once: most images that a worker takes through the network at once; the gradients of more are
            accumulated, with the weight of the penalty in the unit of the task loss up to the step before. None: all.
        report_every, validate_every, checkpoint_every: the last step always does all three; a validation is reported.
    """

    steps: int
    seed: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    gradient_clip: float
    ema_decay: float
    loss: Loss
    task_on_copies: bool
    images_at_once: int | None
    report_every: int
    validate_every: int
    checkpoint_every: int

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to 0 after the last step."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return self.learning_rate * (1 + math.cos(math.pi * progress)) / 2

    def is_due(self, every: int, step: int) -> bool:
        """Whether something done every so many steps is done after ``step`` (counted from 0)."""
        return (step + 1) % every == 0 or step + 1 == self.steps

    def task_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over all values (of cross-entropy: over the images), in float32."""
        return _LOSSES[self.loss](outputs.float(), targets)


_LOSSES: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "mse": F.mse_loss,
    "cross_entropy": F.cross_entropy,
}


def ema_update(decay: float) -> EmaUpdate:
    """Averaging function for ``torch.optim.swa_utils.AveragedModel``.

    The decay after n updates is ``min(decay, (1 + n) / (10 + n))``, so that a short run is not held at its beginning.
    """

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, num_averaged: Tensor | int) -> None:
        count = float(num_averaged)
        step = 1 - min(decay, (1 + count) / (10 + count))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value.to(mean.dtype), step)
            else:
                mean.copy_(value)

    return update
