"""PReNet: a small residual network that refines its own output, stage after stage, with a recurrent layer.

All convolutions are 3x3 with padding 1 and a bias, and all stages share their weights. With the input image ``x``, the
output ``y`` of the stage before (``y = x`` at first), the memory ``h`` (zero at first) and ``w`` channels, a stage is

- ``f = relu(conv0(cat(x, y)))``, ``(B, 6, H, W) -> (B, w, H, W)``;
- LSTM: ``i, f', o = sigmoid(conv_i, conv_f, conv_o(cat(f, h)))``, ``g = tanh(conv_g(cat(f, h)))``,
  ``c = f' c + i g``, ``h = o tanh(c)``, each convolution ``(B, 2w, H, W) -> (B, w, H, W)``; then ``f = h``;
- GRU: ``z, b = sigmoid(conv_z, conv_b(cat(f, h)))``, ``g = tanh(conv_g(cat(b h, f)))``, ``h = (1 - z) h + z g``; then
  ``f = h``;
- five times ``f = relu(relu(conv(relu(conv(f)))) + f)``: the second convolution has a ReLU of its own before the sum;
- ``y = conv(f) + x``, ``(B, w, H, W) -> (B, 3, H, W)``. The input image is added, not subtracted from, and the result
  is not clamped.

Source: Ren, Zuo, Hu, Zhu, Meng, *Progressive Image Deraining Networks: A Better and Simpler Baseline*, CVPR 2019
(arXiv 1901.09221). Reference: https://github.com/csdwren/PReNet at 6d908d1, ``networks.py``. The names, order and
shapes of the parameters are those of the reference, and so is the order of ``cat(b h, f)``. The classes of the ablation
(PReNet_LSTM, PReNet_GRU, PReNet_x) do not add the input image there: PReNet_LSTM has the parameters of PReNet and is
another network, so a file of weights does not say of which of the two it is. What differs: the seven classes are one
class with settings, and the memory begins as zeros on the device of the input instead of a device that is chosen at
construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.networks.blocks import MOST_CHANNELS, NetworkSettings
from components.networks.form import RestorationNetwork
from components.registry import check_between, check_one_of

Memory = Literal["lstm", "gru", "none"]
BLOCKS = 5
"""Residual blocks that a stage applies."""


class PReNet(nn.Module):
    """The published networks PReNet, PRN, PReNet_r, PRN_r, and those of the ablation.

    | published | settings |
    |---|---|
    | PReNet | the defaults |
    | PRN | ``memory="none"`` |
    | PReNet_r | ``shared_blocks=True`` |
    | PRN_r | ``memory="none", shared_blocks=True`` |
    | PReNet_LSTM | ``adds_input=False`` |
    | PReNet_GRU | ``adds_input=False, memory="gru"`` |
    | PReNet_x | ``adds_input=False, sees_input=False`` |

    Shapes: ``(B, C, H, W)`` -> ``(B, C, H, W)`` and a list of ``stages`` such images, float, in [0, 1], any H and W
    from 1 pixel; C is 3 as published.

    Args:
        stages: how often the network refines its output.
        memory: the recurrent layer; "none" leaves it out.
        shared_blocks: one residual block is applied five times, instead of five blocks once.
        sees_input: ``conv0`` sees the input image beside the output of the stage before; otherwise that output alone.
        adds_input: the input image is added to what the last convolution gives.
        width: channels of each hidden layer.
        colours: C, the channels of an image.

    Example:
        >>> network = PReNet(stages=2, width=8)
        >>> last, outputs = network(torch.rand(1, 3, 5, 7, generator=torch.manual_seed(0)))
        >>> last.shape, len(outputs), last is outputs[-1]
        (torch.Size([1, 3, 5, 7]), 2, True)
    """

    def __init__(
        self,
        stages: int = 6,
        memory: Memory = "lstm",
        shared_blocks: bool = False,
        sees_input: bool = True,
        adds_input: bool = True,
        width: int = 32,
        colours: int = 3,
    ) -> None:
        super().__init__()
        self.stages, self.memory, self.width = stages, memory, width
        self.sees_input, self.adds_input = sees_input, adds_input
        self.conv0 = nn.Sequential(_convolution(2 * colours if sees_input else colours, width), nn.ReLU())
        # A shared block has one name only: with a second name, the state_dict would hold its weights twice.
        self.block_names = ["res_conv1"] * BLOCKS if shared_blocks else [f"res_conv{k}" for k in range(1, BLOCKS + 1)]
        for name in dict.fromkeys(self.block_names):
            self.add_module(
                name, nn.Sequential(_convolution(width, width), nn.ReLU(), _convolution(width, width), nn.ReLU())
            )
        if memory == "lstm":
            self.conv_i = nn.Sequential(_convolution(2 * width, width), nn.Sigmoid())
            self.conv_f = nn.Sequential(_convolution(2 * width, width), nn.Sigmoid())
            self.conv_g = nn.Sequential(_convolution(2 * width, width), nn.Tanh())
            self.conv_o = nn.Sequential(_convolution(2 * width, width), nn.Sigmoid())
        elif memory == "gru":
            self.conv_z = nn.Sequential(_convolution(2 * width, width), nn.Sigmoid())
            self.conv_b = nn.Sequential(_convolution(2 * width, width), nn.Sigmoid())
            self.conv_g = nn.Sequential(_convolution(2 * width, width), nn.Tanh())
        self.conv = nn.Sequential(_convolution(width, colours))

    def forward(self, input: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Remove the rain from a batch of images.

        Args:
            input: rainy images, ``(B, C, H, W)``.

        Returns:
            The output of the last stage, and the outputs of all stages in order.
        """
        output, outputs = input, []
        # (B, 1, H, W) -> (B, width, H, W), without naming a device
        hidden = cell = torch.zeros_like(input[:, :1]).expand(-1, self.width, -1, -1)
        for _ in range(self.stages):
            features = self.conv0(torch.cat((input, output), dim=1) if self.sees_input else output)
            if self.memory == "lstm":
                hidden, cell = self._lstm(features, hidden, cell)
                features = hidden
            elif self.memory == "gru":
                features = hidden = self._gru(features, hidden)
            for name in self.block_names:
                features = F.relu(self.get_submodule(name)(features) + features)
            output = self.conv(features) + input if self.adds_input else self.conv(features)
            outputs.append(output)
        return output, outputs

    def _lstm(self, features: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hidden state and the cell state of the next stage, all ``(B, width, H, W)``."""
        both = torch.cat((features, hidden), dim=1)  # (B, 2 width, H, W)
        cell = self.conv_f(both) * cell + self.conv_i(both) * self.conv_g(both)
        return self.conv_o(both) * torch.tanh(cell), cell

    def _gru(self, features: Tensor, hidden: Tensor) -> Tensor:
        """Return the hidden state of the next stage, all ``(B, width, H, W)``."""
        both = torch.cat((features, hidden), dim=1)  # (B, 2 width, H, W)
        update, reset = self.conv_z(both), self.conv_b(both)
        new = self.conv_g(torch.cat((reset * hidden, features), dim=1))
        return (1 - update) * hidden + update * new


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the height and width."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class PReNetForm(RestorationNetwork, PReNet):
    """The product's form: in evaluation the image of the last stage; in training those of all supervised stages.

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
    published_class = PReNet

    @dataclass(frozen=True, kw_only=True)
    class Settings(NetworkSettings):
        """Settings of the network; the defaults are those of the published PReNet."""

        stages: int = 6
        """How often the network refines its output."""
        memory: Memory = "lstm"
        """The recurrent layer: "lstm", "gru", or "none" (the published PRN)."""
        shared_blocks: bool = False
        """One residual block applied five times (the published PReNet_r, PRN_r) instead of five blocks."""
        sees_input: bool = True
        """The first layer sees the input image beside the output of the stage before."""
        adds_input: bool = True
        """The input image is added to what the last layer gives."""
        width: int = 32
        """Channels of each hidden layer."""
        supervised: Literal["last", "all"] = "last"
        """Stages with a task loss: the last one, or all, with equal weights."""

        def __post_init__(self) -> None:
            check_between(self, stages=(1, 1000), width=(1, MOST_CHANNELS))
            check_one_of(self, memory=("lstm", "gru", "none"), supervised=("last", "all"))

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
        PReNet.__init__(
            self,
            settings.stages,
            settings.memory,
            settings.shared_blocks,
            settings.sees_input,
            settings.adds_input,
            settings.width,
            out_channels,
        )
        self.describe(in_channels, out_channels, scale, inputs)
        self.is_supervised_everywhere = settings.supervised == "all"

    def forward(self, stack: Tensor) -> Tensor | tuple[Tensor, ...]:  # type: ignore[override]
        """Restore a batch of stacks; in training with several supervised stages, the last one comes first."""
        last, outputs = PReNet.forward(self, *self.take(stack))
        return tuple(reversed(outputs)) if self.training and self.is_supervised_everywhere else last
