"""Evaluation protocol: every method is measured on the test images, on their rotations, and out of distribution.

Legend: images are numpy ``(C, H, W)``. A method maps the inputs of the network to a restored image. If the reference is
a class, it maps them to scores of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.data.packs import Entry, Pack
from components.evaluation.statistics import Interval, clustered_interval

Method = Callable[[np.ndarray], np.ndarray]
Quality = Callable[[Tensor, Tensor, Tensor], Mapping[str, Tensor]]
"""(outputs, inputs, references), one batch each -> metric -> ``(B,)``; see ``components.tasks``."""
Conventions = Callable[[Tensor, Tensor], Mapping[str, Mapping[str, Tensor]]]
"""(outputs, references), one batch each -> convention -> metric -> ``(B,)``."""
TEST, ROTATED, OUT_OF_DISTRIBUTION = "test", "rotated", "out_of_distribution"
GROUPS = (TEST, ROTATED, OUT_OF_DISTRIBUTION)


@dataclass(frozen=True)
class Case:
    """One pair under one condition.

    Attributes:
        group: one of ``GROUPS``.
        condition: condition within the group: the rotation angle in degrees, or the name of the other degradation.
        entry: the pair's entry in its pack.
        degraded: inputs of the network.
        clean: the reference.
    """

    group: str
    condition: str
    entry: Entry
    degraded: np.ndarray
    clean: np.ndarray


@dataclass(frozen=True)
class Row:
    """A measured case.

    Attributes:
        group: one of ``GROUPS``.
        condition: condition within the group, see `Case`.
        image: name of the image.
        scene: scene of the image.
        scores: the metrics, ``scores[method][metric]``.
        conventions: PSNR and SSIM of the restored image by convention, ``conventions[convention][metric]``; empty if
            they were not computed.
    """

    group: str
    condition: str
    image: str
    scene: str
    scores: dict[str, dict[str, float]]
    conventions: dict[str, dict[str, float]] = field(default_factory=dict)


Pairs = Callable[[Pack], Iterator[tuple[Entry, np.ndarray, np.ndarray]]]


def cases(test: Pack, others: Mapping[str, Pack], pairs: Pairs = Pack.pairs) -> Iterator[Case]:
    """Yield all cases: the test pairs, their rotations by 90, 180 and 270 degrees, and the out-of-distribution pairs.

    Args:
        test: pack of the test pairs.
        others: name of another degradation -> pack of its pairs.
        pairs: function that yields (entry, degraded, clean) of a pack.
    """
    for entry, degraded, clean in pairs(test):
        yield Case(TEST, "0", entry, degraded, clean)
        for turns in (1, 2, 3):
            yield Case(ROTATED, str(90 * turns), entry, _turned(degraded, turns), _turned(clean, turns))
    for name, pack in others.items():
        for entry, degraded, clean in pairs(pack):
            yield Case(OUT_OF_DISTRIBUTION, name, entry, degraded, clean)


def measure(case: Case, methods: Mapping[str, Method], quality: Quality, conventions: Conventions | None = None) -> Row:
    """Run every method on one case and compute the metrics of its output.

    Args:
        case: the case.
        methods: name -> method.
        quality: function that computes the metrics.
        conventions: function that computes the restored image's metrics by convention, for cases of the group "test".
    """
    inputs, clean = (torch.from_numpy(array)[None] for array in (case.degraded, case.clean))
    scores, by_convention = {}, {}
    for name, method in methods.items():
        output = torch.from_numpy(method(case.degraded))[None]
        scores[name] = _plain(quality(output, inputs, clean))
        if conventions and name == "restored" and case.group == TEST:
            by_convention = {key: _plain(found) for key, found in conventions(output, clean).items()}
    return Row(case.group, case.condition, case.entry.name, case.entry.scene, scores, by_convention)


def summarise(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Compute means by group, method and metric, and the gains of the restored images over the other methods.

    The result is
    ``{group: {method: {metric: mean}, "gain": {metric: {"over_METHOD": {"mean", "low", "high"}}}, "conditions": ..}}``.
    Gains are per image, with a bootstrap interval clustered by scene. If a group has several conditions, ``conditions``
    holds the same means for each condition. Each group also holds the number of its scenes, ``scenes``.
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
            for metric in _metrics(chosen)
        }
        conditions = list(dict.fromkeys(row.condition for row in chosen))
        if len(conditions) > 1:
            summary[group]["conditions"] = {
                name: _means([row for row in chosen if row.condition == name]) for name in conditions
            }
    return summary


def means_by_convention(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return ``{convention: {metric: mean over the test images}}``; empty if there are none."""
    counted = [row.conventions for row in rows if row.conventions]
    return {
        name: {metric: float(np.mean([found[name][metric] for found in counted])) for metric in metrics}
        for name, metrics in (counted[0] if counted else {}).items()
    }


def headline(summary: Mapping[str, Any], score: str) -> dict[str, float]:
    """Choose the figures that say most: the score of each group, and its gain on the test images with its interval.

    Args:
        summary: from `summarise`.
        score: name of the metric that decides.
    """
    figures = {f"{group}_{score}": summary[group]["restored"][score] for group in GROUPS if group in summary}
    gain = summary[TEST]["gain"][score]
    over_classical = gain["over_classical"]
    figures |= {"gain_over_input": gain["over_input"]["mean"], "gain_over_classical": over_classical["mean"]}
    ends = {f"gain_over_classical_{end}": over_classical[end] for end in ("low", "high")}
    return figures | {name: value for name, value in ends.items() if value is not None}  # None with too few scenes


def gains(rows: Iterable[Row], over: str, metric: str) -> list[float]:
    """Compute the metric of "restored" minus the metric of another method, for each image.

    Args:
        rows: the measured cases.
        over: name of the other method.
        metric: name of the metric.
    """
    return [row.scores["restored"][metric] - row.scores[over][metric] for row in rows]


def _metrics(rows: Sequence[Row]) -> list[str]:
    return list(next(iter(rows[0].scores.values())))


def _plain(figures: Mapping[str, Tensor]) -> dict[str, float]:
    return {metric: values.item() for metric, values in figures.items()}


def _turned(image: np.ndarray, turns: int) -> np.ndarray:
    """Rotate an image by quarter turns; a class is returned unchanged."""
    return image if image.ndim < 2 else np.ascontiguousarray(np.rot90(image, turns, axes=(-2, -1)))


def _means(rows: Sequence[Row]) -> dict[str, Any]:
    methods = rows[0].scores
    return {
        method: {metric: float(np.mean([row.scores[method][metric] for row in rows])) for metric in _metrics(rows)}
        for method in methods
    }


def _as_mapping(interval: Interval) -> dict[str, float | None]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}
