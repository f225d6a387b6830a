"""DerainNet: three layers on the detail layer of a rainy image, whose base layer a guided filter gives.

With the image ``x`` of C channels and ``w`` hidden channels:

- ``x`` is surrounded by its reflection, 10 pixels wide, ``(B, C, H, W) -> (B, C, H + 20, W + 20)``;
- base ``b``: the guided filter of ``x`` by itself, with radius 15 and epsilon 1, of the same shape; the detail layer is
  ``d = x - b``;
- ``d`` passes a convolution 16x16 without padding, an activation, a convolution 1x1, an activation, and a transposed
  convolution 8x8, all with stride 1 and a bias: ``(B, C, H + 20, W + 20) -> (B, w, H + 5, W + 5)
  -> (B, w, H + 5, W + 5) -> (B, C, H + 12, W + 12)``;
- of the result 6 pixels are cropped on each side, of the base 10, and both are added: ``(B, C, H, W)``.

The guided filter (He, Sun, Tang, *Guided Image Filtering*, IEEE TPAMI 2013) fits the image in each window by a linear
map of its own channels. With the mean ``m`` and the covariance ``S`` of the channels in a window of 31x31 pixels (at
the border: of those of its pixels that exist), ``A = (S + epsilon I)^-1 S`` and ``c = m - A m``, it is
``mean(A) x + mean(c)``, where the means go over the windows that hold the pixel.

All of it commutes with quarter turns and mirrors if the kernels do: both even kernels shift the grid by the same number
of pixels on all sides.

Source: Fu, Huang, Ding, Liao, Paisley, *Clearing the Skies: A Deep Network Architecture for Single-Image Rain Removal*,
IEEE TIP 2017 (arXiv 1609.02087). Reference: https://github.com/biubiubiiu/derain-toolbox at d73d865,
``mmderain/models/backbones/derainnet.py``, a port; the authors' network is not public. The names, order and shapes of
the parameters are those of the port. What differs: an image may have any number of channels and any size, where the
port takes 1 or 3 channels and sides from 32 pixels with the border; its windows are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.networks.blocks import MOST_CHANNELS, NetworkSettings
from components.networks.form import RestorationNetwork, surround
from components.registry import check_between, check_one_of

Activation = Literal["relu", "tanh"]
RADIUS = 15
"""Of the windows of the guided filter, in pixels: a window has 2 RADIUS + 1 rows and columns."""

EPSILON = 1.0
"""Regularisation of the guided filter, in squared units of images in [0, 1]."""

BORDER = 10
"""Width of the reflection around the image, in pixels."""

CROPPED = 6
"""Pixels that are cropped on each side of the result: the layers take 8 of the 20 that the reflection adds."""


class DerainNet(nn.Module):
    """The published network.

    Shapes: ``(B, C, H, W)`` -> ``(B, C, H, W)``, float, in [0, 1], any H and W from 1 pixel; C is 3 as published.

    Args:
        width: channels of both hidden layers.
        activation: after the first two layers: "relu" in the port, "tanh" in descriptions of the paper.
        colours: C, the channels of an image.

    Example:
        >>> network = DerainNet(width=8)
        >>> network(torch.rand(1, 3, 5, 9, generator=torch.manual_seed(0))).shape
        torch.Size([1, 3, 5, 9])
    """

    def __init__(self, width: int = 512, activation: Activation = "relu", colours: int = 3) -> None:
        super().__init__()
        activate = nn.ReLU if activation == "relu" else nn.Tanh
        self.model = nn.Sequential(
            nn.Conv2d(colours, width, 16),
            activate(),
            nn.Conv2d(width, width, 1),
            activate(),
            nn.ConvTranspose2d(width, colours, 8),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Remove the rain from a batch of images; the shapes are those of the class."""
        wide = surround(x, BORDER)  # (B, C, H + 20, W + 20)
        base = guided_filter(wide, RADIUS, EPSILON)
        detail = self.model(wide - base)  # (B, C, H + 12, W + 12)
        return _without_border(detail, CROPPED) + _without_border(base, BORDER)

    def base_layer(self, x: Tensor) -> Tensor:
        """Return the base layer that `forward` adds, ``(B, C, H, W)`` -> ``(B, C, H, W)``."""
        return _without_border(guided_filter(surround(x, BORDER), RADIUS, EPSILON), BORDER)


def guided_filter(images: Tensor, radius: int, epsilon: float) -> Tensor:
    """Smooth images by a guided filter, each guided by itself; the formula is that of the module.

    Args:
        images: ``(B, C, H, W)``, of any H and W.
        radius: of the windows, in pixels.
        epsilon: added to the variance of each channel.

    Returns:
        ``(B, C, H, W)``.

    Example:
        >>> flat = torch.full((1, 3, 4, 5), 0.5)
        >>> torch.allclose(guided_filter(flat, radius=2, epsilon=0.1), flat)
        True
    """
    channels = images.shape[1]
    mean = _window_mean(images, radius)
    # Row i of the covariance: (B, C, H, W), mean(x_i x) - m_i m.
    covariance = [
        _window_mean(images[:, i : i + 1] * images, radius) - mean[:, i : i + 1] * mean for i in range(channels)
    ]
    # Gauss and Jordan's elimination of (S + epsilon I | S); all pivots are at least epsilon, so none is exchanged.
    rows = []
    for i, row in enumerate(covariance):
        raised = [row[:, j : j + 1] + epsilon if i == j else row[:, j : j + 1] for j in range(channels)]
        rows.append(torch.cat((*raised, row), dim=1))  # (B, 2C, H, W)
    for k in range(channels):
        pivot = rows[k] / rows[k][:, k : k + 1]
        rows = [pivot if i == k else row - row[:, k : k + 1] * pivot for i, row in enumerate(rows)]
    # Column i of A: what the channel i of the guide adds to each channel.
    columns = [row[:, channels:] for row in rows]  # (B, C, H, W) each
    constant = mean
    for i, column in enumerate(columns):
        constant = constant - column * mean[:, i : i + 1]
    smooth = _window_mean(constant, radius)
    for i, column in enumerate(columns):
        smooth = smooth + _window_mean(column, radius) * images[:, i : i + 1]
    return smooth


def _window_mean(maps: Tensor, radius: int) -> Tensor:
    """The mean over the pixels of the window around each, ``(B, C, H, W)``; along the rows, then along the columns."""
    side = 2 * radius + 1
    maps = F.avg_pool2d(maps, (side, 1), stride=1, padding=(radius, 0), count_include_pad=False)
    return F.avg_pool2d(maps, (1, side), stride=1, padding=(0, radius), count_include_pad=False)


def _without_border(maps: Tensor, width: int) -> Tensor:
    """Crop so many pixels on each side."""
    return maps[..., width:-width, width:-width]


class DerainNetForm(RestorationNetwork, DerainNet):
    """The product's form, which is the published network.

    An output pixel depends on the pixels at most 41 away: 30 for the guided filter, 11 for the layers. In tiles that
    overlap by 96 pixels the image is that of one pass; with 64, the default, the base differs a little.

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
    published_class = DerainNet

    @dataclass(frozen=True, kw_only=True)
    class Settings(NetworkSettings):
        """Settings of the network; the defaults are those of the port."""

        width: int = 512
        """Channels of both hidden layers."""
        activation: Activation = "relu"
        """After the first two layers: "relu", or "tanh"."""

        def __post_init__(self) -> None:
            check_between(self, width=(1, MOST_CHANNELS))
            check_one_of(self, activation=("relu", "tanh"))

        @property
        def channels(self) -> dict[str, int]:
            """The channels of the hidden layers."""
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
        DerainNet.__init__(self, settings.width, settings.activation, out_channels)
        self.describe(in_channels, out_channels, scale, inputs)

    def forward(self, stack: Tensor) -> Tensor:
        """Restore a batch of stacks."""
        return DerainNet.forward(self, *self.take(stack))
