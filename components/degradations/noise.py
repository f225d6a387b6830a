"""Noise that is independent in every value: Gaussian noise of one level, or the Poisson-Gaussian noise of a camera.

The result is not clipped, as in the denoising literature.
"""

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

    Example:
        >>> degrade = GaussianNoise(sigma=(15, 50))
        >>> noisy = degrade(np.full((1, 8, 8), 0.5, dtype=np.float32), np.random.default_rng(0))
        >>> noisy.shape, noisy.dtype
        ((1, 8, 8), dtype('float32'))
    """

    sigma: tuple[float, float]

    def __post_init__(self) -> None:
        low, high = self.sigma
        if not 0 <= low <= high <= 255:
            raise ValueError(f"sigma {low}..{high}: use 0 <= low <= high <= 255, in grey levels of 255")

    def __call__(self, clean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """``(C, H, W)`` float32 in [0, 1] -> the same shape, which may leave [0, 1]."""
        return self.with_level(clean, generator)[0]

    def with_level(self, clean: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, float]:
        """Return the noisy image, as of a plain call, and the sigma that was drawn, in grey levels of 255."""
        sigma = generator.uniform(*self.sigma)
        noise = generator.standard_normal(clean.shape, dtype=np.float32)
        return clean + np.float32(sigma / 255) * noise, sigma


@dataclass(frozen=True)
class PoissonGaussianNoise:
    """``degraded = gain Poisson(clean / gain) + sigma / 255 normal``, not clipped: the noise of a camera's raw values.

    The mean of the result is the clean image. Its variance is ``gain clean + (sigma / 255)^2``. The photon count is a
    Poisson variable, so the noise is stronger in the bright parts of an image. Gain and sigma are drawn uniformly from
    their ranges per image.

    Attributes:
        gain: increase of a value per photon, in image units; 0.01 if white is 100 photons.
        sigma: standard deviation of the read-out noise, in grey levels of 255.

    Raises:
        ValueError: a range is reversed or impossible; when called, a value of the clean image is below 0.

    Source: Foi, Trimeche, Katkovnik, Egiazarian, *Practical Poissonian-Gaussian noise modeling and fitting for
    single-image raw-data*, IEEE TIP 2008.

    Example:
        >>> degrade = PoissonGaussianNoise(gain=(0.01, 0.01), sigma=(0, 0))
        >>> noisy = degrade(np.full((1, 8, 8), 0.5, dtype=np.float32), np.random.default_rng(0))
        >>> np.allclose(noisy / 0.01, np.rint(noisy / 0.01), atol=1e-4)  # whole photons
        True
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
    """Check that a range ``limits = (low, high)`` satisfies ``least <= low <= high <= most``.

    Args:
        name: name of the setting, for the error message.
        limits: low and high.
        least: lowest allowed value.
        most: highest allowed value.
        unit: unit of the setting, for the error message.

    Raises:
        ValueError: the range is reversed or leaves the limits; the message names the setting.

    Example:
        >>> check_range("sigma", (5, 300), 0, 255, "grey levels of 255")
        Traceback (most recent call last):
        ValueError: sigma 5..300: use 0 <= low <= high <= 255, in grey levels of 255
    """
    low, high = limits
    if not least <= low <= high <= most:
        raise ValueError(f"{name} {low}..{high}: use {least} <= low <= high <= {most}, in {unit}")
