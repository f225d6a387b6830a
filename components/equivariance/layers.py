"""Which layers can be equivariant, in which field, and why others cannot: for training and measurement."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from .geometry import Convolution, window_obstacle
from .groups import GROUP_ORDER, ChannelGroup, Field
from .options import check_choice, nearest

Layers = Literal["auto"] | Sequence[str] | Mapping[str, Field]
"""All layers; or name patterns (fields as for "auto"); or name patterns with the field of each."""

Comparison = Literal["rotation", "regular", "channel"]
"""What a penalty compares: see the table of METHOD.md section 3."""

Term = Literal["trivial", "regular", "channel"]
"""One summand of a layer's penalty: the residual in a field, or the channel shift of the layer alone."""


def convolutions(network: nn.Module) -> dict[str, Convolution]:
    """The convolutions of a network by name, in order of registration; a lone convolution is "network"."""
    return {
        name or "network": module
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
    }


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
                f"{option}: {pattern!r} fits no convolution{nearest(pattern, names)} "
                f"(there are {', '.join(names) or 'none'})"
            )


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
class ImageLayers:
    """The layers that read and write the image: first and last in order of execution; None if not known."""

    first: str | None = None
    last: str | None = None


def automatic_field(name: str, last: str | None) -> Field:
    """Regular for hidden layers; trivial for the last one before the image."""
    return "trivial" if name == last else "regular"


def field_obstacle(module: Convolution, field: Field) -> str | None:
    """Why no weights make this layer's output a field of that kind, whatever the image's size; or None."""
    if field == "regular" and module.out_channels % GROUP_ORDER:
        return f"{module.out_channels} output channels do not divide by {GROUP_ORDER} into regular fields"
    return window_obstacle(module)


def channel_obstacle(module: Convolution, channel_group: ChannelGroup) -> str | None:
    """Why the numbers of channels do not let them be shifted before and after this layer, or None.

    Groups of t must divide input and output channels. The group "all" is the cyclic group C_n on n channels:
    input and output must both have n > 1, or a shift that is the identity on one side is not on the other and
    equivariance would force channels to be equal.
    """
    inputs, outputs = module.in_channels, module.out_channels
    if channel_group == "all":
        fits, need = inputs == outputs > 1, "be the same number above 1"
    else:
        fits, need = inputs % channel_group == outputs % channel_group == 0, f"divide by {channel_group}"
    return None if fits else f"channel shift: {inputs} input and {outputs} output channels must {need}"


def _shift_obstacle(
    name: str,
    module: Convolution,
    asked: Field | None,
    channel_group: ChannelGroup,
    image_layers: ImageLayers,
) -> str | None:
    """Why a layer is not penalised by shifting its channels, or None."""
    if asked == "trivial":
        return "channel shift: its output was declared a trivial field"
    if obstacle := channel_obstacle(module, channel_group):
        return obstacle
    if asked is None and name in (image_layers.first, image_layers.last):
        return "channel shift: it reads or writes the image, whose channels are trivial fields"
    return None


@dataclass(frozen=True)
class LayerPlan:
    """The terms each layer is penalised with, and why others are not: both by layer name."""

    terms: dict[str, tuple[Term, ...]]
    skipped: dict[str, str]


def plan_layers(
    modules: Mapping[str, Convolution],
    requested: Mapping[str, Field | None],
    comparisons: Sequence[Comparison],
    channel_group: ChannelGroup,
    image_layers: ImageLayers,
) -> LayerPlan:
    """Decide what is compared at each requested layer."""
    terms: dict[str, tuple[Term, ...]] = {}
    skipped: dict[str, str] = {}
    for name, asked in requested.items():
        module = modules[name]
        possible: list[Term] = []
        obstacles: list[str] = []
        for comparison in comparisons:
            if comparison == "channel":
                term: Term = "channel"
                obstacle = _shift_obstacle(name, module, asked, channel_group, image_layers)
            else:
                field = "trivial" if comparison == "rotation" else asked or automatic_field(name, image_layers.last)
                term, obstacle = field, field_obstacle(module, field)
            if obstacle is None:
                possible.append(term)
            else:
                obstacles.append(obstacle)
        if possible:
            terms[name] = tuple(possible)
        if obstacles:
            skipped[name] = "; ".join(obstacles)
    return LayerPlan(terms, skipped)
