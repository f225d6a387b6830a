"""The weights w_l of the penalised layers, which sum to 1."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, TypedDict

from ..options import check_choice
from .spec import check_patterns, match_patterns


class GeometricProfile(TypedDict):
    """Layer weights ``w_l ~ decay^l`` for l = 0, 1, ... in order of execution: shallower layers have larger weights.

    Attributes:
        profile: "geometric".
        decay: above 0 and at most 1.

    Example:
        >>> from torch import nn
        >>> from components.equivariance import EquivarianceRegularizer
        >>> profile = GeometricProfile(profile="geometric", decay=0.5)
        >>> network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1))
        >>> EquivarianceRegularizer(network, layer_weights=profile).skipped
        {}
    """

    profile: Literal["geometric"]
    decay: float


LayerWeights = Literal["uniform"] | GeometricProfile | Mapping[str, float]
"""The same weight for all layers, a geometric profile, or a weight for each name pattern."""


def check_layer_weights(names: Collection[str], layer_weights: LayerWeights) -> None:
    """Raise an error for layer weights that fit no layer.

    Raises:
        ValueError: the profile is unknown, the decay is out of range, a weight is negative or not finite, or a pattern
            matches no name.
    """
    if not isinstance(layer_weights, Mapping):
        check_choice("layer_weights", layer_weights, ("uniform",))
    elif "profile" in layer_weights:
        profile: Any = layer_weights["profile"]
        check_choice("layer_weights.profile", profile, ("uniform", "geometric"))
        if profile == "uniform":
            return
        decay = layer_weights.get("decay")
        if not (isinstance(decay, int | float) and 0 < decay <= 1):
            raise ValueError(f"layer_weights.decay: {decay} is not a number above 0 and at most 1")
    else:
        check_patterns("layer_weights", names, layer_weights)
        for pattern, weight in layer_weights.items():
            if not (isinstance(weight, int | float) and 0 <= weight < math.inf):
                raise ValueError(f"layer_weights[{pattern!r}]: {weight} is not a number of at least 0")


def normalised_layer_weights(names: Sequence[str], layer_weights: LayerWeights) -> dict[str, float]:
    """The weight of each layer; the weights sum to 1.

    Args:
        names: the penalised layers in order of execution.
        layer_weights: "uniform" (1 / number of layers), a `GeometricProfile`, or a mapping from name patterns to
            weights. The first pattern that matches a name decides. A name that no pattern matches has weight 0.

    Raises:
        ValueError: no layer has a weight above 0.
    """
    if not isinstance(layer_weights, Mapping) or layer_weights.get("profile") == "uniform":
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
