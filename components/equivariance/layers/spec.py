"""Which layers can be equivariant and in which field, and why others cannot; used for training and measurement."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from ..groups import ChannelGroup, FieldType, Group
from ..options import check_choice, nearest
from .grid import Window
from .tracing import LAYER_TYPES, Call, Layer, Unshuffled

Layers = Literal["auto"] | Sequence[str] | Mapping[str, FieldType]
"""All layers; or name patterns (with the fields of "auto"); or name patterns with the field of each."""

Comparison = Literal["rotation", "regular", "channel", "projection"]
"""What a penalty compares; see the table in docs/explanation/method.md, "Penalties"."""

Term = Literal["trivial", "regular", "channel", "projection"]
"""One summand of a layer's penalty: the residual in a field, of the layer's channel shift, or of its kernel."""


def field_term(terms: Iterable[Term]) -> FieldType | None:
    """The term that compares a layer's outputs in a field, or None if there is none."""
    return next((term for term in terms if term in ("trivial", "regular")), None)


def named_layers(network: nn.Module) -> dict[str, Layer]:
    """The convolutions and linear layers of a network by name, in order of registration.

    If the network itself is such a layer, its name is "network". A layer that is registered under several names has
    the first one.
    """
    return {name or "network": module for name, module in network.named_modules() if isinstance(module, LAYER_TYPES)}


def match_patterns(names: Iterable[str], patterns: Iterable[str]) -> dict[str, str]:
    """The first pattern (shell style: ``body.*``) that matches each name; names without a match are left out."""
    ordered = list(patterns)
    fitting = ((name, next((p for p in ordered if fnmatchcase(name, p)), None)) for name in names)
    return {name: pattern for name, pattern in fitting if pattern is not None}


def check_patterns(option: str, names: Collection[str], patterns: Iterable[str]) -> None:
    """Raise a ValueError for a pattern that matches no name.

    Args:
        option: the name of the option, for the message.
        names: the names of the layers.
        patterns: the patterns to check.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"{option}: {pattern!r} fits no convolution or linear layer{nearest(pattern, names)} "
                f"(there are {_shortened(names)})"
            )


def _shortened(names: Collection[str], most: int = 24) -> str:
    """A list of names as text; if there are more than `most`, only the first ones."""
    shown = ", ".join(list(names)[:most]) or "none"
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def requested_fields(names: Collection[str], layers: Layers) -> dict[str, FieldType | None]:
    """The requested layers, each with its requested field, or None for the automatic field.

    Raises:
        ValueError: a field is unknown, a pattern matches no name, or `layers` is a string other than "auto".
    """
    if layers == "auto":
        return dict.fromkeys(names, None)
    if isinstance(layers, str):
        raise ValueError(f"layers: {layers!r} is neither 'auto' nor a list of name patterns; use [{layers!r}]")
    check_patterns("layers", names, layers)
    fitting = match_patterns(names, layers)
    if not isinstance(layers, Mapping):
        return dict.fromkeys(fitting, None)
    for pattern, field in layers.items():
        check_choice(f"layers[{pattern!r}]", field, ("trivial", "regular"))
    return {name: layers[pattern] for name, pattern in fitting.items()}


@dataclass(frozen=True)
class LayerSpec:
    """The properties of a layer that decide on its field, whatever its weights.

    Attributes:
        inputs: the number of input channels.
        outputs: the number of output channels.
        num_groups: the number of channel groups of a convolution.
        window: of a convolution.
        factor: r, if its output consists of the r^2 sub-pixels of finer maps, as before PixelShuffle(r); else 1.
        joins_unshuffled: whether its output is added to what PixelUnshuffle gave.
        reads_image: whether its input is the image, not features.
        writes_image: whether its output is the image.
        unshuffled: its input channels that come from PixelUnshuffle.
        has_trivial_input: whether its input channels are trivial fields, because only trivial fields are declared.
        has_no_place: whether its output is one vector for each image, as class scores are.
        cuts: positions among its output channels at which they are sliced, split or joined with others.
        input_cuts: the same of its input channels.
        splits: those of the cuts at which its output is split into parts, as into the halves of a gate or the
            groups of a norm.
    """

    inputs: int
    outputs: int
    num_groups: int = 1
    window: Window | None = None
    factor: int = 1
    joins_unshuffled: bool = False
    reads_image: bool = False
    writes_image: bool = False
    unshuffled: tuple[Unshuffled, ...] = ()
    has_trivial_input: bool = False
    has_no_place: bool = False
    cuts: tuple[int, ...] = ()
    input_cuts: tuple[int, ...] = ()
    splits: tuple[int, ...] = ()

    @classmethod
    def of(cls, module: Layer) -> LayerSpec:
        """The spec that follows from the module alone."""
        if isinstance(module, nn.Linear):
            return cls(module.in_features, module.out_features)
        return cls(module.in_channels, module.out_channels, module.groups, Window.of(module))

    @classmethod
    def of_calls(cls, *calls: Call) -> LayerSpec:
        """The spec that follows from the traced calls of one layer, in order; also for layers without a module."""
        call = calls[-1]
        inputs, outputs = call.weight_shape[1] * call.num_groups, call.weight_shape[0]
        if call.window and call.window.is_transposed:
            inputs, outputs = call.weight_shape[0], call.weight_shape[1] * call.num_groups
        return cls(inputs, outputs, call.num_groups, call.window).seen_in(*calls)

    def seen_in(self, *calls: Call) -> LayerSpec:
        """This spec with the properties that only the traced calls of its layer show, in order.

        A layer that is called several times reads the image if any call does: a recurrent network gives it the image
        together with what it made of it before.
        """
        call = calls[-1]
        return replace(
            self,
            factor=call.sub_pixel or 1,
            joins_unshuffled=call.joins_unshuffled,
            reads_image=any(each.reads_image for each in calls),
            unshuffled=call.unshuffled,
            has_no_place=len(call.output_shape) == 2,
            cuts=_united(each.cuts for each in calls),
            splits=_united(each.splits for each in calls),
            input_cuts=_united(
                cuts for each in calls for cuts in (each.input_cuts, *(source.cuts for source in each.sources))
            ),
        )

    @property
    def reads_unshuffled(self) -> bool:
        """Whether its input, or a part of it, comes from PixelUnshuffle."""
        return bool(self.unshuffled)

    @property
    def field(self) -> FieldType:
        """The automatic field of the output: regular for hidden layers, trivial for the last one before the image."""
        return "trivial" if self.writes_image else "regular"

    @property
    def channels(self) -> int:
        """The number of channels of the compared maps; before PixelShuffle, those of the fine grid."""
        return self.outputs // self.factor**2


def _united(cuts: Iterable[Iterable[int]]) -> tuple[int, ...]:
    return tuple(sorted({cut for each in cuts for cut in each}))


def through_fields(cuts: Iterable[int], group: Group) -> list[int]:
    """Those of the positions among channels that lie within a regular field."""
    return [cut for cut in cuts if cut % group.order]


def channels_incompatibility(spec: LayerSpec, group: Group) -> str | None:
    """Why the output of this layer cannot be a regular field, because of its channels; or None.

    Parts into which it is split, as the halves of a gate, must be whole fields: the gate multiplies channel by channel.

    Args:
        spec: of the layer.
        group: the group.
    """
    if spec.channels % group.order:
        after = f" after PixelShuffle({spec.factor})" if spec.factor > 1 else ""
        return f"{spec.channels} output channels{after} do not divide by {group.order} into regular fields"
    if inside := [place for place in spec.splits if place % (group.order * spec.factor**2)]:
        places = " and ".join(map(str, inside)) if len(inside) < 4 else f"{inside[0]}, {inside[1]} and so on"
        return f"{spec.outputs} output channels are split at {places}, inside regular fields of {group.order}"
    return None


def field_incompatibility(spec: LayerSpec, field: FieldType, group: Group) -> str | None:
    """Why no weights can make the output of this layer a field of this type, at any image size; or None.

    Args:
        spec: of the layer.
        field: "trivial" or "regular".
        group: the group.
    """
    if field == "regular" and (reason := channels_incompatibility(spec, group)):
        return reason
    return spec.window.incompatibility(group.needs_squares) if spec.window else None


def channel_incompatibility(spec: LayerSpec, channel_group: ChannelGroup) -> str | None:
    """Why channels cannot be shifted both before and after this layer, because of their numbers; or None.

    With groups of t channels, t must divide the numbers of input and output channels. "all" is the cyclic group C_n on
    n channels: the numbers of input and output channels must be the same n > 1. Otherwise some shift is the identity on
    one side only, and equivariance would force channels to be equal.
    """
    inputs, outputs = spec.inputs, spec.channels
    if spec.reads_unshuffled:
        return "channel shift: its input comes from PixelUnshuffle, whose channels are no regular fields"
    if channel_group == "all":
        fits, need = inputs == outputs > 1, "be the same number above 1"
    else:
        fits, need = inputs % channel_group == outputs % channel_group == 0, f"divide by {channel_group}"
    return None if fits else f"channel shift: {inputs} input and {outputs} output channels must {need}"


def shift_incompatibility(spec: LayerSpec, asked: FieldType | None, channel_group: ChannelGroup) -> str | None:
    """Why the penalty "channel" does not apply to a layer, or None.

    Args:
        spec: of the layer.
        asked: the requested field, or None for the automatic one.
        channel_group: how many channels are shifted among each other.
    """
    if asked == "trivial":
        return "channel shift: its output was declared a trivial field"
    if incompatibility := channel_incompatibility(spec, channel_group):
        return incompatibility
    if asked is None and (spec.reads_image or spec.writes_image):
        return "channel shift: it reads or writes the image, whose channels are trivial fields"
    return None


def kernel_incompatibility(spec: LayerSpec, field: FieldType, group: Group) -> str | None:
    """Why the kernel of a layer cannot be compared with its average over the group, or None.

    Args:
        spec: of the layer.
        field: of its output.
        group: the group.
    """
    if not group.is_on_grid:
        return f"projection: kernels cannot be turned exactly by {group.name}"
    if spec.has_no_place:
        return "projection: its output has no place in the image, so that its kernel keeps no field"
    if spec.factor > 1 or spec.reads_unshuffled:
        return "projection: its channels are sub-pixels of a finer grid, which a turn of the kernel does not describe"
    if spec.num_groups > 1:
        if spec.window and spec.window.is_transposed:
            return f"projection: the kernel of a transposed convolution with {spec.num_groups} groups is not compared"
        inputs, outputs = spec.inputs // spec.num_groups, spec.outputs // spec.num_groups
        has_regular_input = not (spec.reads_image or spec.has_trivial_input) and spec.inputs % group.order == 0
        cuts = (has_regular_input and inputs % group.order) or (field == "regular" and outputs % group.order)
        is_depthwise = inputs == outputs == 1 and not spec.reads_image  # no channel is mixed with another
        if cuts and not is_depthwise:
            return f"projection: {spec.num_groups} groups of channels cut through regular fields"
    return field_incompatibility(spec, field, group)


def kernel_input_field(spec: LayerSpec, group: Group) -> FieldType:
    """The field of the kernel's input axis: trivial for the image and for depthwise kernels."""
    inputs = spec.inputs // spec.num_groups
    is_trivial = spec.reads_image or spec.has_trivial_input or inputs % group.order
    return "trivial" if is_trivial else "regular"


@dataclass(frozen=True)
class LayerPlan:
    """What is compared at each layer.

    Attributes:
        terms: layer name -> the terms of its penalty.
        skipped: layer name -> why other terms do not apply.
    """

    terms: dict[str, tuple[Term, ...]]
    skipped: dict[str, str]


def plan_layers(
    layers: Mapping[str, LayerSpec],
    requested: Mapping[str, FieldType | None],
    comparisons: Sequence[Comparison],
    channel_group: ChannelGroup,
    group: Group,
) -> LayerPlan:
    """Decide what is compared at each requested layer.

    Args:
        layers: the specs by layer name.
        requested: the requested layers, each with its field or None for the automatic one.
        comparisons: what the penalty compares.
        channel_group: how many channels the penalty "channel" shifts among each other.
        group: the group.
    """
    terms: dict[str, tuple[Term, ...]] = {}
    skipped: dict[str, str] = {}
    for name, asked in requested.items():
        spec = layers[name]
        field = asked or spec.field
        possible: list[Term] = []
        incompatibilities: list[str] = []
        for comparison in comparisons:
            term: Term
            if comparison == "channel":
                term, incompatibility = "channel", shift_incompatibility(spec, asked, channel_group)
            elif comparison == "projection":
                term, incompatibility = "projection", kernel_incompatibility(spec, field, group)
            else:
                own: FieldType = "trivial" if comparison == "rotation" else field
                term, incompatibility = own, field_incompatibility(spec, own, group)
            if incompatibility is None:
                possible.append(term)
            else:
                incompatibilities.append(incompatibility)
        if possible:
            terms[name] = tuple(possible)
        if incompatibilities:
            skipped[name] = "; ".join(incompatibilities)
    return LayerPlan(terms, skipped)
