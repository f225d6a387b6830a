"""Which layers can be equivariant, in which field, and why others cannot: for training and measurement."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from .geometry import Window
from .groups import ChannelGroup, Field, Group
from .options import check_choice, nearest
from .tracing import LAYER_TYPES, Call, Layer

Layers = Literal["auto"] | Sequence[str] | Mapping[str, Field]
"""All layers; or name patterns (fields as for "auto"); or name patterns with the field of each."""

Comparison = Literal["rotation", "regular", "channel", "projection"]
"""What a penalty compares: see the table of METHOD.md section 3."""

Term = Literal["trivial", "regular", "channel", "projection"]
"""One summand of a layer's penalty: the residual in a field, the channel shift of the layer alone, or its kernel's."""


def named_layers(network: nn.Module) -> dict[str, Layer]:
    """The convolutions and linear layers of a network by name, in order of registration; a lone one is "network".

    A layer registered under several names has its first.
    """
    return {name or "network": module for name, module in network.named_modules() if isinstance(module, LAYER_TYPES)}


def match_patterns(names: Iterable[str], patterns: Iterable[str]) -> dict[str, str]:
    """The first pattern (shell style: ``body.*``) that fits each name; names that none fits are left out."""
    ordered = list(patterns)
    fitting = ((name, next((p for p in ordered if fnmatchcase(name, p)), None)) for name in names)
    return {name: pattern for name, pattern in fitting if pattern is not None}


def check_patterns(option: str, names: Collection[str], patterns: Iterable[str]) -> None:
    """Raise a ValueError for a pattern that fits no name."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"{option}: {pattern!r} fits no convolution or linear layer{nearest(pattern, names)} "
                f"(there are {_shortened(names)})"
            )


def _shortened(names: Collection[str], most: int = 24) -> str:
    """Names in a row; of very many only the first."""
    shown = ", ".join(list(names)[:most]) or "none"
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def requested_fields(names: Collection[str], layers: Layers) -> dict[str, Field | None]:
    """The layers asked for, each with the field asked for, or None for the one that "auto" would give.

    Raises:
        ValueError: an unknown field, a pattern that fits nothing, or a lone string other than "auto".
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
class LayerFacts:
    """What decides on a layer's field, whatever its weights.

    Attributes:
        inputs, outputs: numbers of channels.
        num_groups: of a convolution's channels.
        window: of a convolution.
        factor: r, if its output is laid out for PixelShuffle(r); else 1.
        reads_image: its input is the image, not features.
        writes_image: its output is the image.
        reads_unshuffled: its input comes from PixelUnshuffle.
        has_trivial_input: its input's channels are trivial fields, as where nothing else is declared.
        has_no_place: its output is one vector an image, as class scores are.
    """

    inputs: int
    outputs: int
    num_groups: int = 1
    window: Window | None = None
    factor: int = 1
    reads_image: bool = False
    writes_image: bool = False
    reads_unshuffled: bool = False
    has_trivial_input: bool = False
    has_no_place: bool = False

    @classmethod
    def of(cls, module: Layer) -> LayerFacts:
        """What the module alone tells."""
        if isinstance(module, nn.Linear):
            return cls(module.in_features, module.out_features)
        return cls(module.in_channels, module.out_channels, module.groups, Window.of(module))

    @classmethod
    def of_call(cls, call: Call) -> LayerFacts:
        """What a traced call tells, of layers without a module too."""
        inputs, outputs = call.weight_shape[1] * call.num_groups, call.weight_shape[0]
        if call.window and call.window.is_transposed:
            inputs, outputs = call.weight_shape[0], call.weight_shape[1] * call.num_groups
        return cls(inputs, outputs, call.num_groups, call.window).seen_in(call)

    def seen_in(self, call: Call) -> LayerFacts:
        """With what a traced call adds."""
        return replace(
            self,
            factor=call.sub_pixel or 1,
            reads_image=call.reads_image,
            reads_unshuffled=call.reads_unshuffled,
            has_no_place=len(call.output_shape) == 2,
        )

    @property
    def field(self) -> Field:
        """The automatic field of its output: regular for hidden layers, trivial for the last one before the image."""
        return "trivial" if self.writes_image else "regular"

    @property
    def channels(self) -> int:
        """Channels of the maps that are compared: of the fine grid before PixelShuffle."""
        return self.outputs // self.factor**2


def field_obstacle(facts: LayerFacts, field: Field, group: Group) -> str | None:
    """Why no weights make this layer's output a field of that kind, whatever the image's size; or None."""
    if field == "regular" and facts.channels % group.order:
        after = f" after PixelShuffle({facts.factor})" if facts.factor > 1 else ""
        return f"{facts.channels} output channels{after} do not divide by {group.order} into regular fields"
    return facts.window.obstacle(group.needs_squares) if facts.window else None


def channel_obstacle(facts: LayerFacts, channel_group: ChannelGroup) -> str | None:
    """Why the numbers of channels do not let them be shifted before and after this layer, or None.

    Groups of t must divide input and output channels. The group "all" is the cyclic group C_n on n channels: input and
    output must both have n > 1, or a shift that is the identity on one side is not on the other and equivariance would
    force channels to be equal.
    """
    inputs, outputs = facts.inputs, facts.channels
    if facts.reads_unshuffled:
        return "channel shift: its input comes from PixelUnshuffle, whose channels are no regular fields"
    if channel_group == "all":
        fits, need = inputs == outputs > 1, "be the same number above 1"
    else:
        fits, need = inputs % channel_group == outputs % channel_group == 0, f"divide by {channel_group}"
    return None if fits else f"channel shift: {inputs} input and {outputs} output channels must {need}"


def shift_obstacle(facts: LayerFacts, asked: Field | None, channel_group: ChannelGroup) -> str | None:
    """Why a layer is not penalised by shifting its channels, or None."""
    if asked == "trivial":
        return "channel shift: its output was declared a trivial field"
    if obstacle := channel_obstacle(facts, channel_group):
        return obstacle
    if asked is None and (facts.reads_image or facts.writes_image):
        return "channel shift: it reads or writes the image, whose channels are trivial fields"
    return None


def kernel_obstacle(facts: LayerFacts, field: Field, group: Group) -> str | None:
    """Why a layer's kernel cannot be compared with its average over the group, or None."""
    if not group.is_on_grid:
        return f"projection: kernels cannot be turned exactly by {group.name}"
    if facts.has_no_place:
        return "projection: its output has no place in the image, so that its kernel keeps no field"
    if facts.factor > 1 or facts.reads_unshuffled:
        return "projection: its channels are sub-pixels of a finer grid, which a turn of the kernel does not describe"
    if facts.num_groups > 1:
        if facts.window and facts.window.is_transposed:
            return f"projection: the kernel of a transposed convolution with {facts.num_groups} groups is not compared"
        inputs, outputs = facts.inputs // facts.num_groups, facts.outputs // facts.num_groups
        has_regular_input = not (facts.reads_image or facts.has_trivial_input) and facts.inputs % group.order == 0
        cuts = (has_regular_input and inputs % group.order) or (field == "regular" and outputs % group.order)
        is_depthwise = inputs == outputs == 1 and not facts.reads_image  # each channel to itself: fields stay whole
        if cuts and not is_depthwise:
            return f"projection: {facts.num_groups} groups of channels cut through regular fields"
    return field_obstacle(facts, field, group)


def kernel_input_field(facts: LayerFacts, group: Group) -> Field:
    """The field along the input axis of a layer's kernel: trivial for the image and for depthwise kernels."""
    inputs = facts.inputs // facts.num_groups
    is_trivial = facts.reads_image or facts.has_trivial_input or inputs % group.order
    return "trivial" if is_trivial else "regular"


@dataclass(frozen=True)
class LayerPlan:
    """The terms each layer is penalised with, and why others are not: both by layer name."""

    terms: dict[str, tuple[Term, ...]]
    skipped: dict[str, str]


def plan_layers(
    layers: Mapping[str, LayerFacts],
    requested: Mapping[str, Field | None],
    comparisons: Sequence[Comparison],
    channel_group: ChannelGroup,
    group: Group,
) -> LayerPlan:
    """Decide what is compared at each requested layer."""
    terms: dict[str, tuple[Term, ...]] = {}
    skipped: dict[str, str] = {}
    for name, asked in requested.items():
        facts = layers[name]
        field = asked or facts.field
        possible: list[Term] = []
        obstacles: list[str] = []
        for comparison in comparisons:
            term: Term
            if comparison == "channel":
                term, obstacle = "channel", shift_obstacle(facts, asked, channel_group)
            elif comparison == "projection":
                term, obstacle = "projection", kernel_obstacle(facts, field, group)
            else:
                own: Field = "trivial" if comparison == "rotation" else field
                term, obstacle = own, field_obstacle(facts, own, group)
            if obstacle is None:
                possible.append(term)
            else:
                obstacles.append(obstacle)
        if possible:
            terms[name] = tuple(possible)
        if obstacles:
            skipped[name] = "; ".join(obstacles)
    return LayerPlan(terms, skipped)
