"""SwinIR: residual groups of attention in windows, between a convolution at each end.

With the image ``x`` of C channels, k channels of a map, and `window_attention.WindowLayer` for a layer:

- ``x`` is extended by reflection at the bottom and on the right to multiples of the window;
- ``x' = (x - mean) r``: the mean colour (0.4488, 0.4371, 0.4040) of three channels, 0 of another number; r is 1, for
  JPEG 255;
- ``f = conv_first(x')``, 3x3, ``(B, C, H, W) -> (B, k, H, W)``;
- ``g = LN(f)`` over the channels of each pixel; then each group is ``g = g + conv(layers(g))`` with as many layers, of
  which every second one has its windows shifted by half a window, and a 3x3 convolution; then ``g = LN(g)``;
- ``f = f + conv_after_body(g)``, 3x3;
- at the size of the input: ``y = x' + conv_last(f)``, 3x3, ``(B, k, H, W) -> (B, C, H, W)``;
- "pixelshuffle": 3x3 to 64 channels and LeakyReLU(0.01); for a scale of 2 a 3x3 convolution
  ``(B, 64, H, W) -> (B, 256, H, W)`` and PixelShuffle(2), twice for 4; for 3 one to 576 channels and PixelShuffle(3);
  then ``conv_last``, 3x3 to C channels;
- "pixelshuffledirect": one 3x3 convolution ``(B, k, H, W) -> (B, s^2 C, H, W)`` and PixelShuffle(s);
- the result is ``y / r + mean``, cropped.

In training, the attention and the linear layers of layer number i of L are left out for an image with probability
``i / (L - 1)`` times the rate (`components.networks.stochastic_depth`).

| published | settings |
|---|---|
| denoising, colour | the defaults |
| denoising, grey | the defaults, one channel |
| JPEG | ``window=7, image_range=255`` |
| super-resolution, classical | the defaults, a scale of 2, 3 or 4 |
| super-resolution, light | ``width=60, groups=4, upsampler="pixelshuffledirect"``, a scale of 2, 3 or 4 |

Heads of 30 and of 10 channels, as published, cut through groups of 4 channels: their maps can be scalar fields alone.
``width=192`` or ``heads=5`` gives heads of 32 and 36 channels.

Source: Liang, Cao, Sun, Zhang, Van Gool, Timofte, *SwinIR: Image Restoration Using Swin Transformer*, ICCV workshops
2021 (arXiv 2108.10257). Reference: https://github.com/JingyunLiang/SwinIR at 6545850, ``models/network_swinir.py``. The
names, order and shapes of the parameters and buffers are those of the reference. What differs: a small image is
reflected to and fro, where the reference fails; the masks are computed for each image, and are in the state_dict only
if the size is given for which the reference would hold them; a window is never made smaller to fit such a size. The
script of the reference that measures (``main_test_swinir.py``) extends each image before the network, by one to w
pixels and by a reflection that repeats the last row and column; its scores are of images that are extended so. The
published variants for unknown degradations, with other upsampling and with groups of three convolutions, are not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from components.networks.blocks import MOST_CHANNELS, NetworkSettings
from components.networks.form import RestorationNetwork, crop, extend_to_multiple
from components.networks.transformers.window_attention import SPREAD, WindowGrid, WindowLayer
from components.registry import check_between, check_one_of

Upsampler = Literal["none", "pixelshuffle", "pixelshuffledirect"]

MEAN_COLOUR = (0.4488, 0.4371, 0.4040)
"""What is subtracted from images of three channels."""

JPEG_WINDOW, JPEG_RANGE = 7, 255
"""Window and range of the published networks for JPEG, and of no other published network."""

UPSAMPLED_CHANNELS = 64
"""Channels of the maps that "pixelshuffle" enlarges."""


class SwinIR(nn.Module):
    """The published network.

    Shapes: ``(B, C, H, W)`` -> ``(B, C, s H, s W)``, float, in [0, 1], any H and W from 1 pixel.

    Args:
        scale: s, size of the output / size of the input.
        colours: C, the channels of an image.
        width: k, the channels of a map.
        groups: number of residual groups.
        depth: layers of each group.
        heads: of each attention; they divide the width.
        window: height and width of a window, in pixels.
        expansion: channels between the linear layers of a layer / k.
        image_range: r.
        upsampler: "none" for a scale of 1, one of the others for larger ones.
        drop_path_rate: how often training leaves out the branches of the last layer.
        image_size: as of `WindowLayer`. The published files have that of their training patches: 128 for denoising, 126
            for JPEG, 48 or 64 for super-resolution.

    Raises:
        ValueError: the upsampler does not fit the scale.

    Example:
        >>> network = SwinIR(scale=2, width=8, groups=1, depth=2, heads=2, window=4, upsampler="pixelshuffle")
        >>> network(torch.rand(1, 3, 5, 7, generator=torch.manual_seed(0))).shape
        torch.Size([1, 3, 10, 14])
    """

    computed: ClassVar[tuple[str, ...]] = ("attn_mask", "relative_position_index")
    """Ends of the names of buffers that follow from the settings and the size of an image."""

    def __init__(
        self,
        scale: int = 1,
        colours: int = 3,
        width: int = 180,
        groups: int = 6,
        depth: int = 6,
        heads: int = 6,
        window: int = 8,
        expansion: int = 2,
        image_range: float = 1.0,
        upsampler: Upsampler = "none",
        drop_path_rate: float = 0.1,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        check_upsampler(upsampler, scale)
        self.scale, self.window, self.image_range, self.upsampler = scale, window, image_range, upsampler
        self.conv_first = _convolution(colours, width)
        self.patch_embed = _Normalised(width)
        step = drop_path_rate / max(groups * depth - 1, 1)  # from one layer to the next
        self.layers = nn.ModuleList(
            _Group(
                [
                    WindowLayer(
                        width,
                        heads,
                        window,
                        number % 2 * (window // 2),
                        expansion,
                        (group * depth + number) * step,
                        image_size,
                    )
                    for number in range(depth)
                ],
                width,
            )
            for group in range(groups)
        )
        self.norm = nn.LayerNorm(width)
        self.conv_after_body = _convolution(width, width)
        if upsampler == "pixelshuffle":
            self.conv_before_upsample = nn.Sequential(_convolution(width, UPSAMPLED_CHANNELS), nn.LeakyReLU())
            factors = [3] if scale == 3 else [2] * (scale // 2)
            enlarged = [_enlarged(UPSAMPLED_CHANNELS, factor) for factor in factors]
            self.upsample = nn.Sequential(*(part for both in enlarged for part in both))
        elif upsampler == "pixelshuffledirect":
            self.upsample = nn.Sequential(_convolution(width, scale**2 * colours), nn.PixelShuffle(scale))
        if upsampler != "pixelshuffledirect":
            self.conv_last = _convolution(UPSAMPLED_CHANNELS if upsampler == "pixelshuffle" else width, colours)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=SPREAD)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Restore a batch of images; the shapes are those of the class."""
        image = extend_to_multiple(x, self.window, "reflection")
        mean = _mean_colour(image)
        image = (image - mean) * self.image_range
        first = self.conv_first(image)  # (B, k, H, W), H and W multiples of the window
        maps = self.conv_after_body(self._deep(first)) + first
        if self.upsampler == "none":
            result = image + self.conv_last(maps)
        elif self.upsampler == "pixelshuffle":
            result = self.conv_last(self.upsample(self.conv_before_upsample(maps)))
        else:
            result = self.upsample(maps)
        # One channel of the size of the result shows how far to crop.
        like = x if self.scale == 1 else x[:1, :1].repeat(1, 1, self.scale, self.scale)
        return crop(result / self.image_range + mean, like, 1)

    def _deep(self, maps: Tensor) -> Tensor:
        """Apply all groups: ``(B, k, H, W)`` -> ``(B, k, H, W)``."""
        tokens = self.patch_embed(maps.permute(0, 2, 3, 1))  # (B, k, H, W) -> (B, H, W, k)
        grid = WindowGrid(tokens, self.window, self.window // 2)
        for group in self.layers:
            tokens = group(tokens, grid)
        return self.norm(tokens).permute(0, 3, 1, 2)  # (B, H, W, k) -> (B, k, H, W)


def check_upsampler(upsampler: str, scale: int) -> None:
    """Check that an upsampler gives a scale.

    Raises:
        ValueError: it does not.
    """
    if (upsampler == "none") != (scale == 1):
        fitting = "none" if scale == 1 else "pixelshuffle or pixelshuffledirect"
        raise ValueError(f"upsampler: '{upsampler}' does not fit scale {scale}: use {fitting}, or auto")


def _mean_colour(images: Tensor) -> Tensor:
    """What is subtracted from images ``(B, C, H, W)``: ``(B, C, 1, 1)``, without naming a device."""
    pixels = images[:, :, 0, 0, None, None]  # (B, C, 1, 1)
    if images.shape[1] != len(MEAN_COLOUR):
        return torch.zeros_like(pixels)
    return torch.cat([torch.full_like(pixels[:, :1], value) for value in MEAN_COLOUR], dim=1)


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the height and width."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _enlarged(channels: int, factor: int) -> tuple[nn.Module, nn.Module]:
    """Enlarge maps by a factor: ``(B, c, H, W) -> (B, r^2 c, H, W) -> (B, c, r H, r W)``."""
    return _convolution(channels, factor**2 * channels), nn.PixelShuffle(factor)


class _Normalised(nn.Module):
    """A layer norm under the published name; ``(B, H, W, k)`` -> ``(B, H, W, k)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        normalised: Tensor = self.norm(tokens)
        return normalised


class _Layers(nn.Module):
    """The layers of a group under the published name; ``(B, H, W, k)`` -> ``(B, H, W, k)``."""

    def __init__(self, layers: Sequence[WindowLayer]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(layers)

    def forward(self, tokens: Tensor, grid: WindowGrid) -> Tensor:
        for layer in self.blocks:
            tokens = layer(tokens, grid)
        return tokens


class _Group(nn.Module):
    """A residual group: its layers and a convolution; ``(B, H, W, k)`` -> ``(B, H, W, k)``."""

    def __init__(self, layers: Sequence[WindowLayer], width: int) -> None:
        super().__init__()
        self.residual_group = _Layers(layers)
        self.conv = _convolution(width, width)

    def forward(self, tokens: Tensor, grid: WindowGrid) -> Tensor:
        maps = self.residual_group(tokens, grid).permute(0, 3, 1, 2)  # (B, H, W, k) -> (B, k, H, W)
        return tokens + self.conv(maps).permute(0, 2, 3, 1)  # (B, k, H, W) -> (B, H, W, k)


class SwinIRForm(RestorationNetwork, SwinIR):
    """The product's form: it restores one image, of any size, and may enlarge it.

    Its state_dict has the published parameters and indices of relative positions, and no masks.

    At the published depth an output pixel depends on pixels up to 151 away, in the light network 103 (the shares of
    masked pixels, below 1e-43, aside). With an overlap of 304, or 208, tiles therefore give the image that one pass
    gives; with less they do so approximately. Windows whose side divides 16 lie in a tile as in the image. Those of 7
    pixels, for JPEG, do not: use a tile that holds the image.

    Shapes: as of `components.networks.form`, any H and W from 1 pixel.

    Args:
        settings: of the network.
        in_channels: channels of the stack.
        out_channels: C, the channels of an image.
        scale: 1, 2, 3 or 4.
        inputs: names of the images in the stack.

    Raises:
        ValueError: the upsampler does not fit the scale, or as of `RestorationNetwork.describe`.
    """

    needs = ("image",)
    layer_choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "eqreg-t": ("conv_first", "*.attn.proj", "*.mlp.fc?", "layers.*.conv", "conv_after_body")
    }
    published_class = SwinIR

    @dataclass(frozen=True, kw_only=True)
    class Settings(NetworkSettings):
        """Settings of the network; the defaults are those of the published one for denoising."""

        width: int = 180
        """Channels of each map."""
        groups: int = 6
        """Number of residual groups."""
        depth: int = 6
        """Layers of each group."""
        heads: int = 6
        """Heads of each attention; they divide the width."""
        window: int = 8
        """Height and width of a window, in pixels; 7 in the published networks for JPEG."""
        expansion: int = 2
        """Channels between the linear layers of a layer / width."""
        image_range: int = 1
        """White in the range of the network: 1, or 255 in the published networks for JPEG."""
        upsampler: Literal["auto", "none", "pixelshuffle", "pixelshuffledirect"] = "auto"
        """What enlarges: "pixelshuffle" (classical), "pixelshuffledirect" (light); "none" for a scale of 1. "auto": the
        classical one where the scale is above 1."""
        drop_path_rate: float = 0.1
        """How often training leaves out the branches of the last layer; linear in the number of the layer."""

        def __post_init__(self) -> None:
            check_between(
                self,
                width=(1, MOST_CHANNELS),
                groups=(1, 1000),
                depth=(1, 1000),
                heads=(1, MOST_CHANNELS),
                window=(1, 1024),
                expansion=(1, 1024),
            )
            check_one_of(self, upsampler=("auto", "none", "pixelshuffle", "pixelshuffledirect"))
            if self.image_range not in (1, 255) or isinstance(self.image_range, bool):
                raise ValueError(f"image_range: {self.image_range}: use 1 or 255")
            if self.width % self.heads:
                below, above = self.width // self.heads * self.heads, -(-self.width // self.heads) * self.heads
                fitting = f"{below} or {above}" if below else f"{above}"
                raise ValueError(f"heads: {self.heads} do not divide width {self.width}: use a width of {fitting}")
            rate = self.drop_path_rate
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
                raise ValueError(f"drop_path_rate: {rate!r}: use a number of at least 0 and below 1")

        def can_turn(self, side: int) -> bool:
            """Whether the side needs no extension."""
            return side % self.window == 0

        @property
        def channels(self) -> dict[str, int]:
            """The channels of the maps. Heads may have any number: it limits their fields, and refuses no penalty."""
            return {"width": self.width}

        def check_scale(self, scale: int) -> None:
            """Check that the upsampler gives the scale; the arguments are those of the base class."""
            check_upsampler(self.upsampler_of(scale), scale)

        def upsampler_of(self, scale: int) -> Upsampler:
            """The upsampler for a scale."""
            if self.upsampler == "auto":
                return "none" if scale == 1 else "pixelshuffle"
            return self.upsampler

    def __init__(
        self,
        settings: Settings,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        scale: int = 1,
        inputs: Sequence[str] = ("image",),
    ) -> None:
        self._arguments = (
            scale,
            out_channels,
            settings.width,
            settings.groups,
            settings.depth,
            settings.heads,
            settings.window,
            settings.expansion,
            settings.image_range,
            settings.upsampler_of(scale),
            settings.drop_path_rate,
        )
        SwinIR.__init__(self, *self._arguments)
        self.describe(in_channels, out_channels, scale, inputs)
        if self.upsampler == "pixelshuffle":
            enlarging = ("conv_before_upsample.0",) if scale == 3 else ("conv_before_upsample.0", "upsample.*")
            patterns = (*type(self).layer_choices["eqreg-t"], *enlarging)
            self.layer_choices = {"eqreg-t": patterns}  # type: ignore[misc]

    def forward(self, stack: Tensor) -> Tensor:
        """Restore a batch of stacks."""
        return SwinIR.forward(self, *self.take(stack))

    def chainner(self) -> nn.Module:
        """Return the published module with masks, by whose size chaiNNer's loader tells that of its own.

        Raises:
            ValueError: that loader would build another network: it takes the image alone, and it tells the range by the
                window.
        """
        if self.in_channels != self.out_channels:
            raise ValueError(
                f"chaiNNer's swinir takes one image; this one takes {self.in_channels} channels and gives "
                f"{self.out_channels}"
            )
        if (self.window == JPEG_WINDOW) != (self.image_range == JPEG_RANGE):
            raise ValueError(
                f"chaiNNer's swinir has image_range {JPEG_RANGE} with window {JPEG_WINDOW}, and 1 with others; this "
                f"one has {self.image_range:g} with {self.window}"
            )
        module = SwinIR(*self._arguments, image_size=2 * self.window)
        module.to(self.conv_first.weight).load_state_dict(self.state_dict(), strict=False)
        return module.train(self.training)
