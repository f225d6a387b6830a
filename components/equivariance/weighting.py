"""The factor of the penalty in the loss: a constant weight, or one that keeps a target share of the gradient norm.

Call ``at(step, task_loss)`` before the backward pass, and ``observe(norms)`` after it.
"""

from __future__ import annotations

import math
from typing import Literal

from .autograd.injection import GradientNorms
from .options import check_choice

WeightUnit = Literal["task", "none"]


class PenaltyWeight:
    """The factor of the penalty: ``weight * min(1, (s + 1) / warmup_steps) * unit`` at step s = 0, 1, ...

    The penalty has no unit, but the task loss has one. ``unit="task"`` is a running mean m of the task loss,
    ``m_i = momentum * m_{i-1} + (1 - momentum) * loss_i`` from ``m_0 = 0``, divided by ``1 - momentum^i``. It is a
    weighted mean of the losses so far, and depends only on their sequence. ``unit="none"`` is 1. The factor is a
    number, so no gradient flows through it. Source: docs/explanation/method.md, "Loss".

    Args:
        weight: lambda, at least 0.
        warmup_steps: the number of steps until the full weight; 0 for no warm-up.
        unit: "task" or "none".
        momentum: of the running mean, at least 0 and below 1.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> weight = PenaltyWeight(0.5, warmup_steps=2, unit="none")
        >>> weight.at(0, task_loss=3.0), weight.at(1, task_loss=3.0)
        (0.25, 0.5)
        >>> round(PenaltyWeight(0.5, unit="task").at(0, task_loss=3.0), 6)
        1.5
    """

    def __init__(self, weight: float, warmup_steps: int = 0, unit: WeightUnit = "task", momentum: float = 0.99) -> None:
        check_choice("weight_unit", unit, ("task", "none"))
        if not (weight >= 0 and math.isfinite(weight)):
            raise ValueError(f"weight: {weight} must be a number of at least 0")
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps: {warmup_steps} must be at least 0")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: {momentum} must be at least 0 and below 1")
        self.weight = weight
        self.warmup_steps = warmup_steps
        self.unit = unit
        self.momentum = momentum
        self._running_mean = 0.0
        self._num_losses = 0

    def at(self, step: int, task_loss: float) -> float:
        """The factor at a step (from 0); the running mean first takes in this step's task loss.

        With several workers, give all of them the same loss, the mean over the global batch. Otherwise their factors
        differ.

        Raises:
            ValueError: the task loss is not finite; it would stay in the running mean for ever.
        """
        warmup = _warmup(step, self.warmup_steps)
        if self.unit == "none":
            return self.weight * warmup
        if not math.isfinite(task_loss):
            raise ValueError(f"task_loss: {task_loss} at step {step} is not finite")
        self._num_losses += 1
        self._running_mean = self.momentum * self._running_mean + (1 - self.momentum) * task_loss
        return self.weight * warmup * self._running_mean / (1 - self.momentum**self._num_losses)

    def observe(self, norms: GradientNorms | None) -> None:
        """Do nothing: this weight does not depend on gradients."""

    def state_dict(self) -> dict[str, float | int]:
        """The state that a checkpoint needs to continue with the same numbers."""
        return {"running_mean": self._running_mean, "num_losses": self._num_losses}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Continue from a `state_dict`."""
        self._running_mean = float(state["running_mean"])
        self._num_losses = int(state["num_losses"])


class BalancedWeight:
    """Adapts lambda so that the penalty has a target share of the gradient norm at the penalised layers.

    A is the norm of the gradient that arrives at the outputs of the penalised layers from everything after them. G is
    the norm of the penalty's own gradient there. Both norms are over the maps of all pairs and all layers. The share is
    ``G / (A + G)``. After each step, this class computes the lambda that would have met the target:

    ``lambda* = factor * share / (1 - share) * A / G``    (G was measured with `factor`, and is proportional to it).

    The logarithm of lambda* enters a running mean, ``m_i = momentum m_{i-1} + (1 - momentum) log lambda*_i`` from
    ``m_0 = 0``, divided by ``1 - momentum^i``. The exponential of this mean is lambda of the next step. It is a number,
    so no gradient flows through it. This class needs ``EquivarianceRegularizer(..., measure_gradients=True)``, and task
    loss and penalty in one backward pass.

    Args:
        share: the target, above 0 and below 1.
        initial: lambda of the first step, above 0.
        warmup_steps: the number of steps until the full lambda; 0 for no warm-up.
        momentum: of the running mean, at least 0 and below 1.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> weight = BalancedWeight(share=0.5, initial=1.0)
        >>> factor = weight.at(0, task_loss=3.0)
        >>> squares = torch.tensor(1.0)
        >>> weight.observe(GradientNorms(arriving=4 * squares, own=squares, added=squares))  # A = 2, G = 1
        >>> factor, round(weight.at(1, task_loss=3.0), 6)
        (1.0, 2.0)
    """

    def __init__(self, share: float, initial: float = 1e-3, warmup_steps: int = 0, momentum: float = 0.9) -> None:
        if not 0 < share < 1:
            raise ValueError(f"balance: {share} must be above 0 and below 1, the penalty's share of the gradient norm")
        if not (initial > 0 and math.isfinite(initial)):
            raise ValueError(f"weight: {initial} must be a number above 0 to begin balancing with")
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps: {warmup_steps} must be at least 0")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: {momentum} must be at least 0 and below 1")
        self.share = share
        self.weight = initial
        self.warmup_steps = warmup_steps
        self.momentum = momentum
        self._factor = initial
        self._mean_log = 0.0
        self._num_observed = 0

    def at(self, step: int, task_loss: float) -> float:
        """The factor at a step (from 0): the current lambda times the warm-up. The task loss is not used."""
        self._factor = self.weight * _warmup(step, self.warmup_steps)
        return self._factor

    def observe(self, norms: GradientNorms | None) -> None:
        """Update lambda from the gradient norms of this step; with several workers, give all of them the same means.

        Nothing changes if nothing was measured in this step, or if a norm is 0 or not finite.
        """
        if norms is None:
            return
        arriving, own = float(norms.arriving) ** 0.5, float(norms.own) ** 0.5
        if not (0 < arriving < math.inf and 0 < own < math.inf):
            return
        wanted = math.log(self._factor * self.share / (1 - self.share) * arriving / own)
        self._num_observed += 1
        self._mean_log = self.momentum * self._mean_log + (1 - self.momentum) * wanted
        self.weight = math.exp(self._mean_log / (1 - self.momentum**self._num_observed))

    def state_dict(self) -> dict[str, float | int]:
        """The state that a checkpoint needs to continue with the same numbers."""
        return {"weight": self.weight, "mean_log": self._mean_log, "num_observed": self._num_observed}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Continue from a `state_dict`."""
        self.weight = float(state["weight"])
        self._mean_log = float(state["mean_log"])
        self._num_observed = int(state["num_observed"])


def _warmup(step: int, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
