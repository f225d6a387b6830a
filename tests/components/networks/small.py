"""Small settings of the networks of one published form each, and what an exported program names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from components.networks import build_network
from components.networks.transformers.window_attention import Perceptron, WindowAttention

SMALL: dict[str, dict[str, Any]] = {
    "acdnet": {"maps": 4, "dual_channels": 3, "atoms": 5, "residual_blocks": 1, "stages": 2},
    "prenet": {"width": 8, "stages": 3},
    "redcnn": {"width": 8},
    "ffdnet": {"width": 8, "depth": 4},
    "drunet": {"width": 8, "blocks": 1},
    "restormer": {
        "width": 8,
        "blocks": (1, 1, 1, 1),
        "refinement_blocks": 1,
        "heads": (1, 2, 2, 2),
        "hidden_multiple": 4,
    },
    "nafnet": {"width": 8, "encoder_blocks": (1, 1), "middle_blocks": 1, "decoder_blocks": (1, 1)},
    "swinir": {"width": 8, "groups": 1, "depth": 2, "heads": 2, "window": 4},
    "dicdnet": {"maps": 4, "dual_channels": 3, "residual_blocks": 1, "stages": 2},
    "oscnet": {"kernels": 1, "orientations": 4, "dual_channels": 3, "residual_blocks": 1, "stages": 2},
    "rcdnet": {"maps": 4, "dual_channels": 5, "residual_blocks": 1, "stages": 3},
    "derainnet": {"width": 8},
    "fbpconvnet": {"width": 4, "levels": 3},
    "mprnet": {"width": 8, "unet_growth": 4, "orsnet_growth": 4, "orsnet_blocks": 1},
}
"""Name -> settings with which a forward takes some milliseconds."""

OWN: dict[str, dict[str, Any]] = {
    **{name: {"width": 8, "depth": 3} for name in ("c4_dncnn", "d4_dncnn")},
    **{name: {"width": 8, "depth": 2} for name in ("c4_unet", "d4_unet")},
    "dncnn": {"width": 8, "depth": 3},
    "resnet": {"width": 8, "depth": 2},
    "unet": {"width": 8, "depth": 2},
}
"""The same of the networks that take any task's stack, and of the classifier."""


GAINS = {"nafnet": 0.5, "restormer": 0.5, "drunet": 0.5, "mprnet": 0.5, "fbpconvnet": 2.0}
"""Name -> the size of random weights relative to He's: sums and products of maps would grow from layer to layer, and
the maps of projected kernels would fade, which are smaller."""

OF_CHANNELS = {
    "weight": (0.5, 1.5),
    "bias": (-0.2, 0.2),
    "beta": (0.5, 1.5),
    "gamma": (0.5, 1.5),
    "temperature": (0.5, 1.5),
}
"""Parameters that scale or shift the channels or heads, of modules other than layers -> the range of random values."""


@torch.no_grad()
def random(name: str, **arguments: Any) -> nn.Module:
    """A small network with weights of a size at which every layer matters, in double precision and evaluation mode."""
    torch.manual_seed(0)
    network = build_network(name, **{**SMALL.get(name, {}), **arguments}).double().eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight).mul_(GAINS.get(name, 1.0))
            nn.init.normal_(module.bias, std=0.1) if module.bias is not None else None
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            for values in (module.weight, module.running_var):
                nn.init.uniform_(values, 0.5, 1.5)  # type: ignore[arg-type]
            for values in (module.bias, module.running_mean):
                nn.init.normal_(values, std=0.1)  # type: ignore[arg-type]
        elif isinstance(module, WindowAttention | Perceptron):
            _fill(module)
        elif not isinstance(module, nn.Linear | nn.PReLU):
            for key, values in module.named_parameters(recurse=False):
                if key in OF_CHANNELS:
                    nn.init.uniform_(values, *OF_CHANNELS[key])
    return network


def _fill(part: WindowAttention | Perceptron) -> None:
    """Weights of a size at which the attention of each window has its own form."""
    for module in part.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.normal_(module.bias, std=0.1)
    if isinstance(part, WindowAttention):
        nn.init.normal_(part.relative_position_bias_table)


def stack(network: nn.Module, height: int = 24, width: int = 24, batch: int = 1) -> Tensor:
    """A random stack of inputs in [0, 1], in double precision.

    A mask of metal holds zeros and ones, and the noise level of an image is the same in each pixel.
    """
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(batch, int(network.in_channels), height, width, generator=generator, dtype=torch.float64)  # type: ignore[arg-type]
    if "metal_mask" in (network.needs or ()):  # type: ignore[operator]
        images[:, 2] = (images[:, 2] > 0.8).double()
    if "noise_level" in (network.needs or ()):  # type: ignore[operator]
        images[:, -1] = images[:, -1, :1, :1]
    return images


def devices_in(program: torch.export.ExportedProgram) -> list[str]:
    """The operations of an exported program that name a device."""
    return [
        node.format_node() or node.name
        for node in program.graph.nodes
        if any(isinstance(value, torch.device) for value in tree_leaves((node.args, node.kwargs)))
    ]
