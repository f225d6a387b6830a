"""Residual U-Net out of group convolutions, exactly equivariant whatever its weights: what EQ-Reg approximates.

It is `components.networks.unets.unet` with a lifting convolution first, group convolutions of regular fields between,
and a projection to the image last: ``c4_unet`` under quarter turns, ``d4_unet`` under quarter turns and mirror images.
t is 4 or 8. It is exact for every height and width and every scale:

- Where a side of the maps is even, pooling takes the largest value of each 2x2 block, and up-sampling repeats each
  pixel 2x2.
- An odd side has two grids of blocks, which mirroring swaps: one is counted from the first pixel, the other from the
  last, and the pixel that is left over is a block of its own. Pooling and up-sampling are the mean over both grids. The
  plain network takes the first one alone.

For colour images, width 64, depth 5 and norm "batch"; multiply-adds are those of unet:

=======  ==========  ==========  ==========================  =============
network  match       parameters  channels of the first maps  multiply-adds
=======  ==========  ==========  ==========================  =============
unet                 34,519,363  64                          1
c4_unet  parameters  34,512,035  128                         4.00
d4_unet  parameters  34,541,729  184                         8.04
c4_unet  channels    8,629,843   64                          1
d4_unet  channels    4,314,923   64                          1
=======  ==========  ==========  ==========================  =============

Source: Jin et al., IEEE TIP 2017 (arXiv 1611.03679), with the layers of Cohen, Welling, ICML 2016 (arXiv 1602.07576)
and their comparison at equal parameters. The network itself is published nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.equivariance.groups import C4, Group, group_named
from components.networks.blocks import Norm, check_norm, check_restoration, corrected_image, initialise, residual_image
from components.networks.form import RestorationNetwork, positions
from components.networks.group.convolution import (
    GroupConvolution,
    LiftingConvolution,
    ProjectionConvolution,
    field_normalisation,
)
from components.networks.group.settings import GroupNetworkSettings
from components.registry import check_between


class _Block(nn.Module):
    """Two 3x3 convolutions, each followed by its normalisation and a ReLU.

    Args:
        first: builds the first one from (inputs, fields, kernel size, group, whether it has a bias).
        inputs: fields, or channels of the image.
        fields: of the output.
        norm: "batch" or "none".
        group: of the network.
    """

    def __init__(self, first: Callable[..., nn.Module], inputs: int, fields: int, norm: Norm, group: Group) -> None:
        super().__init__()
        bias = norm == "none"
        self.conv1 = first(inputs, fields, 3, group, bias)
        self.norm1 = field_normalisation(norm, fields, group.order)
        self.conv2 = GroupConvolution(fields, fields, 3, group, bias)
        self.norm2 = field_normalisation(norm, fields, group.order)

    def forward(self, maps: Tensor) -> Tensor:
        maps = F.relu(self.norm1(self.conv1(maps)))
        return F.relu(self.norm2(self.conv2(maps)))


def _pooled(maps: Tensor) -> Tensor:
    """The largest values of 2x2 blocks, ``(B, C, H, W)`` -> ``(B, C, H/2, W/2)``, rounded up; see the module.

    An export would fix whether the sizes are even, so an exported program always computes the mean over the grids,
    which are the same one where the sides are even.
    """
    axes = [axis for axis in (-2, -1) if torch.compiler.is_exporting() or maps.shape[axis] % 2]
    pooled = F.max_pool2d(maps, 2, ceil_mode=True)
    if not axes:
        return pooled
    mirrored = [[axis] for axis in axes] + [axes] * (len(axes) - 1)
    others = [F.max_pool2d(maps.flip(each), 2, ceil_mode=True).flip(each) for each in mirrored]
    return torch.stack([pooled, *others]).mean(dim=0)


def _doubled(maps: Tensor, like: Tensor) -> Tensor:
    """Up-sample maps to the height and width of ``like``, which `_pooled` halved; see the module."""
    for axis, line in ((-2, like[0, 0, :, 0]), (-1, like[0, 0, 0, :])):
        places, odd = positions(line), line.shape[0] % 2
        first = maps.index_select(axis, places // 2)
        if torch.compiler.is_exporting() or odd:
            maps = (first + maps.index_select(axis, (places + odd) // 2)) / 2
        else:
            maps = first
    return maps


class GroupUNet(RestorationNetwork):
    """``output = up(inputs[:, :out_channels]) + unet(inputs)`` over ``depth`` resolutions; a subclass has a group.

    The fields double from one resolution to the next, up to rounding.

    Shapes: ``(B, in_channels, H, W)`` -> ``(B, out_channels, scale H, scale W)``, float, H and W at least
    ``2 ** (depth - 1)``, odd sizes included.

    Args:
        settings: width, depth, normalisation, and what the width means.
        in_channels: channels of the input stack.
        out_channels: channels of the restored image, the first ones of the stack.
        scale: size of the output / size of the input.

    Attributes:
        group: under which the network is equivariant.

    Raises:
        ValueError: more output than input channels, no output channel, or a scale other than 1, 2, 3, 4.
    """

    group: ClassVar[Group]

    @dataclass(frozen=True, kw_only=True)
    class Settings(GroupNetworkSettings):
        """Settings of the network; the defaults are those of FBPConvNet."""

        depth: int = 5
        """Number of resolutions."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_between(self, depth=(2, 12))

        @property
        def smallest_side(self) -> int:
            """One pixel at the coarsest resolution."""
            return int(2 ** (self.depth - 1))

    def __init__(self, settings: Settings, *, in_channels: int = 3, out_channels: int = 3, scale: int = 1) -> None:
        super().__init__()
        check_restoration(f"{self.group.name.lower()}_unet", in_channels, out_channels, scale)
        check_norm(settings.norm)
        self.in_channels, self.out_channels, self.scale = in_channels, out_channels, scale
        group, norm = self.group, settings.norm
        fields = [settings.num_fields(level) for level in range(settings.depth)]
        pairs = list(zip(fields[:0:-1], fields[-2::-1], strict=True))  # (deep, shallow), from the coarsest on
        self.down = nn.ModuleList([_Block(LiftingConvolution, in_channels, fields[0], norm, group)])
        self.down.extend(_Block(GroupConvolution, *each[::-1], norm, group) for each in reversed(pairs))
        self.up = nn.ModuleList(GroupConvolution(deep, shallow, 3, group) for deep, shallow in pairs)
        self.merge = nn.ModuleList(_Block(GroupConvolution, 2 * shallow, shallow, norm, group) for _, shallow in pairs)
        self.last = ProjectionConvolution(fields[0], out_channels, 1, group, scale)
        initialise(self, self.last)

    def forward(self, inputs: Tensor) -> Tensor:
        """Restore a batch of input stacks; the shapes are those of the class."""
        skips: list[Tensor] = []
        maps = inputs
        for level, block in enumerate(self.down):
            maps = block(maps if level == 0 else _pooled(maps))
            skips.append(maps)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            skip = skips.pop()
            maps = merge(torch.cat([skip, F.relu(up(_doubled(maps, skip)))], dim=1))
        residual = residual_image(self.last(maps), self.scale)
        return corrected_image(inputs, self.out_channels, self.scale) + residual


class C4UNet(GroupUNet):
    """The network under C4, quarter turns.

    Example:
        >>> network = C4UNet(C4UNet.Settings(width=8, depth=2), in_channels=4, scale=2)
        >>> network(torch.zeros(1, 4, 9, 12)).shape
        torch.Size([1, 3, 18, 24])
    """

    group = C4

    @dataclass(frozen=True, kw_only=True)
    class Settings(GroupUNet.Settings):
        """Settings of the network under C4."""

        group = C4


class D4UNet(GroupUNet):
    """The network under D4, quarter turns and mirror images.

    Example:
        >>> D4UNet(D4UNet.Settings(width=16, depth=2, match="channels")).last.in_channels
        16
    """

    group = group_named("D4")

    @dataclass(frozen=True, kw_only=True)
    class Settings(GroupUNet.Settings):
        """Settings of the network under D4."""

        group = group_named("D4")
