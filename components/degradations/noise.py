"""Additive white Gaussian noise, as in the denoising literature: unclipped, independent in every value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class GaussianNoise:
    """``degraded = clean + sigma / 255 * normal``, not clipped; sigma is drawn uniformly from its range per image.

    Attributes:
        sigma: lowest and highest standard deviation, in grey levels of 255; equal for one fixed level.

    Raises:
        ValueError: the range is reversed or leaves 0..255.
    """

    sigma: tuple[float, float]

    def __post_init__(self) -> None:
        low, high = self.sigma
        if not 0 <= low <= high <= 255:
            raise ValueError(f"sigma {low}..{high}: use 0 <= low <= high <= 255, in grey levels of 255")

    def __call__(self, clean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """``(C, H, W)`` float32 in [0, 1] -> the same shape, which may leave [0, 1]."""
        level = np.float32(generator.uniform(*self.sigma) / 255)
        noise = generator.standard_normal(clean.shape, dtype=np.float32)
        return clean + level * noise
