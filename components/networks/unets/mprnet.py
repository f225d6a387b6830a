"""MPRNet: three stages that restore an image in four quarters, in two bands, and as a whole.

All convolutions are without a bias and keep the height and width. With the image ``x`` of 3 channels, ``w`` channels,
``u`` more at each coarser level of a U-Net and ``o`` more in the last stage, the parts are:

- block (CAB): ``f + a g(f)``, where ``g`` is a convolution 3x3, PReLU and a convolution 3x3, and the attention ``a`` is
  one number for each channel: ``g(f)`` averaged over height and width, a convolution 1x1 to a quarter of the channels,
  ReLU, a convolution 1x1 back, sigmoid. All blocks of the network share one PReLU with one slope;
- shallow features: a convolution 3x3 and a block, ``(B, 3, H, W) -> (B, w, H, W)``; of their own in each stage;
- encoder: two blocks at each of three levels, ``(B, w, H, W)``, ``(B, w + u, H/2, W/2)``, ``(B, w + 2u, H/4, W/4)``;
  between them 2x2 means and a convolution 1x1. That of stage 2 adds to each level both maps of stage 1 at this level,
  each through a convolution 1x1;
- decoder: two blocks at each level, from the coarsest to the finest; between them bilinear enlargement by 2 and a
  convolution 1x1, plus the encoder's maps through a block;
- attention of a stage (SAM) on features ``f``, convolutions 1x1: the image of the stage ``y = x + c2(f)``, and the
  features for the next stage ``f + c1(f) sigmoid(c3(y))``.

Stage 1 encodes the four quarters of the image, joins the left and right ones, and decodes the two bands. Stage 2
encodes the bands (a convolution 3x3 of its shallow features and those of stage 1), joins them, and decodes the whole.
Stage 3 stays at the resolution of the image with ``w + o`` channels: a convolution 3x3 of its shallow features and
those of stage 2; three times eight blocks and a convolution 3x3, with a sum around them, and then, of one level of
stage 2, the encoder's and the decoder's maps, enlarged to the image and through a convolution 1x1 each; a convolution
3x3, and the sum with ``x``.

The quarters pass a layer as images of their own, in the order of images, rows and columns. A quarter turn of the image
only permutes and turns them. The bands lie above each other: on a turned image they are others. So the published
network cannot commute with quarter turns, whatever its weights; its half turns can be exact. With ``stage2="whole"``
stage 1 decodes and stage 2 encodes the whole image, with the same parameters, and quarter turns can be exact.

Source: Zamir, Arora, Khan, Hayat, Khan, Yang, Shao, *Multi-Stage Progressive Image Restoration*, CVPR 2021 (arXiv
2102.02808). Reference: https://github.com/swz30/MPRNet at 43feb2a, ``Deraining/MPRNet.py`` (the same code with other
widths in ``Denoising`` and ``Deblurring``). The names, order and shapes of the parameters are those of the reference,
and so are the many names of the shared slope. What differs: patches pass each layer in one batch, not one after the
other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.networks.blocks import MOST_CHANNELS, NetworkSettings
from components.networks.form import RestorationNetwork, crop, extend_to_multiple
from components.registry import check_between, check_one_of

Stage2 = Literal["bands", "whole"]
MULTIPLE = 8
"""Height and width of an input are multiples of it: a half has two coarser levels."""

SMALLEST_SIDE = 16
"""Smaller images are extended to it in the product's form: an exported program refuses maps of one pixel."""


class MPRNet(nn.Module):
    """The published network.

    Shapes: ``(B, C, H, W)`` -> a list of three such images, of the stages 3, 2 and 1; float, in [0, 1], H and W
    multiples of 8; C is 3 as published.

    Args:
        width: w, the channels at the finest level (published name: ``n_feat``).
        unet_growth: u, the channels that each coarser level has more (``scale_unetfeats``).
        orsnet_growth: o, the channels that the last stage has more (``scale_orsnetfeats``).
        orsnet_blocks: blocks in each of the three parts of the last stage (``num_cab``).
        reduction: channels of a block / channels inside its attention.
        stage2: "bands" as published, or "whole".
        colours: C, the channels of an image.

    Example:
        >>> network = MPRNet(width=8, unet_growth=4, orsnet_growth=4, orsnet_blocks=1)
        >>> [tuple(image.shape) for image in network(torch.rand(1, 3, 8, 16, generator=torch.manual_seed(0)))]
        [(1, 3, 8, 16), (1, 3, 8, 16), (1, 3, 8, 16)]
    """

    def __init__(
        self,
        width: int = 40,
        unet_growth: int = 20,
        orsnet_growth: int = 16,
        orsnet_blocks: int = 8,
        reduction: int = 4,
        stage2: Stage2 = "bands",
        colours: int = 3,
    ) -> None:
        super().__init__()
        self.bands = 2 if stage2 == "bands" else 1
        activation = nn.PReLU()
        block = _BlockMaker(reduction, activation)
        levels = (width, width + unet_growth, width + 2 * unet_growth)
        last = width + orsnet_growth
        self.shallow_feat1 = nn.Sequential(_convolution(colours, width), block(width))
        self.shallow_feat2 = nn.Sequential(_convolution(colours, width), block(width))
        self.shallow_feat3 = nn.Sequential(_convolution(colours, width), block(width))
        self.stage1_encoder = _Encoder(levels, block, takes_earlier=False)
        self.stage1_decoder = _Decoder(levels, block)
        self.stage2_encoder = _Encoder(levels, block, takes_earlier=True)
        self.stage2_decoder = _Decoder(levels, block)
        self.stage3_orsnet = _OriginalResolution(levels, last, orsnet_blocks, block)
        self.sam12 = _StageAttention(width, colours)
        self.sam23 = _StageAttention(width, colours)
        self.concat12 = _convolution(2 * width, width)
        self.concat23 = _convolution(2 * width, last)
        self.tail = _convolution(last, colours)

    def forward(self, x3_img: Tensor) -> list[Tensor]:
        """Restore a batch of images; the shapes are those of the class."""
        bands, quarters = cut(x3_img, self.bands, 1), cut(x3_img, 2, 2)  # (2B, C, H/2, W), (4B, C, H/2, W/2)

        encoded = self.stage1_encoder(self.shallow_feat1(quarters))
        encoded = [join(maps, 2 // self.bands, 2) for maps in encoded]  # (4B, ...) -> (2B, ...)
        decoded = self.stage1_decoder(encoded)
        features, first = self.sam12(decoded[0], bands)

        features = self.concat12(torch.cat((self.shallow_feat2(bands), features), dim=1))
        encoded = self.stage2_encoder(features, encoded, decoded)
        encoded = [join(maps, self.bands, 1) for maps in encoded]  # (2B, ...) -> (B, ...)
        decoded = self.stage2_decoder(encoded)
        features, second = self.sam23(decoded[0], x3_img)

        features = self.concat23(torch.cat((self.shallow_feat3(x3_img), features), dim=1))
        third = x3_img + self.tail(self.stage3_orsnet(features, encoded, decoded))
        return [third, second, join(first, self.bands, 1)]


def cut(maps: Tensor, rows: int, columns: int) -> Tensor:
    """Cut each image into patches, ``(B, C, H, W) -> (B rows columns, C, H / rows, W / columns)``.

    The patches are ordered by image, then by their row, then by their column.

    Example:
        >>> cut(torch.arange(8.0).view(1, 1, 2, 4), 1, 2)[:, 0]
        tensor([[[0., 1.],
                 [4., 5.]],
        <BLANKLINE>
                [[2., 3.],
                 [6., 7.]]])
    """
    if rows == columns == 1:
        return maps
    patches = maps.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))  # (B, C, rows, h, columns, w)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)  # -> (B, rows, columns, C, h, w) -> (B rows columns, ...)


def join(patches: Tensor, rows: int, columns: int) -> Tensor:
    """Join what `cut` gave: ``(B rows columns, C, h, w) -> (B, C, rows h, columns w)``."""
    if rows == columns == 1:
        return patches
    apart = patches.unflatten(0, (-1, rows, columns))  # (B, rows, columns, C, h, w)
    return apart.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)  # -> (B, C, rows, h, columns, w) -> (B, C, H, W)


def _convolution(inputs: int, outputs: int, size: int = 3) -> nn.Conv2d:
    """A convolution that keeps the height and width, without a bias."""
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)


class _BlockMaker:
    """Makes blocks that share one activation."""

    def __init__(self, reduction: int, activation: nn.Module) -> None:
        self.reduction, self.activation = reduction, activation

    def __call__(self, channels: int) -> nn.Module:
        return _Block(channels, self.reduction, self.activation)

    def pair(self, channels: int) -> nn.Sequential:
        return nn.Sequential(self(channels), self(channels))


class _ChannelAttention(nn.Module):
    """Scales each channel by a number that follows from the means of all channels."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.conv_du = nn.Sequential(
            _convolution(channels, inner, 1), nn.ReLU(), _convolution(inner, channels, 1), nn.Sigmoid()
        )

    def forward(self, maps: Tensor) -> Tensor:
        scales: Tensor = self.conv_du(maps.mean(dim=(2, 3), keepdim=True))  # (B, C, 1, 1)
        return maps * scales


class _Block(nn.Module):
    """Two convolutions with an attention of their channels, and the sum with the input, ``(B, C, H, W)``."""

    def __init__(self, channels: int, reduction: int, activation: nn.Module) -> None:
        super().__init__()
        self.CA = _ChannelAttention(channels, reduction)
        self.body = nn.Sequential(_convolution(channels, channels), activation, _convolution(channels, channels))

    def forward(self, maps: Tensor) -> Tensor:
        attended: Tensor = self.CA(self.body(maps))
        return maps + attended


class _Enlarge(nn.Module):
    """Bilinear interpolation to twice the height and width, with the borders of the image aligned."""

    def forward(self, maps: Tensor) -> Tensor:
        # A size is passed and not a scale factor, because an exported factor is a float.
        size = (2 * maps.shape[-2], 2 * maps.shape[-1])
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


class _Down(nn.Module):
    """``(B, inputs, H, W) -> (B, outputs, H/2, W/2)``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        # The mean of 2x2 pixels is what bilinear interpolation to half of an even size gives.
        self.down = nn.Sequential(nn.AvgPool2d(2), _convolution(inputs, outputs, 1))

    def forward(self, maps: Tensor) -> Tensor:
        smaller: Tensor = self.down(maps)
        return smaller


class _Up(nn.Module):
    """``(B, inputs, H, W) -> (B, outputs, 2H, 2W)``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.Sequential(_Enlarge(), _convolution(inputs, outputs, 1))

    def forward(self, maps: Tensor) -> Tensor:
        larger: Tensor = self.up(maps)
        return larger


Levels = tuple[int, int, int]
"""The numbers of channels of the three levels, the finest first."""


class _Encoder(nn.Module):
    """Maps at three levels, the finest first."""

    def __init__(self, levels: Levels, block: _BlockMaker, takes_earlier: bool) -> None:
        super().__init__()
        first, second, third = levels
        self.encoder_level1 = block.pair(first)
        self.encoder_level2 = block.pair(second)
        self.encoder_level3 = block.pair(third)
        self.down12 = _Down(first, second)
        self.down23 = _Down(second, third)
        if takes_earlier:
            self.csff_enc1 = _convolution(first, first, 1)
            self.csff_enc2 = _convolution(second, second, 1)
            self.csff_enc3 = _convolution(third, third, 1)
            self.csff_dec1 = _convolution(first, first, 1)
            self.csff_dec2 = _convolution(second, second, 1)
            self.csff_dec3 = _convolution(third, third, 1)

    def forward(
        self, maps: Tensor, encoded: Sequence[Tensor] | None = None, decoded: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Encode maps ``(B, w, H, W)``, with the maps of an earlier encoder and decoder if the encoder takes them."""
        levels: list[Tensor] = []
        for level in (1, 2, 3):
            if level > 1:
                maps = self.get_submodule(f"down{level - 1}{level}")(maps)
            maps = self.get_submodule(f"encoder_level{level}")(maps)
            if encoded is not None and decoded is not None:
                maps = maps + self.get_submodule(f"csff_enc{level}")(encoded[level - 1])
                maps = maps + self.get_submodule(f"csff_dec{level}")(decoded[level - 1])
            levels.append(maps)
        return levels


class _Decoder(nn.Module):
    """Maps at three levels, the finest first, from those of an encoder."""

    def __init__(self, levels: Levels, block: _BlockMaker) -> None:
        super().__init__()
        first, second, third = levels
        self.decoder_level1 = block.pair(first)
        self.decoder_level2 = block.pair(second)
        self.decoder_level3 = block.pair(third)
        self.skip_attn1 = block(first)
        self.skip_attn2 = block(second)
        self.up21 = _Up(second, first)
        self.up32 = _Up(third, second)

    def forward(self, encoded: Sequence[Tensor]) -> list[Tensor]:
        third = self.decoder_level3(encoded[2])
        second = self.decoder_level2(self.up32(third) + self.skip_attn2(encoded[1]))
        first = self.decoder_level1(self.up21(second) + self.skip_attn1(encoded[0]))
        return [first, second, third]


class _Group(nn.Module):
    """Blocks and a convolution, and the sum with the input, ``(B, C, H, W)``."""

    def __init__(self, channels: int, blocks: int, block: _BlockMaker) -> None:
        super().__init__()
        self.body = nn.Sequential(*(block(channels) for _ in range(blocks)), _convolution(channels, channels))

    def forward(self, maps: Tensor) -> Tensor:
        residual: Tensor = self.body(maps)
        return maps + residual


class _OriginalResolution(nn.Module):
    """The last stage, ``(B, C, H, W)``, with the maps of an encoder and of a decoder at three levels."""

    def __init__(self, levels: Levels, channels: int, blocks: int, block: _BlockMaker) -> None:
        super().__init__()
        first, second, third = levels
        self.orb1 = _Group(channels, blocks, block)
        self.orb2 = _Group(channels, blocks, block)
        self.orb3 = _Group(channels, blocks, block)
        self.up_enc1 = _Up(second, first)
        self.up_dec1 = _Up(second, first)
        self.up_enc2 = nn.Sequential(_Up(third, second), _Up(second, first))
        self.up_dec2 = nn.Sequential(_Up(third, second), _Up(second, first))
        self.conv_enc1 = _convolution(first, channels, 1)
        self.conv_enc2 = _convolution(first, channels, 1)
        self.conv_enc3 = _convolution(first, channels, 1)
        self.conv_dec1 = _convolution(first, channels, 1)
        self.conv_dec2 = _convolution(first, channels, 1)
        self.conv_dec3 = _convolution(first, channels, 1)

    def forward(self, maps: Tensor, encoded: Sequence[Tensor], decoded: Sequence[Tensor]) -> Tensor:
        maps = self.orb1(maps)
        maps = maps + self.conv_enc1(encoded[0]) + self.conv_dec1(decoded[0])
        maps = self.orb2(maps)
        maps = maps + self.conv_enc2(self.up_enc1(encoded[1])) + self.conv_dec2(self.up_dec1(decoded[1]))
        maps = self.orb3(maps)
        return maps + self.conv_enc3(self.up_enc2(encoded[2])) + self.conv_dec3(self.up_dec2(decoded[2]))


class _StageAttention(nn.Module):
    """The features for the next stage, ``(B, w, H, W)``, and the image of this one, ``(B, C, H, W)``."""

    def __init__(self, width: int, colours: int) -> None:
        super().__init__()
        self.conv1 = _convolution(width, width, 1)
        self.conv2 = _convolution(width, colours, 1)
        self.conv3 = _convolution(colours, width, 1)

    def forward(self, features: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        restored = image + self.conv2(features)
        return features + self.conv1(features) * torch.sigmoid(self.conv3(restored)), restored


class MPRNetForm(RestorationNetwork, MPRNet):
    """The product's form: an image is extended by its reflection, below and on the right, and the result cropped.

    The height and width become multiples of 8, as in the published scripts, and 16 at least. In evaluation it gives the
    image of stage 3; in training with ``supervised="all"`` those of the stages 3, 2 and 1, whose losses count equally,
    as published. (The published loss of each image has a further term, that of its edges.)

    The attention of a block averages over a whole patch, and the patches end in the middle of the image. A tile of an
    image is therefore restored differently from the image, and a seam may be seen: use a tile that holds the image.

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
    published_class = MPRNet

    @dataclass(frozen=True, kw_only=True)
    class Settings(NetworkSettings):
        """Settings of the network; the defaults are those of the published one for rain.

        Those for noise are ``width=80, unet_growth=48, orsnet_growth=32``, those for blur ``width=96, unet_growth=48,
        orsnet_growth=32``.
        """

        width: int = 40
        """Channels at the finest level."""
        unet_growth: int = 20
        """Channels that each coarser level has more."""
        orsnet_growth: int = 16
        """Channels that the last stage has more."""
        orsnet_blocks: int = 8
        """Blocks in each of the three parts of the last stage."""
        reduction: int = 4
        """Channels of a block / channels inside its attention."""
        stage2: Stage2 = "bands"
        """Stage 1 decodes and stage 2 encodes two bands of the image, which cannot be equivariant, or the whole image,
        which can."""
        supervised: Literal["last", "all"] = "all"
        """Stages with a task loss: the last one, or all, with equal weights."""

        def __post_init__(self) -> None:
            check_between(
                self,
                width=(1, MOST_CHANNELS),
                unet_growth=(0, MOST_CHANNELS),
                orsnet_growth=(0, MOST_CHANNELS),
                orsnet_blocks=(1, 1000),
                reduction=(1, MOST_CHANNELS),
            )
            check_one_of(self, stage2=("bands", "whole"), supervised=("last", "all"))

        def can_turn(self, side: int) -> bool:
            """Whether the side needs no extension."""
            return side % MULTIPLE == 0 and side >= SMALLEST_SIDE

        @property
        def channels(self) -> dict[str, int]:
            """The channels of the three levels, and of the last stage."""
            return {
                "width": self.width,
                "width + unet_growth": self.width + self.unet_growth,
                "width + 2 unet_growth": self.width + 2 * self.unet_growth,
                "width + orsnet_growth": self.width + self.orsnet_growth,
            }

    def __init__(
        self,
        settings: Settings,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        scale: int = 1,
        inputs: Sequence[str] = ("image",),
    ) -> None:
        MPRNet.__init__(
            self,
            settings.width,
            settings.unet_growth,
            settings.orsnet_growth,
            settings.orsnet_blocks,
            settings.reduction,
            settings.stage2,
            out_channels,
        )
        self.describe(in_channels, out_channels, scale, inputs)
        self.is_supervised_everywhere = settings.supervised == "all"

    def forward(self, stack: Tensor) -> Tensor | tuple[Tensor, ...]:  # type: ignore[override]
        """Restore a batch of stacks; in training with several supervised stages, the last one comes first."""
        (image,) = self.take(stack)
        outputs = MPRNet.forward(self, extend_to_multiple(image, MULTIPLE, "reflection", SMALLEST_SIDE))
        if self.training and self.is_supervised_everywhere:
            return tuple(crop(output, image, 1) for output in outputs)
        return crop(outputs[0], image, 1)
