"""What keeps a network from being equivariant, layer by layer, and whether its output can be at all.

Whether it can is not concluded but tried, with symmetric weights (`structure`); what is known of the network
(`geometry`, `layers`, `tracing`, `operations`) says why not, and what would help (`obstacles`).

Legend: C channels, H rows, W columns; t the order of the group; images are measured one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .geometry import Window
from .groups import Field, Group, group_named
from .layers import LayerFacts, check_patterns, match_patterns, named_layers
from .layouts import Layout
from .measurement import call_layout, evaluation_mode, facts_of
from .obstacles import FIELD_LIMITS, Obstacle, by, layer_obstacles, spatial_obstacles
from .operations import Operations, OperationWatch, Spatial, table_asymmetry
from .penalties import EPSILON, field_residual, pair_scale, residual_size
from .structure import Structure, act_on_inputs, first_break, tolerance, try_symmetric_weights
from .tracing import Call, Trace, tracing

MAX_DISTANCE = 32
"""How far from the given size a fitting one is looked for, in pixels."""


@dataclass(frozen=True)
class LayerDiagnosis:
    """One layer.

    Attributes:
        name: its module's, or its weight's.
        kind: what it is, as "conv 3x3 stride 2".
        inputs, outputs: numbers of channels.
        field: in which its output is compared.
        residual: relative, now; sqrt(2) between unrelated maps; None where it has no maps.
        obstacles: what prevents or limits equivariance here.
        notes: how it is compared.
    """

    name: str
    kind: str
    inputs: int
    outputs: int
    field: Field
    residual: float | None
    obstacles: tuple[Obstacle, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """Something outside the layers, and what is wrong with it."""

    where: str
    obstacle: Obstacle


@dataclass(frozen=True)
class UntiedParameter:
    """A parameter or statistic of single channels whose values differ inside regular fields.

    Attributes:
        name: as in the state_dict.
        inequality: the part that is not tied, relative to the whole, as root mean squares: from 0 to 1.
    """

    name: str
    inequality: float


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Attributes:
        group: its name.
        size: (H, W) of the images.
        layers: in order of execution.
        findings: pools, resizes, paddings, tables of position, and what could not be named.
        untied: the most unequal first.
        output: whether it is an image or has no place, so that it can only be invariant.
        output_residual: relative, now.
        structure_residual: what symmetric weights leave of it: not 0 if no weights can make the output equivariant.
        fitting_size: the nearest (H, W) at which it can be, position tables apart, if it cannot at this one.
        can_be_exact: whether there are weights with which the output is; None if undecided.
        depends_on_size: strides, pools and the like, so that other sizes may not fit.
    """

    group: str
    size: tuple[int, int]
    layers: tuple[LayerDiagnosis, ...]
    findings: tuple[Finding, ...]
    untied: tuple[UntiedParameter, ...]
    output: Literal["image", "no place"]
    output_residual: float
    structure_residual: float
    fitting_size: tuple[int, int] | None
    can_be_exact: bool | None
    depends_on_size: bool

    @property
    def fatal(self) -> tuple[tuple[str, Obstacle], ...]:
        """What forbids that the output is equivariant: where, and the obstacle."""
        of_layers = [(layer.name, obstacle) for layer in self.layers for obstacle in layer.obstacles]
        everything = [*of_layers, *((finding.where, finding.obstacle) for finding in self.findings)]
        return tuple((where, obstacle) for where, obstacle in everything if obstacle.is_fatal)

    @property
    def verdict(self) -> str:
        """Whether the output can be exactly equivariant, in words; invariant where it has no place."""
        goal = (
            f"exactly {'equivariant' if self.output == 'image' else 'invariant (it has no place)'} under {self.group}"
        )
        at = f"at {by(self.size)}"
        if self.can_be_exact:
            text = f"the output can be {goal} {at}: nothing in the structure forbids it"
            text += ", but other sizes may not fit" if self.depends_on_size else ""
            limited = sum(any(o.kind in FIELD_LIMITS for o in layer.obstacles) for layer in self.layers)
            of = f" (only with trivial fields, so symmetric kernels, in {limited} of {len(self.layers)} layers)"
            return text + (of if limited else "")
        if self.can_be_exact is None:
            text = f"undecided whether the output can be {goal}: {at} something unknown depends on place"
        else:
            kinds = dict.fromkeys(obstacle.kind for _, obstacle in self.fatal)
            causes = [
                f"{kind} ({_listed(list(dict.fromkeys(where for where, o in self.fatal if o.kind == kind)))})"
                for kind in kinds
            ]
            text = f"the output cannot be {goal} {at} because of {' and '.join(causes)}"
        apart = ", position tables apart" if any(o.kind == "position table" for _, o in self.fatal) else ""
        return text + (f"; at {by(self.fitting_size)} it can{apart}" if self.fitting_size else "")


@torch.no_grad()
def diagnose(
    network: nn.Module,
    images: Tensor | tuple[Tensor, ...],
    group: str = "C4",
    layouts: Mapping[str, Layout] | None = None,
) -> Diagnosis:
    """How equivariant a network is at each layer, what prevents it, and whether its output can be at all.

    Residuals are those of `equivariance_error`; layers that it leaves out because of their channels are compared as
    trivial fields. With weights that are random but for the group's symmetry, the output has a residual only if the
    structure forbids equivariance; obstacles that can be the cause are then called fatal.

    Args:
        network: returns ``(B, C, H, W)``, or ``(B, K)`` without place; a module or an exported program's. Measured in
            evaluation mode, then put back as it was.
        images: ``(B, C, H, W)``, or a tuple of all its inputs, of which those of four axes turn. Few and small ones do.
        group: C2, C4 or D4.
        layouts: as of `EquivarianceRegularizer`.

    Raises:
        ValueError: another group, no images, a layout for no layer, or a network that returns something else, in less
            than single precision, or runs other layers on a turned image.
    """
    chosen = group_named(group)
    if not chosen.is_on_grid:
        raise ValueError(f"group: {group!r} turns by angles that no pixel grid has; use C2, C4 or D4")
    inputs = images if isinstance(images, tuple) else (images,)
    shapes = [tuple(value.shape) for value in inputs]
    if not shapes or len(shapes[0]) != 4 or not shapes[0][0] or any(shape[:1] != shapes[0][:1] for shape in shapes):
        raise ValueError(f"images {shapes}: the first must be (B, C, H, W), all must have the same B above 0")
    with evaluation_mode(network):
        return _Examination(network, chosen, layouts or {}, inputs).diagnosis()


@dataclass(frozen=True)
class _Run:
    """One forward of one image: each call's output as maps or None, and the network's output."""

    trace: Trace
    operations: Operations
    maps: list[Tensor | None]
    output: Tensor


class _Examination:
    """All that `diagnose` does, on a network in evaluation mode."""

    def __init__(
        self, network: nn.Module, group: Group, layouts: Mapping[str, Layout], inputs: tuple[Tensor, ...]
    ) -> None:
        self.network, self.group, self.declared = network, group, layouts
        self.images = list(zip(*(value.split(1) for value in inputs), strict=True))
        self.first = self._run(self.images[0])
        self.calls = self.first.trace.calls
        check_patterns("layouts", {call.name for call in self.calls}, layouts)
        self.facts = facts_of(self.first.trace)
        self.fields = {name: self._field(each) for name, each in self.facts.items()}
        if torch.finfo(self.first.output.dtype).bits < 32:
            raise ValueError(
                f"network: {self.first.output.dtype} is too coarse to tell; diagnose it as network.float()"
            )
        self.tolerance = tolerance(self.first.output.dtype)

    def diagnosis(self) -> Diagnosis:
        sizes, zeros = self._sizes()
        operations = self.first.operations
        inputs = self.images[0]
        structure = try_symmetric_weights(self.network, inputs, self.group, self.calls, operations.table_sums)
        breaks = structure.residual_without_tables > self.tolerance
        layers = [self._layer(name, sizes, breaks, name in zeros) for name in self.facts]
        findings = [*self._spatial_findings(breaks), *self._table_findings(structure), *self._unseen_layers()]
        fatal = [obstacle.kind for layer in layers for obstacle in layer.obstacles if obstacle.is_fatal]
        fatal += [finding.obstacle.kind for finding in findings if finding.obstacle.is_fatal]
        is_named = any(kind != "position table" for kind in fatal)
        if (breaks and not is_named) or (structure.residual > self.tolerance and not fatal):
            findings.append(self._unnamed(structure))
        can_be_exact: bool | None = False if fatal else None
        if structure.residual <= self.tolerance and not fatal:
            can_be_exact = True
        return Diagnosis(
            self.group.name,
            (inputs[0].shape[-2], inputs[0].shape[-1]),
            tuple(layers),
            tuple(findings),
            tuple(sorted(self._untied(), key=lambda each: -each.inequality)),
            "image" if self.first.output.ndim == 4 else "no place",
            _root_of_mean(sizes[None]),
            structure.residual,
            self._fitting_size(MAX_DISTANCE if is_named else MAX_DISTANCE // 4) if breaks else None,
            can_be_exact,
            any(window and max(window.stride) > 1 for window in self._windows()),
        )

    # ------------------------------------------------------------------------------------------------- running

    def _run(self, inputs: Sequence[Tensor]) -> _Run:
        raw: list[Tensor] = []
        # Cloned, because what follows may overwrite it in place.
        with (
            tracing(self.network, lambda call, result: raw.append(result.clone())) as trace,
            OperationWatch(self.network, trace) as watch,
        ):
            output = self.network(*inputs)
        if not isinstance(output, Tensor) or output.ndim not in (2, 4):
            raise ValueError("network: one that returns one tensor, (B, C, H, W) or (B, K), can be diagnosed")
        maps: list[Tensor | None] = []
        for call, result in zip(trace.calls, raw, strict=True):
            layout, _ = self._layout(call)
            maps.append(layout.to_maps(result) if layout else None)
        return _Run(trace, watch.seen, maps, output)

    def _layout(self, call: Call) -> tuple[Layout | None, str]:
        """A call's layout, or None and why it has none."""
        pattern = match_patterns([call.name], self.declared).get(call.name)
        try:
            return call_layout(call, 1, self.declared[pattern] if pattern else None), ""
        except ValueError as error:
            return None, str(error)

    def _field(self, facts: LayerFacts) -> Field:
        """As "auto" gives it, but trivial where the channels do not divide."""
        return "trivial" if facts.channels % self.group.order else facts.field

    def _sizes(self) -> tuple[dict[str | None, list[float]], set[str]]:
        """Sizes of all images, elements and calls by layer name, None for the output; and layers that are always 0."""
        sizes: dict[str | None, list[float]] = {None: []}
        zeros = {call.name for call, maps in zip(self.calls, self.first.maps, strict=True) if maps is not None}
        names = [call.name for call in self.calls]
        for image in self.images:
            run = self._run(image)
            zeros -= {name for name, maps in zip(names, run.maps, strict=True) if maps is not None and maps.any()}
            for element in range(1, self.group.order):
                turned = self._run(act_on_inputs(image, self.group, element))
                if [call.name for call in turned.trace.calls] != names:
                    raise ValueError("network: it runs other layers on a turned image, so they cannot be compared")
                for name, first, second in zip(names, run.maps, turned.maps, strict=True):
                    if first is not None and second is not None:
                        size = self._size(first, second, element, self.fields[name])
                        sizes.setdefault(name, []).append(size)
                sizes[None].append(self._size(run.output, turned.output, element, "trivial"))
        return sizes, zeros

    def _size(self, original: Tensor, copy: Tensor, element: int, field: Field) -> float:
        if original.ndim == 2:  # no place, nothing turns
            return residual_size(copy - original, pair_scale(original, copy)).item()
        if copy.shape != self.group.spatial(original, element).shape:  # nothing corresponds
            return 2.0
        residual = field_residual(original, copy, element, field, self.group)
        return residual_size(residual, pair_scale(original, copy)).item()

    # --------------------------------------------------------------------------------------------------- naming

    def _layer(
        self, name: str, sizes: Mapping[str | None, Sequence[float]], breaks: bool, is_zero: bool
    ) -> LayerDiagnosis:
        facts, calls = self.facts[name], [call for call in self.calls if call.name == name]
        layout, why_none = self._layout(calls[0])
        head_width = self.first.operations.head_widths.get(name)
        obstacles = dict.fromkeys(layer_obstacles(facts, calls, layout, head_width, self.group, breaks))
        if layout is None:
            remedy = "none if it makes the class scores, which can be invariant; else declare its layout"
            obstacles[Obstacle("no place", why_none, remedy)] = None
        return LayerDiagnosis(
            name,
            _kind(facts),
            facts.inputs,
            facts.outputs,
            self.fields[name],
            _root_of_mean(sizes[name]) if name in sizes else None,
            tuple(obstacles),
            tuple(_notes(facts, calls, is_zero)),
        )

    def _spatial_findings(self, breaks: bool) -> Iterator[Finding]:
        seen: dict[Finding, None] = {}
        for operation in self.first.operations.spatial:
            for obstacle in spatial_obstacles(operation, self.group, breaks):
                seen[Finding(_place_of(operation), obstacle)] = None
        yield from seen

    def _table_findings(self, structure: Structure) -> Iterator[Finding]:
        """A table is fatal if a turn changes it and it matters to the output; or if the output turns better without."""
        rounding = 4 * torch.finfo(self.first.output.dtype).eps
        residual, without = structure.residual, structure.residual_without_tables
        is_to_blame = residual > 2 * without + rounding
        # Where the shape tells what a turn does to it, it need only make a difference.
        matters = math.isinf(residual) or abs(residual - without) > 1e-3 * without + rounding
        for table in self.first.operations.tables.values():
            change = table_asymmetry(table.value, self.group)
            shape = tuple(table.value.shape)
            remedy = "average it over its turns (and keep it so), or replace it by a depthwise convolution"
            if change is not None and change <= self.tolerance:
                reason = f"{shape}: symmetric now, but nothing keeps it so in training"
                yield Finding(table.name, Obstacle("position table", reason, remedy))
            elif change is not None:
                reason = f"{shape}: a turn changes it by {change:.2g} of its size"
                yield Finding(table.name, Obstacle("position table", reason, remedy, matters))
            else:
                turns = "the output does not turn with it and would without" if is_to_blame else "no harm seen"
                reason = f"{shape}: its shape does not tell which place an entry belongs to; {turns}"
                yield Finding(table.name, Obstacle("position table", reason, remedy, is_to_blame))

    def _unseen_layers(self) -> Iterator[Finding]:
        unseen = [name for name in named_layers(self.network) if name not in self.facts]
        if unseen:
            reason = "not called in this forward, or inside a fused operation (as nn.MultiheadAttention): not measured"
            yield Finding(_listed(unseen), Obstacle("unseen", reason, "none needed if they are unused"))

    def _unnamed(self, structure: Structure) -> Finding:
        layouts = [self._layout(call)[0] for call in self.calls]
        sums = self.first.operations.table_sums
        before, after = first_break(self.network, self.images[0], self.group, self.calls, sums, layouts)
        where = f"between {before or 'the image'} and {after or 'the output'}"
        has = f"has a residual of {structure.residual:.2g}"
        has = "has another shape if the image is turned, or no finite values" if math.isinf(structure.residual) else has
        reason = (
            f"with symmetric weights the output still {has}: "
            "something depends on place, as a crop or a slice on one side, coordinates, a table in a buffer, "
            "sub-pixels moved by hand"
        )
        return Finding(where, Obstacle("unknown", reason, "look at what happens there; try other image sizes", True))

    def _untied(self) -> Iterator[UntiedParameter]:
        """Biases of layers, and parameters and statistics of norms and the like, inside regular fields."""
        last = self.calls[-1].name if self.calls else ""
        parameters = dict(self.network.named_parameters())
        for name, facts in self.facts.items():
            bias = parameters.get("bias" if name == "network" else f"{name}.bias")
            call = next(call for call in self.calls if call.name == name)
            if bias is not None and self._layout(call)[0]:
                maps = bias[None, :, None, None]  # (C) -> (1, C, 1, 1); before PixelShuffle(r) -> (1, C / r^2, r, r)
                maps = torch.pixel_shuffle(maps, facts.factor) if facts.factor > 1 else maps
                if not (facts.factor == 1 and self.fields[name] == "trivial"):
                    yield from self._if_untied(f"{name}.bias".removeprefix("network."), maps, self.fields[name])
        for name, (value, after) in self.first.operations.channel_parameters.items():
            if value.numel() % self.group.order == 0 and after != last:
                yield from self._if_untied(name, value.reshape(1, -1, 1, 1), "regular")

    def _if_untied(self, name: str, maps: Tensor, field: Field) -> Iterator[UntiedParameter]:
        mean = torch.stack([self.group.act(maps, element, field) for element in range(self.group.order)]).mean(dim=0)
        inequality = ((maps - mean).square().mean() / (maps.square().mean() + EPSILON)).sqrt().item()
        if inequality > self.tolerance:
            yield UntiedParameter(name, inequality)

    # ---------------------------------------------------------------------------------------------------- sizes

    def _windows(self) -> list[Window | None]:
        return [*(call.window for call in self.calls), *(each.window for each in self.first.operations.spatial)]

    def _fitting_size(self, distance: int) -> tuple[int, int] | None:
        """The nearest size of which each side, as a square, is fine."""
        rows, columns = self.images[0][0].shape[-2:]
        fitting = {side: self._fitting_side(side, distance) for side in (rows, columns)}
        height, width = fitting[rows], fitting[columns]
        return (height, width) if height and width and (height, width) != (rows, columns) else None

    def _fitting_side(self, side: int, distance: int) -> int | None:
        # Not less than half: on maps of a pixel or two everything is symmetric.
        sides = range(max(side // 2, side - distance), side + distance + 1)
        nearest = sorted(sides, key=lambda other: abs(other - side))
        return next((other for other in nearest if self._fits(other)), None)

    def _fits(self, side: int) -> bool:
        """Whether the structure lets the output be equivariant on squares of this side; tables apart."""
        inputs = tuple(_square(value, side, self.images[0][0].shape[-2]) for value in self.images[0])
        sums = self.first.operations.table_sums
        try:
            with tracing(self.network) as trace, OperationWatch(self.network, trace) as watch:
                self.network(*inputs)
            windows = [(c.window, c.input_shape[-2:], c.output_shape[-2:]) for c in trace.calls]
            windows += [(each.window, each.input_size, each.output_size) for each in watch.seen.spatial]
            if any(window and window.alignment_obstacle(*sizes) for window, *sizes in windows):
                return False
            found = try_symmetric_weights(self.network, inputs, self.group, trace.calls, sums)
        except Exception:  # whatever a network of somebody else does at a size that it is not made for
            return False
        return found.residual_without_tables <= self.tolerance


def _square(value: Tensor, side: int, height: int) -> Tensor:
    """An image of another size: `side` instead of `height`, or as much of it as this input has; others as they are."""
    if value.ndim != 4:
        return value
    side = side * value.shape[-2] // height
    return value.new_zeros(*value.shape[:2], side, side)


def _kind(facts: LayerFacts) -> str:
    """A layer in a few words."""
    if facts.window is None:
        return "linear"
    window = facts.window
    sizes = {"": window.kernel_size, "stride ": window.stride, "dilation ": window.dilation}
    words = ["transposed conv" if window.is_transposed else "conv"]
    for word, size in sizes.items():
        if not word or size != (1, 1):
            words.append(word + (f"{size[0]}" if word and size[0] == size[1] else f"{size[0]}x{size[1]}"))
    if facts.num_groups > 1:
        words.append("depthwise" if facts.num_groups == facts.inputs else f"{facts.num_groups} groups")
    return " ".join(words)


def _notes(facts: LayerFacts, calls: Sequence[Call], is_zero: bool) -> Iterator[str]:
    if facts.factor > 1:
        yield f"compared after PixelShuffle({facts.factor})"
    for rows, columns in dict.fromkeys(call.shift for call in calls if any(call.shift)):
        yield f"compared with its window shift ({abs(rows)}, {abs(columns)}) undone"
    if facts.reads_unshuffled:
        yield "its input comes from PixelUnshuffle, whose channels are no regular fields"
    if len(calls) > 1:
        yield f"called {len(calls)} times; the residual is of all calls"
    if is_zero:
        yield "all its outputs are 0 on these images, so its residual says nothing"


def _place_of(operation: Spatial) -> str:
    """A pool, resize or padding in words."""
    words = operation.kind
    if operation.window:
        words = f"{operation.details} {by(operation.window.kernel_size)} stride {operation.window.stride[0]}"
    return f"{words} after {operation.after or 'the input'}"


def _root_of_mean(sizes: Sequence[float]) -> float:
    return math.sqrt(sum(sizes) / len(sizes))


def _listed(names: Sequence[str], most: int = 3) -> str:
    return "; ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
