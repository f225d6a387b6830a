"""CT metal artifacts: a scan of a slice with drawn metal, simulated by preprocess (components/degradations/ct).

The network is given the linear-interpolation image, the artifact image and the metal mask, and corrects the first.
Figures leave the metal out, as in its literature.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from components.data.sampler import Degradation
from components.degradations.ct import WATER, WHITE, FanBeam, MetalArtifacts
from components.evaluation.metrics import masked_psnr, metal_artifact_quality
from components.tasks.base import PSNR, SSIM, Auxiliary, Metric, Task

HOUNSFIELD_RANGE = 1000 * WHITE / WATER
"""Hounsfield units from grey value 0 to 1."""


class MetalArtifactReduction(Task):
    """Settings: ``size`` of the slices in pixels, ``photons``, ``area`` of the metal and odds of ``materials``."""

    name = "ct_mar"
    metrics = (PSNR, SSIM, Metric("rmse", "RMSE, HU (less is better)", 1))
    reads = "ct"
    is_simulated_ahead = True

    def channels(self, colours: int) -> tuple[int, int]:
        return 3, 1

    def check(self) -> None:
        self.scanner()

    def scanner(self) -> MetalArtifacts:
        """What makes the pairs."""
        settings = self.settings
        geometry = FanBeam().scaled(settings["size"])
        return MetalArtifacts(geometry, settings["photons"], settings["area"], settings["materials"])

    def simulate(
        self, hu: np.ndarray, pixel_spacing_mm: float | None, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """(inputs ``(3, S, S)``, clean ``(1, S, S)``) of a slice ``(H, W)`` in Hounsfield units, with drawn metal."""
        case = self.scanner().simulate(hu, pixel_spacing_mm, generator)
        return case.inputs, case.clean

    def degradation(self, auxiliary: Auxiliary | None = None, *, is_training: bool = False) -> Degradation:
        raise ValueError("task ct_mar: scans are simulated by preprocess; its packs hold pairs")

    def as_image(self, inputs: np.ndarray) -> np.ndarray:
        """The artifact image."""
        return inputs[1:2]

    def scores(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> Tensor:
        return masked_psnr(outputs, references, inputs[:, -1:] <= 0.5)

    def quality(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> dict[str, Tensor]:
        return metal_artifact_quality(outputs, inputs, references, hounsfield_range=HOUNSFIELD_RANGE)
