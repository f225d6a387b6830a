"""Networks with exactly equivariant convolutions, built by the textbook, and networks with random weights.

Legend: o output channel, i field of the input, m orientation in it, a and b rows and columns of a kernel; r the scale,
p and q rows and columns of the sub-pixels of a pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.networks import build_network
from components.networks.convolutional.resnet import ResNet
from tests.components.equivariance.exact import ORDER, group_kernel, lifting_kernel


def sub_pixel_kernel(channels: int, scale: int, fields: int, size: int) -> Tensor:
    """``W[o, p, q, i, m, a, b]``, from regular fields to the r^2 sub-pixels of an image: its own mean over the group.

    A quarter turn moves the sub-pixels in their pixel as it moves the kernel's entries, and shifts the orientations.
    """
    generator = torch.Generator().manual_seed(11)
    base = torch.randn(channels, scale, scale, fields, ORDER, size, size, generator=generator, dtype=torch.float64)
    turned = [base.rot90(n, (1, 2)).rot90(n, (5, 6)).roll(n, 4) for n in range(ORDER)]
    return torch.stack(turned).mean(dim=0).flatten(3, 4).flatten(0, 2)


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    """By name, in order of execution (but for shortcuts)."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def random_network(name: str, **settings: object) -> nn.Module:
    """With no zero weights, in double precision and evaluation mode: new networks' residuals are zero."""
    torch.manual_seed(0)
    network = build_network(name, **{"norm": "none", **settings}).double().eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            nn.init.normal_(module.bias, std=0.1) if module.bias is not None else None
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            for values in (module.weight, module.running_var):
                nn.init.uniform_(values, 0.5, 1.5)  # type: ignore[arg-type]
            for values in (module.bias, module.running_mean):
                nn.init.normal_(values, std=0.1)  # type: ignore[arg-type]
    return network


@torch.no_grad()
def exact_network(name: str, **settings: object) -> nn.Module:
    """A random network with exact kernels, and all that a channel has for itself equal in each field."""
    network = random_network(name, **settings)
    modules = list(convolutions(network).values())
    for number, module in enumerate(modules):
        fields_out, fields_in, size = module.out_channels // ORDER, module.in_channels // ORDER, module.kernel_size[0]
        tied = ORDER
        if module is modules[-1] and not isinstance(network, ResNet):
            scale = int(network.scale)  # type: ignore[arg-type]
            weight, tied = sub_pixel_kernel(module.out_channels // scale**2, scale, fields_in, size), scale**2
        elif number == 0:
            weight = lifting_kernel(fields_out, module.in_channels, size, seed=number)
        else:
            weight = group_kernel(fields_out, fields_in, size, seed=number)
        module.weight.copy_(weight / weight[0].numel() ** 0.5)
        if module.bias is not None:
            _tie(module.bias, tied)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                _tie(values, ORDER)  # type: ignore[arg-type]
    return network


def _tie(values: Tensor, number: int) -> None:
    """Each group of neighbours gets its first one's value."""
    values.copy_(values[::number].repeat_interleave(number))
