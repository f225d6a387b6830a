"""Noise that is independent in every value, unclipped as in the denoising literature: of one level, or a camera's."""

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


@dataclass(frozen=True)
class PoissonGaussianNoise:
    """``degraded = gain Poisson(clean / gain) + sigma / 255 normal``, not clipped: the noise of a camera's raw values.

    Its mean is the clean image, its variance ``gain clean + (sigma / 255)^2``: photons come one by one, so the bright
    parts of an image are the noisier ones. Gain and sigma are drawn uniformly from their ranges per image.

    Attributes:
        gain: what one photon adds to a value, in image units: 0.01 where white is 100 photons.
        sigma: standard deviation of the read-out noise, in grey levels of 255.

    Raises:
        ValueError: a range is reversed or impossible; when called, a value of the clean image is below 0.

    Source: Foi, Trimeche, Katkovnik, Egiazarian, *Practical Poissonian-Gaussian noise modeling and fitting for
    single-image raw-data*, IEEE TIP 2008.
    """

    gain: tuple[float, float]
    sigma: tuple[float, float]

    def __post_init__(self) -> None:
        check_range("gain", self.gain, 1e-6, 1, "image units of [0, 1] a photon")
        check_range("sigma", self.sigma, 0, 255, "grey levels of 255")

    def __call__(self, clean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """``(C, H, W)`` float32 in [0, 1] -> the same shape, which may leave [0, 1]."""
        if not clean.min() >= 0:
            raise ValueError(f"the clean image has the value {clean.min()}: photon counts need values of 0 or more")
        gain, level = generator.uniform(*self.gain), np.float32(generator.uniform(*self.sigma) / 255)
        photons = generator.poisson(clean / gain)
        noise = generator.standard_normal(clean.shape, dtype=np.float32)
        return (gain * photons).astype(np.float32) + level * noise


def check_range(name: str, limits: tuple[float, float], least: float, most: float, unit: str) -> None:
    """Raises ``ValueError``, naming the setting, unless ``least <= low <= high <= most``."""
    low, high = limits
    if not least <= low <= high <= most:
        raise ValueError(f"{name} {low}..{high}: use {least} <= low <= high <= {most}, in {unit}")
