"""Blur by camera shake, by a lens, or by given kernels, and a little noise. The network is not told the kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from components.data.sampler import Degradation
from components.degradations.blur import Blur, read_kernels
from components.tasks.base import Auxiliary, Task, needed

_KERNEL_SUFFIXES = (".mat", ".npy", ".npz", ".png")


class Deblur(Task):
    """Settings: ``kernels`` (motion, gaussian or auxiliary), ``size`` (of those drawn), ``sigma``, ``boundary``."""

    name = "deblur"
    splits_auxiliary = False  # a set of kernels is the problem itself, in training and in the test

    def degradation(self, auxiliary: Auxiliary | None = None, *, is_training: bool = False) -> Degradation:
        kind, sigma, boundary = (self.settings[key] for key in ("kernels", "sigma", "boundary"))
        if kind == "auxiliary":
            return Blur(sigma, kernels=list(needed(auxiliary, "blur kernels", "kernels")), boundary=boundary)
        size = self.settings["size"]
        if kind == "motion":
            return Blur(sigma, motion=size, boundary=boundary)
        return Blur(sigma, gaussian=size, boundary=boundary)

    def read_auxiliary(self, folder: Path, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Blur kernels, ``(1, h, w)`` float32 of sum 1."""
        for name in names:
            if name.lower().endswith(_KERNEL_SUFFIXES):
                for number, kernel in enumerate(read_kernels(folder / name)):
                    yield f"{name}-{number}", kernel[None].astype(np.float32)
