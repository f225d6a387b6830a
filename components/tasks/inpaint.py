"""Missing pixels: boxes, strokes, text or given masks. The network is given the image and the mask.

What is known is kept: figures are of outputs whose known pixels are replaced by those of the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from components.data.images import is_image_name, read_image
from components.data.sampler import Degradation
from components.degradations.holes import GivenHoles, Holes
from components.evaluation.metrics import as_saved, inpainting_quality, masked_psnr
from components.tasks.base import PSNR, SSIM, Auxiliary, Metric, Task, needed

_MOST_TRIES = 1000


@dataclass(frozen=True)
class _SomeHoles:
    """Draws again until a pixel is missing: without one there is nothing to measure."""

    holes: Holes | GivenHoles

    def __call__(self, clean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        for _ in range(_MOST_TRIES):
            degraded = self.holes(clean, generator)
            if degraded[-1].any():
                return degraded
        raise ValueError(
            "tasks.inpaint: no pixel is missing in any of 1000 masks: use a larger share, or masks with white in them"
        )


class Inpaint(Task):
    """Settings: ``holes`` (boxes, strokes, text or auxiliary) and ``share`` of missing pixels (of those drawn)."""

    name = "inpaint"
    metrics = (Metric("psnr_hole", "PSNR in the holes, dB"), PSNR, SSIM)

    def channels(self, colours: int) -> tuple[int, int]:
        return colours + 1, colours

    def degradation(self, auxiliary: Auxiliary | None = None, *, is_training: bool = False) -> Degradation:
        kind = self.settings["holes"]
        holes: Holes | GivenHoles
        if kind == "auxiliary":
            holes = GivenHoles(needed(auxiliary, "masks", "holes"))
        else:
            holes = Holes(kind, self.settings["share"])
        return holes if is_training else _SomeHoles(holes)

    def read_auxiliary(self, folder: Path, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Masks, ``(1, h, w)`` uint8: 1 where an image file is lighter than middle grey, the missing pixels."""
        for name in names:
            if is_image_name(Path(name)):
                grey = read_image(folder / name, "grey")
                yield name, (grey > np.iinfo(grey.dtype).max // 2).astype(np.uint8)

    def as_image(self, inputs: np.ndarray) -> np.ndarray:
        return inputs[:-1]

    def finished(self, outputs: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        return np.where(inputs[-1] > 0.5, outputs, inputs[:-1])

    def scores(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> Tensor:
        saved, truth = (as_saved(images.double()) for images in (outputs, references))
        return masked_psnr(saved, truth, inputs[:, -1:] > 0.5)

    def quality(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> dict[str, Tensor]:
        return inpainting_quality(outputs, inputs, references)
