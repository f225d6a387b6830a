"""Which runs an ablation needs: the candidates of each arm on validation, then every arm with fresh seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.evaluation.arms import Candidate, best
from pipeline.errors import UserError
from pipeline.spaces import WEIGHT, Space, build_space

Outcome = tuple[Mapping[str, Any], float | None, str | None]
"""What was asked for and answered by a trial, its validation score, and why it failed."""

ARM, SEED = "arm", "seed"
NUM_SEEDS = 2**32


@dataclass(frozen=True)
class Point:
    """A combination of an ablation's grid: what is asked for and answered, and what it changes."""

    answers: Mapping[str, Any]
    changes: Mapping[str, Any]

    @property
    def weight(self) -> float:
        """Lambda."""
        return float(self.changes[WEIGHT])


def arms_of(space: Space, origin: str) -> dict[str, list[Point]]:
    """Arm -> its points, in the order of the grid; several are candidates among which validation chooses.

    Raises:
        UserError: it is no grid over the variants of `arm`, a point has no weight, or arms have different numbers of
            candidates.
    """
    if space.search != "grid":
        raise UserError(f"{origin}: search: {space.search}: an ablation takes every combination: use search: grid")
    arms: dict[str, list[Point]] = {}
    for answers in space.grid():
        changes = space.given(answers)
        if ARM not in answers:
            raise UserError(f"{origin}: {ARM}: missing: give it two variants or more, one an arm")
        if SEED in changes:
            raise UserError(f"{origin}: {SEED}: ablate.seeds says how many seeds there are: take it out")
        if WEIGHT not in changes:
            raise UserError(f"{origin}: arm {answers[ARM]}: {WEIGHT} is missing: give it 0, or candidates")
        arms.setdefault(str(answers[ARM]), []).append(Point(answers, changes))
    counts = {arm: len(points) for arm, points in arms.items() if len(points) > 1}
    for arm, points in arms.items():
        if counts and points[0].weight > 0 and len(points) != max(counts.values()):
            most = max(counts, key=lambda name: counts[name])
            raise UserError(
                f"{origin}: arm {arm}: {len(points)} candidates, and {most} has {counts[most]}: give each as many, or "
                "the one with more is favoured"
            )
    return arms


def selection(arms: Mapping[str, Sequence[Point]]) -> list[Mapping[str, Any]]:
    """The points to be tried on validation: the first candidate of every arm, then the second of every arm, ..."""
    most = max(map(len, arms.values()))
    return [
        points[number].answers
        for number in range(most)
        for points in arms.values()
        if len(points) > 1 and number < len(points)
    ]


def candidates(arm: str, points: Sequence[Point], outcomes: Sequence[Outcome]) -> list[Candidate]:
    """What became of an arm's points on validation; none if there was nothing to choose."""
    if len(points) == 1:
        return []
    known = {_name(answers): (score, failure) for answers, score, failure in outcomes}
    return [Candidate(arm, point.weight, *known.get(_name(point.answers), (None, "it never ran"))) for point in points]


def winner(points: Sequence[Point], tried: Sequence[Candidate]) -> Point | None:
    """The point of the best candidate, or the only point; None if no candidate came through."""
    if len(points) == 1:
        return points[0]
    first = best(tried)
    return points[list(tried).index(first)] if first else None


def comparison(
    chosen: Mapping[str, Point], values: dict[str, Any], seed: int, num_seeds: int, origin: str
) -> tuple[Space, list[int]]:
    """(grid of every arm's chosen point and fresh seeds, the seeds): all arms with the first seed, then the next.

    The space is the same for any number of seeds, so that more of them can be added to one study.
    """
    seeds = [(seed + number) % NUM_SEEDS for number in range(1, num_seeds + 1)]
    plain = {
        "search": "grid",
        ARM: {"variants": {arm: dict(point.changes) for arm, point in chosen.items()}},
        SEED: {"distribution": "integer", "low": 0, "high": NUM_SEEDS - 1},
    }
    points = [{ARM: arm, SEED: each} for each in seeds for arm in chosen]
    return build_space("comparison", plain, values, origin, points=points), seeds


def _name(answers: Mapping[str, Any]) -> str:
    return json.dumps(dict(answers), sort_keys=True)
