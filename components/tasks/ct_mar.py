"""CT metal artifact reduction: preprocess simulates scans of slices with random metal (components/degradations/ct).

The inputs of the network are the linear-interpolation image, the artifact image and the metal mask. The network
corrects the first one. The metrics exclude the metal, as in the literature of this task.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from components.data.sampler import Degradation
from components.degradations.ct import WATER, WHITE, FanBeam, MetalArtifacts
from components.evaluation.metrics import masked_psnr, metal_artifact_quality
from components.registry import check_between
from components.tasks.base import PSNR, SSIM, Auxiliary, DegradationSettings, Metric, Range, Task, as_range

HOUNSFIELD_RANGE = 1000 * WHITE / WATER
"""Hounsfield units between the grey values 0 and 1."""


@dataclass(frozen=True, kw_only=True)
class Scan(DegradationSettings):
    """Settings of the simulated scans."""

    size: int
    """Side of the slices, pixels; 416 in the literature."""
    photons: float
    """Photons of a detector bin and view."""
    area: Range
    """Area of the metal, in pixels of 416 x 416."""
    materials: dict[str, float]
    """Material -> its odds."""

    def __post_init__(self) -> None:
        check_between(self, size=(1, 4096))


class MetalArtifactReduction(Task):
    """CT metal artifact reduction."""

    name = "ct_mar"
    degradations = (Scan,)
    baseline = "components.evaluation.baselines:of_metal"
    takes_pairs = False
    gives = ("li", "image", "metal_mask")
    metrics = (PSNR, SSIM, Metric("rmse", "RMSE, HU (less is better)", 1))
    input_kind = "ct"
    is_simulated_ahead = True

    def colours(self, colour: str) -> int:
        """Return 1: a CT slice is grey."""
        return 1

    @property
    def largest_patch(self) -> int | None:
        """Side of a simulated slice, in pixels."""
        return int(self.settings.size)

    def channels(self, colours: int) -> tuple[int, int]:
        """Return (3, 1): three inputs, one output."""
        return 3, 1

    def check(self) -> None:
        """Check the settings.

        Raises:
            ValueError: a setting is impossible.
        """
        self.scanner()

    def scanner(self) -> MetalArtifacts:
        """Return the simulation that creates the pairs."""
        settings = self.settings
        geometry = FanBeam().scaled(settings.size)
        return MetalArtifacts(geometry, settings.photons, as_range(settings.area), settings.materials)

    def simulate(
        self, clean: np.ndarray, pixel_spacing_mm: float | None, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Simulate a pair from a slice: inputs ``(3, S, S)`` and clean image ``(1, S, S)``.

        Args:
            clean: the slice ``(1, H, H)`` in Hounsfield units, without metal.
            pixel_spacing_mm: pixel spacing of the slice; None if it is unknown.
            generator: source of the random metal and of the photon noise.
        """
        case = self.scanner().simulate(clean[0], pixel_spacing_mm, generator)
        return case.inputs, case.clean

    def degradation(self, auxiliary: Auxiliary | None = None, *, is_training: bool = False) -> Degradation:
        """Raise a ValueError, because preprocess simulates the pairs."""
        raise ValueError("task ct_mar: scans are simulated by preprocess; its packs hold pairs")

    def as_image(self, inputs: np.ndarray) -> np.ndarray:
        """Return the artifact image, ``(1, H, W)``."""
        return inputs[1:2]

    def compute_score(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> Tensor:
        """Compute the PSNR outside the metal, ``(B,)``.

        Args:
            outputs: ``(B, 1, H, W)``.
            inputs: ``(B, 3, H, W)``; the last channel is the metal mask.
            references: ``(B, 1, H, W)``.
        """
        return masked_psnr(outputs, references, inputs[:, -1:] <= 0.5)

    def compute_metrics(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> dict[str, Tensor]:
        """Compute PSNR, SSIM and RMSE in HU outside the metal, ``(B,)`` each.

        Args:
            outputs: ``(B, 1, H, W)``.
            inputs: ``(B, 3, H, W)``; the last channel is the metal mask.
            references: ``(B, 1, H, W)``.
        """
        return metal_artifact_quality(outputs, inputs, references, hounsfield_range=HOUNSFIELD_RANGE)
