"""DnCNN: a plain stack of 3x3 convolutions that predicts the residual to subtract.

Source: Zhang, Zuo, Chen, Meng, Zhang, *Beyond a Gaussian Denoiser*, IEEE TIP 2017 (arXiv 1608.03981), in the form of
https://github.com/cszn/KAIR (``models/network_dncnn.py``), with its names of parameters. The default settings give the
published network for colour images and noise of unknown strength before its normalisation is merged. The released
weights belong to ``norm="none"``: there the normalisations are merged into the convolutions. Other published networks
are grey (1 channel) with depth 17 (noise of one known strength) or 20.

Differences: the last convolution is zero in a new network, so that training begins at the identity, and the running
statistics have PyTorch's momentum (KAIR: 0.9). The published super-resolution variant enlarges the image first. Here
the last convolution computes the sub-pixels, which costs ``scale^2`` times less.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from components.networks.blocks import (
    MOST_CHANNELS,
    NetworkSettings,
    Norm,
    check_norm,
    check_restoration,
    corrected_image,
    initialise,
    residual_image,
)
from components.networks.form import RestorationNetwork
from components.registry import check_between

FEWEST_CONVOLUTIONS = 8
"""By which chaiNNer's loader tells a DnCNN without normalisation from other networks."""


class DnCNN(RestorationNetwork):
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

    @dataclass(frozen=True, kw_only=True)
    class Settings(NetworkSettings):
        """Settings of the network; the defaults are those of the published network for colour images."""

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
        check_norm(settings.norm)
        width, depth, norm = settings.width, settings.depth, settings.norm
        self.in_channels, self.out_channels, self.scale = in_channels, out_channels, scale
        last = nn.Conv2d(width, out_channels * scale**2, 3, padding=1)
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers.append(nn.Conv2d(width, width, 3, padding=1))
            if norm == "batch":
                layers.append(nn.BatchNorm2d(width, eps=1e-4))
            layers.append(nn.ReLU(inplace=True))
        self.model = nn.Sequential(*layers, last)
        initialise(self, last)

    def forward(self, inputs: Tensor) -> Tensor:
        """Restore a batch of input stacks; the shapes are those of the class."""
        taken_away = residual_image(self.model(inputs), self.scale)
        return corrected_image(inputs, self.out_channels, self.scale) - taken_away

    def chainner(self) -> nn.Module:
        """Return the network in the published form without normalisation, whose weights chaiNNer's loader reads.

        A normalisation is folded into the convolution before it, for which the network must be in evaluation mode.

        Raises:
            ValueError: the published network has no such form: it enlarges, its input is more than the image that it
                restores, or it has too few convolutions to be recognised.
        """
        if self.scale > 1 or self.in_channels != self.out_channels:
            raise ValueError(
                f"chaiNNer's dncnn restores one image at its own size; this one takes {self.in_channels} channels, "
                f"gives {self.out_channels} and has scale {self.scale}"
            )
        modules = list(self.model)
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
        return _Subtracting(layers)


class _Subtracting(nn.Module):
    """``inputs - model(inputs)``, the published form without normalisation."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs - self.model(inputs)
