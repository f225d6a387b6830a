"""How much the penalty counts at a step: warm-up, and the unit it borrows from the task loss."""

import math
from typing import Literal

from .options import check_choice

WeightUnit = Literal["task", "none"]


class PenaltyWeight:
    """The factor of the penalty: ``weight * min(1, (s + 1) / warmup_steps) * unit`` at step s = 0, 1, ...

    The penalty has no unit, the task loss has. ``unit="task"`` is a running mean m of the task loss,
    ``m_i = momentum * m_{i-1} + (1 - momentum) * loss_i`` from ``m_0 = 0``, divided by ``1 - momentum^i``:
    a weighted mean of the losses given so far, and a function of their sequence alone. ``unit="none"`` is 1.
    It is a number, so no gradient flows through it. Source: METHOD.md section 3.

    Args:
        weight: lambda, at least 0.
        warmup_steps: steps until the full weight; 0 is none.
        unit: "task" or "none".
        momentum: of the running mean, at least 0 and below 1.

    Raises:
        ValueError: one of these out of range.
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
        """The factor at a step (from 0), after taking this step's task loss into the running mean.

        With several workers give all the same loss, the mean over the global batch, or their factors differ.

        Raises:
            ValueError: a task loss that is not finite: it would stay in the mean for ever.
        """
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.unit == "none":
            return self.weight * warmup
        if not math.isfinite(task_loss):
            raise ValueError(f"task_loss: {task_loss} at step {step} is not finite")
        self._num_losses += 1
        self._running_mean = self.momentum * self._running_mean + (1 - self.momentum) * task_loss
        return self.weight * warmup * self._running_mean / (1 - self.momentum**self._num_losses)

    def state_dict(self) -> dict[str, float | int]:
        """What a checkpoint must hold to go on with the same numbers."""
        return {"running_mean": self._running_mean, "num_losses": self._num_losses}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Go on from a `state_dict`."""
        self._running_mean = float(state["running_mean"])
        self._num_losses = int(state["num_losses"])
