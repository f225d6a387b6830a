"""Builds networks by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from components.members import NETWORKS
from components.networks.blocks import MOST_CHANNELS, SCALES
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
        arguments: the network's settings, and the shape of the task: ``in_channels``, ``out_channels``, ``scale`` and
            ``inputs`` (names of the images in the stack) of a restoration network, ``in_channels`` and ``classes`` of a
            classifier. What is not given takes the default of the network's class: without arguments it is the
            published network.

    Raises:
        ValueError: no network has this name, or the class rejects the arguments.

    Example:
        >>> network = build_network("unet", in_channels=1, out_channels=1, scale=2, width=8, depth=2)
        >>> type(network).__name__, network.scale
        ('ResidualUNet', 2)
    """
    network = network_class(name)
    shape = _split(network, arguments)[1]
    try:
        settings = network_settings(name, **arguments)
        _check_numbers(shape, 1 if takes_named_inputs(network) else 0)
    except ValueError as error:
        raise ValueError(f"network {name}: {error}") from error
    built: nn.Module = network(settings, **shape)
    return built


def network_settings(name: str, **arguments: Any) -> Any:
    """Return the settings of the network that `build_network` builds of the same arguments.

    Raises:
        ValueError: no network has this name, or a setting is unknown or impossible.

    Example:
        >>> network_settings("unet", in_channels=1, depth=3).smallest_side
        4
    """
    network = network_class(name)
    return build_settings(network.Settings, _split(network, arguments)[0])


def _split(network: Any, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the arguments of ``build_network`` into (settings, shape of the task)."""
    names = {"in_channels", *(("classes",) if network.is_classifier else ("out_channels", "scale"))}
    if takes_named_inputs(network):
        names.add("inputs")
    shape = {key: value for key, value in arguments.items() if key in names}
    return {key: arguments[key] for key in arguments.keys() - names}, shape


def _check_numbers(shape: Mapping[str, Any], least: int) -> None:
    """Check the numbers in the shape of a task by themselves, before layers are built of them.

    Args:
        shape: of the task.
        least: 0 for a network that refuses a 0 in words of its own.

    Raises:
        ValueError: one is no whole number, is too small, or is so large that it would fill every memory.
    """
    for key, value in shape.items():
        if key == "inputs":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{key}: {value!r}: use a whole number of at least 1")
        if value > MOST_CHANNELS:
            raise ValueError(f"{key}: {value}: use a whole number of at most {MOST_CHANNELS}")


def takes_named_inputs(network: Any) -> bool:
    """Return whether the network, or its class, takes certain images of a task's stack, by name.

    Example:
        >>> [takes_named_inputs(network_class(name)) for name in ("dncnn", "prenet", "acdnet")]
        [False, True, True]
    """
    return getattr(network, "needs", None) is not None


def layer_choices(network: Any) -> dict[str, tuple[str, ...]]:
    """Return the choices of layers that a network, or its class, owns: name -> name patterns of its layers.

    Example:
        >>> {name: list(layer_choices(network_class(name))) for name in ("restormer", "unet")}
        {'restormer': ['eqreg-t'], 'unet': []}
    """
    return dict(getattr(network, "layer_choices", {}))


def why_unfit(network: Any, gives: Sequence[str], scale: int, is_classification: bool) -> str | None:
    """Return why a network's class does not fit a task, in words that follow the network's name; None if it does.

    Args:
        network: the class.
        gives: names of the images that the task gives.
        scale: size of the task's clean image / size of its degraded image.
        is_classification: whether the task is one.

    Example:
        >>> why_unfit(network_class("acdnet"), ("image",), scale=1, is_classification=False)
        'needs li and metal_mask, where there is image'
        >>> why_unfit(network_class("acdnet"), ("li", "image", "metal_mask"), scale=1, is_classification=False)
    """
    if network.is_classifier or is_classification:
        return None if network.is_classifier == is_classification else ""
    if missing := [each for each in getattr(network, "needs", None) or () if each not in gives]:
        return f"needs {' and '.join(missing)}, where there is {', '.join(gives)}"
    if scale not in getattr(network, "scales", SCALES):
        return f"gives images of the size of its input, not {scale} times as large"
    return None


def has_batch_statistics(network: nn.Module) -> bool:
    """Return whether the network normalises by the statistics of a worker's batch.

    Its result then depends on the number of workers.

    Example:
        >>> [has_batch_statistics(build_network("dncnn", width=8, norm=norm)) for norm in ("none", "batch")]
        [False, True]
    """
    return any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) for module in network.modules())
