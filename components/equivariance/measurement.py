"""How equivariant a network is, layer by layer: for any network at any time.

Legend: C channels, H rows, W columns; images are measured one by one, so maps are ``(1, C, H, W)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from .groups import Field, Group, group_named
from .layers import LayerFacts, field_obstacle, match_patterns
from .layouts import Layout, layout_of, transposed
from .options import check_choice
from .penalties import field_residual, pair_scale, residual_size
from .tracing import Call, Trace, run_traced

OUTPUT = "output"


def equivariance_error(
    network: nn.Module,
    images: Tensor,
    turns: int | Sequence[int] | None = None,
    *,
    group: str = "C4",
    layouts: Mapping[str, Layout] | None = None,
    max_side: int = 256,
) -> dict[str, float]:
    """The relative residual ``sqrt(size)`` of each layer and of the output (METHOD.md section 3).

    ``sqrt( mean [ mean |f(x') - rho(n) f(x)|^2 / ((mean |f(x')|^2 + mean |f(x)|^2) / 2) ] )``: 0 is exact, sqrt(2)
    unrelated. Sizes are averaged over images, elements of the group and calls of a layer, then one root is taken.
    Hidden layers are regular fields, the last one and the output trivial; class scores ``(B, K)`` are to be invariant.
    Layers that can be no such field (channels not divisible by the group's order, a window not square, no place for
    each entry) are left out; one whose grid is not symmetric at this size shows it.

    Args:
        network: takes ``(B, C, H, W)`` and returns the like or ``(B, K)``: a module, or an exported program's (as from
            an MLflow registry); measured in evaluation mode, then put back as it was.
        images: ``(B, C, H, W)``, not necessarily square: ``x' = n x`` has its own forward. Measured one at a time, and
            in pieces of at most `max_side` pixels a side, so that memory is bounded by one such piece.
        turns: elements of the group, for C4 quarter turns; all but the identity if None.
        group: as of `EquivarianceRegularizer`.
        layouts: as of `EquivarianceRegularizer`.
        max_side: larger images are cut into pieces, each measured as an image of its own.

    Returns:
        Layer names in order of execution, then "output". A layer of that very name is "output (layer)".

    Raises:
        ValueError: no images or elements, or a network that does not return one tensor ``(B, C, H, W)`` or ``(B, K)``.
    """
    by_element = _sizes(network, images, turns, group, layouts or {}, max_side)
    names = dict.fromkeys(name for sizes in by_element.values() for name in sizes)
    return {
        name: _root_of_mean([size for sizes in by_element.values() for size in sizes.get(name, [])])
        for name in _output_last(names)
    }


def equivariance_error_by_element(
    network: nn.Module,
    images: Tensor,
    turns: int | Sequence[int] | None = None,
    *,
    group: str = "C4",
    layouts: Mapping[str, Layout] | None = None,
    max_side: int = 256,
) -> dict[int, dict[str, float]]:
    """`equivariance_error` of each element of the group: element -> {layer or "output": relative residual}."""
    by_element = _sizes(network, images, turns, group, layouts or {}, max_side)
    return {
        element: {name: _root_of_mean(sizes[name]) for name in _output_last(sizes)}
        for element, sizes in by_element.items()
    }


def facts_of(trace: Trace) -> dict[str, LayerFacts]:
    """What a trace tells about each layer, in order of execution; the last one executed writes the image."""
    facts: dict[str, LayerFacts] = {}
    for call in trace.calls:
        facts[call.name] = LayerFacts.of_call(call)
    if trace.calls:
        last = trace.calls[-1].name
        facts[last] = LayerFacts(**(vars(facts[last]) | {"writes_image": True}))
    return facts


def call_layout(
    call: Call, num_images: int, declared: Layout | None, image_size: tuple[int, int] | None = None
) -> Layout:
    """The layout of a traced call's output; without `image_size` that of square images.

    Raises:
        ValueError: it has none in which it could turn.
    """
    is_linear = call.kind == "linear"
    factor = call.sub_pixel or 1
    return layout_of(call.output_shape, num_images, declared, is_linear, call.shift, factor, image_size)


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module then has the mode it had."""
    modes = {module: module.training for module in network.modules()}
    # Not network.eval(), which an exported program refuses; it is in evaluation mode already.
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
    turns: int | Sequence[int] | None,
    group_name: str,
    layouts: Mapping[str, Layout],
    max_side: int,
) -> dict[int, Sizes]:
    """Element -> name -> sizes of all images, pieces and calls."""
    group = group_named(group_name)
    elements = range(1, group.order) if turns is None else (turns,) if isinstance(turns, int) else tuple(turns)
    if not elements or images.ndim != 4 or not len(images):
        raise ValueError(f"images {tuple(images.shape)} must be (B, C, H, W) and turns {elements} not empty")
    for element in elements:
        check_choice("turns", element, range(group.order))
    if max_side < 1:
        raise ValueError(f"max_side: {max_side} must be at least 1")
    found: dict[int, Sizes] = {element: {} for element in elements}
    with evaluation_mode(network):
        for whole in _pieces(images, max_side):
            piece = group.crop(whole)
            trace, maps, output = _run(network, piece, layouts)
            facts = facts_of(trace)
            names = [call.name for call in trace.calls]
            fields = {
                name: each.field for name, each in facts.items() if field_obstacle(each, each.field, group) is None
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
    """The trace, each call's output as maps (None where it has no such layout), and the network's output."""
    raw: list[Tensor] = []
    # Cloned, because what follows may overwrite it in place.
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
    """Each image, or the pieces of at most ``max_side`` squared that it is cut into."""
    for image in images.split(1):
        for strip in image.split(_sides(image.shape[-2], max_side), dim=-2):
            yield from strip.split(_sides(image.shape[-1], max_side), dim=-1)


def _sides(size: int, max_side: int) -> list[int]:
    """Of the pieces along an axis: as few and as even as can be, all multiples of 16 but the last.

    So the pieces fit a network's strides and windows wherever the image does.
    """
    unit = 16 if max_side >= 16 and size > max_side else 1
    num_pieces = -(-size // (max_side - max_side % unit))
    num_units, rest = divmod(size, unit)
    sides = [unit * (num_units // num_pieces + (index < num_units % num_pieces)) for index in range(num_pieces)]
    sides[-1] += rest
    return sides


def _size(original: Tensor, copy: Tensor, element: int, field: Field, group: Group) -> float:
    expected = original.shape[-2:] if (group.quarter_turns(element) or 0) % 2 == 0 else original.shape[:-3:-1]
    if copy.shape[-2:] != expected:  # a grid that depends on the direction: nothing corresponds
        return 2.0
    residual = field_residual(original, copy, element, field, group)
    return residual_size(residual, pair_scale(group.crop(original), group.crop(copy))).item()


def _invariant_size(original: Tensor, copy: Tensor) -> float:
    """Of class scores ``(B, K)``, which have no place in the image."""
    first, second = original[..., None, None], copy[..., None, None]  # (1, K, 1, 1)
    return residual_size(second - first, pair_scale(first, second)).item()


def _root_of_mean(sizes: Sequence[float]) -> float:
    return (sum(sizes) / len(sizes)) ** 0.5


def _output_last(names: Mapping[str, object]) -> list[str]:
    """Also where a later image took another way through the network."""
    return [name for name in names if name != OUTPUT] + [OUTPUT]
