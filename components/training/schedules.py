"""The schedules of the learning rate: one class for each, registered under the name that ``train.schedule`` uses.

A schedule is a frozen dataclass whose fields are its settings. It is called with the share of the steps after the
warm-up that are done, in [0, 1], and returns the learning rate relative to its peak. To add one, write its class and
one line in ``SCHEDULES`` (``components/members.py``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from components.registry import Settings


class Schedule(Settings, ABC):
    """Base class of the schedules."""

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """Return the learning rate / its peak at this share of the steps after the warm-up."""


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a cosine that falls to ``final`` after the last step.

    Source: Loshchilov, Hutter, *SGDR: Stochastic Gradient Descent with Warm Restarts*, ICLR 2017, without restarts.

    Example:
        >>> [round(Cosine()(progress), 2) for progress in (0, 0.5, 1)]
        [1.0, 0.5, 0.0]
    """

    final: float = 0.0
    """Learning rate after the last step / its peak."""

    def __post_init__(self) -> None:
        if not 0 <= self.final <= 1:
            raise ValueError(f"final: {self.final}: use a number of at least 0 and of at most 1")

    def __call__(self, progress: float) -> float:
        """Return ``final + (1 - final) (1 + cos(pi progress)) / 2``."""
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The peak until the end."""

    def __call__(self, progress: float) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class MultiStep(Schedule):
    """The learning rate is multiplied by ``factor`` at each milestone.

    Example:
        >>> [MultiStep(factor=0.5)(progress) for progress in (0, 0.5, 0.9)]
        [1.0, 0.5, 0.25]
    """

    milestones: tuple[float, ...] = (0.5, 0.8)
    """Shares of the steps at which the learning rate falls, rising, between 0 and 1."""
    factor: float = 0.1
    """New learning rate / old learning rate at a milestone."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        if list(self.milestones) != sorted(self.milestones) or not all(0 < each < 1 for each in self.milestones):
            raise ValueError(f"milestones: {list(self.milestones)}: use rising shares of the steps between 0 and 1")
        if not 0 < self.factor < 1:
            raise ValueError(f"factor: {self.factor}: use a number above 0 and below 1")

    def __call__(self, progress: float) -> float:
        """Return ``factor ** (number of milestones reached)``."""
        reached = sum(progress >= milestone for milestone in self.milestones)
        return float(self.factor**reached)
