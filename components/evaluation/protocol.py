"""What is measured: every method on the test images, on their rotations, and out of distribution.

Legend: images are numpy ``(C, H, W)``; a method maps a degraded image to a restored one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from components.data.packs import Entry, Pack
from components.evaluation.metrics import quality
from components.evaluation.statistics import Interval, clustered_interval

Method = Callable[[np.ndarray], np.ndarray]
TEST, ROTATED, OUT_OF_DISTRIBUTION = "test", "rotated", "out_of_distribution"
GROUPS = (TEST, ROTATED, OUT_OF_DISTRIBUTION)
METRICS = ("psnr", "ssim", "psnr_y", "ssim_y")


@dataclass(frozen=True)
class Case:
    """One pair under one condition.

    Attributes:
        group: one of ``GROUPS``.
        condition: within the group: the number of quarter turns, or the name of the other degradation.
    """

    group: str
    condition: str
    entry: Entry
    degraded: np.ndarray
    clean: np.ndarray


@dataclass(frozen=True)
class Row:
    """A measured case: ``scores[method][metric]``, metrics as in ``METRICS``."""

    group: str
    condition: str
    image: str
    scene: str
    scores: dict[str, dict[str, float]]


def cases(test: Pack, others: Mapping[str, Pack]) -> Iterator[Case]:
    """All cases: the test pairs, each turned by 90, 180 and 270 degrees, and the pairs of the other degradations."""
    for entry, degraded, clean in test.pairs():
        yield Case(TEST, "0", entry, degraded, clean)
        for turns in (1, 2, 3):
            turned = [np.ascontiguousarray(np.rot90(image, turns, axes=(-2, -1))) for image in (degraded, clean)]
            yield Case(ROTATED, str(90 * turns), entry, turned[0], turned[1])
    for name, pack in others.items():
        for entry, degraded, clean in pack.pairs():
            yield Case(OUT_OF_DISTRIBUTION, name, entry, degraded, clean)


def measure(case: Case, methods: Mapping[str, Method]) -> Row:
    """Runs every method on one case and scores what it gives."""
    clean = torch.from_numpy(case.clean)[None]
    scores = {}
    for name, method in methods.items():
        figures = quality(torch.from_numpy(method(case.degraded))[None], clean)
        scores[name] = {metric: figures[metric].item() for metric in METRICS}
    return Row(case.group, case.condition, case.entry.name, case.entry.scene, scores)


def summarise(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Means by group, method and metric, and how far the restored images are above input and classical baseline.

    ``{group: {method: {metric: mean}, "gain": {metric: {"over_METHOD": {"mean", "low", "high"}}}, "conditions": ..}}``;
    gains are per image, with a bootstrap interval clustered by scene. ``conditions`` holds the same means for each
    condition of a group that has several.
    """
    summary: dict[str, Any] = {}
    for group in GROUPS:
        chosen = [row for row in rows if row.group == group]
        if not chosen:
            continue
        summary[group] = _means(chosen)
        scenes = [row.scene for row in chosen]
        summary[group]["scenes"] = len(set(scenes))
        summary[group]["gain"] = {
            metric: {
                f"over_{method}": _as_mapping(clustered_interval(gains(chosen, method, metric), scenes, seed=seed))
                for method in chosen[0].scores
                if method != "restored"
            }
            for metric in METRICS
        }
        conditions = list(dict.fromkeys(row.condition for row in chosen))
        if len(conditions) > 1:
            summary[group]["conditions"] = {
                name: _means([row for row in chosen if row.condition == name]) for name in conditions
            }
    return summary


def gains(rows: Iterable[Row], over: str, metric: str) -> list[float]:
    """Restored minus another method, image by image."""
    return [row.scores["restored"][metric] - row.scores[over][metric] for row in rows]


def _means(rows: Sequence[Row]) -> dict[str, Any]:
    methods = rows[0].scores
    return {
        method: {metric: float(np.mean([row.scores[method][metric] for row in rows])) for metric in METRICS}
        for method in methods
    }


def _as_mapping(interval: Interval) -> dict[str, float | None]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}
