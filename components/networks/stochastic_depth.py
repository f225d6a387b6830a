"""Stochastic depth: in training, the branch of a residual sum is left out for some images.

A branch that is left out with probability r is multiplied by 0 or by ``1 / (1 - r)``, so its expectation does not
change. In evaluation mode nothing is drawn and nothing changes.

The result of a training run must not depend on what was drawn before it. The caller therefore gives one number in
[0, 1) for each image and each branch (`given_depths`), and can give the same numbers again: to a resumed run, or to the
transformed copy of an image, which must pass the same function as its original.

Source: Huang, Sun, Liu, Sedra, Weinberger, *Deep Networks with Stochastic Depth*, ECCV 2016 (arXiv 1603.09382).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """A factor on the branch of a residual sum: 0 or ``1 / (1 - rate)`` in training, 1 in evaluation.

    It has no parameters and no buffers, so a state_dict does not show it. Without given numbers (`given_depths`) it
    draws them from torch's default generator.

    Shapes: ``(B, ...)`` -> ``(B, ...)``; one factor for each image.

    Args:
        rate: probability that the branch of an image is left out; from 0, below 1.

    Example:
        >>> branch = StochasticDepth(0.5)
        >>> with given_depths([branch], torch.tensor([[0.2], [0.7]])):
        ...     branch(torch.ones(2, 3))
        tensor([[0., 0., 0.],
                [2., 2., 2.]])
        >>> branch.eval()(torch.ones(1, 3))
        tensor([[1., 1., 1.]])
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.uniform: Tensor | None = None

    def forward(self, branch: Tensor) -> Tensor:
        """Multiply each image's branch by its factor.

        Raises:
            ValueError: the numbers of `given_depths` are for another number of images.
        """
        if not self.training or not self.rate:
            return branch
        uniform = torch.rand(len(branch), device=branch.device) if self.uniform is None else self.uniform
        if len(uniform) != len(branch):
            raise ValueError(f"given_depths: numbers for {len(uniform)} images, and the network has {len(branch)}")
        factors = (uniform >= self.rate).to(branch.dtype) / (1 - self.rate)
        return branch * factors.view(-1, *[1] * (branch.ndim - 1))  # (B) -> (B, 1, ..., 1)

    def extra_repr(self) -> str:
        """The rate, for ``print``."""
        return f"rate={self.rate:g}"


def stochastic_depths(network: nn.Module) -> list[StochasticDepth]:
    """Return the branches of a network that training leaves out at times, in order of registration.

    Example:
        >>> stochastic_depths(nn.Sequential(nn.Linear(1, 1), StochasticDepth(0.1), StochasticDepth(0.0)))
        [StochasticDepth(rate=0.1)]
    """
    return [module for module in network.modules() if isinstance(module, StochasticDepth) and module.rate]


@contextmanager
def given_depths(branches: Sequence[StochasticDepth], uniform: Tensor) -> Iterator[None]:
    """Give the numbers of the forward and backward passes inside the block; afterwards the branches have none.

    A branch that runs several times in a forward is left out each time or never.

    Args:
        branches: of `stochastic_depths`.
        uniform: ``(B, len(branches))``, uniform in [0, 1), on the device of the network. A branch is left out where its
            number is below its rate.

    Raises:
        ValueError: there is another number of columns than of branches.
    """
    if uniform.ndim != 2 or uniform.shape[1] != len(branches):
        raise ValueError(f"given_depths: {tuple(uniform.shape)} numbers for {len(branches)} branches")
    try:
        for branch, numbers in zip(branches, uniform.unbind(dim=1), strict=True):
            branch.uniform = numbers
        yield
    finally:
        for branch in branches:
            branch.uniform = None
