"""FBPConvNet: a U-Net with batch normalisation that corrects a filtered back-projection, for sparse-view CT.

With the image ``x`` of C channels, L levels and ``w_k = 2^(k - 1) w`` channels at level k, a *step* is a convolution
3x3 with padding 1 and a bias, batch normalisation and ReLU:

- down, at level 1: three steps, ``(B, C, H, W) -> (B, w_1, H, W)``; at level k from 2 to L: 2x2 maximum pooling and two
  steps, ``-> (B, w_k, H / 2^(k - 1), W / 2^(k - 1))``;
- up, from each level k to level k - 1: a transposed convolution with stride 2 and a bias, batch normalisation and ReLU,
  ``(B, w_k, h, w) -> (B, w_(k - 1), 2h, 2w)``; its result is appended to what level k - 1 gave on the way down (which
  comes first), and two steps follow, ``(B, 2 w_(k - 1), 2h, 2w) -> (B, w_(k - 1), 2h, 2w)``;
- a convolution 1x1 to C channels, and the result is ``x`` plus its output.

A transposed convolution 3x3 with stride 2 gives ``2h + 1`` rows. MatConvNet's crop takes the last row and column away;
the PyTorch port takes the first ones away (padding 1, output padding 1), so its maps lie one pixel further. In both,
pixel i of the coarse map reaches the fine pixels ``2i .. 2i + 2`` or ``2i - 1 .. 2i + 1``, and never symmetrically the
pixels ``2i, 2i + 1`` from which it was pooled: neither can commute with quarter turns, whatever the weights. With
``upsampling="in_place"`` the kernel is 2x2: each coarse pixel gives the four fine pixels that it was pooled from, and
the network can be exactly equivariant.

`components.networks.unets.unet` is a residual U-Net of our own in the form of this one, without its published weights:
there level 1 has two steps, up-sampling repeats pixels before a convolution 3x3 (without normalisation) and so keeps
them in place, every height and width is taken without extending it, a scale is possible, normalisation can be left out,
and the last layer begins at zero.

Source: Jin, McCann, Froustey, Unser, *Deep Convolutional Neural Network for Inverse Problems in Imaging*, IEEE TIP 2017
(arXiv 1611.03679). References: https://github.com/panakino/FBPConvNet at 93641db, ``cnn_unet_init.m`` (MatConvNet), and
https://github.com/jonzhaocn/fbpconvnet_pytorch at da9c862, ``model.py``, whose names, order and shapes the parameters
have. As in MatConvNet, weights begin with a standard deviation of 0.01, biases at 0, and the running statistics follow
a batch with the rate 0.05. What differs from MatConvNet: the normalisation's epsilon is that of torch, 1e-5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from components.networks.blocks import MOST_CHANNELS, NetworkSettings
from components.networks.form import RestorationNetwork, crop, extend
from components.registry import check_between, check_one_of

Upsampling = Literal["matconvnet", "pytorch_port", "in_place"]
INITIAL_DEVIATION = 0.01
"""Standard deviation of new weights."""

STATISTICS_RATE = 0.05
"""How far the running statistics of a normalisation move to those of a batch."""


class FBPConvNet(nn.Module):
    """The published network.

    Shapes: ``(B, C, H, W)`` -> ``(B, C, H, W)``, float, H and W multiples of ``2 ** (levels - 1)``. As published, C is
    1, and the multiple is 16.

    Args:
        width: channels at the finest level; they double from level to level.
        levels: number of resolutions.
        upsampling: the transposed convolutions: 3x3 without the last row and column ("matconvnet"), 3x3 without the
            first ones ("pytorch_port"), or 2x2 ("in_place").
        colours: C, the channels of an image.

    Example:
        >>> network = FBPConvNet(width=4, levels=3).eval()
        >>> network(torch.rand(1, 1, 8, 12, generator=torch.manual_seed(0))).shape
        torch.Size([1, 1, 8, 12])
    """

    def __init__(
        self, width: int = 64, levels: int = 5, upsampling: Upsampling = "matconvnet", colours: int = 1
    ) -> None:
        super().__init__()
        self.levels = levels
        widths = [width * 2**level for level in range(levels)]
        self.block_1_1 = nn.Sequential(*_step(colours, width), *_step(width, width), *_step(width, width))
        for level in range(2, levels + 1):
            above, own = widths[level - 2 : level]
            layers = [nn.MaxPool2d(2), *_step(above, own), *_step(own, own)]
            if level == levels:
                self.add_module(f"block_{level}", nn.Sequential(*layers, *_up(own, above, upsampling)))
            else:
                self.add_module(f"block_{level}_1", nn.Sequential(*layers))
        for level in range(levels - 1, 0, -1):
            own = widths[level - 1]
            layers = [*_step(2 * own, own), *_step(own, own)]
            layers += _up(own, widths[level - 2], upsampling) if level > 1 else [nn.Conv2d(own, colours, 1)]
            self.add_module(f"block_{level}_2", nn.Sequential(*layers))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=INITIAL_DEVIATION)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Correct a batch of images; the shapes are those of the class."""
        maps, skips = input, []
        for level in range(1, self.levels):
            maps = self.get_submodule(f"block_{level}_1")(maps)
            skips.append(maps)
        maps = self.get_submodule(f"block_{self.levels}")(maps)  # (B, w, 2h, 2w) of the level above
        for level in range(self.levels - 1, 0, -1):
            maps = self.get_submodule(f"block_{level}_2")(torch.cat((skips.pop(), maps), dim=1))
        return input + maps


class _CroppedTransposedConvolution(nn.ConvTranspose2d):
    """A transposed convolution without the last row and column of its result, as MatConvNet's crop [0 1 0 1]."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(input, output_size)[..., :-1, :-1]  # (B, C, 2h + 1, 2w + 1) -> (B, C, 2h, 2w)


def _step(inputs: int, outputs: int) -> list[nn.Module]:
    """A convolution that keeps the height and width, and what follows it."""
    return [nn.Conv2d(inputs, outputs, 3, padding=1), *_normalised(outputs)]


def _up(inputs: int, outputs: int, upsampling: Upsampling) -> list[nn.Module]:
    """A transposed convolution that doubles the height and width, and what follows it."""
    convolution: nn.Module
    if upsampling == "matconvnet":
        convolution = _CroppedTransposedConvolution(inputs, outputs, 3, stride=2)
    elif upsampling == "pytorch_port":
        convolution = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)
    else:
        convolution = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
    return [convolution, *_normalised(outputs)]


def _normalised(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels, momentum=STATISTICS_RATE), nn.ReLU()]


class FBPConvNetForm(RestorationNetwork, FBPConvNet):
    """The product's form: an image is extended by reflection to multiples of 16 pixels, and the result cropped.

    The multiple is ``2 ** (levels - 1)`` and a side has two of it at least. As many pixels are added before as after,
    or one more after: the extension commutes with quarter turns where it adds an even number of rows and of columns.
    The grid of the poolings begins at the first added pixel. So an image whose sides are multiples of 16 is the same in
    tiles; any other one has other blocks in a tile than as a whole, and both results differ a little.

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
    published_class = FBPConvNet

    @dataclass(frozen=True, kw_only=True)
    class Settings(NetworkSettings):
        """Settings of the network; the defaults are those of MatConvNet's network."""

        width: int = 64
        """Channels at the finest level; they double from level to level."""
        levels: int = 5
        """Number of resolutions."""
        upsampling: Upsampling = "matconvnet"
        """Transposed convolutions: 3x3 as in MatConvNet or in the PyTorch port, which cannot be equivariant, or 2x2
        in place, which can."""

        def __post_init__(self) -> None:
            check_between(self, width=(1, MOST_CHANNELS), levels=(2, 12))
            check_one_of(self, upsampling=("matconvnet", "pytorch_port", "in_place"))

        def can_turn(self, side: int) -> bool:
            """Whether the side needs no extension, or as many pixels before as after."""
            return side % 2 == 0

        @property
        def channels(self) -> dict[str, int]:
            """The channels of the first level; those of the others are multiples of them."""
            return {"width": self.width}

    def __init__(
        self,
        settings: Settings,
        *,
        in_channels: int = 1,
        out_channels: int = 1,
        scale: int = 1,
        inputs: Sequence[str] = ("image",),
    ) -> None:
        FBPConvNet.__init__(self, settings.width, settings.levels, settings.upsampling, out_channels)
        self.describe(in_channels, out_channels, scale, inputs)

    def forward(self, stack: Tensor) -> Tensor:
        """Restore a batch of stacks."""
        (image,) = self.take(stack)
        multiple = 2 ** (self.levels - 1)
        least = 2 * multiple  # an exported program refuses maps of one pixel
        return crop(FBPConvNet.forward(self, extend(image, least, multiple)), image, least, multiple)
