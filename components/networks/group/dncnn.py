"""DnCNN out of group convolutions, exactly equivariant whatever its weights: what EQ-Reg approximates.

It is `components.networks.convolutional.dncnn` with a lifting convolution first, group convolutions of regular fields
between, and a projection to the image last: ``c4_dncnn`` under quarter turns, ``d4_dncnn`` under quarter turns and
mirror images. It is exact for every height and width and every scale. t is 4 or 8.

For colour images, width 64, depth 20 and norm "batch"; multiply-adds are those of dncnn:

========  ==========  ==========  =======================  =============
network   match       parameters  channels of hidden maps  multiply-adds
========  ==========  ==========  =======================  =============
dncnn                 670,531     64                       1
c4_dncnn  parameters  667,043     128                      3.99
d4_dncnn  parameters  688,094     184                      8.24
c4_dncnn  channels    167,635     64                       1
d4_dncnn  channels    83,819      64                       1
========  ==========  ==========  =======================  =============

Source: Zhang et al., IEEE TIP 2017 (arXiv 1608.03981), with the layers of Cohen, Welling, ICML 2016 (arXiv 1602.07576)
and their comparison at equal parameters. The network itself is published nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from components.equivariance.groups import C4, Group, group_named
from components.networks.blocks import check_norm, check_restoration, corrected_image, initialise, residual_image
from components.networks.form import RestorationNetwork
from components.networks.group.convolution import (
    FieldBatchNorm,
    GroupConvolution,
    LiftingConvolution,
    ProjectionConvolution,
)
from components.networks.group.settings import GroupNetworkSettings
from components.registry import check_between


class GroupDnCNN(RestorationNetwork):
    """``output = up(inputs[:, :out_channels]) - convolutions(inputs)``, ``depth`` convolutions; a subclass has a group.

    Shapes: ``(B, in_channels, H, W)`` -> ``(B, out_channels, scale H, scale W)``, float, any H and W from 1 pixel. The
    receptive field has a radius of ``depth`` input pixels.

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
        """Settings of the network; the defaults are those of the published DnCNN for colour images."""

        depth: int = 20
        """Number of convolutions."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_between(self, depth=(2, 1000))

    def __init__(self, settings: Settings, *, in_channels: int = 3, out_channels: int = 3, scale: int = 1) -> None:
        super().__init__()
        check_restoration(f"{self.group.name.lower()}_dncnn", in_channels, out_channels, scale)
        check_norm(settings.norm)
        self.in_channels, self.out_channels, self.scale = in_channels, out_channels, scale
        group, fields = self.group, settings.num_fields()
        last = ProjectionConvolution(fields, out_channels, 3, group, scale)
        layers: list[nn.Module] = [LiftingConvolution(in_channels, fields, 3, group), nn.ReLU(inplace=True)]
        for _ in range(settings.depth - 2):
            layers.append(GroupConvolution(fields, fields, 3, group))
            if settings.norm == "batch":
                layers.append(FieldBatchNorm(fields, group.order, eps=1e-4))
            layers.append(nn.ReLU(inplace=True))
        self.model = nn.Sequential(*layers, last)
        initialise(self, last)

    def forward(self, inputs: Tensor) -> Tensor:
        """Restore a batch of input stacks; the shapes are those of the class."""
        taken_away = residual_image(self.model(inputs), self.scale)
        return corrected_image(inputs, self.out_channels, self.scale) - taken_away


class C4DnCNN(GroupDnCNN):
    """The network under C4, quarter turns.

    Example:
        >>> import torch
        >>> network = C4DnCNN(C4DnCNN.Settings(width=8, depth=3))
        >>> images = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
        >>> torch.equal(network(images), images)  # a new network is the identity
        True
    """

    group = C4

    @dataclass(frozen=True, kw_only=True)
    class Settings(GroupDnCNN.Settings):
        """Settings of the network under C4."""

        group = C4


class D4DnCNN(GroupDnCNN):
    """The network under D4, quarter turns and mirror images.

    Example:
        >>> network = D4DnCNN(D4DnCNN.Settings(width=16, depth=3, match="channels"))
        >>> network.model[0].out_channels, network.model[0].weight.shape
        (16, torch.Size([2, 3, 1, 3, 3]))
    """

    group = group_named("D4")

    @dataclass(frozen=True, kw_only=True)
    class Settings(GroupDnCNN.Settings):
        """Settings of the network under D4."""

        group = group_named("D4")
