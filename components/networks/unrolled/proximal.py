"""The proximal networks that the unrolled dictionary algorithms share, one for images and one for maps.

Both keep the shape ``(B, C, H, W)``. A residual block is ``v = relu(v + BN(conv(relu(BN(conv(v))))))``, with 3x3
convolutions that have a bias and padding 1. The network for maps then gives ``relu(v - tau)``, with one threshold tau
for each map.

Source: Wang, Xie, Zhao, Meng, *A Model-driven Deep Neural Network for Single Image Rain Removal*, CVPR 2020 (arXiv
2005.01333). RCDNet, DICDNet, ACDNet and OSCNet use the same blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FIRST_THRESHOLD = 0.5
"""What the threshold of each map is at first, in 0..255."""


class ImageNetwork(nn.Module):
    """Residual blocks, ``(B, C, H, W)``.

    Args:
        channels: C.
        blocks: how many.
        prefix: the blocks are called prefix1, prefix2...; without it, layer.0, layer.1...
    """

    def __init__(self, channels: int, blocks: int, prefix: str = "") -> None:
        super().__init__()
        self.block_names = [f"{prefix}{k + 1}" if prefix else f"layer.{k}" for k in range(blocks)]
        parent = self if prefix else nn.Sequential()
        for name in self.block_names:
            parent.add_module(name.removeprefix("layer."), _block(channels))
        if not prefix:
            self.layer = parent

    def forward(self, values: Tensor) -> Tensor:
        """Return the maps after all blocks."""
        for name in self.block_names:
            values = F.relu(values + self.get_submodule(name)(values))
        return values


class MapNetwork(ImageNetwork):
    """Residual blocks on the maps, and a threshold for each map."""

    def __init__(self, channels: int, blocks: int, prefix: str = "") -> None:
        super().__init__(channels, blocks, prefix)
        self.tau = nn.Parameter(torch.full((1, channels, 1, 1), FIRST_THRESHOLD))

    def forward(self, values: Tensor) -> Tensor:
        """Return the maps above their thresholds."""
        return F.relu(super().forward(values) - self.tau)


def _block(channels: int) -> nn.Sequential:
    """Convolution, normalisation, ReLU, convolution, normalisation; the sum is not in it."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
    )
