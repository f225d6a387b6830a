"""The classical baseline of a task: the method without training that is best on validation pairs.

A task names one of these functions, or its own, as the place ``"module:function"`` in ``Task.baseline``. A function
takes the task, the pack of the training images, (inputs, reference) of validation pairs, the number of classes of a
classifier (None for a restoration network) and the number of threads. It returns the method, the scores of all
candidates (best first), and a description of the method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from components.data.packs import Pack
from components.evaluation.classical import CandidateScore, ClassicalBaseline, choose_classical
from components.evaluation.classical.candidates import (
    CANDIDATES,
    DEBLOCKING,
    DEBLURRING,
    INPAINTING,
    METAL,
    super_resolution_candidates,
)

if TYPE_CHECKING:
    from components.tasks import Task

Method = Callable[[np.ndarray], np.ndarray]
Pairs = Sequence[tuple[np.ndarray, np.ndarray]]
Baseline = tuple[Method, list[CandidateScore], dict[str, object]]


def of_noise(task: Task, train: Pack, pairs: Pairs, num_classes: int | None, num_workers: int) -> Baseline:
    """Choose among denoisers, which also take away thin streaks; the arguments are those of all baselines."""
    return _best(CANDIDATES, task, pairs, num_workers)


def of_blur(task: Task, train: Pack, pairs: Pairs, num_classes: int | None, num_workers: int) -> Baseline:
    """Choose among methods for blurred images; the arguments are those of all baselines."""
    return _best(DEBLURRING, task, pairs, num_workers)


def of_missing_pixels(task: Task, train: Pack, pairs: Pairs, num_classes: int | None, num_workers: int) -> Baseline:
    """Choose among methods that fill missing pixels; the arguments are those of all baselines."""
    return _best(INPAINTING, task, pairs, num_workers)


def of_blocks(task: Task, train: Pack, pairs: Pairs, num_classes: int | None, num_workers: int) -> Baseline:
    """Choose among methods that smooth the borders of blocks; the arguments are those of all baselines."""
    return _best(DEBLOCKING, task, pairs, num_workers)


def of_metal(task: Task, train: Pack, pairs: Pairs, num_classes: int | None, num_workers: int) -> Baseline:
    """Choose among methods for metal artifacts; the arguments are those of all baselines."""
    return _best(METAL, task, pairs, num_workers)


def of_low_resolution(task: Task, train: Pack, pairs: Pairs, num_classes: int | None, num_workers: int) -> Baseline:
    """Choose among interpolations by the scale of the task; the arguments are those of all baselines."""
    return _best(super_resolution_candidates(task.scale), task, pairs, num_workers)


def of_classes(task: Task, train: Pack, pairs: Pairs, num_classes: int | None, num_workers: int) -> Baseline:
    """Fit a logistic regression on at most `MOST_IMAGES` training images; there are no candidates.

    The arguments are those of all baselines.
    """
    from components.evaluation.recognition import MOST_IMAGES, fit, thumbnail

    chosen = np.random.default_rng(0).permutation(len(train))[:MOST_IMAGES]
    images = np.stack([thumbnail(train.clean(index)) for index in chosen])
    labels = np.array([train.entries[index].label for index in chosen])
    recogniser = fit(images, labels, num_classes=num_classes)
    description: dict[str, object] = {"name": "gradients and colours, logistic regression"}
    return (lambda inputs: recogniser(thumbnail(inputs)[None])[0]), [], description


def _best(candidates: Sequence[ClassicalBaseline], task: Task, pairs: Pairs, num_workers: int) -> Baseline:
    """Choose the candidate with the best score of the task."""

    def score(restored: np.ndarray, inputs: np.ndarray, clean: np.ndarray) -> float:
        tensors = (torch.from_numpy(np.array(image, order="C"))[None] for image in (restored, inputs, clean))
        return task.compute_score(*tensors).item()

    best, scores = choose_classical(pairs, candidates=candidates, score=score, num_workers=num_workers)
    return best, scores, {"name": best.name, **best.settings}
