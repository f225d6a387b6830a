"""The optimisers: one class for each, registered under the name that ``train.optimizer`` uses.

An optimiser is a frozen dataclass whose fields are its settings, without the learning rate and the weight decay, which
all optimisers have. To add one, write its class and one line in ``OPTIMIZERS`` (``components/members.py``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from components.registry import Settings


class Optimizer(Settings, ABC):
    """Base class of the optimisers."""

    @abstractmethod
    def build(self, parameters: Iterable[nn.Parameter], learning_rate: float, decay: float) -> torch.optim.Optimizer:
        """Build the optimiser of torch.

        Args:
            parameters: the parameters that it updates.
            learning_rate: peak of the schedule.
            decay: weight decay.
        """


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam, with the weight decay in the gradient.

    Source: Kingma, Ba, *Adam: A Method for Stochastic Optimization*, ICLR 2015.
    """

    kind: ClassVar[type[torch.optim.Adam]] = torch.optim.Adam

    beta1: float = 0.9
    """Decay of the mean of the gradients."""
    beta2: float = 0.999
    """Decay of the mean of the squared gradients."""

    def __post_init__(self) -> None:
        _check_decays(self, "beta1", "beta2")

    def build(self, parameters: Iterable[nn.Parameter], learning_rate: float, decay: float) -> torch.optim.Optimizer:
        """Build the optimiser of torch; the arguments are those of the base class."""
        return self.kind(parameters, lr=learning_rate, betas=(self.beta1, self.beta2), weight_decay=decay)


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay.

    Source: Loshchilov, Hutter, *Decoupled Weight Decay Regularization*, ICLR 2019.
    """

    kind: ClassVar[type[torch.optim.Adam]] = torch.optim.AdamW

    beta2: float = 0.99
    """Decay of the mean of the squared gradients. For runs of some thousand steps, 0.99 is better than 0.999."""


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent with Nesterov's momentum."""

    momentum: float = 0.9
    """Decay of the sum of the gradients."""

    def __post_init__(self) -> None:
        _check_decays(self, "momentum")

    def build(self, parameters: Iterable[nn.Parameter], learning_rate: float, decay: float) -> torch.optim.Optimizer:
        """Build ``torch.optim.SGD``; the arguments are those of the base class."""
        is_nesterov = self.momentum > 0
        return torch.optim.SGD(
            parameters, lr=learning_rate, momentum=self.momentum, weight_decay=decay, nesterov=is_nesterov
        )


def _check_decays(settings: Settings, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(settings, name) < 1:
            raise ValueError(f"{name}: {getattr(settings, name)}: use a number of at least 0 and below 1")
