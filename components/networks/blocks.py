"""Parts that several networks share: their checks, both ends of a restoration, normalisation and initial values.

Legend: B images, C channels of the restored image, H rows, W columns, r the scale.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["none", "batch"]
SCALES = (1, 2, 3, 4)


def check_restoration(name: str, in_channels: int, out_channels: int, scale: int, width: int, depth: int) -> None:
    """Raise a ValueError for settings that no restoration network can have."""
    if depth < 2 or width < 1:
        raise ValueError(f"{name} needs depth >= 2 and width >= 1, got {depth} and {width}")
    if not 1 <= out_channels <= in_channels:
        raise ValueError(
            f"{name} corrects the first out_channels of its in_channels, so 1 <= out_channels <= in_channels, "
            f"got {out_channels} and {in_channels}"
        )
    if scale not in SCALES:
        raise ValueError(f"{name} scale {scale}: use one of {', '.join(map(str, SCALES))}")


def corrected_image(inputs: Tensor, channels: int, scale: int) -> Tensor:
    """The image that the residual corrects: the first channels, enlarged: ``(B, >= C, H, W)`` -> ``(B, C, rH, rW)``.

    Bicubic, with the corners of the outer pixels at the corners of the image, so that it commutes with quarter turns.
    """
    images = inputs[:, :channels]
    if scale == 1:
        return images
    # By size, because an exported factor is a float.
    size = (scale * images.shape[-2], scale * images.shape[-1])
    return F.interpolate(images, size=size, mode="bicubic", align_corners=False)


def residual_image(maps: Tensor, scale: int) -> Tensor:
    """What the last layer gives, as an image: PixelShuffle ``(B, r^2 C, H, W)`` -> ``(B, C, rH, rW)``.

    Source: Shi et al., *Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional
    Neural Network*, CVPR 2016 (arXiv 1609.05158).
    """
    return maps if scale == 1 else F.pixel_shuffle(maps, scale)


def normalisation(norm: Norm, channels: int) -> nn.Module:
    """The layer between a convolution and its activation.

    ``batch`` makes the result depend on the images that share a worker's batch, so runs with different numbers
    of workers then differ; ``none`` does not.

    Raises:
        ValueError: ``norm`` is neither "none" nor "batch".
    """
    if norm == "none":
        return nn.Identity()
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    raise ValueError(f"network norm '{norm}' is unknown: use 'none' or 'batch'")


def initialise(network: nn.Module, *last: nn.Conv2d | nn.BatchNorm2d) -> None:
    """He initialisation (He et al. 2015, fan-in, ReLU) with zero biases; the last layer of a residual is zero.

    So a residual network begins as the identity, the natural first guess of a restoration, and its hidden layers are
    not pushed about before the last layer has found its scale.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for layer in last:
        nn.init.zeros_(layer.weight)
