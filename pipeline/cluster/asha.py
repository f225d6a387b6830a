"""ASHA (Li et al., MLSys 2020), asynchronous successive halving: two pure functions of what trials have reached."""

from __future__ import annotations

from collections.abc import Sequence


def rungs(grace_steps: int, reduction_factor: int, steps: int) -> list[int]:
    """Steps at which trials are compared: ``grace_steps * reduction_factor ** k``, below the last step."""
    found = []
    while grace_steps < steps:
        found.append(grace_steps)
        grace_steps *= reduction_factor
    return found


def keep(score: float, others: Sequence[float], reduction_factor: int) -> bool:
    """Whether a trial goes on: its score is at least the (1 - 1 / reduction_factor) quantile of those before it.

    Args:
        score: at a rung, higher is better; NaN does not go on.
        others: scores of the trials that were at this rung before; where there are none, every trial goes on.
        reduction_factor: of as many, one goes on.
    """
    if not others:
        return score == score
    # Linear between neighbours, as numpy.quantile has it.
    ranked = sorted(others)
    position = (len(ranked) - 1) * (1 - 1 / reduction_factor)
    low = int(position)
    high = min(low + 1, len(ranked) - 1)
    cutoff = ranked[low] + (ranked[high] - ranked[low]) * (position - low)
    return score >= cutoff
