"""ASHA (Li et al., MLSys 2020): asynchronous successive halving, as pure functions of the trials' numbers and scores.

The published rule compares a trial with the trials that reached a rung before it. Here a trial is compared with the
trials of lower numbers, so that the decisions of a sweep do not depend on the speed of the processes. If the trials
reach a rung in the order of their numbers, both rules are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class RungProgress:
    """The progress of a trial, and the decisions on it so far.

    Attributes:
        scores: (step, score) of its reports before the last step, in ascending order; higher scores are better.
        is_over: whether the trial will report no further score.
        is_compared: False for the control, which is never stopped and never stops another trial.
        passed: number of rungs that the trial has passed.
        stopped_at: step of the report at which the trial was stopped; None if it was not.
        is_waiting: whether the trial has reached the next rung, but the decision needs scores that are still missing.
    """

    scores: Sequence[tuple[int, float]]
    is_over: bool
    is_compared: bool = True
    passed: int = 0
    stopped_at: int | None = None
    is_waiting: bool = False

    @property
    def is_decided(self) -> bool:
        """Whether no further decision will be made."""
        return self.stopped_at is not None or not self.is_compared

    def at(self, rung: int) -> tuple[int, float] | None:
        """The first report at or after a rung."""
        return next(((step, score) for step, score in self.scores if step >= rung), None)


def rungs(grace_steps: int, reduction_factor: int, steps: int) -> list[int]:
    """Steps at which trials are compared: ``grace_steps * reduction_factor ** k``, below the last step."""
    found = []
    while grace_steps < steps:
        found.append(grace_steps)
        grace_steps *= reduction_factor
    return found


def advance(courses: Sequence[RungProgress], number: int, steps: Sequence[int], reduction_factor: int) -> RungProgress:
    """Decides on one trial at every rung that it has reached, as far as the scores of the earlier trials are known.

    Args:
        courses: courses of all trials by number. Those below ``number`` are already decided as far as possible.
        number: number of the trial.
        steps: the rungs, in ascending order.
        reduction_factor: one of this many trials at a rung continues.

    Returns:
        The new course of the trial.
    """
    course = replace(courses[number], is_waiting=False)
    while course.is_compared and course.stopped_at is None and course.passed < len(steps):
        reached = course.at(steps[course.passed])
        if reached is None:
            break
        others: list[float] = []
        for other in courses[:number]:
            score = _score_at(other, course.passed, steps)
            if isinstance(score, str):
                return replace(course, is_waiting=True)
            if score is not None:
                others.append(score)
        if keep(reached[1], others, reduction_factor):
            course = replace(course, passed=course.passed + 1)
        else:
            course = replace(course, stopped_at=reached[0])
    return course


def _score_at(other: RungProgress, index: int, steps: Sequence[int]) -> float | str | None:
    """The score of another trial at a rung; None if it never reaches the rung, "unknown" if it still may."""
    if not other.is_compared:
        return None
    if other.passed < index:  # stopped before, ended before, or not decided there yet
        return None if other.stopped_at is not None or (other.is_over and not other.is_waiting) else "unknown"
    reached = other.at(steps[index])
    if reached is None:
        return None if other.is_over else "unknown"
    return reached[1]


def keep(score: float, others: Sequence[float], reduction_factor: int) -> bool:
    """Whether a trial continues: its score is at least the (1 - 1 / reduction_factor) quantile of the other scores.

    Args:
        score: of the trial at a rung; higher is better. A trial whose score is not finite does not continue.
        others: scores of the earlier trials at this rung. If none is finite, every trial with a finite score continues.
        reduction_factor: one of this many trials continues.
    """
    others = [other for other in others if math.isfinite(other)]
    if not others or not math.isfinite(score):
        return math.isfinite(score)
    # Linear interpolation, as in numpy.quantile.
    ranked = sorted(others)
    position = (len(ranked) - 1) * (1 - 1 / reduction_factor)
    low = int(position)
    high = min(low + 1, len(ranked) - 1)
    cutoff = ranked[low] + (ranked[high] - ranked[low]) * (position - low)
    return score >= cutoff
