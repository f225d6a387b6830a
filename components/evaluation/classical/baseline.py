"""A classical method as name and settings, which can be printed in a table and saved in a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from components.evaluation.classical import deblocking, deblurring, denoising, inpainting, metal, upsampling

METHODS: dict[str, Callable[..., np.ndarray]] = {
    "identity": denoising.identity,
    "median": denoising.median,
    "total_variation": denoising.total_variation,
    "wavelet": denoising.wavelet,
    "non_local_means": denoising.non_local_means,
    "unsharp_mask": deblurring.unsharp_mask,
    "wiener": deblurring.wiener,
    "richardson_lucy": deblurring.richardson_lucy,
    "upsample": upsampling.upsample,
    "mean_fill": inpainting.mean_fill,
    "harmonic": inpainting.harmonic,
    "biharmonic": inpainting.biharmonic,
    "bilateral": deblocking.bilateral,
    "shifted_jpeg": deblocking.shifted_jpeg,
    "artifact": metal.artifact,
    "linear_interpolation": metal.linear_interpolation,
    "smoothed_interpolation": metal.smoothed_interpolation,
}
"""Methods of all tasks; among methods with equal scores the earlier one is chosen."""


@dataclass(frozen=True)
class ClassicalBaseline:
    """A method with its settings: inputs of a task -> float32 ``(C, H, W)``, not clipped; it is deterministic.

    Attributes:
        name: a key of `METHODS`.
        settings: keyword arguments of the method.
    """

    name: str
    settings: Mapping[str, float | str] = field(default_factory=dict)

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Restore an image from the inputs of a task."""
        restored = METHODS[self.name](inputs.astype(np.float32), **self.settings)
        return np.ascontiguousarray(restored, dtype=np.float32)
