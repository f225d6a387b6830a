"""Deblurring: blur by camera shake, by a lens, or by given kernels, with weak noise.

The network does not know the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from components.data.sampler import Degradation
from components.degradations.blur import Blur, read_kernels
from components.tasks.base import AUXILIARY, Auxiliary, DegradationSettings, Range, Task, as_range, needed

_KERNEL_SUFFIXES = (".mat", ".npy", ".npz", ".png")


@dataclass(frozen=True, kw_only=True)
class BlurSettings(DegradationSettings):
    """Settings of the blur."""

    kernels: Literal["motion", "gaussian", "auxiliary"]
    """Kind of the kernels: random motion, Gaussian, or the auxiliary data."""
    size: Range
    """Size of random kernels, pixels: the extent of motion, the standard deviation of Gaussian kernels."""
    sigma: Range
    """Standard deviation of the noise after the blur, in grey levels of 255."""
    boundary: Literal["valid", "circular"]
    """What lies beyond the border: the true neighbours, or the other side of the image."""


class Deblur(Task):
    """Deblurring of images."""

    name = "deblur"
    has_conventions = True
    degradations = (BlurSettings,)
    baseline = "components.evaluation.baselines:of_blur"
    auxiliary_title = "blur kernels"
    splits_auxiliary = False  # the set of kernels defines the problem, so training and test use the same set

    def degradation(self, auxiliary: Auxiliary | None = None, *, is_training: bool = False) -> Degradation:
        """Return the blur; with ``kernels: auxiliary`` its kernels are the auxiliary data."""
        kind, sigma, boundary = self.settings.kernels, as_range(self.settings.sigma), self.settings.boundary
        if kind == AUXILIARY:
            return Blur(sigma, kernels=list(needed(auxiliary, "blur kernels", "kernels")), boundary=boundary)
        size = as_range(self.settings.size)
        if kind == "motion":
            return Blur(sigma, motion=size, boundary=boundary)
        return Blur(sigma, gaussian=size, boundary=boundary)

    def read_auxiliary(self, folder: Path, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Read blur kernels, ``(1, h, w)`` float32 of sum 1."""
        for name in names:
            if name.lower().endswith(_KERNEL_SUFFIXES):
                for number, kernel in enumerate(read_kernels(folder / name)):
                    yield f"{name}-{number}", kernel[None].astype(np.float32)
