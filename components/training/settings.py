"""Settings of a training run, apart from its data and its network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from components.training.losses import Loss
from components.training.optimizers import Optimizer
from components.training.schedules import Schedule

Tensors = tuple[Tensor, ...] | list[Tensor]
EmaUpdate = Callable[[Tensors, Tensors, Tensor | int], None]


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of the optimisation and intervals of reports; all intervals are in steps of the global batch.

    The last step always reports, validates and saves a checkpoint. A validation is always reported.

    Attributes:
        steps: number of updates.
        seed: seed of the elements and shifts of pairs, and of stochastic depth.
        optimizer: of the updates.
        schedule: of the learning rate after the warm-up.
        learning_rate: peak of the schedule.
        warmup_steps: number of steps in which the learning rate rises linearly from 0.
        weight_decay: weight decay of the optimiser.
        gradient_clip: largest norm of the whole gradient; a larger gradient is scaled down to it.
        ema_decay: decay of the averaged weights, which are the result.
        loss: the task loss.
        task_loss_on_transformed: whether the task loss includes the transformed images.
        micro_batch_size: largest number of images in one forward pass of a worker. The gradients of several passes are
            accumulated. The weight of the penalty is then in the unit of the task loss of the previous step. None: all
            images in one pass.
        report_every: interval of reports.
        validate_every: interval of validations.
        checkpoint_every: interval of checkpoints.
    """

    steps: int
    seed: int
    optimizer: Optimizer
    schedule: Schedule
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    gradient_clip: float
    ema_decay: float
    loss: Loss
    task_loss_on_transformed: bool
    micro_batch_size: int | None
    report_every: int
    validate_every: int
    checkpoint_every: int

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate: a linear warm-up, then the schedule."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return self.learning_rate * self.schedule(progress)

    def is_due(self, every: int, step: int) -> bool:
        """Return whether an action with interval ``every`` is due after ``step`` (counted from 0)."""
        return (step + 1) % every == 0 or step + 1 == self.steps

    def task_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean loss over all values, or over the images for cross-entropy, in float32."""
        return self.loss(outputs.float(), targets)


def ema_update(decay: float) -> EmaUpdate:
    """Return an averaging function for ``torch.optim.swa_utils.AveragedModel``.

    The decay after n updates is ``min(decay, (1 + n) / (10 + n))``. In a short run, the average is therefore not
    dominated by the initial weights.
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
