"""Light rain: drawn, or layers of streaks taken from given pairs. Compared on the luma, as in its literature."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from components.data.images import read_image
from components.data.pair_names import find_pairs
from components.data.sampler import Degradation
from components.degradations.rain import Rain
from components.degradations.streak_layers import StreakLayers, streak_layer
from components.evaluation.metrics import as_saved, luma, psnr
from components.tasks.base import PSNR_Y, SSIM_Y, Auxiliary, Task, needed


class Derain(Task):
    """Settings: the ranges of `Rain`, or ``streaks: auxiliary``."""

    name = "derain"
    metrics = (PSNR_Y, SSIM_Y)

    def degradation(self, auxiliary: Auxiliary | None = None, *, is_training: bool = False) -> Degradation:
        if "streaks" in self.settings:
            return StreakLayers(needed(auxiliary, "streak layers", "streaks"))
        return Rain(**self.settings)

    def read_auxiliary(self, folder: Path, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """The streaks of given pairs, ``(1, h, w)`` uint8."""
        for pair in find_pairs(names).pairs:
            rainy, clean = (read_image(folder / name) for name in (pair.degraded, pair.clean))
            try:
                yield pair.key, streak_layer(rainy, clean)[None]
            except ValueError as error:
                raise ValueError(f"{pair.degraded}: {error}") from error

    def scores(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> Tensor:
        saved, truth = (luma(as_saved(images.double())) for images in (outputs, references))
        return psnr(saved, truth)
