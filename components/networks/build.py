"""Builds networks by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from components.members import NETWORKS
from components.registry import build_settings, find


def network_class(name: str) -> Any:
    """Import the class of the network called ``name``.

    Raises:
        ValueError: no network has this name.

    Example:
        >>> network_class("unet").Settings(depth=4).smallest_side
        8
    """
    return find(NETWORKS, "network", name)


def build_network(name: str, **arguments: Any) -> nn.Module:
    """Build the network called ``name``.

    Args:
        name: one of the keys of ``NETWORKS``.
        arguments: the network's settings, and the shape of the task: ``in_channels``, ``out_channels`` and ``scale``
            of a restoration network, ``in_channels`` and ``classes`` of a classifier. What is not given takes the
            default of the network's class.

    Raises:
        ValueError: no network has this name, or the class rejects the arguments.

    Example:
        >>> network = build_network("unet", in_channels=1, out_channels=1, scale=2, width=8, depth=2)
        >>> type(network).__name__, network.scale
        ('ResidualUNet', 2)
    """
    network = network_class(name)
    shape = {"in_channels", *(("classes",) if network.is_classifier else ("out_channels", "scale"))}
    given = {key: value for key, value in arguments.items() if key in shape}
    try:
        settings = build_settings(network.Settings, {key: arguments[key] for key in arguments.keys() - given})
    except ValueError as error:
        raise ValueError(f"network {name}: {error}") from error
    built: nn.Module = network(settings, **given)
    return built


def has_batch_statistics(network: nn.Module) -> bool:
    """Return whether the network normalises by the statistics of a worker's batch.

    Its result then depends on the number of workers.

    Example:
        >>> [has_batch_statistics(build_network("dncnn", width=8, norm=norm)) for norm in ("none", "batch")]
        [False, True]
    """
    return any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) for module in network.modules())
