"""Plans the runs of an ablation: the candidates of each arm on validation, then every arm with fresh seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.evaluation.ablation.arms import Candidate, best
from pipeline.config.schema import Params
from pipeline.errors import UserError
from pipeline.search_space.space import WEIGHT, Space, build_space

Outcome = tuple[Mapping[str, Any], float | None, str | None]
"""(choices of a trial, its validation score, the reason for its failure); the score is None if the trial failed."""

ARM, SEED = "arm", "seed"
SEED_LIMIT = 2**32


@dataclass(frozen=True)
class Point:
    """A combination of the grid of an ablation.

    Attributes:
        choices: name of each parameter -> chosen value.
        changes: dotted key of params -> value that the combination sets.
    """

    choices: Mapping[str, Any]
    changes: Mapping[str, Any]

    @property
    def weight(self) -> float:
        """The weight lambda of the penalty."""
        return float(self.changes[WEIGHT])


def arms_of(space: Space, origin: str) -> dict[str, list[Point]]:
    """Maps each arm to its points, in the order of the grid.

    If an arm has several points, they are candidates, and the validation score chooses one of them.

    Raises:
        UserError: the space is not a grid over variants of ``arm``, it varies the seed, a point has no weight, or the
            arms with a penalty have different numbers of candidates.
    """
    if space.search != "grid":
        raise UserError(f"{origin}: search: {space.search}: an ablation takes every combination: use search: grid")
    arms: dict[str, list[Point]] = {}
    for choices in space.grid():
        changes = space.given(choices)
        if ARM not in choices:
            raise UserError(f"{origin}: {ARM}: missing: define it with two variants or more, one for each arm")
        if SEED in changes:
            raise UserError(f"{origin}: {SEED}: remove it from the space: ablate.seeds sets the number of seeds")
        if WEIGHT not in changes:
            raise UserError(f"{origin}: arm {choices[ARM]}: {WEIGHT} is missing: set it to 0, or list candidates")
        arms.setdefault(str(choices[ARM]), []).append(Point(choices, changes))
    counts = {arm: len(points) for arm, points in arms.items() if len(points) > 1}
    for arm, points in arms.items():
        if counts and points[0].weight > 0 and len(points) != max(counts.values()):
            most = max(counts, key=lambda name: counts[name])
            raise UserError(
                f"{origin}: arm {arm}: {len(points)} candidates, and {most} has {counts[most]}: give every arm the "
                "same number of candidates; an arm with more has an advantage"
            )
    return arms


def points_to_try(arms: Mapping[str, Sequence[Point]]) -> list[Mapping[str, Any]]:
    """Returns the choices of all candidates: the first of every arm that has several, then the second of each, etc."""
    most = max(map(len, arms.values()))
    return [
        points[number].choices
        for number in range(most)
        for points in arms.values()
        if len(points) > 1 and number < len(points)
    ]


def candidate_results(arm: str, points: Sequence[Point], outcomes: Sequence[Outcome]) -> list[Candidate]:
    """Returns the validation results of an arm's points; none if the arm has a single point.

    Args:
        arm: name of the arm.
        points: its points.
        outcomes: outcomes of all trials.
    """
    if len(points) == 1:
        return []
    known = {_point_key(choices): (score, failure) for choices, score, failure in outcomes}
    return [
        Candidate(arm, point.weight, *known.get(_point_key(point.choices), (None, "it never ran"))) for point in points
    ]


def winner(points: Sequence[Point], tried: Sequence[Candidate]) -> Point | None:
    """Returns the point of the best candidate, or the only point; None if no candidate finished."""
    if len(points) == 1:
        return points[0]
    first = best(tried)
    return points[list(tried).index(first)] if first else None


def comparison_space(
    chosen: Mapping[str, Point], params: Params, num_seeds: int, origin: str
) -> tuple[Space, list[int]]:
    """Builds the grid of the second stage: each arm's chosen point with each fresh seed.

    All arms are run with the first seed, then with the next one. The space does not depend on the number of seeds, so
    that seeds can be added to the same study later.

    Args:
        chosen: arm -> chosen point.
        params: checked params.
        num_seeds: number of fresh seeds; they are the integers after ``seed`` of the params, modulo 2^32.
        origin: origin of the space, for messages.

    Returns:
        (the grid, the seeds).
    """
    seeds = [(params.seed + number) % SEED_LIMIT for number in range(1, num_seeds + 1)]
    plain = {
        "search": "grid",
        ARM: {"variants": {arm: dict(point.changes) for arm, point in chosen.items()}},
        SEED: {"distribution": "integer", "low": 0, "high": SEED_LIMIT - 1},
    }
    points = [{ARM: arm, SEED: each} for each in seeds for arm in chosen]
    return build_space("comparison", plain, params, origin, points=points), seeds


def _point_key(choices: Mapping[str, Any]) -> str:
    return json.dumps(dict(choices), sort_keys=True)
