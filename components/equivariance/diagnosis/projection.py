"""A copy of a network with the nearest exactly equivariant weights.

The kernel of every layer is averaged over the group, in the fields in which the regulariser compares the layer, and so
are biases and the other parameters with one value per channel. Where channels are sliced, or joined with others, within
a regular field, the maps are trivial fields. If the structure of the network permits it, the output of the copy is
exactly equivariant. This is the test of a whole network: its layers, their fields and what lies between them fit
together, or a residual remains.

Legend: O, I output and input channels of a kernel; r factor of a sub-pixel layer.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn

from ..groups import FieldType, Group, group_named, permute_fields
from ..layers.spec import LayerSpec, kernel_input_field, through_fields
from ..layers.tracing import kernels_in, tracing
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
        ValueError: the group or the fields are others, or the weight of a layer is computed from other tensors, as that
            of a weight norm.

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
        if fields == "auto" and spec.channels % chosen.order == 0 and name not in cut:
            field = spec.field
        prefix = "" if name == "network" else f"{name}."
        if f"{prefix}weight" not in parameters and isinstance(getattr(_module(copy, name), "weight", None), Tensor):
            raise ValueError(
                f"network: the weight of '{name}' is computed from other tensors, as that of a weight norm: make it a "
                "parameter first (torch.nn.utils.parametrize.remove_parametrizations)"
            )
        weight = parameters.get(call_of[name].parameter)
        bias = parameters.get(f"{prefix}bias")
        into: FieldType = "trivial"
        if fields == "auto" and not through_fields(spec.input_cuts, chosen):
            into = kernel_input_field(spec, chosen)
        for kernel in () if weight is None else kernels_in(weight, call_of[name]):
            kernel.copy_(_averaged(kernel, call_of[name].is_transposed, into, field, spec, chosen))
        if bias is not None and bias.numel() == spec.outputs:
            maps = bias[None, :, None, None]  # (O) -> (1, O, 1, 1)
            maps = torch.pixel_shuffle(maps, spec.factor) if spec.factor > 1 else maps  # -> (1, O / r^2, r, r)
            mean = torch.stack([chosen.act(maps, element, field) for element in range(chosen.order)]).mean(dim=0)
            bias.copy_((torch.pixel_unshuffle(mean, spec.factor) if spec.factor > 1 else mean).flatten())
    for name, (value, after) in watch.seen.channel_parameters.items():
        if fields == "auto" and value.numel() % chosen.order == 0 and after != last and after not in cut:
            own = copy.get_parameter(name) if name in parameters else copy.get_buffer(name)
            own.copy_(own.reshape(-1, chosen.order).mean(dim=1).repeat_interleave(chosen.order).view_as(own))
    return copy.eval()


def _module(network: nn.Module, name: str) -> nn.Module | None:
    """The module of a layer; None for a layer that is called after a parameter."""
    return dict(network.named_modules()).get("" if name == "network" else name)


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
        moved = fine
        for regular, dim in ((field_out, 0), (field_in, 3)):
            if regular == "regular":
                moved = permute_fields(moved, group.sources(element), dim)
        if spec.reads_unshuffled and field_in == "trivial":
            moved = _with_turned_sub_pixels(moved, element, *spec.unshuffled, group)
        moved = group.spatial(moved, element)
        turned.append(group.spatial(moved.movedim((1, 2), (-2, -1)), element).movedim((-2, -1), (1, 2)))
    mean = torch.stack(turned).mean(dim=0).flatten(0, 2)  # (O, I, a, b)
    return (mean.transpose(0, 1) if is_transposed else mean).reshape(shape)


def _with_turned_sub_pixels(kernel: Tensor, element: int, number: int, factor: int, group: Group) -> Tensor:
    """Transform the order of the first ``number`` inputs of ``(..., I, a, b)``: r^2 sub-pixels of each fine channel."""
    fine = kernel[..., :number, :, :].unflatten(-3, (-1, factor, factor))  # (..., I / r^2, r, r, a, b)
    turned = group.spatial(fine.movedim((-4, -3), (-2, -1)), element).movedim((-2, -1), (-4, -3))
    return torch.cat((turned.flatten(-5, -3), kernel[..., number:, :, :]), dim=-3)
