"""FFDNet: a fast denoiser of images with a known noise level, on sub-images of half the height and width.

With the image ``x`` of C channels, the noise level ``s`` and ``w`` channels:

- ``x`` is extended to an even height and width by a copy of its last row and column;
- pixel-unshuffle: each 2x2 block becomes 4 channels, ``(B, C, H, W) -> (B, 4C, H/2, W/2)``;
- ``s`` is appended as one constant channel, ``(B, 4C + 1, H/2, W/2)``;
- ``depth`` convolutions 3x3 with padding 1 and a bias, with a ReLU after each but the last: to ``w`` channels, between
  ``w`` channels, and to 4C channels;
- pixel-shuffle to ``(B, C, H, W)``, cropped. The result is the image itself: nothing is added to the input.

The published grey network has C = 1, w = 64 and 15 convolutions, that for colours C = 3, w = 96 and 12 convolutions.

Source: Zhang, Zuo, Zhang, *FFDNet: Toward a Fast and Flexible Solution for CNN-Based Image Denoising*, IEEE TIP 2018
(arXiv 1710.04026). Reference: https://github.com/cszn/KAIR at fc1732f, ``models/network_ffdnet.py``. The names, order
and shapes of the parameters are those of the reference. What differs: a map of noise levels may be given in place of
one level for each image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.networks.blocks import MOST_CHANNELS, NetworkSettings
from components.networks.form import RestorationNetwork, crop, extend_to_multiple
from components.registry import check_between

SMALLEST_SIDE = 4
"""Smaller images are extended to it in the product's form: an exported program refuses maps of one pixel."""


class FFDNet(nn.Module):
    """The published network.

    Shapes: ``(B, C, H, W)`` and ``(B, 1, 1, 1)`` -> ``(B, C, H, W)``, float, any H and W from 1 pixel.

    Args:
        colours: C, the channels of an image.
        width: channels of each hidden layer.
        depth: number of convolutions.

    Example:
        >>> network = FFDNet(width=8, depth=3)
        >>> network(torch.rand(2, 1, 5, 8, generator=torch.manual_seed(0)), torch.full((2, 1, 1, 1), 25 / 255)).shape
        torch.Size([2, 1, 5, 8])
    """

    def __init__(self, colours: int = 1, width: int = 64, depth: int = 15) -> None:
        super().__init__()
        channels = [4 * colours + 1, *[width] * (depth - 1), 4 * colours]
        layers = [layer for sizes in pairwise(channels) for layer in (nn.Conv2d(*sizes, 3, padding=1), nn.ReLU())]
        self.model = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise a batch of images.

        Args:
            x: noisy images in [0, 1], ``(B, C, H, W)``.
            sigma: standard deviation of the noise in the units of the images, ``(B, 1, 1, 1)``, or one for each 2x2
                block, ``(B, 1, ceil(H / 2), ceil(W / 2))``.
        """
        even = extend_to_multiple(x, 2, "copy")
        maps = F.pixel_unshuffle(even, 2)  # (B, C, H, W) -> (B, 4C, H/2, W/2), H and W rounded up
        level = sigma.expand(-1, -1, *maps.shape[-2:])
        maps = self.model(torch.cat((maps, level), dim=1))
        return crop(F.pixel_shuffle(maps, 2), x, 1)  # (B, 4C, H/2, W/2) -> (B, C, H, W)


class FFDNetForm(RestorationNetwork, FFDNet):
    """The product's form: the noise level is a channel of the stack, sigma / 255 in each pixel.

    A side below 3 pixels is extended to 4 in the way of an odd one, and the result is cropped. A map that is not
    constant enters as its mean over each 2x2 block. The published network extends an odd height or width on one side,
    so its output can be exactly equivariant for even sizes alone.

    Shapes: as of `components.networks.form`, any H and W from 1 pixel.

    Args:
        settings: of the network.
        in_channels: channels of the stack.
        out_channels: C, the channels of an image.
        scale: 1.
        inputs: names of the images in the stack.

    Raises:
        ValueError: as of `RestorationNetwork.describe`.
    """

    needs = ("image", "noise_level")
    scales = (1,)
    published_class = FFDNet

    @dataclass(frozen=True, kw_only=True)
    class Settings(NetworkSettings):
        """Settings of the network; the defaults are those of the published one for grey images.

        Those of the published one for colours are ``width=96, depth=12``.
        """

        width: int = 64
        """Channels of each hidden layer."""
        depth: int = 15
        """Number of convolutions."""

        def __post_init__(self) -> None:
            check_between(self, width=(1, MOST_CHANNELS), depth=(2, 1000))

        def can_turn(self, side: int) -> bool:
            """Whether the side needs no extension."""
            return side % 2 == 0 and side >= SMALLEST_SIDE

        @property
        def channels(self) -> dict[str, int]:
            """The channels of the hidden layers."""
            return {"width": self.width}

    def __init__(
        self,
        settings: Settings,
        *,
        in_channels: int = 2,
        out_channels: int = 1,
        scale: int = 1,
        inputs: Sequence[str] = needs,
    ) -> None:
        FFDNet.__init__(self, out_channels, settings.width, settings.depth)
        self.describe(in_channels, out_channels, scale, inputs)

    def forward(self, stack: Tensor) -> Tensor:  # type: ignore[override]
        """Restore a batch of stacks."""
        image, level = (extend_to_multiple(each, 2, "copy", SMALLEST_SIDE) for each in self.take(stack))
        blocks = F.pixel_unshuffle(level, 2).mean(dim=1, keepdim=True)  # (B, 1, H, W) -> (B, 1, H/2, W/2)
        return crop(FFDNet.forward(self, image, blocks), stack, 1)
