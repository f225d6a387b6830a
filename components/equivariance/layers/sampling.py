"""Random choice of layers in each step, such that the expected sum over the chosen layers is the sum over all layers.

Legend: w_l the weights of the layers, m the layers per step, pi_l the probability that layer l is among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping


def inclusion_probabilities(weights: Mapping[str, float], num_layers: float) -> dict[str, float]:
    """The inclusion probabilities ``pi_l``: proportional to w_l, at most 1, with sum m.

    A layer whose probability would exceed 1 is taken in every step. A layer of weight 0 has probability 0, every other
    layer a positive one. If m is at least the number of layers of positive weight, all of these have probability 1.
    """
    open_layers = {name: weight for name, weight in weights.items() if weight > 0}
    probabilities = dict.fromkeys(weights, 0.0)
    places = min(num_layers, float(len(open_layers)))
    while open_layers:
        total = sum(open_layers.values())
        certain = [name for name, weight in open_layers.items() if places * weight >= total * (1 - 1e-12)]
        if not certain:
            probabilities |= {name: places * weight / total for name, weight in open_layers.items()}
            break
        for name in certain:
            probabilities[name] = 1.0
            del open_layers[name]
        places -= len(certain)
    return probabilities


def sample_layers(probabilities: Mapping[str, float], position: float) -> list[str]:
    """Systematic sampling: layer l is taken if one of the marks u, 1 + u, ... falls into its interval of the summed pi.

    If u = `position` is uniform in [0, 1), layer l is taken with probability exactly pi_l. About m layers are taken in
    every step, spread over the depth of the network. Then ``sum_{l taken} (w_l / pi_l) L_l`` is an unbiased estimate of
    ``sum_l w_l L_l`` (Horvitz and Thompson, *A Generalization of Sampling Without Replacement from a Finite Universe*,
    JASA 1952; Madow, *On the Theory of Systematic Sampling II*, 1949).
    """
    taken, before = [], 0.0
    for name, probability in probabilities.items():
        after = before + probability
        # The number of marks in an interval is the difference of two counts. A layer of probability 1 must not be lost
        # to the rounding of the sum.
        if probability >= 1 or _num_marks(after, position) > _num_marks(before, position):
            taken.append(name)
        before = after
    return taken


def _num_marks(point: float, position: float) -> int:
    """The number of marks ``position, position + 1, ...`` below a point."""
    return max(0, math.ceil(point - position))
