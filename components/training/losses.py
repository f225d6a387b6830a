"""The task losses: one class for each, registered under the name that ``train.loss`` uses.

A loss is a frozen dataclass whose fields are its settings. To add one, write its class and one line in ``LOSSES``
(``components/members.py``).

Legend: B images; outputs and targets of restoration ``(B, C, H, W)``; of classification ``(B, K)`` and ``(B,)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from components.registry import Settings


class Loss(Settings, ABC):
    """Base class of the losses.

    Attributes:
        is_for_classes: whether the targets are classes and the outputs class scores.
    """

    is_for_classes: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean loss over all values, or over the images for classes: a scalar, float32."""


@dataclass(frozen=True, kw_only=True)
class L1(Loss):
    """Mean absolute error."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute ``mean |outputs - targets|``."""
        return F.l1_loss(outputs, targets)


@dataclass(frozen=True, kw_only=True)
class MeanSquaredError(Loss):
    """Mean squared error."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute ``mean (outputs - targets)^2``."""
        return F.mse_loss(outputs, targets)


@dataclass(frozen=True, kw_only=True)
class Charbonnier(Loss):
    """A differentiable variant of the mean absolute error.

    Source: Charbonnier, Blanc-Feraud, Aubert, Barlaud, *Two deterministic half-quadratic regularization algorithms for
    computed imaging*, ICIP 1994; the form and the default of MPRNet (Zamir et al., CVPR 2021).
    """

    epsilon: float = 1e-3
    """Width of the rounded part around 0, in image units."""

    def __post_init__(self) -> None:
        if self.epsilon <= 0:
            raise ValueError(f"epsilon: {self.epsilon}: use a number above 0")

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute ``mean sqrt((outputs - targets)^2 + epsilon^2)``."""
        return torch.sqrt((outputs - targets).square() + self.epsilon**2).mean()


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Loss):
    """Cross-entropy of class scores."""

    is_for_classes = True

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute ``mean -log softmax(outputs)[target]`` over the images."""
        return F.cross_entropy(outputs, targets)
