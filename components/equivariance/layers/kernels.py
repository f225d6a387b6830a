"""The kernel of a layer, also of one that computes it from fewer weights, as a group convolution does."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from .tracing import Layer


@runtime_checkable
class ComputesKernel(Protocol):
    """What a subclass of a convolution has whose parameters ``weight`` and ``bias`` are not its kernel and bias."""

    def computed_kernel(self) -> Tensor:
        """Return the kernel of the convolution, in the shape that the base class gives to its weight."""

    def computed_bias(self) -> Tensor | None:
        """Return the bias of each output channel, or None."""


def kernel_and_bias(layer: Layer) -> tuple[Tensor, Tensor | None]:
    """The kernel and the bias with which a layer computes, differentiable with respect to its parameters.

    Example:
        >>> from torch import nn
        >>> kernel, bias = kernel_and_bias(nn.Conv2d(3, 8, 5))
        >>> kernel.shape, bias.shape
        (torch.Size([8, 3, 5, 5]), torch.Size([8]))
    """
    if isinstance(layer, ComputesKernel):
        return layer.computed_kernel(), layer.computed_bias()
    return layer.weight, layer.bias
