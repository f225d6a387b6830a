"""A classical method with its settings, by name: what a table can print and a file can keep."""

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
"""Of all tasks; of methods that do equally well the earlier is chosen."""


@dataclass(frozen=True)
class ClassicalBaseline:
    """A method with its settings: the inputs of a task in, float32 ``(C, H, W)`` out, not clipped; deterministic.

    Attributes:
        name: a key of `METHODS`.
        settings: its keyword arguments.
    """

    name: str
    settings: Mapping[str, float | str] = field(default_factory=dict)

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        restored = METHODS[self.name](inputs.astype(np.float32), **self.settings)
        return np.ascontiguousarray(restored, dtype=np.float32)
