"""What metal artifact reduction has without training: the two images that the network is given.

Legend: inputs are numpy ``(3, H, W)`` float32: the image from the sinogram with the metal's trace interpolated
linearly, the image with artifacts, and the mask of the metal; every method gives ``(1, H, W)`` back.
"""

from __future__ import annotations

import numpy as np

from components.evaluation.classical.denoising import total_variation


def artifact(inputs: np.ndarray) -> np.ndarray:
    """The image as reconstructed from what was measured."""
    return inputs[1:2].copy()


def linear_interpolation(inputs: np.ndarray) -> np.ndarray:
    """The image from the interpolated sinogram.

    Source: Kalender, Hebel, Ebersberger, *Reduction of CT Artifacts Caused by Metallic Implants*, Radiology 1987.
    """
    return inputs[:1].copy()


def smoothed_interpolation(inputs: np.ndarray, weight: float) -> np.ndarray:
    """`linear_interpolation` with less total variation: fewer of the streaks it leaves, and less detail."""
    return total_variation(inputs[:1], weight)
