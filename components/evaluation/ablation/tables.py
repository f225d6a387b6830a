"""The table of control arms as text and as rows for a CSV file; ``arms`` computes its content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.evaluation.ablation.arms import Arm, Candidate, Column, Difference, difference, mean_of

REFERENCES = ("plain", "pairs")
"""The reference arms of the comparison: rotated images, and rotated pairs without a penalty."""

FEW_SCENES = 20


@dataclass(frozen=True)
class Conditions:
    """The conditions that all arms share.

    Attributes:
        task: name of the task.
        steps: number of steps of each run.
        images: number of images per step, including the transformed images.
        patch_size: side of an image in pixels; 0 for whole images.
        counts_transformed: whether the task loss includes the transformed images.
        selection_seed: seed of the runs by which the weights were chosen.
        seeds: seeds of the runs that are compared.
        num_scenes: number of scenes of the test images.
        score: name of the deciding score, with its unit.
    """

    task: str
    steps: int
    images: int
    patch_size: int
    counts_transformed: bool
    selection_seed: int
    seeds: Sequence[int]
    num_scenes: int
    score: str


@dataclass(frozen=True)
class TextTable:
    """A table as text.

    Attributes:
        title: the title.
        head: cells of the header.
        rows: cells of each row.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        lines = [self.head, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.head))]
        padded = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        padded.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([self.title, *(line.rstrip() for line in padded)])


def introduction(arms: Sequence[Arm], conditions: Conditions) -> str:
    """Return the text above the tables: what was done, what the numbers mean, and which runs failed."""
    num_candidates = max((len(arm.candidates) for arm in arms), default=0)
    size = f" of {conditions.patch_size} x {conditions.patch_size} pixels" if conditions.patch_size else ""
    transformed = "counts" if conditions.counts_transformed else "does not count"
    chosen = (
        f"Each penalty's weight was chosen on validation images among {num_candidates} candidates (seed "
        f"{conditions.selection_seed}, one run each); then "
    )
    lines = [
        f"Control arms, {conditions.task}. Every run: {conditions.steps} steps of {conditions.images} images"
        f"{size}; the task loss {transformed} the transformed images.",
        f"{chosen if num_candidates else ''}{len(conditions.seeds)} fresh seeds of every arm "
        f"({_listed(conditions.seeds)}). No test figure decided anything.",
        f"{conditions.score}; differences image by image, with their 95 % interval [low, high] from a paired bootstrap "
        "over scenes, all seeds of an image together, and (the deviation over seeds). An interval holds for these "
        "seeds; the deviation says how far off another seed may be.",
    ]
    if conditions.num_scenes < FEW_SCENES:
        lines.append(
            f"Only {conditions.num_scenes} test scenes: the intervals are too narrow (of 3 scenes, a 95 % interval "
            "holds the truth 75 times in 100)."
        )
    failed = [(arm.name, seed, reason) for arm in arms for seed, reason in arm.failures.items()]
    if failed:
        lines.append(f"{len(failed)} runs did not come to their end, and are in no mean:")
        lines += [f"  {name}, seed {seed}: {reason}" for name, seed, reason in failed]
    else:
        lines.append("All runs came to their end.")
    return "\n".join(lines)


def text_tables(arms: Sequence[Arm], columns: Sequence[Column]) -> list[TextTable]:
    """Build three kinds of tables: the choice of the weights, the means, and the differences to each reference.

    A table of differences exists for each of `REFERENCES` that is among the arms.
    """
    titles = [column.title for column in columns]
    tables = []
    if selected := [arm for arm in arms if arm.candidates]:
        num_trials = max(len(arm.candidates) for arm in selected)
        tables.append(
            TextTable(
                "Validation score by weight:",
                ["arm", *[""] * num_trials, "chosen"],
                [_selection(arm, num_trials) for arm in selected],
            )
        )
    means = []
    for arm in arms:
        cells = [
            "-" if (mean := mean_of(arm, column)) is None else _mean(mean.mean, mean.seed_deviation, column.digits)
            for column in columns
        ]
        means.append([arm.name, _weight(arm), _runs(arm), *cells])
    tables.append(TextTable("Means (deviation over seeds):", ["arm", "weight", "runs", *titles], means))
    for reference in (arm for name in REFERENCES for arm in arms if arm.name == name):
        rows = [
            [
                arm.name,
                *(_difference(difference(arm, reference, column), column.difference_digits) for column in columns),
            ]
            for arm in arms
            if arm is not reference
        ]
        tables.append(TextTable(f"Difference to {reference.name}:", ["arm", *titles], rows))
    return tables


def records(arms: Sequence[Arm], columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Return a record for each arm and column, with every value at full precision; missing values are None."""
    found = []
    for arm in arms:
        for column in columns:
            mean = mean_of(arm, column)
            record: dict[str, Any] = {
                "arm": arm.name,
                "set": column.title,
                "figure": column.figure,
                "weight": arm.weight,
                "weight_at_edge": arm.is_at_edge,
                "trials": len(arm.candidates),
                "runs": len(arm.rows),
                "failed": len(arm.failures),
                "mean": mean and mean.mean,
                "seed_deviation": mean and mean.seed_deviation,
            }
            for name in REFERENCES:
                reference = next((other for other in arms if other.name == name), None)
                found_difference = None if reference in (None, arm) else difference(arm, reference, column)
                record |= _flat(f"minus_{name}", found_difference)
            found.append(record)
    return found


def weight_records(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Return a record for each candidate weight."""
    return [
        {
            "arm": arm.name,
            "weight": candidate.weight,
            "validation_score": candidate.score,
            "chosen": candidate.weight == arm.weight,
            "at_edge": candidate.weight == arm.weight and arm.is_at_edge,
            "failure": candidate.failure,
        }
        for arm in arms
        for candidate in arm.candidates
    ]


def _selection(arm: Arm, num_trials: int) -> list[str]:
    cells = [_candidate(candidate) for candidate in arm.candidates]
    return [arm.name, *cells, *[""] * (num_trials - len(cells)), _weight(arm)]


def _candidate(candidate: Candidate) -> str:
    return f"{candidate.weight:g}: {'failed' if candidate.score is None else f'{candidate.score:.3f}'}"


def _weight(arm: Arm) -> str:
    if arm.weight is None:
        return "none came through"
    return f"{arm.weight:g}{' (at the edge)' if arm.is_at_edge else ''}"


def _runs(arm: Arm) -> str:
    return f"{len(arm.rows)}{f' ({len(arm.failures)} failed)' if arm.failures else ''}"


def _mean(mean: float, deviation: float | None, digits: int) -> str:
    return f"{mean:.{digits}f}{'' if deviation is None else f' ({deviation:.{digits}f})'}"


def _difference(found: Difference | None, digits: int) -> str:
    if found is None:
        return "-"
    interval = "" if found.low is None else f" [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    deviation = "" if found.seed_deviation is None else f" ({found.seed_deviation:.{digits}f})"
    return f"{found.mean:+.{digits}f}{interval}{deviation}"


def _flat(prefix: str, found: Difference | None) -> Mapping[str, Any]:
    return {
        prefix: found and found.mean,
        f"{prefix}_low": found and found.low,
        f"{prefix}_high": found and found.high,
        f"{prefix}_seed_deviation": found and found.seed_deviation,
        f"{prefix}_seeds": len(found.by_seed) if found else 0,
    }


def _listed(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))
