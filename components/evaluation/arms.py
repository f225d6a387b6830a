"""Control arms that were trained with the same seeds: means, and paired differences with intervals over scenes.

A row is what one run measured on one image under one condition: a mapping with "group", "condition", "image", "scene"
and figures by name. Legend: S seeds, N images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from components.evaluation.statistics import clustered_interval

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Column:
    """What is compared.

    Attributes:
        title: for people.
        group, condition: of the rows; condition None: all of the group.
        figure: by its name in the rows.
        digits, difference_digits: of a mean, and of a difference, that are shown.
    """

    title: str
    group: str
    figure: str
    condition: str | None = None
    digits: int = 2
    difference_digits: int = 3

    def of(self, rows: Rows) -> dict[tuple[str, str], tuple[str, float]]:
        """(condition, image) -> (scene, figure) of the rows that belong here.

        Raises:
            ValueError: none does.
        """
        found = {
            (row["condition"], row["image"]): (row["scene"], float(row[self.figure]))
            for row in rows
            if row["group"] == self.group and self.condition in (None, row["condition"])
        }
        if not found:
            raise ValueError(f"{self.title}: nothing was measured in group {self.group!r}")
        return found


@dataclass(frozen=True)
class Candidate:
    """One weight of an arm that was tried on validation: its score, or why it has none."""

    arm: str
    weight: float
    score: float | None
    failure: str | None = None


@dataclass(frozen=True)
class Arm:
    """What there is of an arm.

    Attributes:
        name: of it.
        weight: that it was compared with; None if no candidate came through.
        candidates: among which it was chosen; none where there was nothing to choose.
        rows: seed -> what a run that came to its end measured.
        failures: seed -> why a run did not.
    """

    name: str
    weight: float | None
    candidates: Sequence[Candidate] = ()
    rows: Mapping[int, Rows] = field(default_factory=dict)
    failures: Mapping[int, str] = field(default_factory=dict)

    @property
    def is_at_edge(self) -> bool:
        """Whether the chosen weight is the smallest or largest candidate, so that one beyond may be better."""
        weights = [candidate.weight for candidate in self.candidates]
        return len(weights) > 1 and self.weight in (min(weights), max(weights))


@dataclass(frozen=True)
class Mean:
    """Over images and seeds. Attributes: the mean of all, and the standard deviation of the seeds' means (S - 1)."""

    mean: float
    seed_deviation: float | None


@dataclass(frozen=True)
class Difference:
    """Between two arms, image by image.

    Attributes:
        mean: over images and seeds.
        low, high: 95 % bootstrap interval in which scenes are drawn, each with all its images of all seeds; None with
            fewer than two scenes. It holds for these seeds.
        by_seed: the mean difference of each seed that both have.
    """

    mean: float
    low: float | None
    high: float | None
    by_seed: Mapping[int, float]

    @property
    def seed_deviation(self) -> float | None:
        """How much another seed changes the mean difference: the standard deviation over seeds (S - 1)."""
        return _deviation(list(self.by_seed.values()))


def best(candidates: Sequence[Candidate]) -> Candidate | None:
    """The first with the highest score on validation; None if all failed."""
    scored = [candidate for candidate in candidates if candidate.score is not None]
    return max(scored, key=lambda candidate: candidate.score or 0.0, default=None)


def mean_of(arm: Arm, column: Column) -> Mean | None:
    """None where no run came to its end."""
    means = [float(np.mean([value for _, value in column.of(rows).values()])) for rows in arm.rows.values()]
    return Mean(float(np.mean(means)), _deviation(means)) if means else None


def difference(arm: Arm, reference: Arm, column: Column) -> Difference | None:
    """Arm minus reference, over the seeds that both have; None if they have none.

    Raises:
        ValueError: two runs measured different images.
    """
    values: list[float] = []
    scenes: list[str] = []
    by_seed = {}
    for seed in sorted(arm.rows.keys() & reference.rows.keys()):
        own, other = column.of(arm.rows[seed]), column.of(reference.rows[seed])
        if own.keys() != other.keys():
            raise ValueError(f"{column.title}: {arm.name} and {reference.name} were measured on different images")
        differences = [own[key][1] - other[key][1] for key in own]
        by_seed[seed] = float(np.mean(differences))
        values += differences
        scenes += [own[key][0] for key in own]
    if not values:
        return None
    interval = clustered_interval(values, scenes)
    return Difference(interval.mean, interval.low, interval.high, by_seed)


def _deviation(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
