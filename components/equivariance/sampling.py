"""Choosing layers at random in each step, so that the mean over the draws is the sum over all layers.

Legend: w_l weights of the layers, m layers a step, pi_l the probability that layer l is among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping


def inclusion_probabilities(weights: Mapping[str, float], num_layers: float) -> dict[str, float]:
    """``pi_l`` proportional to w_l, summing to m, none above 1: layers that would exceed it are always taken.

    A layer of weight 0 has probability 0, every other a positive one. With m at or above the number of layers of
    positive weight all of these have 1.
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
    """Systematic sampling: the layers in whose stretch of ``cumulated pi`` one of the marks 0 + u, 1 + u, ... falls.

    Layer l is taken with probability exactly pi_l if u = `position` is uniform in [0, 1), and about m layers are taken
    in every step, spread over the depth of the network. ``sum_{l taken} (w_l / pi_l) L_l`` is then an unbiased estimate
    of ``sum_l w_l L_l`` (Horvitz and Thompson, *A Generalization of Sampling Without Replacement from a Finite
    Universe*, JASA 1952; Madow, *On the Theory of Systematic Sampling II*, 1949).
    """
    taken, before = [], 0.0
    for name, probability in probabilities.items():
        after = before + probability
        # marks below a point: those at u, u + 1, ... < point; a rounded sum must not lose a certain layer
        if probability >= 1 or _num_marks(after, position) > _num_marks(before, position):
            taken.append(name)
        before = after
    return taken


def _num_marks(point: float, position: float) -> int:
    """How many of ``position, position + 1, ...`` lie below a point."""
    return max(0, math.ceil(point - position))
