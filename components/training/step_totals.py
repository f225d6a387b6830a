"""The losses of a step over its micro-batches and over all workers, and the error that ends a run that diverges."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from components.equivariance import EquivarianceRegularizer, GradientNorms, NonFiniteFeaturesError
from components.training.worker import Worker

Metrics = dict[str, float]

HINT = "lower train.learning_rate or equivariance.weight"


class TrainingDivergedError(ValueError):
    """The loss or its gradient became NaN or infinite; every worker raises this error in the same step."""


class StepTotals:
    """Sums over the micro-batches of a step on this worker, and their means over all workers.

    Every worker must call the same methods in the same order, because the means are collective operations.

    Args:
        worker: this process.
        is_reporting: whether to sum up the penalties of the layers, too.

    Attributes:
        task_loss: of the global batch, after `reduce`.
        penalty: likewise.
        norms: the gradient norms that this step measured, of this worker before `reduce` and the means over all workers
            after it; None if the step measured none.
    """

    def __init__(self, worker: Worker, is_reporting: bool) -> None:
        self._worker, self._is_reporting = worker, is_reporting
        self._losses = torch.zeros(2, device=worker.device)  # task, penalty
        self._layers: dict[str, float] = {}
        self._message = ""
        self.task_loss = self.penalty = math.nan
        self.norms: GradientNorms | None = None

    def penalty_of(self, regularizer: EquivarianceRegularizer | None, task: Tensor) -> Tensor:
        """Compute the penalty; it is NaN if features are not finite, and 0 without a regulariser.

        With NaN instead of an exception, every worker stops in the same step and no worker waits for another.
        """
        if not regularizer:
            return task.new_zeros(())
        try:
            return regularizer.penalty()
        except NonFiniteFeaturesError as error:
            self._message = f"; {error}"
            return torch.full_like(task, torch.nan)

    def add(self, task: Tensor, penalty: Tensor, regularizer: EquivarianceRegularizer | None, factor: float) -> None:
        """Add the values of a micro-batch after its backward pass.

        Args:
            task: the task loss, a scalar with its factor.
            penalty: likewise.
            regularizer: the one that computed the penalty, if there is one.
            factor: of the penalty.
        """
        self._losses += torch.stack((task.detach(), penalty.detach()))
        if not regularizer:
            return
        if self._is_reporting:
            for name, value in regularizer.layer_penalties().items():
                self._layers[name] = self._layers.get(name, 0.0) + factor * value
        if (norms := regularizer.gradient_norms()) is not None:
            self.norms = norms if self.norms is None else self.norms + norms

    def reduce(self, step: int) -> None:
        """Compute `task_loss`, `penalty` and `norms` from the sums of all workers.

        Raises:
            TrainingDivergedError: the losses are not finite. Every worker raises this error in the same step, before
                the weights are updated.
        """
        self.task_loss, self.penalty = self._worker.mean(self._losses).tolist()
        if not math.isfinite(self.task_loss + self.penalty):
            message = next(filter(None, self._worker.from_all(self._message)), "")
            raise TrainingDivergedError(
                f"the loss is no longer finite in step {step + 1} "
                f"(task {self.task_loss:g}, penalty {self.penalty:g}{message}): {HINT}"
            )
        if self.norms is not None:
            norms = torch.stack((self.norms.arriving, self.norms.own, self.norms.added))
            self.norms = GradientNorms(*self._worker.mean(norms))

    def layer_penalties(self) -> Metrics:
        """Return the mean penalty of each recorded layer; every worker records the same layers."""
        values = torch.tensor(list(self._layers.values()), device=self._worker.device)
        means = self._worker.mean(values).tolist()
        return {f"penalty/{name}": mean for name, mean in zip(self._layers, means, strict=True)}
