"""Inpainting of missing pixels: boxes, strokes, text or given masks. The inputs of the network are image and mask.

Known pixels are kept: the metrics are computed after the known pixels of the output are replaced by those of the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from components.data.readers.images import is_image_name, read_image
from components.data.sampler import Degradation
from components.degradations.holes import GivenHoles, Holes
from components.evaluation.metrics import as_saved, inpainting_quality, masked_psnr
from components.tasks.base import (
    AUXILIARY,
    PSNR,
    SSIM,
    Auxiliary,
    DegradationSettings,
    Metric,
    Range,
    Task,
    as_range,
    needed,
)

_MOST_TRIES = 1000


@dataclass(frozen=True)
class _SomeHoles:
    """A degradation that draws masks until a pixel is missing; otherwise there would be nothing to measure.

    Attributes:
        holes: the degradation that is repeated.
    """

    holes: Holes | GivenHoles

    def __call__(self, clean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        for _ in range(_MOST_TRIES):
            degraded = self.holes(clean, generator)
            if degraded[-1].any():
                return degraded
        raise ValueError(
            "tasks.inpaint: no pixel is missing in any of 1000 masks: use a larger share, or masks with white in them"
        )


@dataclass(frozen=True, kw_only=True)
class Masks(DegradationSettings):
    """Settings of the masks."""

    masks: Literal["boxes", "strokes", "text", "auxiliary"]
    """Kind of the masks: random shapes, or the auxiliary data."""
    share: Range
    """Share of missing pixels of random masks."""


class Inpaint(Task):
    """Inpainting of images."""

    name = "inpaint"
    degradations = (Masks,)
    baseline = "components.evaluation.baselines:of_missing_pixels"
    takes_pairs = False
    gives = ("image", "mask")
    auxiliary_title = "masks"
    restore_options = " --mask MASK.png"
    metrics = (Metric("psnr_hole", "PSNR in the holes, dB"), PSNR, SSIM)

    def channels(self, colours: int) -> tuple[int, int]:
        """Return (C + 1, C): the inputs are the image and the mask."""
        return colours + 1, colours

    def degradation(self, auxiliary: Auxiliary | None = None, *, is_training: bool = False) -> Degradation:
        """Return the degradation; in the fixed pairs at least one pixel is missing."""
        kind = self.settings.masks
        holes: Holes | GivenHoles
        if kind == AUXILIARY:
            holes = GivenHoles(needed(auxiliary, "masks", "masks"))
        else:
            holes = Holes(kind, as_range(self.settings.share))
        return holes if is_training else _SomeHoles(holes)

    def read_auxiliary(self, folder: Path, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Read masks, ``(1, h, w)`` uint8; missing pixels are 1, where an image file is lighter than middle grey."""
        for name in names:
            if is_image_name(Path(name)):
                grey = read_image(folder / name, "grey")
                yield name, (grey > np.iinfo(grey.dtype).max // 2).astype(np.uint8)

    def as_image(self, inputs: np.ndarray) -> np.ndarray:
        """Return the filled image without the mask, ``(C, H, W)``."""
        return inputs[:-1]

    def postprocess(self, outputs: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Keep the outputs in the missing pixels, and replace the others by the known pixels of the inputs."""
        return np.where(inputs[-1] > 0.5, outputs, inputs[:-1])

    def compute_score(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> Tensor:
        """Compute the PSNR of the missing pixels of the images as saved, ``(B,)``.

        Args:
            outputs: ``(B, C, H, W)``.
            inputs: ``(B, C + 1, H, W)``; the last channel is the mask.
            references: ``(B, C, H, W)``.
        """
        saved, truth = (as_saved(images.double()) for images in (outputs, references))
        return masked_psnr(saved, truth, inputs[:, -1:] > 0.5)

    def compute_metrics(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> dict[str, Tensor]:
        """Compute PSNR of the missing pixels, and PSNR and SSIM of the image, ``(B,)`` each.

        Args:
            outputs: ``(B, C, H, W)``.
            inputs: ``(B, C + 1, H, W)``; the last channel is the mask.
            references: ``(B, C, H, W)``.
        """
        return inpainting_quality(outputs, inputs, references)
