"""What prevents a network from being equivariant, layer by layer, and whether its output can be equivariant at all.

Whether it can is tested with symmetric weights (`structure`), not derived. The properties of the network (`grid`,
`spec`, `tracing`, `operations`) tell why it cannot, and what would help (`incompatibilities`).

Legend: C channels, H rows, W columns; t is the order of the group. Images are measured one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..groups import FieldType, Group, group_named
from ..layers.grid import Window
from ..layers.layouts import Layout
from ..layers.spec import (
    LayerSpec,
    channels_incompatibility,
    check_patterns,
    kernel_incompatibility,
    kernel_input_field,
    match_patterns,
    named_layers,
)
from ..layers.tracing import Call, Trace, kernels_in, tracing
from ..penalties import EPSILON, field_residual, kernel_relative_mse, kernel_residual, pair_scale, relative_mse
from .equivariance_error import call_layout, evaluation_mode, specs_of
from .incompatibilities import (
    FIELD_LIMITS,
    Incompatibility,
    by,
    layer_incompatibilities,
    spatial_incompatibilities,
)
from .operations import OperationRecorder, Operations, Spatial, table_asymmetry
from .structure import (
    Structure,
    act_on_inputs,
    first_break,
    tied_sub_pixels,
    tolerance,
    try_symmetric_weights,
)

MAX_DISTANCE = 32
"""The largest distance from the given size at which a fitting size is searched, in pixels."""


@dataclass(frozen=True)
class LayerDiagnosis:
    """The diagnosis of one layer.

    Attributes:
        name: of its module, or of its weight.
        kind: for example "conv 3x3 stride 2".
        inputs: the number of input channels.
        outputs: the number of output channels.
        field: in which its output is compared.
        residual: the current relative residual; sqrt(2) for unrelated maps; None if the output cannot be read as maps.
        incompatibilities: what prevents or limits equivariance here.
        notes: how the layer is compared.
    """

    name: str
    kind: str
    inputs: int
    outputs: int
    field: FieldType
    residual: float | None
    incompatibilities: tuple[Incompatibility, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """An incompatibility outside the layers.

    Attributes:
        where: its place in the network.
        incompatibility: what is wrong there.
    """

    where: str
    incompatibility: Incompatibility


@dataclass(frozen=True)
class UntiedParameter:
    """A parameter or statistic with one value per channel whose values differ inside regular fields.

    Attributes:
        name: as in the state_dict.
        inequality: the part that differs relative to the whole, as root mean squares; from 0 to 1.
    """

    name: str
    inequality: float


@dataclass(frozen=True)
class Diagnosis:
    """The result of `diagnose`.

    Attributes:
        group: the name of the group.
        size: (H, W) of the images.
        layers: in order of execution.
        findings: pools, resizes, paddings, crops, position tables and unknown causes.
        untied: the parameters that differ inside regular fields, the most unequal first.
        output: "image", or "no place" for an output without position, which can only be invariant.
        output_residual: the current relative residual of the output.
        structure_residual: the residual with symmetric weights; if it is not 0, no weights can make the output
            equivariant.
        fitting_size: if the output cannot be equivariant at this size, the nearest (H, W) at which it can, apart from
            position tables.
        can_be_exact: whether some weights make the output exactly equivariant; None if this is undecided.
        is_exact: whether the output and every layer are equivariant now, up to rounding.
        depends_on_size: whether there are strides, pools, windows of attention, PixelUnshuffle and the like, so that
            other sizes may not fit.

    Example:
        >>> report = diagnose(nn.Conv2d(1, 1, 3, stride=2, padding=1), torch.rand(1, 1, 8, 8))
        >>> report.can_be_exact, report.fitting_size
        (False, (7, 7))
        >>> [(where, incompatibility.kind) for where, incompatibility in report.fatal]
        [('network', 'stride')]
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
    is_exact: bool
    depends_on_size: bool

    @property
    def fatal(self) -> tuple[tuple[str, Incompatibility], ...]:
        """The incompatibilities that forbid an equivariant output: their places, and what they are."""
        of_layers = [
            (layer.name, incompatibility) for layer in self.layers for incompatibility in layer.incompatibilities
        ]
        everything = [*of_layers, *((finding.where, finding.incompatibility) for finding in self.findings)]
        return tuple((where, incompatibility) for where, incompatibility in everything if incompatibility.is_fatal)

    @property
    def verdict(self) -> str:
        """In words, whether the output can be exactly equivariant, or invariant if it has no position."""
        goal = (
            f"exactly {'equivariant' if self.output == 'image' else 'invariant (it has no place)'} under {self.group}"
        )
        at = f"at {by(self.size)}"
        if self.can_be_exact:
            text = f"the output can be {goal} {at}: nothing in the structure forbids it"
            text += ", but other sizes may not fit" if self.depends_on_size else ""
            if self.is_exact:
                return f"{text}; it is now, and so is every layer: there is nothing to penalise"
            limited = sum(any(o.kind in FIELD_LIMITS for o in layer.incompatibilities) for layer in self.layers)
            of = f" (only with trivial fields, so symmetric kernels, in {limited} of {len(self.layers)} layers)"
            return text + (of if limited else "")
        if self.can_be_exact is None:
            text = f"undecided whether the output can be {goal}: {at} something unknown depends on place"
        else:
            kinds = dict.fromkeys(incompatibility.kind for _, incompatibility in self.fatal)
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
    """Measure how equivariant a network is at each layer, what prevents it, and whether its output can be at all.

    The residuals are those of `equivariance_error`. Layers that `equivariance_error` leaves out because of their
    channels are compared as trivial fields. The output is also measured with weights that are random except for the
    symmetry of the group. Then it has a residual only if the structure forbids equivariance, and incompatibilities that
    can be the cause are called fatal.

    Args:
        network: returns ``(B, C, H, W)``, or ``(B, K)`` without position. It is a module or the module of an exported
            program. It is measured in evaluation mode; afterwards its modes are restored.
        images: ``(B, C, H, W)``, or a tuple of all inputs of the network; those with four axes are transformed. A few
            small images are enough.
        group: C2, C4 or D4.
        layouts: as of `EquivarianceRegularizer`.

    Raises:
        ValueError: the group is another one, there are no images, or a layout fits no layer; or the network returns
            something else, has less than single precision, or runs other layers for a transformed image.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
        >>> report = diagnose(network, torch.rand(1, 1, 8, 8))
        >>> report.can_be_exact, len(report.fatal), [layer.field for layer in report.layers]
        (True, 0, ['regular', 'trivial'])
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
    """One forward of one image.

    Attributes:
        trace: of the forward.
        operations: those between the layers.
        maps: each call's output as maps, or None.
        output: of the network.
    """

    trace: Trace
    operations: Operations
    maps: list[Tensor | None]
    output: Tensor


class _Examination:
    """The steps of `diagnose`, on a network in evaluation mode."""

    def __init__(
        self, network: nn.Module, group: Group, layouts: Mapping[str, Layout], inputs: tuple[Tensor, ...]
    ) -> None:
        self.network, self.group, self.declared = network, group, layouts
        self.images = list(zip(*(value.split(1) for value in inputs), strict=True))
        self.first = self._run(self.images[0])
        self.calls = self.first.trace.calls
        self.tied = tied_sub_pixels(network, self.first.operations)
        check_patterns("layouts", list(dict.fromkeys(call.name for call in self.calls)), layouts)
        self.spec = specs_of(self.first.trace)
        self.fields = {name: self._field(each) for name, each in self.spec.items()}
        if torch.finfo(self.first.output.dtype).bits < 32:
            raise ValueError(
                f"network: {self.first.output.dtype} is too coarse to tell; diagnose it as network.float()"
            )
        self.tolerance = tolerance(self.first.output.dtype)

    def diagnosis(self) -> Diagnosis:
        sizes, zeros = self._sizes()
        operations = self.first.operations
        inputs = self.images[0]
        sums = operations.table_sums
        structure = try_symmetric_weights(self.network, inputs, self.group, self.calls, sums, self.tied)
        breaks = structure.residual_without_tables > self.tolerance
        layers = [self._layer(name, sizes, breaks, name in zeros) for name in self.spec]
        findings = [*self._spatial_findings(breaks), *self._table_findings(structure), *self._unseen_layers()]
        fatal = [
            incompatibility.kind
            for layer in layers
            for incompatibility in layer.incompatibilities
            if incompatibility.is_fatal
        ]
        fatal += [finding.incompatibility.kind for finding in findings if finding.incompatibility.is_fatal]
        # Rows of patches are others than columns of patches at every size.
        are_bands = self.group.needs_squares and any(len(set(call.patches)) > 1 for call in self.calls)
        is_named = any(kind != "position table" for kind in fatal)
        if (breaks and not is_named) or (structure.residual > self.tolerance and not fatal):
            findings.append(self._unnamed(structure))
        # Windows that are shifted by another number of pixels than half their side fit no size.
        lopsided = any(attention.is_lopsided for attention in operations.attentions.values())
        may_fit = not (are_bands or lopsided)
        can_be_exact: bool | None = False if fatal else None
        if structure.residual <= self.tolerance and not fatal:
            can_be_exact = True
        output_residual = _root_of_mean(sizes[None])
        residuals = [output_residual, *(2.0 if layer.residual is None else layer.residual for layer in layers)]
        return Diagnosis(
            self.group.name,
            (inputs[0].shape[-2], inputs[0].shape[-1]),
            tuple(layers),
            tuple(findings),
            tuple(sorted(self._untied(), key=lambda each: -each.inequality)),
            "image" if self.first.output.ndim == 4 else "no place",
            output_residual,
            structure.residual,
            self._fitting_size(MAX_DISTANCE if is_named else MAX_DISTANCE // 4) if breaks and may_fit else None,
            can_be_exact,
            max(residuals) <= self.tolerance,
            any(window and max(window.stride) > 1 for window in self._windows())
            or any(attention.window for attention in operations.attentions.values())
            or any(call.unshuffled for call in self.calls),
        )

    # ------------------------------------------------------------------------------------------------- running

    def _run(self, inputs: Sequence[Tensor]) -> _Run:
        raw: list[Tensor] = []
        # The outputs are cloned, because later operations may overwrite them in place.
        with (
            tracing(self.network, lambda call, result: raw.append(result.clone())) as trace,
            OperationRecorder(self.network, trace) as watch,
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
        """A call's layout, or None with the reason."""
        pattern = match_patterns([call.name], self.declared).get(call.name)
        try:
            return call_layout(call, 1, self.declared[pattern] if pattern else None), ""
        except ValueError as error:
            return None, str(error)

    def _field(self, spec: LayerSpec) -> FieldType:
        """The field that "auto" gives, but trivial if the channels do not divide into fields."""
        return "trivial" if channels_incompatibility(spec, self.group) else spec.field

    def _sizes(self) -> tuple[dict[str | None, list[float]], set[str]]:
        """The sizes of all images, elements and calls by layer name (None: the output), and the layers that stay 0."""
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

    def _size(self, original: Tensor, copy: Tensor, element: int, field: FieldType) -> float:
        if original.ndim == 2:  # without positions, the element changes nothing
            return relative_mse(copy - original, pair_scale(original, copy)).item()
        if copy.shape != self.group.spatial(original, element).shape:  # no positions correspond
            return 2.0
        residual = field_residual(original, copy, element, field, self.group)
        return relative_mse(residual, pair_scale(original, copy)).item()

    # --------------------------------------------------------------------------------------------------- naming

    def _layer(
        self, name: str, sizes: Mapping[str | None, Sequence[float]], breaks: bool, is_zero: bool
    ) -> LayerDiagnosis:
        spec, calls = self.spec[name], [call for call in self.calls if call.name == name]
        layout, why_none = self._layout(calls[0])
        attention = self.first.operations.attentions.get(name)
        incompatibilities = dict.fromkeys(layer_incompatibilities(spec, calls, layout, attention, self.group, breaks))
        incompatibilities |= dict.fromkeys(self._of_kernel(spec, calls[0]))
        if layout is None:
            hint = "none if it makes the class scores, which can be invariant; else declare its layout"
            incompatibilities[Incompatibility("no place", why_none, hint)] = None
        return LayerDiagnosis(
            name,
            _kind(spec),
            spec.inputs,
            spec.outputs,
            self.fields[name],
            _root_of_mean(sizes[name]) if name in sizes else None,
            tuple(incompatibilities),
            (*_notes(spec, calls, is_zero), *self._notes_on_weight(calls[0])),
        )

    def _of_kernel(self, spec: LayerSpec, call: Call) -> Iterator[Incompatibility]:
        """Report a kernel that is computed from other numbers, if an element changes it in the fields of its layer."""
        kernel, field = self.first.operations.kernels.get(call), self.fields[call.name]
        if kernel is None or self._holds_kernel(call) or kernel_incompatibility(spec, field, self.group):
            return
        if call.is_transposed:
            kernel = kernel.transpose(0, 1)  # (I, O, ...) -> (O, I, ...)
        if kernel.ndim == 2:
            kernel = kernel[:, :, None, None]  # (O, I) -> (O, I, 1, 1)
        residual = kernel_residual(kernel, kernel_input_field(spec, self.group), field, self.group)
        change = kernel_relative_mse(residual, kernel.square().sum()).sqrt().item()
        if change > self.tolerance:
            reason = (
                f"its kernel, which is computed from {call.parameter}, does not keep the fields of its channels now: "
                f"{change:.2g} of its size breaks them"
            )
            hint = f"if it has orientations, {self.group.order} of them; else look whether training keeps the fields"
            yield Incompatibility("kernel", reason, hint)

    def _holds_kernel(self, call: Call) -> bool:
        """Whether a parameter of the network is the weight of a call, or holds it."""
        weight = dict(self.network.named_parameters()).get(call.parameter)
        return weight is None or bool(kernels_in(weight, call))

    def _notes_on_weight(self, call: Call) -> Iterator[str]:
        modules = named_layers(self.network)
        if modules and call.name not in modules:
            yield "no module calls it, so it is measured here and no penalty compares it"
        if not self._holds_kernel(call):
            is_own = call.parameter == f"{call.name}.weight".removeprefix("network.")
            source = "its weight" if is_own else call.parameter
            yield f"its kernel is computed from {source}, so no projection changes it"

    def _spatial_findings(self, breaks: bool) -> Iterator[Finding]:
        seen: dict[Finding, None] = {}
        for operation in self.first.operations.spatial:
            for incompatibility in spatial_incompatibilities(operation, self.group, breaks):
                seen[Finding(_place_of(operation), incompatibility)] = None
        yield from seen

    def _table_findings(self, structure: Structure) -> Iterator[Finding]:
        """Report the position tables.

        A table is fatal if an element changes it and it matters to the output. If its shape does not tell what an
        element does to it, the table is fatal if the output is more equivariant without it.
        """
        rounding = 4 * torch.finfo(self.first.output.dtype).eps
        residual, without = structure.residual, structure.residual_without_tables
        is_to_blame = residual > 2 * without + rounding
        # If the shape shows what an element does to the table, the table only has to change the output to be fatal.
        matters = math.isinf(residual) or abs(residual - without) > 1e-3 * without + rounding
        for table in self.first.operations.tables.values():
            change = table_asymmetry(table.value, self.group)
            shape = tuple(table.value.shape)
            hint = "average it over its turns (and keep it so), or replace it by a depthwise convolution"
            if change is not None and change <= self.tolerance:
                reason = f"{shape}: symmetric now, but nothing keeps it so in training"
                yield Finding(table.name, Incompatibility("position table", reason, hint))
            elif change is not None:
                reason = f"{shape}: a turn changes it by {change:.2g} of its size"
                yield Finding(table.name, Incompatibility("position table", reason, hint, matters))
            else:
                turns = "the output does not turn with it and would without" if is_to_blame else "no harm seen"
                reason = f"{shape}: its shape does not tell which place an entry belongs to; {turns}"
                yield Finding(table.name, Incompatibility("position table", reason, hint, is_to_blame))

    def _unseen_layers(self) -> Iterator[Finding]:
        unseen = [name for name in named_layers(self.network) if name not in self.spec]
        if unseen:
            reason = "not called in this forward, or inside a fused operation (as nn.MultiheadAttention): not measured"
            yield Finding(_listed(unseen), Incompatibility("unseen", reason, "none needed if they are unused"))

    def _unnamed(self, structure: Structure) -> Finding:
        layouts = [self._layout(call)[0] for call in self.calls]
        sums = self.first.operations.table_sums
        before, after = first_break(self.network, self.images[0], self.group, self.calls, sums, self.tied, layouts)
        where = f"between {before or 'the image'} and {after or 'the output'}"
        has = f"has a residual of {structure.residual:.2g}"
        has = "has another shape if the image is turned, or no finite values" if math.isinf(structure.residual) else has
        reason = (
            f"with symmetric weights the output still {has}: "
            "something depends on place, as a crop or a slice on one side, coordinates, a table in a buffer, "
            "sub-pixels moved by hand"
        )
        return Finding(
            where, Incompatibility("unknown", reason, "look at what happens there; try other image sizes", True)
        )

    def _untied(self) -> Iterator[UntiedParameter]:
        """Biases of layers, and parameters and statistics of norms and the like, that differ inside regular fields."""
        last = self.calls[-1].name if self.calls else ""
        parameters = dict(self.network.named_parameters())
        for name, spec in self.spec.items():
            bias = parameters.get("bias" if name == "network" else f"{name}.bias")
            call = next(call for call in self.calls if call.name == name)
            # A bias with fewer values, as one for each field, is no value for each channel.
            if bias is not None and bias.numel() == spec.outputs and self._layout(call)[0]:
                maps = _as_maps(bias, spec.factor)
                if not (spec.factor == 1 and self.fields[name] == "trivial"):
                    yield from self._if_untied(f"{name}.bias".removeprefix("network."), maps, self.fields[name])
        for name, found in self.first.operations.channel_parameters.items():
            maps = _as_maps(found.value, found.factor)
            if maps.shape[1] % self.group.order == 0 and found.after != last:
                yield from self._if_untied(name, maps, "regular")

    def _if_untied(self, name: str, maps: Tensor, field: FieldType) -> Iterator[UntiedParameter]:
        mean = torch.stack([self.group.act(maps, element, field) for element in range(self.group.order)]).mean(dim=0)
        inequality = ((maps - mean).square().mean() / (maps.square().mean() + EPSILON)).sqrt().item()
        if inequality > self.tolerance:
            yield UntiedParameter(name, inequality)

    # ---------------------------------------------------------------------------------------------------- sizes

    def _windows(self) -> list[Window | None]:
        return [*(call.window for call in self.calls), *(each.window for each in self.first.operations.spatial)]

    def _fitting_size(self, distance: int) -> tuple[int, int] | None:
        """The nearest size at which each side, as a square, fits."""
        rows, columns = self.images[0][0].shape[-2:]
        fitting = {side: self._fitting_side(side, distance) for side in (rows, columns)}
        height, width = fitting[rows], fitting[columns]
        return (height, width) if height and width and (height, width) != (rows, columns) else None

    def _fitting_side(self, side: int, distance: int) -> int | None:
        # At least half of the side: on maps of one or two pixels, everything is symmetric.
        sides = range(max(side // 2, side - distance), side + distance + 1)
        nearest = sorted(sides, key=lambda other: abs(other - side))
        return next((other for other in nearest if self._fits(other)), None)

    def _fits(self, side: int) -> bool:
        """Whether the structure allows an equivariant output on squares of this side, apart from position tables."""
        inputs = tuple(_square(value, side, self.images[0][0].shape[-2]) for value in self.images[0])
        sums = self.first.operations.table_sums
        try:
            with tracing(self.network) as trace, OperationRecorder(self.network, trace) as watch:
                self.network(*inputs)
            windows = [(c.window, c.input_shape[-2:], c.output_shape[-2:]) for c in trace.calls]
            windows += [(each.window, each.input_size, each.output_size) for each in watch.seen.spatial]
            if any(window and window.alignment_incompatibility(*sizes) for window, *sizes in windows):
                return False
            found = try_symmetric_weights(self.network, inputs, self.group, trace.calls, sums, self.tied)
        except Exception:  # a network may raise anything at a size for which it is not made
            return False
        return found.residual_without_tables <= self.tolerance


def _as_maps(values: Tensor, factor: int) -> Tensor:
    """The values of single channels as maps, (C) -> (1, C, 1, 1); those of r^2 sub-pixels -> (1, C / r^2, r, r)."""
    maps = values.reshape(1, -1, 1, 1)
    return torch.pixel_shuffle(maps, factor) if factor > 1 else maps


def _square(value: Tensor, side: int, height: int) -> Tensor:
    """An image with `side` in place of `height`, and an input of another size in proportion; others stay the same."""
    if value.ndim != 4:
        return value
    side = side * value.shape[-2] // height
    return value.new_zeros(*value.shape[:2], side, side)


def _kind(spec: LayerSpec) -> str:
    """A layer in a few words."""
    if spec.window is None:
        return "linear"
    window = spec.window
    sizes = {"": window.kernel_size, "stride ": window.stride, "dilation ": window.dilation}
    words = ["transposed conv" if window.is_transposed else "conv"]
    for word, size in sizes.items():
        if not word or size != (1, 1):
            words.append(word + (f"{size[0]}" if word and size[0] == size[1] else f"{size[0]}x{size[1]}"))
    if spec.num_groups > 1:
        words.append("depthwise" if spec.num_groups == spec.inputs else f"{spec.num_groups} groups")
    return " ".join(words)


def _notes(spec: LayerSpec, calls: Sequence[Call], is_zero: bool) -> Iterator[str]:
    if spec.joins_unshuffled:
        r = spec.factor
        yield f"added to maps from PixelUnshuffle({r}), so compared as sub-pixels, too: after PixelShuffle({r})"
    elif spec.factor > 1:
        yield f"compared after PixelShuffle({spec.factor})"
    for rows, columns in dict.fromkeys(call.shift for call in calls if any(call.shift)):
        yield f"compared with its window shift ({abs(rows)}, {abs(columns)}) undone"
    for rows, columns in dict.fromkeys(call.patches for call in calls if call.patches != (1, 1)):
        yield f"runs on {rows}x{columns} patches of each image, which are joined to be compared"
    if spec.reads_unshuffled:
        yield "its input comes from PixelUnshuffle, whose channels are no regular fields"
    if len(calls) > 1:
        yield f"called {len(calls)} times; the residual is of all calls"
    if is_zero:
        yield "all its outputs are 0 on these images, so its residual says nothing"


def _place_of(operation: Spatial) -> str:
    """A pool, resize, padding or crop in words."""
    words = operation.kind
    if words == "pool" and operation.window:
        words = f"{operation.details} {by(operation.window.kernel_size)} stride {operation.window.stride[0]}"
    return f"{words} after {operation.after or 'the input'}"


def _root_of_mean(sizes: Sequence[float]) -> float:
    return math.sqrt(sum(sizes) / len(sizes))


def _listed(names: Sequence[str], most: int = 3) -> str:
    return "; ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
