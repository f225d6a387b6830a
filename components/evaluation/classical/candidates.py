"""The candidates for classical baselines, by kind of degradation; each method is listed from weak to strong."""

from __future__ import annotations

from components.evaluation.classical.baseline import ClassicalBaseline
from components.evaluation.classical.upsampling import KERNELS

_WINDOWS = [(3, 3), (5, 5), (1, 3), (1, 5), (3, 1), (5, 1)]

CANDIDATES: tuple[ClassicalBaseline, ...] = (
    ClassicalBaseline("identity"),
    *(ClassicalBaseline("median", {"height": h, "width": w}) for h, w in _WINDOWS),
    *(ClassicalBaseline("total_variation", {"weight": weight}) for weight in (0.02, 0.05, 0.1, 0.2)),
    *(ClassicalBaseline("wavelet", {"strength": s, "method": "BayesShrink"}) for s in (0.7, 1.0)),
    *(ClassicalBaseline("wavelet", {"strength": s, "method": "VisuShrink"}) for s in (0.3, 3.0)),
    *(ClassicalBaseline("non_local_means", {"strength": strength}) for strength in (0.4, 0.6, 0.8, 8.0)),
)
"""Settings from weak to strong, for Gaussian noise of 15 to 50 grey levels and for rain streaks. Rain streaks hardly
affect the noise estimate, so some strengths are far above 1."""

_WIDTHS = (0.8, 1.2, 1.6, 2.0, 2.5, 3.0, 4.0)

DEBLURRING: tuple[ClassicalBaseline, ...] = (
    ClassicalBaseline("identity"),
    *(ClassicalBaseline("unsharp_mask", {"radius": r, "amount": a}) for r in (1.0, 2.0, 4.0) for a in (0.3, 0.6, 1.0)),
    *(ClassicalBaseline("wiener", {"sigma": s, "noise": n}) for s in _WIDTHS for n in (0.0001, 0.001, 0.01)),
    *(ClassicalBaseline("richardson_lucy", {"sigma": s, "iterations": i}) for s in _WIDTHS for i in (5, 20)),
)

INPAINTING = tuple(ClassicalBaseline(name) for name in ("mean_fill", "harmonic", "biharmonic"))

DEBLOCKING: tuple[ClassicalBaseline, ...] = (
    ClassicalBaseline("identity"),
    *(ClassicalBaseline("total_variation", {"weight": weight}) for weight in (0.01, 0.02, 0.03, 0.05)),
    *(
        ClassicalBaseline("bilateral", {"sigma_color": color, "sigma_spatial": space})
        for color in (0.03, 0.06, 0.1)
        for space in (1.0, 2.0)
    ),
    *(ClassicalBaseline("shifted_jpeg", {"quality": quality}) for quality in (10, 15, 20, 30, 40)),
)

METAL: tuple[ClassicalBaseline, ...] = (
    ClassicalBaseline("artifact"),
    ClassicalBaseline("linear_interpolation"),
    *(
        ClassicalBaseline("smoothed_interpolation", {"weight": weight})
        for weight in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
    ),
)


def super_resolution_candidates(scale: int) -> tuple[ClassicalBaseline, ...]:
    """Return the interpolations of `KERNELS` that enlarge an image by ``scale``."""
    return tuple(ClassicalBaseline("upsample", {"scale": scale, "kernel": kernel}) for kernel in KERNELS)
