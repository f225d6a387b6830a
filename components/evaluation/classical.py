"""Restoration without training: filters of scikit-image, the best of which a network has to beat.

Legend: images are numpy ``(C, H, W)``, in [0, 1] if clean; noise makes them leave it. No method is told the
strength of the degradation: those that need it estimate it from the image they restore.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import pywt
import torch
from skimage import filters, restoration

from components.evaluation.metrics import as_saved, psnr

MEDIAN_ABSOLUTE_DEVIATION = 0.6744897501960817
"""Of a normal variable of standard deviation 1: its third quartile."""


def identity(image: np.ndarray) -> np.ndarray:
    """The degraded image itself."""
    return image.copy()


def median(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The median of ``height x width`` neighbours, by channel; ``1 x n`` takes away near-vertical streaks."""
    return filters.median(image, np.ones((1, height, width)), mode="reflect")


def total_variation(image: np.ndarray, weight: float) -> np.ndarray:
    """``argmin_u |u - x|^2 / 2 + weight TV(u)``, in grey values, the channels coupled (Chambolle 2004)."""
    return restoration.denoise_tv_chambolle(image, weight=weight, channel_axis=0)


def wavelet(image: np.ndarray, strength: float, method: str) -> np.ndarray:
    """Soft thresholds on db2 wavelets in YCbCr, for a noise of ``strength`` times the estimated level.

    ``method``: "BayesShrink" (Chang, Yu, Vetterli 2000) adapts them to each sub-band; "VisuShrink" (Donoho,
    Johnstone 1994) has one threshold, stronger.
    """
    levels = noise_levels(image)
    if not any(levels):
        return image.copy()
    return restoration.denoise_wavelet(
        image,
        sigma=[strength * level for level in levels],
        method=method,
        wavelet="db2",
        convert2ycbcr=len(image) == 3,
        channel_axis=0,
    )


def non_local_means(image: np.ndarray, strength: float) -> np.ndarray:
    """Means over similar 5 x 5 patches at most 6 pixels away, ``h = strength * noise level``, as estimated.

    Source: Buades, Coll, Morel, *Non-Local Means Denoising*, 2011; Darbon et al. 2008 for the fast form.
    """
    level = float(np.mean(noise_levels(image)))
    # scikit-image loses a single channel and turns the image over, so a grey image goes in without its axis.
    is_grey = len(image) == 1
    restored = restoration.denoise_nl_means(
        image[0] if is_grey else image,
        patch_size=5,
        patch_distance=6,
        h=strength * level,
        sigma=level,
        fast_mode=True,
        channel_axis=None if is_grey else 0,
    )
    return restored.reshape(image.shape)


METHODS: dict[str, Callable[..., np.ndarray]] = {
    "identity": identity,
    "median": median,
    "total_variation": total_variation,
    "wavelet": wavelet,
    "non_local_means": non_local_means,
}


def noise_levels(image: np.ndarray) -> list[float]:
    """The standard deviation of the noise in each channel, estimated; 0 where nothing of it is seen.

    ``median |d| / 0.6745`` of the nonzero diagonal details d of the finest db2 wavelets. It is scikit-image's
    estimate_sigma, which gives NaN and a warning for a flat channel.

    Source: Donoho, Johnstone, *Ideal Spatial Adaptation by Wavelet Shrinkage*, Biometrika 1994, section 4.2.
    """
    levels = []
    for channel in image:
        details = pywt.dwtn(channel, "db2")["dd"]
        seen = np.abs(details[details != 0])
        levels.append(float(np.median(seen)) / MEDIAN_ABSOLUTE_DEVIATION if seen.size else 0.0)
    return levels


@dataclass(frozen=True)
class ClassicalBaseline:
    """A method with its settings: ``(C, H, W)`` in, float32 ``(C, H, W)`` out, not clipped; deterministic.

    Attributes:
        name: a key of `METHODS`.
        settings: its keyword arguments.
    """

    name: str
    settings: Mapping[str, float | str] = field(default_factory=dict)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        restored = METHODS[self.name](image.astype(np.float32), **self.settings)
        return restored.astype(np.float32, copy=False)


@dataclass(frozen=True)
class CandidateScore:
    """The mean PSNR of a candidate over the validation pairs, in dB."""

    baseline: ClassicalBaseline
    psnr: float


_WINDOWS = [(3, 3), (5, 5), (1, 3), (1, 5), (3, 1), (5, 1)]

CANDIDATES: tuple[ClassicalBaseline, ...] = (
    ClassicalBaseline("identity"),
    *(ClassicalBaseline("median", {"height": h, "width": w}) for h, w in _WINDOWS),
    *(ClassicalBaseline("total_variation", {"weight": weight}) for weight in (0.02, 0.05, 0.1, 0.2)),
    *(ClassicalBaseline("wavelet", {"strength": s, "method": "BayesShrink"}) for s in (0.7, 1.0)),
    *(ClassicalBaseline("wavelet", {"strength": s, "method": "VisuShrink"}) for s in (0.3, 3.0)),
    *(ClassicalBaseline("non_local_means", {"strength": strength}) for strength in (0.4, 0.6, 0.8, 8.0)),
)
"""From hardly to strongly: for Gaussian noise of 15 to 50 grey levels, and for rain streaks, which an
estimate of the noise hardly sees (hence the strengths far above 1)."""


def choose_classical(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    candidates: Sequence[ClassicalBaseline] = CANDIDATES,
    num_workers: int = 1,
) -> tuple[ClassicalBaseline, list[CandidateScore]]:
    """The candidate with the best mean PSNR over validation pairs, and the scores of all.

    Images are compared as saved, in 8 bits. Of candidates that score alike the one of the earlier method in
    `METHODS` wins (identity before all others), then the one whose settings are smaller: the order of
    candidates has no say.

    Args:
        pairs: ``(degraded, clean)``, each ``(C, H, W)``.
        candidates: to choose from.
        num_workers: threads.

    Returns:
        The best one, and all scores, best first.

    Raises:
        ValueError: no pairs or candidates.
    """
    if not pairs or not candidates:
        raise ValueError(f"{len(pairs)} pairs and {len(candidates)} candidates: give at least one of each")
    with ThreadPoolExecutor(num_workers) as executor:
        figures = list(executor.map(_score, *zip(*product(candidates, pairs), strict=True)))
    means = np.reshape(figures, (len(candidates), len(pairs))).mean(axis=1)
    scores = [CandidateScore(baseline, float(mean)) for baseline, mean in zip(candidates, means, strict=True)]
    scores.sort(key=_rank)
    return scores[0].baseline, scores


def _score(baseline: ClassicalBaseline, pair: tuple[np.ndarray, np.ndarray]) -> float:
    degraded, clean = pair
    # Copied: an image that comes from a file opened for reading or is a turned view would not do for torch.
    restored, truth = (torch.from_numpy(np.array(image, order="C")) for image in (baseline(degraded), clean))
    return psnr(as_saved(restored[None]), as_saved(truth[None])).item()


def _rank(score: CandidateScore) -> tuple[float, int, str]:
    baseline = score.baseline
    return -score.psnr, list(METHODS).index(baseline.name), str(sorted(baseline.settings.items()))
