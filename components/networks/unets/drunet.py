"""DRUNet: a U-Net of residual blocks without any bias, which removes noise of a known level.

With the image of C channels, the noise level as one further channel and w channels:

- a 3x3 convolution, ``(B, C + 1, H, W) -> (B, w, H, W)``;
- three levels with w, 2w and 4w channels: residual blocks ``x + conv(relu(conv(x)))`` of 3x3 convolutions, then a 2x2
  convolution with stride 2, ``(B, c, H, W) -> (B, 2c, H/2, W/2)``;
- residual blocks with 8w channels;
- three levels upwards: what the level gave on the way down is added, then a 2x2 transposed convolution with stride 2,
  ``(B, 2c, H/2, W/2) -> (B, c, H, W)``, and residual blocks;
- the output of the first convolution is added, and a 3x3 convolution gives the image, ``(B, w, H, W) -> (B, C, H, W)``:
  nothing is added to the input.

Without a bias, the network is homogeneous: an image and a noise level that are k times as large, k above 0, give k
times the output. The published networks have w = 64 and 4 blocks at each place; C is 3, and 1 for grey images.

Source: Zhang, Li, Zuo, Zhang, Van Gool, Timofte, *Plug-and-Play Image Restoration with Deep Denoiser Prior*, IEEE TPAMI
2021 (arXiv 2008.13751). Reference: https://github.com/cszn/KAIR at fc1732f, ``models/network_unet.py``. The names,
order and shapes of the parameters are those of the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from components.networks.blocks import MOST_CHANNELS, NetworkSettings
from components.networks.form import RestorationNetwork, crop, extend_to_multiple
from components.registry import check_between

MULTIPLE = 8
"""Three times, height and width are halved."""


class Block(nn.Module):
    """A residual block; ``(B, C, H, W)`` -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.res = nn.Sequential(_convolution(channels, channels), nn.ReLU(), _convolution(channels, channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Apply the block to a batch of maps."""
        return maps + self.res(maps)


class DRUNet(nn.Module):
    """The published network; the defaults are those for colours.

    Shapes: ``(B, C + 1, H, W)`` -> ``(B, C, H, W)``, float, H and W multiples of 8.

    Args:
        colours: C, the channels of an image.
        width: channels of the first level.
        blocks: number of residual blocks at each place.

    Example:
        >>> noisy, level = torch.rand(1, 3, 8, 16, generator=torch.manual_seed(0)), torch.full((1, 1, 8, 16), 25 / 255)
        >>> DRUNet(width=4, blocks=1)(torch.cat((noisy, level), dim=1)).shape
        torch.Size([1, 3, 8, 16])
    """

    def __init__(self, colours: int = 3, width: int = 64, blocks: int = 4) -> None:
        super().__init__()

        def level(channels: int) -> list[nn.Module]:
            return [Block(channels) for _ in range(blocks)]

        def down(channels: int) -> nn.Conv2d:
            return nn.Conv2d(channels, 2 * channels, 2, stride=2, bias=False)

        def up(channels: int) -> nn.ConvTranspose2d:
            return nn.ConvTranspose2d(2 * channels, channels, 2, stride=2, bias=False)

        self.m_head = _convolution(colours + 1, width)
        self.m_down1 = nn.Sequential(*level(width), down(width))
        self.m_down2 = nn.Sequential(*level(2 * width), down(2 * width))
        self.m_down3 = nn.Sequential(*level(4 * width), down(4 * width))
        self.m_body = nn.Sequential(*level(8 * width))
        self.m_up3 = nn.Sequential(up(4 * width), *level(4 * width))
        self.m_up2 = nn.Sequential(up(2 * width), *level(2 * width))
        self.m_up1 = nn.Sequential(up(width), *level(width))
        self.m_tail = _convolution(width, colours)

    def forward(self, x0: Tensor) -> Tensor:
        """Denoise a batch of images.

        Args:
            x0: noisy images in [0, 1], and the standard deviation of the noise in their units, ``(B, C + 1, H, W)``.
        """
        x1 = self.m_head(x0)  # (B, w, H, W)
        x2 = self.m_down1(x1)  # (B, 2w, H/2, W/2)
        x3 = self.m_down2(x2)  # (B, 4w, H/4, W/4)
        x4 = self.m_down3(x3)  # (B, 8w, H/8, W/8)
        maps = self.m_up3(self.m_body(x4) + x4)
        maps = self.m_up1(self.m_up2(maps + x3) + x2)
        return self.m_tail(maps + x1)  # (B, w, H, W) -> (B, C, H, W)


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the height and width."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


class DRUNetForm(RestorationNetwork, DRUNet):
    """The product's form: the noise level is a channel of the stack, sigma / 255 in each pixel.

    The stack is extended to multiples of 8 by copies of the last row and column, as the reference does in tests, and
    the result is cropped. A side of at most 8 pixels is extended to 16: an exported program refuses maps of one pixel.
    An extension on one side lets the output be exactly equivariant only at multiples of 8.

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
    published_class = DRUNet

    @dataclass(frozen=True, kw_only=True)
    class Settings(NetworkSettings):
        """Settings of the network; the defaults are those of the published ones."""

        width: int = 64
        """Channels of the first level; each further level has twice as many."""
        blocks: int = 4
        """Number of residual blocks at each place."""

        def __post_init__(self) -> None:
            check_between(self, width=(1, MOST_CHANNELS), blocks=(1, 1000))

        def can_turn(self, side: int) -> bool:
            """Whether the side needs no extension."""
            return side % MULTIPLE == 0 and side >= 2 * MULTIPLE

        @property
        def channels(self) -> dict[str, int]:
            """The channels of the first level; those of the others are multiples of them."""
            return {"width": self.width}

    def __init__(
        self,
        settings: Settings,
        *,
        in_channels: int = 4,
        out_channels: int = 3,
        scale: int = 1,
        inputs: Sequence[str] = needs,
    ) -> None:
        DRUNet.__init__(self, out_channels, settings.width, settings.blocks)
        self.describe(in_channels, out_channels, scale, inputs)

    def forward(self, stack: Tensor) -> Tensor:
        """Restore a batch of stacks."""
        inputs = torch.cat(self.take(stack), dim=1)  # (B, C + 1, H, W)
        return crop(DRUNet.forward(self, extend_to_multiple(inputs, MULTIPLE, "copy", 2 * MULTIPLE)), stack, 1)
