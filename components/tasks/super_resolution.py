"""Super-resolution by 2, 3 or 4. Compared on the luma without its border, as in its literature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from components.data.sampler import Degradation
from components.degradations.noise import GaussianNoise
from components.degradations.resampling import Bicubic, bicubic_upsample
from components.evaluation.metrics import as_saved, crop_border, luma, psnr, super_resolution_quality
from components.tasks.base import PSNR_Y, SSIM_Y, Auxiliary, Task


@dataclass(frozen=True)
class _Noisy:
    """A low-resolution image with noise of the camera that took it."""

    shrink: Bicubic
    noise: GaussianNoise

    @property
    def margin(self) -> int:
        return self.shrink.margin

    def __call__(self, clean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return self.noise(self.shrink(clean, generator), generator)


class SuperResolution(Task):
    """Settings: ``scale``, and ``sigma`` of noise on the low-resolution image (0 in the benchmarks)."""

    name = "super_resolution"
    metrics = (PSNR_Y, SSIM_Y)
    loss = "l1"

    @property
    def scale(self) -> int:
        return int(self.settings["scale"])

    @property
    def is_random(self) -> bool:
        return max(self.settings["sigma"]) > 0

    def degradation(self, auxiliary: Auxiliary | None = None, *, is_training: bool = False) -> Degradation:
        shrink, sigma = Bicubic(self.scale, rounded=True), self.settings["sigma"]
        return _Noisy(shrink, GaussianNoise(sigma)) if max(sigma) > 0 else shrink

    def as_image(self, inputs: np.ndarray) -> np.ndarray:
        return bicubic_upsample(inputs, self.scale)

    def scores(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> Tensor:
        saved, truth = (crop_border(luma(as_saved(images.double())), self.scale) for images in (outputs, references))
        return psnr(saved, truth)

    def quality(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> dict[str, Tensor]:
        return super_resolution_quality(outputs, references, self.scale)
