"""Control arms that were trained with the same seeds: means, and paired differences with intervals over scenes.

A row is the measurement of one run on one image under one condition. It is a mapping with "group", "condition",
"image", "scene" and the metrics by name. Legend: S seeds, N images.
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
    """A metric that is compared, under given conditions.

    Attributes:
        title: title of the column.
        group: group of the rows.
        figure: name of the metric in the rows.
        condition: condition of the rows; None selects the whole group.
        digits: number of decimals of a mean.
        difference_digits: number of decimals of a difference.
    """

    title: str
    group: str
    figure: str
    condition: str | None = None
    digits: int = 2
    difference_digits: int = 3

    def of(self, rows: Rows) -> dict[tuple[str, str], tuple[str, float]]:
        """Return (condition, image) -> (scene, value) of the rows of this column.

        Raises:
            ValueError: no row belongs to this column.
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
    """One weight of an arm that was tried on validation.

    Attributes:
        arm: name of the arm.
        weight: the weight.
        score: validation score; None if the run failed.
        failure: reason of the failure; None if the run completed.
    """

    arm: str
    weight: float
    score: float | None
    failure: str | None = None


@dataclass(frozen=True)
class Arm:
    """An arm with its results.

    Attributes:
        name: name of the arm.
        weight: the chosen weight, with which the arm is compared; None if all candidates failed.
        candidates: the candidates for the weight; empty if there was nothing to choose.
        rows: seed -> rows of a completed run.
        failures: seed -> reason why a run did not complete.
    """

    name: str
    weight: float | None
    candidates: Sequence[Candidate] = ()
    rows: Mapping[int, Rows] = field(default_factory=dict)
    failures: Mapping[int, str] = field(default_factory=dict)

    @property
    def is_at_edge(self) -> bool:
        """Whether the chosen weight is the smallest or largest candidate; a weight beyond it may then be better."""
        weights = [candidate.weight for candidate in self.candidates]
        return len(weights) > 1 and self.weight in (min(weights), max(weights))


@dataclass(frozen=True)
class Mean:
    """A mean over images and seeds.

    Attributes:
        mean: mean over all images and seeds.
        seed_deviation: standard deviation of the means of the seeds (S - 1 degrees of freedom); None for one seed.
    """

    mean: float
    seed_deviation: float | None


@dataclass(frozen=True)
class Difference:
    """The paired difference between two arms, image by image.

    Attributes:
        mean: mean over images and seeds.
        low: lower end of the 95 % bootstrap interval. Scenes are drawn, each with all its images of all seeds. The
            interval is valid for these seeds. It is None with fewer than two scenes.
        high: upper end of this interval.
        by_seed: mean difference of each seed that both arms have.
    """

    mean: float
    low: float | None
    high: float | None
    by_seed: Mapping[int, float]

    @property
    def seed_deviation(self) -> float | None:
        """Standard deviation of the mean difference over seeds (S - 1): the effect of another seed."""
        return _deviation(list(self.by_seed.values()))


def best(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the first candidate with the highest validation score; None if all candidates failed."""
    scored = [candidate for candidate in candidates if candidate.score is not None]
    return max(scored, key=lambda candidate: candidate.score or 0.0, default=None)


def mean_of(arm: Arm, column: Column) -> Mean | None:
    """Compute the mean of a column for an arm; None if no run completed."""
    means = [float(np.mean([value for _, value in column.of(rows).values()])) for rows in arm.rows.values()]
    return Mean(float(np.mean(means)), _deviation(means)) if means else None


def difference(arm: Arm, reference: Arm, column: Column) -> Difference | None:
    """Compute the difference arm minus reference over the seeds that both have.

    Args:
        arm: the arm.
        reference: the reference arm.
        column: the metric and its conditions.

    Returns:
        The difference; None if the arms have no common seed.

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
