"""How much each penalised layer counts: the weights w_l, which sum to 1."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, TypedDict

from .layers import check_patterns, match_patterns
from .options import check_choice


class GeometricProfile(TypedDict):
    """``w_l ~ decay^l``, l = 0, 1, ... in order of execution, 0 < decay <= 1: shallower layers count more."""

    profile: Literal["geometric"]
    decay: float


LayerWeights = Literal["uniform"] | GeometricProfile | Mapping[str, float]
"""All alike; a geometric profile; or name patterns with the weight of each."""


def check_layer_weights(names: Collection[str], layer_weights: LayerWeights) -> None:
    """Refuse weights that can fit no layer.

    Raises:
        ValueError: an unknown profile, a decay out of range, a negative weight, a pattern that fits no name.
    """
    if not isinstance(layer_weights, Mapping):
        check_choice("layer_weights", layer_weights, ("uniform",))
    elif "profile" in layer_weights:
        check_choice("layer_weights.profile", layer_weights["profile"], ("geometric",))
        decay = layer_weights.get("decay")
        if not (isinstance(decay, int | float) and 0 < decay <= 1):
            raise ValueError(f"layer_weights.decay: {decay} is not a number above 0 and at most 1")
    else:
        check_patterns("layer_weights", names, layer_weights)
        for pattern, weight in layer_weights.items():
            if not (isinstance(weight, int | float) and 0 <= weight < math.inf):
                raise ValueError(f"layer_weights[{pattern!r}]: {weight} is not a number of at least 0")


def normalised_layer_weights(names: Sequence[str], layer_weights: LayerWeights) -> dict[str, float]:
    """The weight of each layer, summing to 1.

    Args:
        names: the penalised layers in order of execution.
        layer_weights: "uniform" (1 / number of layers), a `GeometricProfile`, or a mapping from name patterns
            to weights: the first pattern that fits a name decides; a name that none fits has weight 0.

    Raises:
        ValueError: no layer has a weight above 0.
    """
    if not isinstance(layer_weights, Mapping):
        raw = dict.fromkeys(names, 1.0)
    elif "profile" in layer_weights:
        raw = {name: float(layer_weights["decay"]) ** index for index, name in enumerate(names)}
    else:
        fitting = match_patterns(names, layer_weights)
        raw = {name: float(layer_weights[fitting[name]]) if name in fitting else 0.0 for name in names}
    total = sum(raw.values())
    if not total > 0:
        raise ValueError(f"layer_weights: none is above 0 for the penalised layers ({', '.join(names)})")
    return {name: weight / total for name, weight in raw.items()}
