"""Super-resolution by 2, 3 or 4.

The metrics are computed on the luma without its border, as in the literature of this task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from components.data.sampler import Degradation
from components.degradations.noise import GaussianNoise
from components.degradations.resampling import Bicubic, bicubic_upsample
from components.evaluation.metrics import as_saved, crop_border, luma, psnr, super_resolution_quality
from components.tasks.base import PSNR_Y, SSIM_Y, Auxiliary, DegradationSettings, Range, Task, as_range


@dataclass(frozen=True)
class _Noisy:
    """Shrink an image, then add camera noise.

    Attributes:
        shrink: the resampling.
        noise: the noise.
    """

    shrink: Bicubic
    noise: GaussianNoise

    @property
    def margin(self) -> int:
        return self.shrink.margin

    def __call__(self, clean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return self.noise(self.shrink(clean, generator), generator)


@dataclass(frozen=True, kw_only=True)
class Downscaling(DegradationSettings):
    """Settings of the downscaling."""

    scale: Literal[2, 3, 4]
    """Size of the clean image / size of the low-resolution image."""
    sigma: Range
    """Standard deviation of the noise on the low-resolution image, in grey levels of 255; 0 in the benchmarks."""


class SuperResolution(Task):
    """Super-resolution of images."""

    name = "super_resolution"
    degradations = (Downscaling,)
    baseline = "components.evaluation.baselines:of_low_resolution"
    metrics = (PSNR_Y, SSIM_Y)
    loss = "l1"

    @property
    def scale(self) -> int:
        """Size of the clean image / size of the low-resolution image."""
        return int(self.settings.scale)

    @property
    def is_random(self) -> bool:
        """Whether noise is added."""
        return max(as_range(self.settings.sigma)) > 0

    def degradation(self, auxiliary: Auxiliary | None = None, *, is_training: bool = False) -> Degradation:
        """Return bicubic shrinking, with noise if sigma is above 0."""
        shrink, sigma = Bicubic(self.scale, rounded=True), as_range(self.settings.sigma)
        noise = GaussianNoise(sigma)  # checks the range
        return _Noisy(shrink, noise) if max(sigma) > 0 else shrink

    def as_image(self, inputs: np.ndarray) -> np.ndarray:
        """Return the bicubic enlargement, ``(C, H, W)``."""
        return bicubic_upsample(inputs, self.scale)

    def compute_score(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> Tensor:
        """Compute the PSNR of the luma of the images as saved, without the border, ``(B,)``.

        Args:
            outputs: ``(B, C, H, W)``.
            inputs: not used.
            references: ``(B, C, H, W)``.
        """
        saved, truth = (crop_border(luma(as_saved(images.double())), self.scale) for images in (outputs, references))
        return psnr(saved, truth)

    def compute_metrics(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> dict[str, Tensor]:
        """Compute PSNR and SSIM of the luma without the border, ``(B,)`` each.

        Args:
            outputs: ``(B, C, H, W)``.
            inputs: not used.
            references: ``(B, C, H, W)``.
        """
        return super_resolution_quality(outputs, references, self.scale)
