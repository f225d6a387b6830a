"""RED-CNN: a residual encoder and decoder of convolutions without padding, for low-dose CT.

All layers are 5x5 with stride 1, no padding and a bias. The five convolutions take 4 pixels each from the height and
width, and the five transposed convolutions give them back. With the input ``x`` of one channel and ``w`` channels:

- ``e1 = relu(conv1(x))``, ..., ``e5 = relu(conv5(e4))``: ``(B, 1, H, W) -> (B, w, H - 4, W - 4)``, ...,
  ``(B, w, H - 20, W - 20)``;
- ``d = relu(tconv1(e5) + e4)``, ``(B, w, H - 16, W - 16)``;
- ``d = relu(tconv2(d))``;
- ``d = relu(tconv3(d) + e2)``, ``(B, w, H - 8, W - 8)``;
- ``d = relu(tconv4(d))``;
- ``y = relu(tconv5(d) + x)``, ``(B, 1, H, W)``.

Each skip connection is added before the ReLU, and what it adds has passed one (but for the input). The last ReLU is
right for data in [0, 1] alone: it takes every negative value away.

Source: Chen, Zhang, Kalra, Lin, Chen, Liao, Zhou, Wang, *Low-Dose CT with a Residual Encoder-Decoder Convolutional
Neural Network*, IEEE TMI 2017 (arXiv 1702.00288). Reference: https://github.com/SSinyu/RED-CNN at c5adfcb,
``networks.py``. The names, order and shapes of the parameters are those of the reference. That file names a layer that
torch does not have (``nn.Conv2D``); this one is otherwise the same network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from components.networks.blocks import MOST_CHANNELS, NetworkSettings
from components.networks.form import RestorationNetwork, crop, extend
from components.registry import check_between

SMALLEST_SIDE = 21
"""The least height and width of an input, of which the innermost layer keeps one pixel."""

EXTENDED_SIDE = SMALLEST_SIDE + 1
"""Smaller images are extended to it: an exported program refuses maps of one pixel."""


class REDCNN(nn.Module):
    """The published network.

    Shapes: ``(B, C, H, W)`` -> ``(B, C, H, W)``, float, in [0, 1], H and W from 21 pixels; C is 1 as published.

    Args:
        width: channels of each hidden layer.
        colours: C, the channels of an image.

    Example:
        >>> import torch
        >>> images = torch.rand(1, 1, 21, 30, generator=torch.manual_seed(0))
        >>> REDCNN(width=8)(images).shape
        torch.Size([1, 1, 21, 30])
    """

    def __init__(self, width: int = 96, colours: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(colours, width, 5)
        self.conv2 = nn.Conv2d(width, width, 5)
        self.conv3 = nn.Conv2d(width, width, 5)
        self.conv4 = nn.Conv2d(width, width, 5)
        self.conv5 = nn.Conv2d(width, width, 5)
        self.tconv1 = nn.ConvTranspose2d(width, width, 5)
        self.tconv2 = nn.ConvTranspose2d(width, width, 5)
        self.tconv3 = nn.ConvTranspose2d(width, width, 5)
        self.tconv4 = nn.ConvTranspose2d(width, width, 5)
        self.tconv5 = nn.ConvTranspose2d(width, colours, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Restore a batch of images; the shapes are those of the class."""
        e1 = F.relu(self.conv1(x))  # (B, width, H - 4, W - 4)
        e2 = F.relu(self.conv2(e1))  # (B, width, H - 8, W - 8)
        e3 = F.relu(self.conv3(e2))  # (B, width, H - 12, W - 12)
        e4 = F.relu(self.conv4(e3))  # (B, width, H - 16, W - 16)
        e5 = F.relu(self.conv5(e4))  # (B, width, H - 20, W - 20)
        d = F.relu(self.tconv1(e5) + e4)
        d = F.relu(self.tconv2(d))
        d = F.relu(self.tconv3(d) + e2)
        d = F.relu(self.tconv4(d))
        return F.relu(self.tconv5(d) + x)  # (B, C, H, W)


class REDCNNForm(RestorationNetwork, REDCNN):
    """The product's form: an image with a side below 22 pixels is extended by reflection, and the result cropped.

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
    published_class = REDCNN

    @dataclass(frozen=True, kw_only=True)
    class Settings(NetworkSettings):
        """Settings of the network; the default is the published one."""

        width: int = 96
        """Channels of each hidden layer."""

        def __post_init__(self) -> None:
            check_between(self, width=(1, MOST_CHANNELS))

        def can_turn(self, side: int) -> bool:
            """Whether the side needs no extension, or as many pixels before as after."""
            return side % 2 == 0 or side >= EXTENDED_SIDE

        @property
        def channels(self) -> dict[str, int]:
            """The channels of the hidden layers."""
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
        REDCNN.__init__(self, settings.width, out_channels)
        self.describe(in_channels, out_channels, scale, inputs)

    def forward(self, stack: Tensor) -> Tensor:
        """Restore a batch of stacks."""
        (image,) = self.take(stack)
        return crop(REDCNN.forward(self, extend(image, EXTENDED_SIDE)), image, EXTENDED_SIDE)
