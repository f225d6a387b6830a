"""Camera noise: Gaussian, or Poisson-Gaussian where a gain is given."""

from __future__ import annotations

from components.data.sampler import Degradation
from components.degradations.noise import GaussianNoise, PoissonGaussianNoise
from components.tasks.base import Auxiliary, Task


class Denoise(Task):
    """Settings: ``sigma``, and ``gain`` for the Poisson part, if any."""

    name = "denoise"

    def degradation(self, auxiliary: Auxiliary | None = None, *, is_training: bool = False) -> Degradation:
        if "gain" in self.settings:
            return PoissonGaussianNoise(**self.settings)
        return GaussianNoise(**self.settings)
