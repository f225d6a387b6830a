"""Residual network for small images whose logits can be exactly invariant under quarter turns.

Source: He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016 (arXiv 1512.03385), in the form
for CIFAR: a 3x3 convolution, stages of two-convolution blocks at halving resolutions and doubling widths, a global
mean, a linear layer. Differences: a stage begins with a 2x2 mean in place of a stride of 2, since at even sizes that
commutes with quarter turns where a 3x3 convolution of stride 2 cannot; a shortcut whose width changes is a 1x1
convolution (there: zeros for the new channels); two blocks a stage, so that depth 3 has 14 layers (there: 20 and more,
of three blocks and more); and the global mean goes over each regular field too. Width 64 and depth 4 are ResNet-18 but
for a 3x3 first convolution without pooling and for the linear layer, which reads a quarter of the features.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from components.networks.blocks import Norm, initialise, normalisation

FIELD_SIZE = 4  # channels of a regular field of C4, neighbours: channel 4c + k (METHOD.md section 2)
BLOCKS = 2  # a stage


class _Block(nn.Module):
    """``relu(conv2(relu(conv1(maps))) + shortcut(maps))``, a normalisation after each convolution."""

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
        """What scales the residual."""
        return self.norm2 if isinstance(self.norm2, nn.BatchNorm2d) else self.conv2

    def forward(self, maps: Tensor) -> Tensor:
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(maps)))))
        return F.relu(residual + self.shortcut(maps))


class ResNet(nn.Module):
    """Logits of ``classes``, from ``depth`` resolutions of two blocks each; channels double from ``width`` at each.

    Shapes: ``(B, in_channels, H, W)`` -> ``(B, classes)``, float, any H and W from 1 pixel; made for 8 and more. At an
    odd size the last row or column is pooled alone. With regular fields throughout (convolutions of C4, biases and
    norms tied in each field) the logits do not change under quarter turns if H and W are multiples of
    ``2 ** (depth - 1)``; at other sizes a pooling grid is not symmetric.

    A new network's residuals are zero (Goyal et al. 2017, arXiv 1706.02677), so that its scale does not grow with depth
    where nothing normalises.

    Raises:
        ValueError: no resolution, input channel or class, or a width that does not divide by 4.
    """

    is_classifier = True

    def __init__(
        self, in_channels: int = 3, classes: int = 100, width: int = 32, depth: int = 3, norm: Norm = "none"
    ) -> None:
        super().__init__()
        if depth < 1 or in_channels < 1 or classes < 1:
            raise ValueError(
                f"resnet needs depth >= 1, in_channels >= 1 and classes >= 1, got {depth}, {in_channels}, {classes}"
            )
        if width < FIELD_SIZE or width % FIELD_SIZE:
            fitting = max(FIELD_SIZE, width + -width % FIELD_SIZE)
            raise ValueError(f"resnet width {width} does not divide by {FIELD_SIZE} into regular fields: use {fitting}")
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
        maps = F.relu(self.first_norm(self.first(inputs)))
        for level, stage in enumerate(self.stages):
            maps = stage(maps if level == 0 else F.avg_pool2d(maps, 2, ceil_mode=True))
        means = maps.mean(dim=(-2, -1))  # (B, C, H, W) -> (B, C)
        invariants = means.unflatten(1, (-1, FIELD_SIZE)).mean(dim=-1)  # (B, C) -> (B, C/4, 4) -> (B, C/4)
        logits: Tensor = self.classifier(invariants)
        return logits
