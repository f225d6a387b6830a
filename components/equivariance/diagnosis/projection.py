"""A copy of a network with the nearest exactly equivariant weights.

The kernel of every layer is averaged over the group, in the fields in which the regulariser compares the layer, and so
are biases and the other parameters with one value per channel. Where channels are sliced, or joined with others, within
a regular field, the maps are trivial fields. If the structure of the network permits it, the output of the copy is
exactly equivariant. This is the test of a whole network: its layers, their fields and what lies between them fit
together, or a residual remains.

Legend: O, I output and input channels of a kernel; r factor of a sub-pixel layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn

from ..groups import FieldType, Group, group_named, permute_fields
from ..layers.spec import LayerSpec, channels_incompatibility, kernel_input_field, through_fields
from ..layers.tracing import Unshuffled, kernels_in, tracing
from .equivariance_error import evaluation_mode, specs_of
from .operations import OperationRecorder

Fields = Literal["auto", "trivial"]


@torch.no_grad()
def projected(network: nn.Module, images: Tensor, group: str = "C4", fields: Fields = "auto") -> nn.Module:
    """Return a copy of a network whose weights are projected onto those of an equivariant network.

    A layer that computes its kernel from fewer weights keeps them, because they are no entries of the kernel. A group
    convolution is such a layer; it is exactly equivariant under its own group whatever its weights.

    Args:
        network: as of `diagnose`.
        images: ``(B, C, H, W)``, for one forward that shows how the layers follow each other; a small image is enough.
        group: C2, C4 or D4.
        fields: "auto": the fields that the regulariser compares, regular inside the network. "trivial": all maps are
            scalar fields, so all kernels are symmetric; for networks whose operations between the layers mix channels,
            and for grouped convolutions whose groups cut through regular fields (`diagnose` names both).

    Returns:
        The copy, in evaluation mode.

    Raises:
        ValueError: the group or the fields are others, the weight of a layer is computed from other tensors, as that
            of a weight norm, or a kernel is not square and the group has quarter turns.

    Example:
        >>> from components.equivariance import equivariance_error
        >>> network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
        >>> images = torch.rand(1, 1, 8, 8)
        >>> errors = [equivariance_error(each, images)["output"] for each in (network, projected(network, images))]
        >>> errors[0] > 0.01, errors[1] < 1e-6
        (True, True)
    """
    chosen = group_named(group)
    if not chosen.is_on_grid:
        raise ValueError(f"group: {group!r} turns by angles that no pixel grid has; use C2, C4 or D4")
    if fields not in ("auto", "trivial"):
        raise ValueError(f"fields: {fields!r}: use auto or trivial")
    copy = deepcopy(network)
    with evaluation_mode(copy), tracing(copy) as trace, OperationRecorder(copy, trace) as watch:
        copy(images[:1])
    specs = specs_of(trace)
    parameters = dict(copy.named_parameters())
    call_of = {call.name: call for call in trace.calls}
    last = trace.calls[-1].name if trace.calls else ""
    cut = {name for name, spec in specs.items() if through_fields(spec.cuts, chosen)}
    for name, spec in specs.items():
        field: FieldType = "trivial"
        if fields == "auto" and channels_incompatibility(spec, chosen) is None and name not in cut:
            field = spec.field
        prefix = "" if name == "network" else f"{name}."
        own = getattr(_module(copy, name), "weight", None)
        if isinstance(own, Tensor) and not isinstance(own, nn.Parameter):
            raise ValueError(
                f"network: the weight of '{name}' is computed from other tensors, as that of a weight norm: make it a "
                "parameter first (torch.nn.utils.parametrize.remove_parametrizations)"
            )
        if spec.window and chosen.needs_squares and len(set(spec.window.kernel_size)) > 1:
            raise ValueError(f"network: '{name}': {spec.window.incompatibility()}")
        weight = parameters.get(call_of[name].parameter)
        bias = parameters.get(f"{prefix}bias")
        into: FieldType = "trivial"
        if fields == "auto" and not through_fields(spec.input_cuts, chosen):
            into = kernel_input_field(spec, chosen)
        for kernel in () if weight is None else kernels_in(weight, call_of[name]):
            kernel.copy_(_averaged(kernel, call_of[name].is_transposed, into, field, spec, chosen))
        if bias is not None and bias.numel() == spec.outputs:
            bias.copy_(_averaged_channels(bias, spec.factor, field, chosen))
    tensors = dict(copy.named_buffers()) | parameters
    for name, found in watch.seen.channel_parameters.items():
        if found.after != last:
            number = found.value.numel() // found.factor**2
            regular = fields == "auto" and number % chosen.order == 0 and found.after not in cut
            own = tensors[name]
            own.copy_(_averaged_channels(own, found.factor, "regular" if regular else "trivial", chosen))
    return copy.eval()


def _module(network: nn.Module, name: str) -> nn.Module | None:
    """The module of a layer; None for a layer that is called after a parameter."""
    return dict(network.named_modules()).get("" if name == "network" else name)


def _averaged_channels(values: Tensor, factor: int, field: FieldType, group: Group) -> Tensor:
    """The mean over the group of values of single channels, in their own shape; of r^2 sub-pixels if r is above 1."""
    maps = values.reshape(1, -1, 1, 1)
    maps = torch.pixel_shuffle(maps, factor) if factor > 1 else maps  # (1, C, 1, 1) -> (1, C / r^2, r, r)
    mean = torch.stack([group.act(maps, element, field) for element in range(group.order)]).mean(dim=0)
    return (torch.pixel_unshuffle(mean, factor) if factor > 1 else mean).reshape(values.shape)


def _averaged(
    weight: Tensor, is_transposed: bool, field_in: FieldType, field_out: FieldType, spec: LayerSpec, group: Group
) -> Tensor:
    """The mean of a kernel over the group, in its own shape."""
    shape = weight.shape
    if is_transposed:
        weight = weight.transpose(0, 1)  # (I, O, ...) -> (O, I, ...)
    if weight.ndim == 2:
        weight = weight[:, :, None, None]  # (O, I) -> (O, I, 1, 1)
    r = spec.factor
    fine = weight.unflatten(0, (-1, r, r))  # (O, I, a, b) -> (O / r^2, r, r, I, a, b)
    turned = []
    for element in range(group.order):
        moved = permute_fields(fine, group.sources(element), 0) if field_out == "regular" else fine
        moved = _with_moved_inputs(moved, element, field_in, spec.unshuffled, group)
        moved = group.spatial(moved, element)
        turned.append(group.spatial(moved.movedim((1, 2), (-2, -1)), element).movedim((-2, -1), (1, 2)))
    mean = torch.stack(turned).mean(dim=0).flatten(0, 2)  # (O, I, a, b)
    return (mean.transpose(0, 1) if is_transposed else mean).reshape(shape)


def _with_moved_inputs(
    kernel: Tensor, element: int, field: FieldType, unshuffled: Sequence[Unshuffled], group: Group
) -> Tensor:
    """Transform the inputs of a kernel ``(O, r, r, I, a, b)``: fields of channels, and sub-pixels of fields of them."""
    parts, end = [], 0
    for start, number, factor in (*unshuffled, Unshuffled(kernel.shape[3], 0, 1)):
        parts += [_with_moved_fields(kernel[:, :, :, end:start], element, field, group)]
        end = start + number
        fine = kernel[:, :, :, start:end].unflatten(3, (-1, factor, factor))  # (O, r, r, I / f^2, f, f, a, b)
        fine = group.spatial(fine.movedim((4, 5), (-2, -1)), element).movedim((-2, -1), (4, 5))
        parts += [_with_moved_fields(fine, element, field, group).flatten(3, 5)]
    return torch.cat(parts, dim=3)


def _with_moved_fields(kernel: Tensor, element: int, field: FieldType, group: Group) -> Tensor:
    """Permute the input channels, axis 3, inside their fields, if they are regular and divide into fields."""
    if field == "trivial" or kernel.shape[3] % group.order:
        return kernel
    return permute_fields(kernel, group.sources(element), 3)
