"""ASHA (Li et al., MLSys 2020), successive halving, decided by the numbers of trials: pure functions of their scores.

The published rule compares a trial with those that happened to reach a rung before it. Here it is compared with those
of lower numbers, so that what a sweep decides does not depend on which process was faster. Where trials reach a rung in
the order of their numbers, both are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Course:
    """How far a trial has come.

    Attributes:
        scores: (step, score) of its reports before the last step, ascending; higher scores are better.
        is_over: whether no further score will come.
        is_compared: False for the control, which is never stopped and stops nobody.
        passed: how many rungs it was judged at, and went on.
        stopped_at: the step of the report at which it was stopped.
        is_waiting: whether the next rung, which it has reached, cannot be judged yet.
    """

    scores: Sequence[tuple[int, float]]
    is_over: bool
    is_compared: bool = True
    passed: int = 0
    stopped_at: int | None = None
    is_waiting: bool = False

    @property
    def is_decided(self) -> bool:
        """Whether nothing can change any more."""
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


def advance(courses: Sequence[Course], number: int, steps: Sequence[int], reduction_factor: int) -> Course:
    """The course of one trial, judged at as many rungs as it has reached and the trials before it allow.

    Args:
        courses: of all trials by number; those below ``number`` are judged already as far as they can be.
        number: of the trial.
        steps: the rungs, ascending.
        reduction_factor: of as many at a rung, one goes on.
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


def _score_at(other: Course, index: int, steps: Sequence[int]) -> float | str | None:
    """What another trial had at a rung; None if it never comes there, "unknown" if it still may."""
    if not other.is_compared:
        return None
    if other.passed < index:  # stopped before, ended before, or not judged there yet
        return None if other.stopped_at is not None or (other.is_over and not other.is_waiting) else "unknown"
    reached = other.at(steps[index])
    if reached is None:
        return None if other.is_over else "unknown"
    return reached[1]


def keep(score: float, others: Sequence[float], reduction_factor: int) -> bool:
    """Whether a trial goes on: its score is at least the (1 - 1 / reduction_factor) quantile of those before it.

    Args:
        score: at a rung, higher is better; NaN does not go on.
        others: scores at this rung of the trials before it; where none is a number, every trial goes on.
        reduction_factor: of as many, one goes on.
    """
    others = [other for other in others if math.isfinite(other)]
    if not others or not math.isfinite(score):
        return math.isfinite(score)
    # Linear between neighbours, as numpy.quantile has it.
    ranked = sorted(others)
    position = (len(ranked) - 1) * (1 - 1 / reduction_factor)
    low = int(position)
    high = min(low + 1, len(ranked) - 1)
    cutoff = ranked[low] + (ranked[high] - ranked[low]) * (position - low)
    return score >= cutoff
