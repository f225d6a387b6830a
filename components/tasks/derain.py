"""Deraining: light rain with random streaks, or with streak layers of given pairs.

The metrics are computed on the luma, as in the literature of this task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from components.data.pair_names import find_pairs
from components.data.readers.images import read_image
from components.data.sampler import Degradation
from components.degradations.rain import Rain
from components.degradations.streak_layers import StreakLayers, streak_layer
from components.evaluation.metrics import as_saved, luma, psnr
from components.tasks.base import PSNR_Y, SSIM_Y, Auxiliary, DegradationSettings, Range, Task, as_range, needed


@dataclass(frozen=True, kw_only=True)
class DrawnRain(DegradationSettings):
    """Settings of random rain streaks; see `Rain`."""

    angle: Range
    """Direction of the streaks, degrees from the vertical, positive like a backslash."""
    length: Range
    """Length of the streaks, pixels."""
    width: Range
    """Width of the streaks, pixels."""
    density: Range
    """Area of the streaks / area of the image."""
    brightness: Range
    """Mean brightness of the streak layer, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class GivenRain(DegradationSettings):
    """Settings of the streak layers of given pairs."""

    streaks: Literal["auxiliary"]
    """The layers are the auxiliary data."""


class Derain(Task):
    """Deraining of images."""

    name = "derain"
    has_conventions = True
    degradations = (DrawnRain, GivenRain)
    auxiliary_title = "streak layers"
    metrics = (PSNR_Y, SSIM_Y)

    def degradation(self, auxiliary: Auxiliary | None = None, *, is_training: bool = False) -> Degradation:
        """Return the rain; with ``streaks: auxiliary`` its streak layers are the auxiliary data."""
        if isinstance(self.settings, GivenRain):
            return StreakLayers(needed(auxiliary, "streak layers", "streaks"))
        return Rain(**{name: as_range(value) for name, value in vars(self.settings).items()})

    def read_auxiliary(self, folder: Path, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Compute the streak layers of given pairs, ``(1, h, w)`` uint8."""
        for pair in find_pairs(names).pairs:
            rainy, clean = (read_image(folder / name) for name in (pair.degraded, pair.clean))
            try:
                yield pair.key, streak_layer(rainy, clean)[None]
            except ValueError as error:
                raise ValueError(f"{pair.degraded}: {error}") from error

    def compute_score(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> Tensor:
        """Compute the PSNR of the luma of the images as saved, ``(B,)``.

        Args:
            outputs: ``(B, C, H, W)``.
            inputs: not used.
            references: ``(B, C, H, W)``.
        """
        saved, truth = (luma(as_saved(images.double())) for images in (outputs, references))
        return psnr(saved, truth)
