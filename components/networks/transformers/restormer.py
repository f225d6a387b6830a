"""Restormer: a U-Net of transformer blocks whose attention is between channels, so that its cost grows with the pixels.

All convolutions are without bias. With c channels at a place, h heads and ``LN`` a norm over the channels of each
pixel, a block is ``x = x + attention(LN(x))``, ``x = x + feed_forward(LN(x))``:

- attention: a 1x1 and a 3x3 depthwise convolution give queries, keys and values, ``(B, c, H, W) -> (B, 3c, H, W)``. The
  channels of each are split into h heads of neighbours, ``(B, h, c/h, HW)``. Queries and keys are divided by their norm
  over the pixels. With a temperature ``t`` for each head, ``softmax(t q k^T) v`` has the shape of v: the weights
  ``(B, h, c/h, c/h)`` are between channels. A 1x1 convolution ends it;
- feed-forward: a 1x1 and a 3x3 depthwise convolution give two halves of m channels, ``(B, c, H, W) -> (B, 2m, H, W)``,
  then ``gelu(first) second`` (the exact gelu, by erf) and a 1x1 convolution ``(B, m, H, W) -> (B, c, H, W)``, with
  ``m = int(2.66 c)``;
- ``LN(x) = w (x - mean) / sqrt(variance + 1e-5) + b``; without a bias ``w x / sqrt(variance + 1e-5)``, where the
  variance is about the mean, too.

The network: a 3x3 convolution to w channels, and three levels of the encoder with w, 2w and 4w channels. Each has its
blocks, and then a 3x3 convolution and a pixel-unshuffle, ``(B, c, H, W) -> (B, c/2, H, W) -> (B, 2c, H/2, W/2)``. The
latent blocks have 8w channels. Upwards, a 3x3 convolution and a pixel-shuffle,
``(B, c, H, W) -> (B, 2c, H, W) -> (B, c/2, 2H, 2W)``, are followed by what the level of the encoder gave, as further
channels. At the levels of 4w and 2w channels a 1x1 convolution then halves the channels; at the finest level it does
not, so that its blocks and those of the refinement have 2w channels. A 3x3 convolution gives the correction, which is
added to the image.

The published networks for deraining and deblurring have norms with a bias, those for denoising norms without. That for
defocus from two views (dual pixel) takes both views as 6 channels, adds a 1x1 convolution of the first layer before
the last one, and adds no image. It is in the published module alone, because no task gives two views.

Source: Zamir, Arora, Khan, Hayat, Khan, Yang, *Restormer: Efficient Transformer for High-Resolution Image Restoration*,
CVPR 2022 (arXiv 2111.09881). Reference: https://github.com/swz30/Restormer at df766d5,
``basicsr/models/archs/restormer_arch.py``. The names, order and shapes of the parameters are those of the reference.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.networks.blocks import MOST_CHANNELS, NetworkSettings, normalised_channels
from components.networks.form import RestorationNetwork, crop, extend_to_multiple
from components.registry import check_between, check_numbers, check_one_of

Norm = Literal["with_bias", "bias_free"]

EPSILON = 1e-5
"""Added to the variance of the channels."""

LEVELS = 4
MULTIPLE = 2 ** (LEVELS - 1)
"""Three times, height and width are halved."""


class ChannelNorm(nn.Module):
    """A norm over the channels of each pixel; ``(B, C, H, W)`` -> the same."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if norm == "with_bias" else None

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise a batch of maps."""
        maps = normalised_channels(maps, EPSILON, is_centred=self.bias is not None) * self.weight[:, None, None]
        return maps if self.bias is None else maps + self.bias[:, None, None]  # (C) -> (C, 1, 1)


class Attention(nn.Module):
    """Attention between the channels of each head; ``(B, C, H, W)`` -> the same."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Mix the channels of a batch of maps."""
        parts = self.qkv_dwconv(self.qkv(maps)).chunk(3, dim=1)
        query, key, value = (part.unflatten(1, (self.heads, -1)).flatten(3) for part in parts)  # (B, h, C/h, HW)
        query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
        weights = (query @ key.transpose(-2, -1) * self.temperature).softmax(dim=-1)  # (B, h, C/h, C/h)
        return self.project_out((weights @ value).reshape(maps.shape))  # (B, h, C/h, HW) -> (B, C, H, W)


class FeedForward(nn.Module):
    """Two layers with a gate between them; ``(B, C, H, W)`` -> the same."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Apply the layers to a batch of maps."""
        first, second = self.dwconv(self.project_in(maps)).chunk(2, dim=1)
        return self.project_out(F.gelu(first) * second)


class Block(nn.Module):
    """A transformer block; ``(B, C, H, W)`` -> the same."""

    def __init__(self, channels: int, heads: int, hidden: int, norm: Norm) -> None:
        super().__init__()
        self.norm1 = _named(body=ChannelNorm(channels, norm))
        self.attn = Attention(channels, heads)
        self.norm2 = _named(body=ChannelNorm(channels, norm))
        self.ffn = FeedForward(channels, hidden)

    def forward(self, maps: Tensor) -> Tensor:
        """Apply the block to a batch of maps."""
        maps = maps + self.attn(self.norm1(maps))
        return maps + self.ffn(self.norm2(maps))


class Restormer(nn.Module):
    """The published network; the defaults are those for deraining.

    Shapes: ``(B, C, H, W)`` -> ``(B, C, H, W)``, float, in [0, 1], H and W multiples of 8. For two views,
    ``(B, 2C, H, W)`` -> ``(B, C, H, W)``.

    Args:
        colours: C, the channels of an image.
        width: channels of the first level.
        blocks: number of blocks of each level, the finest first; the last number is that of the latent blocks.
        refinement_blocks: number of blocks before the last layer.
        heads: of the attention of each level, the finest first.
        expansion: hidden channels of the feed-forward layers / channels; rounded down.
        hidden_multiple: the hidden channels are rounded up to a multiple of it; 1 as published.
        norm: "with_bias", or "bias_free" as for denoising.
        dual_pixel: the network of two views.

    Example:
        >>> network = Restormer(width=8, blocks=(1, 1, 1, 1), refinement_blocks=1)
        >>> network(torch.rand(1, 3, 16, 24, generator=torch.manual_seed(0))).shape
        torch.Size([1, 3, 16, 24])
    """

    def __init__(
        self,
        colours: int = 3,
        width: int = 48,
        blocks: Sequence[int] = (4, 6, 6, 8),
        refinement_blocks: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        expansion: float = 2.66,
        hidden_multiple: int = 1,
        norm: Norm = "with_bias",
        dual_pixel: bool = False,
    ) -> None:
        super().__init__()

        def level(number: int, channels: int, count: int = 0) -> nn.Sequential:
            hidden = math.ceil(int(expansion * channels) / hidden_multiple) * hidden_multiple
            count = count or blocks[number]
            return nn.Sequential(*(Block(channels, heads[number], hidden, norm) for _ in range(count)))

        self.dual_pixel = dual_pixel
        self.patch_embed = _named(proj=nn.Conv2d(2 * colours if dual_pixel else colours, width, 3, 1, 1, bias=False))
        self.encoder_level1 = level(0, width)
        self.down1_2 = _down(width)
        self.encoder_level2 = level(1, 2 * width)
        self.down2_3 = _down(2 * width)
        self.encoder_level3 = level(2, 4 * width)
        self.down3_4 = _down(4 * width)
        self.latent = level(3, 8 * width)
        self.up4_3 = _up(8 * width)
        self.reduce_chan_level3 = nn.Conv2d(8 * width, 4 * width, 1, bias=False)
        self.decoder_level3 = level(2, 4 * width)
        self.up3_2 = _up(4 * width)
        self.reduce_chan_level2 = nn.Conv2d(4 * width, 2 * width, 1, bias=False)
        self.decoder_level2 = level(1, 2 * width)
        self.up2_1 = _up(2 * width)
        self.decoder_level1 = level(0, 2 * width)
        self.refinement = level(0, 2 * width, refinement_blocks)
        if dual_pixel:
            self.skip_conv = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.output = nn.Conv2d(2 * width, colours, 3, padding=1, bias=False)

    def forward(self, inp_img: Tensor) -> Tensor:
        """Restore a batch of images; the shapes are those of the class."""
        embedded = self.patch_embed(inp_img)
        level1 = self.encoder_level1(embedded)  # (B, w, H, W)
        level2 = self.encoder_level2(self.down1_2(level1))  # (B, 2w, H/2, W/2)
        level3 = self.encoder_level3(self.down2_3(level2))  # (B, 4w, H/4, W/4)
        maps = self.latent(self.down3_4(level3))  # (B, 8w, H/8, W/8)
        maps = self.decoder_level3(self.reduce_chan_level3(torch.cat((self.up4_3(maps), level3), dim=1)))
        maps = self.decoder_level2(self.reduce_chan_level2(torch.cat((self.up3_2(maps), level2), dim=1)))
        maps = self.decoder_level1(torch.cat((self.up2_1(maps), level1), dim=1))  # (B, 2w, H, W)
        maps = self.refinement(maps)
        if self.dual_pixel:
            return self.output(maps + self.skip_conv(embedded))
        return self.output(maps) + inp_img


def _named(**modules: nn.Module) -> nn.Sequential:
    """Modules in order, with these names."""
    return nn.Sequential(OrderedDict(modules))


def _down(channels: int) -> nn.Sequential:
    """``(B, C, H, W) -> (B, C/2, H, W) -> (B, 2C, H/2, W/2)``."""
    return _named(
        body=nn.Sequential(nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2))
    )


def _up(channels: int) -> nn.Sequential:
    """``(B, C, H, W) -> (B, 2C, H, W) -> (B, C/2, 2H, 2W)``."""
    return _named(body=nn.Sequential(nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False), nn.PixelShuffle(2)))


class RestormerForm(RestorationNetwork, Restormer):
    """The product's form: an image is extended to multiples of 8 by reflection, as published, and the result cropped.

    A side of at most 8 pixels is extended to 16: an exported program refuses maps of one pixel. The attention weighs
    all pixels of the extended image, or those of a tile where an image is restored in tiles. An extension on one side
    lets the output be exactly equivariant only at multiples of 8.

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
    layer_choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "eqreg-t": (
            "patch_embed.proj",
            "*.attn.project_out",
            "*.ffn.project_in",
            "*.ffn.project_out",
            "down*.body.0",
            "up*.body.0",
            "reduce_chan_level*",
        )
    }
    published_class = Restormer

    @dataclass(frozen=True, kw_only=True)
    class Settings(NetworkSettings):
        """Settings of the network; the defaults are those of the published one for deraining.

        Those of the published ones for denoising are the same with ``norm="bias_free"``.
        """

        width: int = 48
        """Channels of the first level; each further level has twice as many. An even number."""
        blocks: tuple[int, ...] = (4, 6, 6, 8)
        """Number of blocks of each of the four levels, the finest first."""
        refinement_blocks: int = 4
        """Number of blocks before the last layer."""
        heads: tuple[int, ...] = (1, 2, 4, 8)
        """Heads of the attention of each level; they divide its channels."""
        expansion: float = 2.66
        """Hidden channels of the feed-forward layers / channels, rounded down: 127, 255, 510 and 1021 as published."""
        hidden_multiple: int = 1
        """The hidden channels are rounded up to a multiple of it. With 4, the order of C4, regular fields pass the
        feed-forward layers; the weights then have other shapes than the published ones."""
        norm: Norm = "with_bias"
        """"with_bias", or "bias_free": norms that neither subtract the mean nor have a bias, as for denoising."""

        def __post_init__(self) -> None:
            check_between(self, width=(2, MOST_CHANNELS), refinement_blocks=(1, 1000), hidden_multiple=(1, 1024))
            check_numbers(self, blocks=(1, 1000), heads=(1, MOST_CHANNELS))
            check_one_of(self, norm=("with_bias", "bias_free"))
            if self.width % 2:
                raise ValueError(f"width: {self.width}: use an even number")
            for name in ("blocks", "heads"):
                if len(getattr(self, name)) != LEVELS:
                    raise ValueError(f"{name}: {list(getattr(self, name))}: use {LEVELS} numbers, one for each level")
            for level, heads in enumerate(self.heads):
                if (channels := self.width * 2**level) % heads:
                    raise ValueError(
                        f"heads: {list(self.heads)}: {heads} heads do not divide the {channels} channels of level "
                        f"{level + 1}: use other heads or another width"
                    )
            if isinstance(self.expansion, bool) or not isinstance(self.expansion, int | float):
                raise ValueError(f"expansion: {self.expansion!r}: use a number")
            if not 1 <= self.expansion * self.width <= MOST_CHANNELS:
                raise ValueError(
                    f"expansion: {self.expansion}: use a number of at least {1 / self.width:.2g}, so that there is a "
                    f"hidden channel, and of at most {MOST_CHANNELS / self.width:.2g}"
                )

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
        in_channels: int = 3,
        out_channels: int = 3,
        scale: int = 1,
        inputs: Sequence[str] = ("image",),
    ) -> None:
        Restormer.__init__(
            self,
            out_channels,
            settings.width,
            settings.blocks,
            settings.refinement_blocks,
            settings.heads,
            settings.expansion,
            settings.hidden_multiple,
            settings.norm,
        )
        self.describe(in_channels, out_channels, scale, inputs)

    def forward(self, stack: Tensor) -> Tensor:
        """Restore a batch of stacks."""
        (image,) = self.take(stack)
        return crop(Restormer.forward(self, extend_to_multiple(image, MULTIPLE, "reflection", 2 * MULTIPLE)), image, 1)
