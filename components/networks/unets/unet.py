"""Residual U-Net in the form of FBPConvNet.

Source: Jin, McCann, Froustey, Unser, *Deep Convolutional Neural Network for Inverse Problems in Imaging*, IEEE TIP
2017 (arXiv 1611.03679): a U-Net (Ronneberger et al. 2015) with zero padding and the input added to the output. The
default settings are those of the published network, which is itself in `components.networks.unets.fbpconvnet` and into
which published weights load. What differs there: the first level has three convolutions on the way down, up-sampling is
a 3x3 transposed convolution with a normalisation and a ReLU, which moves pixels, and images are extended to multiples
of 16. Up-sampling here repeats each pixel 2x2 and then applies a 3x3 convolution, which has the same parameters as a
3x3 transposed convolution. At an odd size the last row or column is pooled alone. Its repetition is cut off again after
up-sampling, so pixels keep their position at every size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
from components.networks.form import RestorationNetwork, positions
from components.registry import check_between


class _Block(nn.Module):
    """Two 3x3 convolutions, each followed by its normalisation and a ReLU."""

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        bias = norm == "none"
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
        self.norm1 = normalisation(norm, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias)
        self.norm2 = normalisation(norm, outputs)

    def forward(self, maps: Tensor) -> Tensor:
        maps = F.relu(self.norm1(self.conv1(maps)))
        return F.relu(self.norm2(self.conv2(maps)))


def _repeated(maps: Tensor, like: Tensor) -> Tensor:
    """Repeat every pixel 2x2 times and cut the result to the height and width of ``like``.

    This uses indices. Exporting an interpolation and a cut would fix in the graph whether the sizes are even.
    """
    rows, columns = positions(like[0, 0, :, 0]) // 2, positions(like[0, 0, 0, :]) // 2
    return maps.index_select(-2, rows).index_select(-1, columns)


class ResidualUNet(RestorationNetwork):
    """``output = up(inputs[:, :out_channels]) + unet(inputs)`` over ``depth`` resolutions; channels double at each.

    Shapes: ``(B, in_channels, H, W)`` -> ``(B, out_channels, scale H, scale W)``, float, H and W at least
    ``2 ** (depth - 1)``, odd sizes included.

    Args:
        settings: width, depth and normalisation.
        in_channels: channels of the input stack.
        out_channels: channels of the restored image, the first ones of the stack.
        scale: size of the output / size of the input.

    Raises:
        ValueError: more output than input channels, no output channel, or a scale other than 1, 2, 3, 4.

    Example:
        >>> network = ResidualUNet(ResidualUNet.Settings(width=8, depth=2), in_channels=4, scale=2)
        >>> network(torch.zeros(1, 4, 9, 12)).shape
        torch.Size([1, 3, 18, 24])
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(NetworkSettings):
        """Settings of the network; the defaults are those of the published network."""

        width: int = 64
        """Channels at the finest resolution."""
        depth: int = 5
        """Number of resolutions."""
        norm: Norm = "batch"
        """"batch" normalises after each convolution of the blocks; "none" does not."""

        def __post_init__(self) -> None:
            check_between(self, width=(1, MOST_CHANNELS), depth=(2, 12))

        @property
        def smallest_side(self) -> int:
            """One pixel at the coarsest resolution."""
            return int(2 ** (self.depth - 1))

        def can_turn(self, side: int) -> bool:
            """Whether every pooling finds an even side."""
            return side % self.smallest_side == 0

        @property
        def channels(self) -> dict[str, int]:
            """The channels of the first resolution; those of the others are multiples of them."""
            return {"width": self.width}

    def __init__(self, settings: Settings, *, in_channels: int = 3, out_channels: int = 3, scale: int = 1) -> None:
        super().__init__()
        check_restoration("unet", in_channels, out_channels, scale)
        width, depth, norm = settings.width, settings.depth, settings.norm
        self.in_channels, self.out_channels, self.scale = in_channels, out_channels, scale
        widths = [width * 2**level for level in range(depth)]
        self.down = nn.ModuleList(
            _Block(inputs, outputs, norm) for inputs, outputs in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(
            nn.Conv2d(deep, shallow, 3, padding=1) for deep, shallow in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.merge = nn.ModuleList(_Block(2 * shallow, shallow, norm) for shallow in widths[-2::-1])
        self.last = nn.Conv2d(width, out_channels * scale**2, 1)
        initialise(self, self.last)

    def forward(self, inputs: Tensor) -> Tensor:
        """Restore a batch of input stacks; the shapes are those of the class."""
        skips: list[Tensor] = []
        maps = inputs
        for level, block in enumerate(self.down):
            maps = block(maps if level == 0 else F.max_pool2d(maps, 2, ceil_mode=True))
            skips.append(maps)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            skip = skips.pop()
            maps = merge(torch.cat([skip, F.relu(up(_repeated(maps, skip)))], dim=1))
        residual = residual_image(self.last(maps), self.scale)
        return corrected_image(inputs, self.out_channels, self.scale) + residual
