"""How equivariant a network is, layer by layer; for any network, during training or after it.

Legend: C channels, H rows, W columns. Images are measured one by one, so maps are ``(1, C, H, W)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from ..groups import FieldType, Group, group_named
from ..layers.layouts import Layout, layout_of, transposed
from ..layers.spec import LayerSpec, field_incompatibility, match_patterns
from ..layers.tracing import Call, Trace, run_traced
from ..options import check_choice
from ..penalties import field_residual, pair_scale, relative_mse

OUTPUT = "output"


def equivariance_error(
    network: nn.Module,
    images: Tensor,
    elements: int | Sequence[int] | None = None,
    *,
    group: str = "C4",
    layouts: Mapping[str, Layout] | None = None,
    max_side: int = 256,
) -> dict[str, float]:
    """The relative residual ``sqrt(size)`` of each layer and of the output.

    It is ``sqrt( mean [ mean |f(x') - rho(n) f(x)|^2 / ((mean |f(x')|^2 + mean |f(x)|^2) / 2) ] )``: 0 for exact
    equivariance, sqrt(2) for unrelated maps. The outer mean is over images, elements of the group and calls of a layer.
    Hidden layers are regular fields; the last layer and the output are trivial; class scores ``(B, K)`` should be
    invariant. Layers that cannot be such a field are left out: the group's order does not divide the channels, the
    window is not square, or the entries have no position. A layer whose grid is not symmetric at this image size is
    measured, and has a residual.

    Args:
        network: takes ``(B, C, H, W)`` and returns ``(B, C, H, W)`` or ``(B, K)``. It is a module or the module of an
            exported program (for example from an MLflow registry). It is measured in evaluation mode; afterwards its
            modes are restored.
        images: ``(B, C, H, W)``, not necessarily square: ``x' = n x`` has its own forward. They are measured one at a
            time, in pieces of at most `max_side` pixels a side, so the memory is bounded by one piece.
        elements: elements of the group, for C4 quarter turns; all but the identity if None.
        group: as of `EquivarianceRegularizer`.
        layouts: as of `EquivarianceRegularizer`.
        max_side: larger images are cut into pieces, and each piece is measured as an image of its own.

    Returns:
        Layer names in order of execution, then "output". A layer with the name "output" becomes "output (layer)".

    Raises:
        ValueError: there are no images or elements, or the network does not return one tensor ``(B, C, H, W)`` or
            ``(B, K)``.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> network = nn.Conv2d(1, 1, 3, padding=1)
        >>> images = torch.rand(2, 1, 16, 16)
        >>> equivariance_error(network, images)["output"] > 0.01
        True
        >>> _ = nn.init.ones_(network.weight)  # a symmetric kernel
        >>> equivariance_error(network, images)["output"] < 1e-5
        True
    """
    by_element = _sizes(network, images, elements, group, layouts or {}, max_side)
    names = dict.fromkeys(name for sizes in by_element.values() for name in sizes)
    return {
        name: _root_of_mean([size for sizes in by_element.values() for size in sizes.get(name, [])])
        for name in _output_last(names)
    }


def equivariance_error_by_element(
    network: nn.Module,
    images: Tensor,
    elements: int | Sequence[int] | None = None,
    *,
    group: str = "C4",
    layouts: Mapping[str, Layout] | None = None,
    max_side: int = 256,
) -> dict[int, dict[str, float]]:
    """The result of `equivariance_error` for each element of the group.

    Args:
        network: as of `equivariance_error`, like all other arguments.
        images: ``(B, C, H, W)``.
        elements: elements of the group; all but the identity if None.
        group: the name of the group.
        layouts: name patterns -> layouts.
        max_side: of the pieces into which larger images are cut.

    Returns:
        Element -> {layer name or "output": relative residual}.

    Example:
        >>> errors = equivariance_error_by_element(nn.Conv2d(1, 1, 3, padding=1), torch.rand(1, 1, 8, 8))
        >>> {element: sorted(of_element) for element, of_element in errors.items()}
        {1: ['network', 'output'], 2: ['network', 'output'], 3: ['network', 'output']}
    """
    by_element = _sizes(network, images, elements, group, layouts or {}, max_side)
    return {
        element: {name: _root_of_mean(sizes[name]) for name in _output_last(sizes)}
        for element, sizes in by_element.items()
    }


def specs_of(trace: Trace) -> dict[str, LayerSpec]:
    """The spec of each layer in a trace, in order of execution; the layer that runs last writes the image."""
    calls: dict[str, list[Call]] = {}
    for call in trace.calls:
        calls.setdefault(call.name, []).append(call)
    spec = {name: LayerSpec.of_calls(*of_layer) for name, of_layer in calls.items()}
    if trace.calls:
        last = trace.calls[-1].name
        spec[last] = LayerSpec(**(vars(spec[last]) | {"writes_image": True}))
    return spec


def call_layout(
    call: Call, num_images: int, declared: Layout | None, image_size: tuple[int, int] | None = None
) -> Layout:
    """The layout of a traced call's output.

    Args:
        call: the traced call.
        num_images: B.
        declared: the declared layout, or None.
        image_size: (H, W) of the image; without it the image is taken to be square.

    Raises:
        ValueError: the output has no layout in which the group could act on it.
    """
    is_linear = call.kind == "linear"
    factor = call.sub_pixel or 1
    shape, shift, patches = call.output_shape, call.shift, call.patches
    return layout_of(shape, num_images, declared, is_linear, shift, factor, image_size, patches)


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """A context in evaluation mode; afterwards, every module has its previous mode again."""
    modes = {module: module.training for module in network.modules()}
    # An exported program refuses network.eval(); it is in evaluation mode already.
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


Sizes = dict[str, list[float]]


@torch.no_grad()
def _sizes(
    network: nn.Module,
    images: Tensor,
    elements: int | Sequence[int] | None,
    group_name: str,
    layouts: Mapping[str, Layout],
    max_side: int,
) -> dict[int, Sizes]:
    """Element -> name -> the sizes of all images, pieces and calls."""
    group = group_named(group_name)
    elements = (
        range(1, group.order) if elements is None else (elements,) if isinstance(elements, int) else tuple(elements)
    )
    if not elements or images.ndim != 4 or not len(images):
        raise ValueError(f"images {tuple(images.shape)} must be (B, C, H, W) and elements {elements} not empty")
    for element in elements:
        check_choice("elements", element, range(group.order))
    if max_side < 1:
        raise ValueError(f"max_side: {max_side} must be at least 1")
    found: dict[int, Sizes] = {element: {} for element in elements}
    with evaluation_mode(network):
        for whole in _pieces(images, max_side):
            piece = group.crop(whole)
            trace, maps, output = _run(network, piece, layouts)
            spec = specs_of(trace)
            names = [call.name for call in trace.calls]
            fields = {
                name: each.field
                for name, each in spec.items()
                if field_incompatibility(each, each.field, group) is None
            }
            for element in elements:
                turned = group.spatial(piece, element)
                is_swapped = turned.shape[-2:] != piece.shape[-2:]
                swapped = {name: transposed(layout) for name, layout in layouts.items()} if is_swapped else layouts
                turned_trace, turned_maps, turned_output = _run(network, turned, swapped)
                if [call.name for call in turned_trace.calls] != names:
                    raise ValueError("network: it runs other layers on a turned image, so they cannot be compared")
                sizes = found[element]
                for name, first, second in zip(names, maps, turned_maps, strict=True):
                    if name in fields and first is not None and second is not None:
                        key = f"{name} (layer)" if name == OUTPUT else name
                        sizes.setdefault(key, []).append(_size(first, second, element, fields[name], group))
                if output.ndim == 2:
                    size = _invariant_size(output, turned_output)
                else:
                    size = _size(output, turned_output, element, "trivial", group)
                sizes.setdefault(OUTPUT, []).append(size)
    return found


def _run(
    network: nn.Module, images: Tensor, layouts: Mapping[str, Layout]
) -> tuple[Trace, list[Tensor | None], Tensor]:
    """The trace, each call's output as maps (None if it has no such layout), and the network's output."""
    raw: list[Tensor] = []
    # The outputs are cloned, because later operations may overwrite them in place.
    trace, output = run_traced(network, images, lambda call, result: raw.append(result.clone()))
    declared = match_patterns({call.name for call in trace.calls}, layouts)
    maps: list[Tensor | None] = []
    for call, result in zip(trace.calls, raw, strict=True):
        maps.append(None)
        with suppress(ValueError):
            own = layouts[declared[call.name]] if call.name in declared else None
            layout = call_layout(call, len(images), own, (images.shape[-2], images.shape[-1]))
            maps[-1] = layout.to_maps(result)
    return trace, maps, output


def _pieces(images: Tensor, max_side: int) -> Iterator[Tensor]:
    """Each image, or the pieces of at most ``max_side`` x ``max_side`` pixels into which it is cut."""
    for image in images.split(1):
        for strip in image.split(_sides(image.shape[-2], max_side), dim=-2):
            yield from strip.split(_sides(image.shape[-1], max_side), dim=-1)


def _sides(size: int, max_side: int) -> list[int]:
    """The sides of the pieces along an axis: as few and as even as possible, all but the last multiples of 16.

    So the pieces fit the strides and windows of a network if the whole image does.
    """
    unit = 16 if max_side >= 16 and size > max_side else 1
    num_pieces = -(-size // (max_side - max_side % unit))
    num_units, rest = divmod(size, unit)
    sides = [unit * (num_units // num_pieces + (index < num_units % num_pieces)) for index in range(num_pieces)]
    sides[-1] += rest
    return sides


def _size(original: Tensor, copy: Tensor, element: int, field: FieldType, group: Group) -> float:
    expected = original.shape[-2:] if (group.quarter_turns(element) or 0) % 2 == 0 else original.shape[:-3:-1]
    if copy.shape[-2:] != expected:  # the grid depends on the direction, so no positions correspond
        return 2.0
    residual = field_residual(original, copy, element, field, group)
    return relative_mse(residual, pair_scale(group.crop(original), group.crop(copy))).item()


def _invariant_size(original: Tensor, copy: Tensor) -> float:
    """The size for class scores ``(B, K)``, which have no position in the image."""
    first, second = original[..., None, None], copy[..., None, None]  # (1, K, 1, 1)
    return relative_mse(second - first, pair_scale(first, second)).item()


def _root_of_mean(sizes: Sequence[float]) -> float:
    return (sum(sizes) / len(sizes)) ** 0.5


def _output_last(names: Mapping[str, object]) -> list[str]:
    """The names with "output" last, also if a later image ran other layers."""
    return [name for name in names if name != OUTPUT] + [OUTPUT]
