"""The networks, one file each, by the name that params.yaml calls them.

Every network maps ``(B, C, H, W)`` float images in [0, 1] to images of the same range, declares ``in_channels``,
``out_channels`` and ``scale`` (output size / input size), and can be exported with dynamic sizes.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from components.networks.dncnn import DnCNN
from components.networks.unet import ResidualUNet

NETWORKS: dict[str, Callable[..., nn.Module]] = {"dncnn": DnCNN, "unet": ResidualUNet}


def build_network(name: str, **settings: object) -> nn.Module:
    """The network called ``name`` with its own settings.

    Raises:
        ValueError: no network has this name.
    """
    if name not in NETWORKS:
        raise ValueError(f"network '{name}' is unknown: use one of {', '.join(sorted(NETWORKS))}")
    return NETWORKS[name](**settings)


__all__ = ["NETWORKS", "DnCNN", "ResidualUNet", "build_network"]
