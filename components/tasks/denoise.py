"""Denoising: Gaussian noise, or Poisson-Gaussian noise of a camera if a gain is given."""

from __future__ import annotations

from dataclasses import dataclass

from components.data.noise_level import NOISE_LEVEL
from components.data.sampler import Degradation
from components.degradations.noise import GaussianNoise, PoissonGaussianNoise
from components.tasks.base import Auxiliary, DegradationSettings, Range, Task, as_range


@dataclass(frozen=True, kw_only=True)
class Noise(DegradationSettings):
    """Settings of the noise."""

    sigma: Range
    """Standard deviation of the Gaussian noise, in grey levels of 255."""
    gain: Range | None = None
    """Increase of a value per photon, in image units; null: no Poisson noise."""


class Denoise(Task):
    """Denoising of images."""

    name = "denoise"
    has_conventions = True
    degradations = (Noise,)
    optional = (NOISE_LEVEL,)

    @property
    def noise_levels(self) -> tuple[float, float] | None:
        """The range of sigma; Poisson-Gaussian noise has no level, as its variance depends on the image."""
        return as_range(self.settings.sigma) if self.settings.gain is None else None

    def degradation(self, auxiliary: Auxiliary | None = None, *, is_training: bool = False) -> Degradation:
        """Return the noise; it is Poisson-Gaussian if the settings have a gain."""
        sigma, gain = as_range(self.settings.sigma), self.settings.gain
        return GaussianNoise(sigma) if gain is None else PoissonGaussianNoise(gain=as_range(gain), sigma=sigma)
