"""DnCNN-like residual network: a plain stack of 3x3 convolutions that predicts the residual to subtract.

Source: Zhang, Zuo, Chen, Meng, Zhang, *Beyond a Gaussian Denoiser*, IEEE TIP 2017 (arXiv 1608.03981). The published
colour-blind network has the default settings. The published super-resolution variant enlarges the
image first. Here the last convolution computes the sub-pixels, which costs ``scale^2`` times less.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from components.networks.blocks import (
    MOST_CHANNELS,
    NetworkSettings,
    Norm,
    check_restoration,
    corrected_image,
    initialise,
    normalisation,
    residual_image,
)
from components.registry import check_between


class DnCNN(nn.Module):
    """``output = up(inputs[:, :out_channels]) - convolutions(inputs)``, ``depth`` convolutions of ``width`` channels.

    Shapes: ``(B, in_channels, H, W)`` -> ``(B, out_channels, scale H, scale W)``, float, any H and W from 1 pixel. The
    receptive field has a radius of ``depth`` input pixels.

    Args:
        settings: width, depth and normalisation.
        in_channels: channels of the input stack.
        out_channels: channels of the restored image, the first ones of the stack.
        scale: size of the output / size of the input.

    Raises:
        ValueError: more output than input channels, no output channel, or a scale other than 1, 2, 3, 4.

    Example:
        >>> import torch
        >>> network = DnCNN(DnCNN.Settings(width=8, depth=3, norm="none"))
        >>> images = torch.rand(2, 3, 5, 7, generator=torch.manual_seed(0))
        >>> torch.equal(network(images), images)  # a new network is the identity
        True
    """

    is_classifier = False

    @dataclass(frozen=True, kw_only=True)
    class Settings(NetworkSettings):
        """Settings of the network; the defaults are those of the published network for noise of unknown strength."""

        width: int = 64
        """Channels of each hidden convolution."""
        depth: int = 20
        """Number of convolutions."""
        norm: Norm = "batch"
        """"batch" normalises after each convolution except the first and the last; "none" does not."""

        def __post_init__(self) -> None:
            check_between(self, width=(1, MOST_CHANNELS), depth=(2, 1000))

        @property
        def channels(self) -> dict[str, int]:
            """The channels of the hidden convolutions."""
            return {"width": self.width}

    def __init__(self, settings: Settings, *, in_channels: int = 3, out_channels: int = 3, scale: int = 1) -> None:
        super().__init__()
        check_restoration("dncnn", in_channels, out_channels, scale)
        width, depth, norm = settings.width, settings.depth, settings.norm
        self.in_channels, self.out_channels, self.scale = in_channels, out_channels, scale
        last = nn.Conv2d(width, out_channels * scale**2, 3, padding=1)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for index in range(1, depth):
            inputs = in_channels if index == 1 else width
            # The first layer has no normalisation, as published. A bias is redundant before a normalisation.
            layer_norm: Norm = "none" if index == 1 else norm
            layers[f"conv{index}"] = nn.Conv2d(inputs, width, 3, padding=1, bias=layer_norm == "none")
            if layer_norm != "none":
                layers[f"norm{index}"] = normalisation(layer_norm, width)
            layers[f"relu{index}"] = nn.ReLU(inplace=True)
        layers[f"conv{depth}"] = last
        self.layers = nn.Sequential(layers)
        initialise(self, last)

    def forward(self, inputs: Tensor) -> Tensor:
        """Restore a batch of input stacks; the shapes are those of the class."""
        taken_away = residual_image(self.layers(inputs), self.scale)
        return corrected_image(inputs, self.out_channels, self.scale) - taken_away
