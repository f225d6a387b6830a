"""How equivariant a network is, layer by layer: for any network at any time.

Legend: C channels, H rows, W columns; images are measured one by one, so maps are ``(1, C, H, W)``.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .geometry import Convolution
from .groups import Field, rotate
from .layers import automatic_field, convolutions, field_obstacle
from .penalties import field_residual, pair_scale, residual_size

OUTPUT = "output"


@torch.no_grad()
def equivariance_error(network: nn.Module, images: Tensor, turns: int | Sequence[int] = (1, 2, 3)) -> dict[str, float]:
    """The relative residual ``sqrt(size)`` of each convolution and of the output (METHOD.md section 3).

    ``sqrt( mean [ mean |f(x') - rho(n) f(x)|^2 / ((mean |f(x')|^2 + mean |f(x)|^2) / 2) ] )``: 0 is exact,
    sqrt(2) unrelated. Sizes are averaged over images, turns and calls of a layer, then one root is taken.
    Hidden layers are regular fields, the last convolution and the output trivial. Layers that can be no such
    field (channels not divisible by 4, a window not square) are left out; one whose grid is not symmetric at
    this size shows it.

    Args:
        network: takes and returns ``(B, C, H, W)``; measured in evaluation mode, then put back as it was.
        images: ``(B, C, H, W)``, not necessarily square: ``x' = rot(x, n)`` has its own forward.
        turns: quarter turns, or several.

    Returns:
        Layer names in order of execution, then "output". A layer of that very name is "output (layer)".

    Raises:
        ValueError: no images or turns, or a network that does not return one tensor ``(B, C, H, W)``.
    """
    several = (turns,) if isinstance(turns, int) else tuple(turns)
    if not several or images.ndim != 4 or not len(images):
        raise ValueError(f"images {tuple(images.shape)} must be (B, C, H, W) and turns {several} not empty")
    modules = convolutions(network)
    sizes: dict[str, list[Tensor]] = {}
    with _evaluation_mode(network):
        for image in images.split(1):
            originals, output = _run(network, modules, image)
            fields = _fields(modules, [name for name, _ in originals])
            for quarter_turns in several:
                copies, output_copy = _run(network, modules, rotate(image, quarter_turns))
                for (name, original), (_, copy) in zip(originals, copies, strict=True):
                    if name in fields:
                        key = f"{name} (layer)" if name == OUTPUT else name
                        sizes.setdefault(key, []).append(_size(original, copy, quarter_turns, fields[name]))
                sizes.setdefault(OUTPUT, []).append(_size(output, output_copy, quarter_turns, "trivial"))
    sizes[OUTPUT] = sizes.pop(OUTPUT)  # last, also where a later image took another way through the network
    return {name: torch.stack(values).mean().sqrt().item() for name, values in sizes.items()}


def _size(original: Tensor, copy: Tensor, turns: int, field: Field) -> Tensor:
    return residual_size(field_residual(original, copy, turns, field), pair_scale(original, copy))


def _fields(modules: Mapping[str, Convolution], executed: Sequence[str]) -> dict[str, Field]:
    """The automatic field of each executed layer that can be one."""
    fields = {name: automatic_field(name, last=executed[-1]) for name in executed}
    return {name: field for name, field in fields.items() if field_obstacle(modules[name], field) is None}


def _run(
    network: nn.Module, modules: Mapping[str, Convolution], images: Tensor
) -> tuple[list[tuple[str, Tensor]], Tensor]:
    """The output of every call of the convolutions, in order of execution, and of the network."""
    maps: list[tuple[str, Tensor]] = []

    def record(name: str) -> Any:
        # Cloned, because what follows may overwrite it in place.
        return lambda module, arguments, output: maps.append((name, output.clone()))

    handles = [module.register_forward_hook(record(name)) for name, module in modules.items()]
    try:
        output = network(images)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(output, Tensor) or output.ndim != 4:
        raise ValueError("network: equivariance_error needs one that returns one tensor (B, C, H, W)")
    return maps, output


@contextmanager
def _evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module then has the mode it had."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
