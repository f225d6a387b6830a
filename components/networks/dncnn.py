"""DnCNN-like residual network: a plain stack of 3x3 convolutions that predicts what to take away.

Source: Zhang, Zuo, Chen, Meng, Zhang, *Beyond a Gaussian Denoiser*, IEEE TIP 2017 (arXiv 1608.03981). The published
colour-blind network has width 64, depth 20 and batch normalisation. Published super-resolution with it enlarges the
image first; here the last convolution makes the sub-pixels, which costs ``scale^2`` times less.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from components.networks.blocks import (
    Norm,
    check_restoration,
    corrected_image,
    initialise,
    normalisation,
    residual_image,
)


class DnCNN(nn.Module):
    """``output = up(inputs[:, :out_channels]) - convolutions(inputs)``, ``depth`` convolutions of ``width`` channels.

    Shapes: ``(B, in_channels, H, W)`` -> ``(B, out_channels, scale H, scale W)``, float, any H and W from 1 pixel. The
    receptive field has a radius of ``depth`` input pixels.

    Raises:
        ValueError: fewer than 2 layers, a width or channel count below 1, more output than input channels, or a scale
            other than 1, 2, 3, 4.
    """

    is_classifier = False

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        scale: int = 1,
        width: int = 48,
        depth: int = 10,
        norm: Norm = "none",
    ) -> None:
        super().__init__()
        check_restoration("dncnn", in_channels, out_channels, scale, width, depth)
        self.in_channels, self.out_channels, self.scale = in_channels, out_channels, scale
        last = nn.Conv2d(width, out_channels * scale**2, 3, padding=1)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for index in range(1, depth):
            inputs = in_channels if index == 1 else width
            # The first layer has no normalisation, as published; a bias is redundant before a normalisation.
            layer_norm: Norm = "none" if index == 1 else norm
            layers[f"conv{index}"] = nn.Conv2d(inputs, width, 3, padding=1, bias=layer_norm == "none")
            if layer_norm != "none":
                layers[f"norm{index}"] = normalisation(layer_norm, width)
            layers[f"relu{index}"] = nn.ReLU(inplace=True)
        layers[f"conv{depth}"] = last
        self.layers = nn.Sequential(layers)
        initialise(self, last)

    def forward(self, inputs: Tensor) -> Tensor:
        taken_away = residual_image(self.layers(inputs), self.scale)
        return corrected_image(inputs, self.out_channels, self.scale) - taken_away
