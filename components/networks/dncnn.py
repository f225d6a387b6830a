"""DnCNN-like residual network: a plain stack of 3x3 convolutions that predicts what to take away.

Source: Zhang, Zuo, Chen, Meng, Zhang, *Beyond a Gaussian Denoiser*, IEEE TIP 2017 (arXiv 1608.03981). The published
colour-blind network has width 64, depth 20 and batch normalisation.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from components.networks.blocks import Norm, initialise, normalisation


class DnCNN(nn.Module):
    """``output = input - convolutions(input)``, with ``depth`` convolutions of ``width`` channels.

    Shapes: ``(B, channels, H, W)`` -> the same, float, any H and W from 1 pixel. The receptive field has a radius
    of ``depth`` pixels.

    Raises:
        ValueError: fewer than 2 layers, or a width or channel count below 1.
    """

    scale = 1

    def __init__(self, channels: int = 3, width: int = 48, depth: int = 10, norm: Norm = "none") -> None:
        super().__init__()
        if depth < 2 or width < 1 or channels < 1:
            raise ValueError(f"dncnn needs depth >= 2, width >= 1 and channels >= 1, got {depth}, {width}, {channels}")
        self.in_channels = self.out_channels = channels
        last = nn.Conv2d(width, channels, 3, padding=1)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for index in range(1, depth):
            inputs = channels if index == 1 else width
            # The first layer has no normalisation, as published; a bias is redundant before a normalisation.
            layer_norm: Norm = "none" if index == 1 else norm
            layers[f"conv{index}"] = nn.Conv2d(inputs, width, 3, padding=1, bias=layer_norm == "none")
            if layer_norm != "none":
                layers[f"norm{index}"] = normalisation(layer_norm, width)
            layers[f"relu{index}"] = nn.ReLU(inplace=True)
        layers[f"conv{depth}"] = last
        self.layers = nn.Sequential(layers)
        initialise(self, last)

    def forward(self, images: Tensor) -> Tensor:
        residual: Tensor = self.layers(images)
        return images - residual
