"""Filters of scikit-image against noise and rain; other tasks use the weaker filters too.

Legend: images are numpy ``(C, H, W)`` float32; because of noise, values may leave [0, 1]. No method knows the strength
of the degradation. Methods that need it estimate it from the image that they restore.
"""

from __future__ import annotations

import numpy as np
from skimage import filters, restoration

MEDIAN_ABSOLUTE_DEVIATION = 0.6744897501960817
"""Median absolute deviation of a standard normal variable, which is its third quartile."""


def identity(image: np.ndarray) -> np.ndarray:
    """Return a copy of the degraded image."""
    return image.copy()


def median(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Compute the median of ``height x width`` neighbours for each channel; ``1 x n`` removes near-vertical streaks.

    Args:
        image: ``(C, H, W)``.
        height: rows of the window.
        width: columns of the window.
    """
    return filters.median(image, np.ones((1, height, width)), mode="reflect")


def total_variation(image: np.ndarray, weight: float) -> np.ndarray:
    """Compute ``argmin_u |u - x|^2 / 2 + weight TV(u)`` in grey values; the channels are coupled (Chambolle 2004)."""
    return restoration.denoise_tv_chambolle(image, weight=weight, channel_axis=0)


def wavelet(image: np.ndarray, strength: float, method: str) -> np.ndarray:
    """Denoise by soft thresholds on db2 wavelets in YCbCr.

    Args:
        image: ``(C, H, W)``.
        strength: assumed noise level, as a multiple of the estimated level.
        method: "BayesShrink" (Chang, Yu, Vetterli 2000) adapts the threshold to each sub-band. "VisuShrink" (Donoho,
            Johnstone 1994) uses one threshold, which is stronger.
    """
    levels = noise_levels(image)
    if not any(levels):
        return image.copy()
    return restoration.denoise_wavelet(
        image,
        sigma=[strength * level for level in levels],
        method=method,
        wavelet="db2",
        convert2ycbcr=len(image) == 3,
        channel_axis=0,
    )


def non_local_means(image: np.ndarray, strength: float) -> np.ndarray:
    """Average over similar 5 x 5 patches at most 6 pixels away; ``h = strength * estimated noise level``.

    Source: Buades, Coll, Morel, *Non-Local Means Denoising*, 2011; Darbon et al. 2008 for the fast form.
    """
    level = float(np.mean(noise_levels(image)))
    # scikit-image drops a single channel axis and transposes the image, so a grey image is passed without the axis.
    is_grey = len(image) == 1
    restored = restoration.denoise_nl_means(
        image[0] if is_grey else image,
        patch_size=5,
        patch_distance=6,
        h=strength * level,
        sigma=level,
        fast_mode=True,
        channel_axis=None if is_grey else 0,
    )
    return restored.reshape(image.shape)


def noise_levels(image: np.ndarray) -> list[float]:
    """Estimate the standard deviation of the noise in each channel; 0 for a channel without visible noise.

    The estimate is ``median |d| / 0.6745`` of the nonzero diagonal details d of the finest db2 wavelets. This equals
    scikit-image's estimate_sigma, except that estimate_sigma returns NaN and warns for a flat channel.

    Source: Donoho, Johnstone, *Ideal Spatial Adaptation by Wavelet Shrinkage*, Biometrika 1994, section 4.2.
    """
    import pywt  # imported here, because restoration with a network does not need it

    levels = []
    for channel in image:
        details = pywt.dwtn(channel, "db2")["dd"]
        seen = np.abs(details[details != 0])
        levels.append(float(np.median(seen)) / MEDIAN_ABSOLUTE_DEVIATION if seen.size else 0.0)
    return levels
