"""Residual network for small images whose logits can be exactly invariant under quarter turns.

Source: He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016 (arXiv 1512.03385), in the form
for CIFAR: a 3x3 convolution, stages of two-convolution blocks, a global mean and a linear layer. From stage to stage
the resolution halves and the width doubles. Differences from the paper:

- A stage begins with a 2x2 mean in place of a stride of 2. At even sizes the mean commutes with quarter turns. A 3x3
  convolution of stride 2 cannot.
- A shortcut whose width changes is a 1x1 convolution (paper: zeros for the new channels).
- A stage has two blocks, so depth 3 has 14 layers (paper: three or more blocks, 20 or more layers).
- The global mean also averages over each regular field.

With the default settings the network is ResNet-18 with two changes: the first convolution is 3x3 without pooling, and
the linear layer reads a quarter of the features.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from components.networks.blocks import MOST_CHANNELS, NetworkSettings, Norm, initialise, normalisation
from components.registry import check_between

FIELD_SIZE = 4  # channels of a regular field of C4, adjacent: channel 4c + k (docs/explanation/method.md, "Actions")
BLOCKS = 2  # per stage


class _Block(nn.Module):
    """``relu(conv2(relu(conv1(maps))) + shortcut(maps))``, with a normalisation after each convolution."""

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        bias = norm == "none"
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
        self.norm1 = normalisation(norm, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias)
        self.norm2 = normalisation(norm, outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=bias), normalisation(norm, outputs))

    @property
    def last(self) -> nn.Conv2d | nn.BatchNorm2d:
        """The last layer of the residual, which sets its scale."""
        return self.norm2 if isinstance(self.norm2, nn.BatchNorm2d) else self.conv2

    def forward(self, maps: Tensor) -> Tensor:
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(maps)))))
        return F.relu(residual + self.shortcut(maps))


class ResNet(nn.Module):
    """Classifier with ``depth`` resolutions of two blocks each; the channels double at each resolution.

    Shapes: ``(B, in_channels, H, W)`` -> logits ``(B, classes)``, float. H and W may be any size from 1 pixel; the
    network is designed for 8 pixels or more. At an odd size the last row or column is pooled alone. Suppose that all
    layers use regular fields (convolutions of C4, biases and norms tied in each field). The logits are then invariant
    under quarter turns if H and W are multiples of ``2 ** (depth - 1)``. At other sizes a pooling grid is not
    symmetric.

    The residuals of a new network are zero (Goyal et al. 2017, arXiv 1706.02677). Without normalisation, its scale
    therefore does not grow with depth.

    Args:
        settings: width, depth and normalisation.
        in_channels: channels of the input stack.
        classes: number of classes.

    Raises:
        ValueError: no input channel or no class.

    Example:
        >>> import torch
        >>> network = ResNet(ResNet.Settings(width=8, depth=2), classes=10)
        >>> logits = network(torch.zeros(2, 3, 8, 8))
        >>> logits.shape, logits.dtype
        (torch.Size([2, 10]), torch.float32)
    """

    is_classifier = True

    @dataclass(frozen=True, kw_only=True)
    class Settings(NetworkSettings):
        """Settings of the network; the defaults are those of ResNet-18."""

        width: int = 64
        """Channels at the finest resolution, a multiple of 4."""
        depth: int = 4
        """Number of resolutions."""
        norm: Norm = "batch"
        """"batch" normalises after each convolution; "none" does not."""

        def __post_init__(self) -> None:
            check_between(self, width=(1, MOST_CHANNELS), depth=(1, 12))
            if self.width % FIELD_SIZE:
                fitting = self.width + -self.width % FIELD_SIZE
                raise ValueError(
                    f"width: {self.width}: does not divide by {FIELD_SIZE} into regular fields: use {fitting}"
                )

        @property
        def channels(self) -> dict[str, int]:
            """The channels of the first resolution; those of the others are multiples of them."""
            return {"width": self.width}

    def __init__(self, settings: Settings, *, in_channels: int = 3, classes: int = 100) -> None:
        super().__init__()
        if in_channels < 1 or classes < 1:
            raise ValueError(f"resnet needs in_channels >= 1 and classes >= 1, got {in_channels}, {classes}")
        width, depth, norm = settings.width, settings.depth, settings.norm
        self.in_channels, self.classes = in_channels, classes
        widths = [width * 2**level for level in range(depth)]
        self.first = nn.Conv2d(in_channels, width, 3, padding=1, bias=norm == "none")
        self.first_norm = normalisation(norm, width)
        self.stages = nn.ModuleList(
            nn.Sequential(*(_Block(inputs if index == 0 else outputs, outputs, norm) for index in range(BLOCKS)))
            for inputs, outputs in pairwise([width, *widths])
        )
        self.classifier = nn.Linear(widths[-1] // FIELD_SIZE, classes)
        initialise(self, *(module.last for module in self.modules() if isinstance(module, _Block)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Classify a batch of input stacks; the shapes are those of the class."""
        maps = F.relu(self.first_norm(self.first(inputs)))
        for level, stage in enumerate(self.stages):
            maps = stage(maps if level == 0 else F.avg_pool2d(maps, 2, ceil_mode=True))
        means = maps.mean(dim=(-2, -1))  # (B, C, H, W) -> (B, C)
        invariants = means.unflatten(1, (-1, FIELD_SIZE)).mean(dim=-1)  # (B, C) -> (B, C/4, 4) -> (B, C/4)
        logits: Tensor = self.classifier(invariants)
        return logits
