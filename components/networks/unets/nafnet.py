"""NAFNet: a U-Net for restoration without activation functions; products of two halves of the channels replace them.

With the image ``x``, L levels, c channels at a place, ``LN`` a layer norm over the channels of each pixel (epsilon
1e-6, with a weight and a bias), ``gate(a, b) = a b`` of the two halves of the channels, and ``*`` a product with one
number for each channel, a block is

- ``f = gate(depthwise(conv1(LN(x))))``, ``(B, c, H, W) -> (B, 2c, H, W) -> (B, c, H, W)``: conv1 is 1x1, the depthwise
  convolution 3x3 with padding 1;
- ``f = conv3(f * attention(mean(f)))``: the mean is over all pixels, attention and conv3 are 1x1;
- ``y = x + beta * f``;
- ``y + gamma * conv5(gate(conv4(LN(y))))``, ``(B, c, H, W) -> (B, 2c, H, W) -> (B, c, H, W)``, both 1x1.

The network extends the image by zeros at the bottom and on the right to a multiple of 2^L. A 3x3 convolution gives w
channels. Each level of the encoder has its blocks and then a 2x2 convolution with stride 2,
``(B, c, H, W) -> (B, 2c, H/2, W/2)``. After the blocks in the middle, each level of the decoder has a 1x1 convolution
without bias and a pixel-shuffle, ``(B, 2c, H/2, W/2) -> (B, 4c, H/2, W/2) -> (B, c, H, W)``, adds what its level of the
encoder gave before the stride, and has its blocks. A 3x3 convolution gives the correction that is added to ``x``.

``beta`` and ``gamma`` are 0 at first: each block of a new network is the identity. The published network for SIDD has
the blocks (2, 2, 4, 8), 12 and (2, 2, 2, 2), that for GoPro (1, 1, 1, 28), 1 and (1, 1, 1, 1), both with 32 channels.

Source: Chen, Chu, Zhang, Sun, *Simple Baselines for Image Restoration*, ECCV 2022 (arXiv 2204.04676). Reference:
https://github.com/megvii-research/NAFNet at 2b4af71, ``basicsr/models/archs/NAFNet_arch.py``. The names, order and
shapes of the parameters are those of the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from components.networks.blocks import MOST_CHANNELS, NetworkSettings, normalised_channels
from components.networks.form import RestorationNetwork, crop, extend_to_multiple
from components.registry import check_between, check_numbers

EPSILON = 1e-6
"""Added to the variance of the channels."""


class ChannelNorm(nn.Module):
    """A layer norm over the channels of each pixel, with a weight and a bias; ``(B, C, H, W)`` -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise a batch of maps."""
        # (C) -> (C, 1, 1)
        return normalised_channels(maps, EPSILON) * self.weight[:, None, None] + self.bias[:, None, None]


class Block(nn.Module):
    """A block of the network; ``(B, C, H, W)`` -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.conv1 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv2 = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1))
        self.conv4 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv5 = nn.Conv2d(channels, channels, 1)
        self.norm1 = ChannelNorm(channels)
        self.norm2 = ChannelNorm(channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Apply the block to a batch of maps."""
        hidden = _gated(self.conv2(self.conv1(self.norm1(maps))))  # (B, 2C, H, W) -> (B, C, H, W)
        maps = maps + self.beta * self.conv3(hidden * self.sca(hidden))
        return maps + self.gamma * self.conv5(_gated(self.conv4(self.norm2(maps))))


def _gated(maps: Tensor) -> Tensor:
    """The product of the halves of the channels, ``(B, 2C, H, W) -> (B, C, H, W)``."""
    first, second = maps.chunk(2, dim=1)
    return first * second


class NAFNet(nn.Module):
    """The published network; the defaults are those for SIDD.

    Shapes: ``(B, C, H, W)`` -> ``(B, C, H, W)``, float, in [0, 1], any H and W from 1 pixel.

    Args:
        colours: C, the channels of an image.
        width: channels of the first level.
        middle_blocks: number of blocks between encoder and decoder.
        encoder_blocks: number of blocks of each level of the encoder, the finest first.
        decoder_blocks: number of blocks of each level of the decoder, the coarsest first.

    Example:
        >>> images = torch.rand(1, 3, 5, 8, generator=torch.manual_seed(0))
        >>> network = NAFNet(width=8, middle_blocks=1, encoder_blocks=(1, 1), decoder_blocks=(1, 1))
        >>> network(images).shape
        torch.Size([1, 3, 5, 8])
    """

    def __init__(
        self,
        colours: int = 3,
        width: int = 32,
        middle_blocks: int = 12,
        encoder_blocks: Sequence[int] = (2, 2, 4, 8),
        decoder_blocks: Sequence[int] = (2, 2, 2, 2),
    ) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(len(encoder_blocks) + 1)]
        self.intro = nn.Conv2d(colours, width, 3, padding=1)
        self.ending = nn.Conv2d(width, colours, 3, padding=1)
        self.encoders = nn.ModuleList(_blocks(c, number) for c, number in zip(widths, encoder_blocks, strict=False))
        coarse_first = widths[-2::-1]
        self.decoders = nn.ModuleList(
            _blocks(c, number) for c, number in zip(coarse_first, decoder_blocks, strict=True)
        )
        self.middle_blks = _blocks(widths[-1], middle_blocks)
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * c, 4 * c, 1, bias=False), nn.PixelShuffle(2)) for c in coarse_first
        )
        self.downs = nn.ModuleList(nn.Conv2d(c, 2 * c, 2, stride=2) for c in widths[:-1])

    def forward(self, inp: Tensor) -> Tensor:
        """Restore a batch of images; the shapes are those of the class."""
        image = extend_to_multiple(inp, 2 ** len(self.downs), "zero")
        maps, skips = self.intro(image), []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            maps = encoder(maps)
            skips.append(maps)
            maps = down(maps)  # (B, c, H, W) -> (B, 2c, H/2, W/2)
        maps = self.middle_blks(maps)
        for decoder, up in zip(self.decoders, self.ups, strict=True):
            maps = decoder(up(maps) + skips.pop())  # (B, 2c, H/2, W/2) -> (B, c, H, W)
        return crop(self.ending(maps) + image, inp, 1)


def _blocks(channels: int, number: int) -> nn.Sequential:
    return nn.Sequential(*(Block(channels) for _ in range(number)))


class NAFNetForm(RestorationNetwork, NAFNet):
    """The product's form: a side of at most 2^L pixels is extended to two times 2^L, and the result is cropped.

    Coarser maps have more than one pixel then: an exported program refuses maps of one. The means over all pixels are
    those of the extended image, as published, and those of a tile where an image is restored in tiles. An extension on
    one side lets the output be exactly equivariant only at multiples of 2^L.

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

    needs = ("image",)
    scales = (1,)
    published_class = NAFNet

    @dataclass(frozen=True, kw_only=True)
    class Settings(NetworkSettings):
        """Settings of the network; the defaults are those of the published one for SIDD.

        Those of the published one for GoPro are ``encoder_blocks=(1, 1, 1, 28), middle_blocks=1`` and
        ``decoder_blocks=(1, 1, 1, 1)``.
        """

        width: int = 32
        """Channels of the first level; each further level has twice as many."""
        encoder_blocks: tuple[int, ...] = (2, 2, 4, 8)
        """Number of blocks of each level of the encoder, the finest first; so many levels there are."""
        middle_blocks: int = 12
        """Number of blocks between encoder and decoder."""
        decoder_blocks: tuple[int, ...] = (2, 2, 2, 2)
        """Number of blocks of each level of the decoder, the coarsest first."""

        def __post_init__(self) -> None:
            check_between(self, width=(1, MOST_CHANNELS), middle_blocks=(1, 1000))
            check_numbers(self, encoder_blocks=(1, 1000), decoder_blocks=(1, 1000))
            levels = len(self.encoder_blocks)
            if not 1 <= levels <= 12:
                raise ValueError(f"encoder_blocks: {list(self.encoder_blocks)}: use 1 to 12 levels")
            if len(self.decoder_blocks) != levels:
                raise ValueError(
                    f"decoder_blocks: {list(self.decoder_blocks)}: use as many levels as encoder_blocks has, {levels}"
                )

        def can_turn(self, side: int) -> bool:
            """Whether the side needs no extension."""
            multiple = 2 ** len(self.encoder_blocks)
            return side % multiple == 0 and side >= 2 * multiple

        @property
        def channels(self) -> dict[str, int]:
            """The channels of the first level; those of the others are multiples of them."""
            return {"width": self.width}

    def __init__(
        self,
        settings: Settings,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        scale: int = 1,
        inputs: Sequence[str] = ("image",),
    ) -> None:
        NAFNet.__init__(
            self,
            out_channels,
            settings.width,
            settings.middle_blocks,
            settings.encoder_blocks,
            settings.decoder_blocks,
        )
        self.describe(in_channels, out_channels, scale, inputs)

    def forward(self, stack: Tensor) -> Tensor:
        """Restore a batch of stacks."""
        (image,) = self.take(stack)
        multiple = 2 ** len(self.downs)
        return crop(NAFNet.forward(self, extend_to_multiple(image, multiple, "zero", 2 * multiple)), image, 1)
