"""Metal artifact reduction without training: the two images that are inputs of the network.

Legend: inputs are numpy ``(3, H, W)`` float32: the image from the sinogram with the metal trace interpolated linearly,
the image with artifacts, and the mask of the metal. Every method returns ``(1, H, W)``.
"""

from __future__ import annotations

import numpy as np

from components.evaluation.classical.denoising import total_variation


def artifact(inputs: np.ndarray) -> np.ndarray:
    """Return the image reconstructed from the measured sinogram."""
    return inputs[1:2].copy()


def linear_interpolation(inputs: np.ndarray) -> np.ndarray:
    """Return the image reconstructed from the interpolated sinogram.

    Source: Kalender, Hebel, Ebersberger, *Reduction of CT Artifacts Caused by Metallic Implants*, Radiology 1987.
    """
    return inputs[:1].copy()


def smoothed_interpolation(inputs: np.ndarray, weight: float) -> np.ndarray:
    """Apply total variation denoising to `linear_interpolation`, which reduces its streaks and also its detail."""
    return total_variation(inputs[:1], weight)
