"""A test of whether the structure of a network allows an equivariant output, whatever its weights.

Every convolution and linear layer runs with random weights that no element of the group changes: kernels averaged over
the group, the same weight for all sub-pixels of a pixel, no biases. What scales or shifts single channels is the same
for all sub-pixels, too. Then every map of every layer is a trivial field, and norms, activations, sums and attention
preserve this. So a remaining residual must come from something else: an asymmetric grid, a position table, or a crop or
padding on one side. If no residual remains, these weights are an example of an exactly equivariant network of this
structure.

Legend: O, I output and input channels of a kernel; r factor of a sub-pixel layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..groups import Group
from ..layers.layouts import Layout
from ..layers.tracing import Call, tracing
from ..penalties import EPSILON, act_on_kernel, mean_square
from .operations import LAYERS, SUMS, Operations, plain_name

_SEED = 0
_GAINS = (1.0, 0.3, 0.1)
"""Sizes of the symmetric weights, relative to He's; a smaller one is tried if the output is not finite or constant."""


def act_on_inputs(inputs: Sequence[Tensor], group: Group, element: int) -> tuple[Tensor, ...]:
    """Transform images and maps ``(B, C, H, W)``; inputs of other shapes, for example a noise level, stay as they are.

    Args:
        inputs: of the network.
        group: the group.
        element: the element of the group.
    """
    return tuple(group.spatial(value, element) if value.ndim == 4 else value for value in inputs)


def generators(group: Group) -> tuple[int, ...]:
    """Elements that generate the group: one rotation, and the mirror if there is one."""
    return (1, group.num_rotations) if group.has_mirror else (1,)


def tolerance(dtype: torch.dtype) -> float:
    """The relative residual that rounding may cause: 1e-3 in single precision, 4e-8 in double precision."""
    return float(3 * torch.finfo(dtype).eps ** 0.5)


@dataclass(frozen=True)
class Structure:
    """Relative residuals of the output with symmetric weights.

    Attributes:
        residual: of the network as it is.
        residual_without_tables: of the network with all position tables set to 0.
    """

    residual: float
    residual_without_tables: float


def try_symmetric_weights(
    network: nn.Module,
    inputs: Sequence[Tensor],
    group: Group,
    calls: Sequence[Call],
    table_sums: Mapping[int, int],
    tied: Mapping[int, Tensor],
) -> Structure:
    """Run the network with symmetric weights on noise of the inputs' shapes.

    Args:
        network: in evaluation mode.
        inputs: of one image.
        group: a group on the grid.
        calls: of the network's layers, in order.
        table_sums: which sums add a table, from `Operations`.
        tied: of `tied_sub_pixels`.
    """
    noise = tuple(_noise_like(value, seed) for seed, value in enumerate(inputs))
    # An unrolled algorithm, with many sums and no norms, overflows or gives zeros with weights of the usual size.
    for gain in _GAINS:
        residual = _residual(network, noise, group, calls, {}, tied, gain)
        if math.isfinite(residual):
            break
    if not table_sums:
        return Structure(residual, residual)
    return Structure(residual, _residual(network, noise, group, calls, table_sums, tied, gain))


def tied_sub_pixels(network: nn.Module, operations: Operations) -> dict[int, Tensor]:
    """Values for the parameters of single channels that scale or shift sub-pixels: one for those of the same pixel.

    Args:
        network: that was recorded.
        operations: what was recorded.

    Returns:
        ``id`` of the parameter or buffer -> the value to use in its place.
    """
    tensors = dict(network.named_buffers()) | dict(network.named_parameters())
    tied = {}
    for name, parameter in operations.channel_parameters.items():
        if parameter.factor > 1:
            own = tensors[name]
            tied[id(own)] = _equal_in_groups(own.detach().flatten(), 0, parameter.factor**2).view_as(own)
    return tied


def _noise_like(value: Tensor, seed: int) -> Tensor:
    """Noise over the range of an image; other inputs stay as they are."""
    if value.ndim != 4 or not value.is_floating_point():
        return value
    low, high = float(value.min()), float(value.max())
    low, high = (low, high) if high > low else (0.0, 1.0)
    noise = torch.rand(value.shape, generator=torch.Generator().manual_seed(seed), dtype=value.dtype)
    return noise.to(value.device) * (high - low) + low


def first_break(
    network: nn.Module,
    inputs: Sequence[Tensor],
    group: Group,
    calls: Sequence[Call],
    table_sums: Mapping[int, int],
    tied: Mapping[int, Tensor],
    layouts: Sequence[Layout | None],
) -> tuple[str, str]:
    """Find between which layers the maps cease to be equivariant, with symmetric weights and without tables.

    Args:
        network: in evaluation mode.
        inputs: of one image.
        group: a group on the grid.
        calls: of the network's layers, in order.
        table_sums: which sums add a table, from `Operations`.
        tied: of `tied_sub_pixels`.
        layouts: of each call's output for one image, None if it has none.

    Returns:
        The last layer before and the first layer after. An empty name stands for the image or for the network's output.
    """

    def run(values: Sequence[Tensor]) -> list[Tensor]:
        raw: list[Tensor] = []
        with (
            torch.no_grad(),
            tracing(network, lambda call, result: raw.append(result.clone())),
            _SymmetricWeights(group, calls, table_sums, tied),
        ):
            network(*values)
        return raw

    noise = tuple(_noise_like(value, seed) for seed, value in enumerate(inputs))
    element, before = 1, ""
    pairs = zip(calls, layouts, run(noise), run(act_on_inputs(noise, group, element)), strict=False)
    for call, layout, original, copy in pairs:
        if layout is not None:
            maps = layout.to_maps(original)
            if _change(group.spatial(maps, element), layout.to_maps(copy)) > tolerance(maps.dtype):
                return before, call.name
            before = call.name
    return before, ""


def _residual(
    network: nn.Module,
    inputs: Sequence[Tensor],
    group: Group,
    calls: Sequence[Call],
    table_sums: Mapping[int, int],
    tied: Mapping[int, Tensor],
    gain: float,
) -> float:
    """The largest relative residual over the generators, of the output and of its difference to the image."""

    def run(values: Sequence[Tensor]) -> Tensor:
        with torch.no_grad(), _SymmetricWeights(group, calls, table_sums, tied, gain):
            output: Tensor = network(*values)
        return output

    first, changes = run(inputs), []
    if _rms(first - first.mean()) == 0:  # all activations are 0: such an output proves nothing
        return math.inf
    for element in generators(group):
        turned = act_on_inputs(inputs, group, element)
        second = run(turned)
        changes.append(_change(_moved(first, group, element), second))
        # The difference to the image is tested, too: in the output, the image would hide a small correction.
        if first.shape == inputs[0].shape and second.shape == turned[0].shape:
            added = first - inputs[0]
            if _rms(added) > 1e-4 * _rms(first):
                changes.append(_change(_moved(added, group, element), second - turned[0]))
    return max(changes)


def _moved(output: Tensor, group: Group, element: int) -> Tensor:
    return group.spatial(output, element) if output.ndim == 4 else output


def _change(expected: Tensor, found: Tensor) -> float:
    """The relative residual of a map; infinite if the shapes differ or a value is not finite."""
    if expected.shape != found.shape:
        return math.inf
    scale = (mean_square(expected).mean() + mean_square(found).mean()) / 2
    change = ((found - expected).square().mean() / (scale + EPSILON)).sqrt().item()
    return change if math.isfinite(change) else math.inf


def _rms(maps: Tensor) -> float:
    return maps.square().mean().sqrt().item()


class _SymmetricWeights(TorchFunctionMode):
    """Replaces the weights of layers, skips batch norms and sets tables to 0, while a network runs inside."""

    def __init__(
        self,
        group: Group,
        calls: Sequence[Call],
        table_sums: Mapping[int, int],
        tied: Mapping[int, Tensor],
        gain: float = _GAINS[0],
    ) -> None:
        super().__init__()
        self._gain, self._tied = gain, tied
        self._group, self._calls, self._table_sums = group, calls, table_sums
        self._layers = self._sums = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, plain_name(func)
        if self._tied:
            args = tuple(self._tied.get(id(value), value) for value in args)
            kwargs = {key: self._tied.get(id(value), value) for key, value in kwargs.items()}
        if name in LAYERS:
            args, kwargs = self._with_other_weights(name, args, kwargs)
            self._layers += 1
        elif name == "batch_norm":
            return (args[0] if args else kwargs["input"]).clone()  # in evaluation mode it only scales and shifts
        elif name in SUMS:
            number = self._table_sums.get(self._sums)
            if number is not None:
                args = tuple(value * 0 if i == number else value for i, value in enumerate(args))
            self._sums += 1
        return func(*args, **kwargs)

    def _with_other_weights(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        weight, bias = given["weight"], given.get("bias")
        call = self._calls[self._layers] if self._layers < len(self._calls) else None
        generator = torch.Generator().manual_seed(_SEED + self._layers)
        other = torch.randn(weight.shape, generator=generator, dtype=weight.dtype).to(weight.device)
        out, into = (1, 0) if name == "conv_transpose2d" else (0, 1)
        if call and call.sub_pixel:
            other = _equal_in_groups(other, out, call.sub_pixel**2)
        for start, number, factor in call.unshuffled if call else ():
            before, part, after = other.tensor_split((start, start + number), dim=into)
            other = torch.cat((before, _equal_in_groups(part, into, factor**2), after), dim=into)
        if other.ndim == 4 and (other.shape[2] == other.shape[3] or not self._group.needs_squares):
            elements = range(self._group.order)
            turned = [act_on_kernel(other, element, "trivial", "trivial", self._group) for element in elements]
            other = torch.stack(turned).mean(dim=0)
        fan_in = other.numel() // other.shape[out]
        # He et al. 2015: the size of maps stays
        other = other * (self._gain * math.sqrt(2 / fan_in) / (_rms(other) + EPSILON))
        new = {"input": given["input"], "weight": other, "bias": None if bias is None else bias * 0}
        return (*new.values(), *args[3:]), {key: value for key, value in kwargs.items() if key not in new}


def _equal_in_groups(weight: Tensor, dim: int, size: int) -> Tensor:
    """The mean over each group of `size` neighbours along an axis, repeated; unchanged if `size` does not divide it."""
    if weight.shape[dim] % size:
        return weight
    means = weight.unflatten(dim, (-1, size)).mean(dim=dim + 1)
    return means.repeat_interleave(size, dim)
