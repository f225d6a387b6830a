"""DnCNN-like residual network: a plain stack of 3x3 convolutions that predicts the residual to subtract.

Source: Zhang, Zuo, Chen, Meng, Zhang, *Beyond a Gaussian Denoiser*, IEEE TIP 2017 (arXiv 1608.03981). The published
colour-blind network has the default settings. The published super-resolution variant enlarges the
image first. Here the last convolution computes the sub-pixels, which costs ``scale^2`` times less.
"""

from __future__ import annotations

from collections import OrderedDict
from copy import deepcopy
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

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

FEWEST_CONVOLUTIONS = 8
"""By which chaiNNer's loader tells a DnCNN without normalisation from other networks."""


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

    def chainner(self) -> nn.Module:
        """Return the network in the published form without normalisation, whose weights chaiNNer's loader reads.

        A normalisation is folded into the convolution before it. The weights are called ``model.0``, ``model.2``, ...,
        as in https://github.com/cszn/KAIR (``models/network_dncnn.py``, ``act_mode="R"``). The network must be in
        evaluation mode.

        Raises:
            ValueError: the published network has no such form: it enlarges, its input is more than the image that it
                restores, or it has too few convolutions to be recognised.
        """
        if self.scale > 1 or self.in_channels != self.out_channels:
            raise ValueError(
                f"chaiNNer's dncnn restores one image at its own size; this one takes {self.in_channels} channels, "
                f"gives {self.out_channels} and has scale {self.scale}"
            )
        modules = list(self.layers)
        depth = sum(isinstance(module, nn.Conv2d) for module in modules)
        if depth < FEWEST_CONVOLUTIONS:
            raise ValueError(
                f"chaiNNer recognises a dncnn of depth {FEWEST_CONVOLUTIONS} or more; this one has {depth}"
            )
        layers: list[nn.Module] = []
        for module, following in zip(modules, [*modules[1:], None], strict=True):
            if isinstance(module, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                layers.append(fuse_conv_bn_eval(module, following))
            elif not isinstance(module, nn.BatchNorm2d):
                layers.append(deepcopy(module))
        return _Published(layers)


class _Published(nn.Module):
    """``inputs - model(inputs)``, the published form without normalisation."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs - self.model(inputs)
