"""Parts that several networks share: the normalisation layer and the initial values."""

from __future__ import annotations

from typing import Literal

from torch import nn

Norm = Literal["none", "batch"]


def normalisation(norm: Norm, channels: int) -> nn.Module:
    """The layer between a convolution and its activation.

    ``batch`` makes the result depend on the images that share a worker's batch, so runs with different numbers
    of workers then differ; ``none`` does not.

    Raises:
        ValueError: ``norm`` is neither "none" nor "batch".
    """
    if norm == "none":
        return nn.Identity()
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    raise ValueError(f"network norm '{norm}' is unknown: use 'none' or 'batch'")


def initialise(network: nn.Module, last: nn.Conv2d) -> None:
    """He initialisation (He et al. 2015, fan-in, ReLU) with zero biases; the last layer is zero.

    So a residual network begins as the identity, the natural first guess of a restoration, and its hidden layers are
    not pushed about before the last layer has found its scale.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.zeros_(last.weight)
