"""The networks, one file each, by the name that params.yaml calls them.

A restoration network takes one stack ``(B, in_channels, H, W)`` of float images in [0, 1] and gives
``(B, out_channels, scale H, scale W)``:

``output = up(inputs[:, :out_channels]) + residual(inputs)``

with ``up`` bicubic for scale 2, 3, 4 and the identity for 1. A task of several inputs stacks them along the channels,
first the image that is corrected, then the others in the order of the task (inpainting: image, mask; metal artifacts:
linear interpolation, artifact image, metal mask). All of them are scalar images of one size that turn alike, so one
tensor is all that pairing, tiling, export and the registry have to know. It declares ``in_channels``,
``out_channels`` and ``scale``.

A classifier takes the same stack and gives logits ``(B, classes)``; it declares ``in_channels`` and ``classes``.
``is_classifier`` tells the two apart. All can be exported with a dynamic batch, height and width, and no operation in
the exported graph names a device: it runs where its weights are moved.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from components.networks.dncnn import DnCNN
from components.networks.resnet import ResNet
from components.networks.unet import ResidualUNet

NETWORKS: dict[str, Callable[..., nn.Module]] = {"dncnn": DnCNN, "resnet": ResNet, "unet": ResidualUNet}


def build_network(name: str, **settings: object) -> nn.Module:
    """The network called ``name`` with its own settings.

    Args:
        name: one of ``NETWORKS``.
        settings: of the network's class.

    Raises:
        ValueError: no network has this name, or as the class.
    """
    if name not in NETWORKS:
        raise ValueError(f"network '{name}' is unknown: use one of {', '.join(sorted(NETWORKS))}")
    return NETWORKS[name](**settings)


__all__ = ["NETWORKS", "DnCNN", "ResNet", "ResidualUNet", "build_network"]
