"""Choice of the classical baseline: the candidate with the best score on validation pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from components.evaluation.classical.baseline import METHODS, ClassicalBaseline
from components.evaluation.classical.candidates import CANDIDATES
from components.evaluation.metrics import as_saved, psnr

Pair = tuple[np.ndarray, np.ndarray]
"""The inputs of a task, ``(C', h, w)``, and the clean image, ``(C, H, W)``."""

Score = Callable[[np.ndarray, np.ndarray, np.ndarray], float]
"""``score(restored, inputs, clean)``: higher is better."""


@dataclass(frozen=True)
class CandidateScore:
    """The mean score of a candidate over the validation pairs.

    Attributes:
        baseline: the candidate.
        score: its mean score.
    """

    baseline: ClassicalBaseline
    score: float

    @property
    def psnr(self) -> float:
        """The score under the name of the default score, in dB."""
        return self.score


def saved_psnr(restored: np.ndarray, inputs: np.ndarray, clean: np.ndarray) -> float:
    """Compute the PSNR of an image as saved in 8 bits.

    Args:
        restored: the restored image, ``(C, H, W)``.
        inputs: not used; `Score` requires this argument.
        clean: the clean image, ``(C, H, W)``.
    """
    # The arrays are copied, because arrays of files opened for reading and rotated views are unsuitable for torch.
    image, truth = (torch.from_numpy(np.array(each, order="C")) for each in (restored, clean))
    return psnr(as_saved(image[None]), as_saved(truth[None])).item()


def choose_classical(
    pairs: Sequence[Pair],
    *,
    candidates: Sequence[ClassicalBaseline] = CANDIDATES,
    score: Score = saved_psnr,
    num_workers: int = 1,
) -> tuple[ClassicalBaseline, list[CandidateScore]]:
    """Choose the candidate with the best mean score over validation pairs.

    Ties are broken by the order of methods in `METHODS` (identity first), then by the settings in sorted order. The
    order of the candidates does not matter.

    Args:
        pairs: ``(inputs, clean)``: the inputs of a network of the task, and the reference.
        candidates: the candidates.
        score: score of one pair; by default the PSNR of the images as saved.
        num_workers: number of threads.

    Returns:
        The best candidate, and the scores of all candidates, best first.

    Raises:
        ValueError: no pairs or candidates, or a score that is not a number.
    """
    if not pairs or not candidates:
        raise ValueError(f"{len(pairs)} pairs and {len(candidates)} candidates: give at least one of each")

    def measured(baseline: ClassicalBaseline, pair: Pair) -> float:
        inputs, clean = pair
        return score(baseline(inputs), inputs, clean)

    with ThreadPoolExecutor(num_workers) as executor:
        figures = list(executor.map(measured, *zip(*product(candidates, pairs), strict=True)))
    means = np.reshape(figures, (len(candidates), len(pairs))).mean(axis=1)
    if np.isnan(means).any():
        raise ValueError(f"{candidates[int(np.isnan(means).argmax())]} scores NaN: look at the images and the score")
    scores = [CandidateScore(baseline, float(mean)) for baseline, mean in zip(candidates, means, strict=True)]
    scores.sort(key=_rank)
    return scores[0].baseline, scores


def _rank(score: CandidateScore) -> tuple[float, int, str]:
    baseline = score.baseline
    return -score.score, list(METHODS).index(baseline.name), str(sorted(baseline.settings.items()))
