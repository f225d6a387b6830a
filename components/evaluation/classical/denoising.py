"""Filters of scikit-image against noise and rain; the milder ones serve other tasks as well.

Legend: images are numpy ``(C, H, W)`` float32; noise makes them leave [0, 1]. No method is told the strength of the
degradation: those that need it estimate it from the image they restore.
"""

from __future__ import annotations

import numpy as np
from skimage import filters, restoration

MEDIAN_ABSOLUTE_DEVIATION = 0.6744897501960817
"""Of a normal variable of standard deviation 1: its third quartile."""


def identity(image: np.ndarray) -> np.ndarray:
    """The degraded image itself."""
    return image.copy()


def median(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The median of ``height x width`` neighbours, by channel; ``1 x n`` takes away near-vertical streaks."""
    return filters.median(image, np.ones((1, height, width)), mode="reflect")


def total_variation(image: np.ndarray, weight: float) -> np.ndarray:
    """``argmin_u |u - x|^2 / 2 + weight TV(u)``, in grey values, the channels coupled (Chambolle 2004)."""
    return restoration.denoise_tv_chambolle(image, weight=weight, channel_axis=0)


def wavelet(image: np.ndarray, strength: float, method: str) -> np.ndarray:
    """Soft thresholds on db2 wavelets in YCbCr, for a noise of ``strength`` times the estimated level.

    ``method``: "BayesShrink" (Chang, Yu, Vetterli 2000) adapts them to each sub-band; "VisuShrink" (Donoho,
    Johnstone 1994) has one threshold, stronger.
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
    """Means over similar 5 x 5 patches at most 6 pixels away, ``h = strength * noise level``, as estimated.

    Source: Buades, Coll, Morel, *Non-Local Means Denoising*, 2011; Darbon et al. 2008 for the fast form.
    """
    level = float(np.mean(noise_levels(image)))
    # scikit-image loses a single channel and turns the image over, so a grey image goes in without its axis.
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
    """The standard deviation of the noise in each channel, estimated; 0 where nothing of it is seen.

    ``median |d| / 0.6745`` of the nonzero diagonal details d of the finest db2 wavelets. It is scikit-image's
    estimate_sigma, which gives NaN and a warning for a flat channel.

    Source: Donoho, Johnstone, *Ideal Spatial Adaptation by Wavelet Shrinkage*, Biometrika 1994, section 4.2.
    """
    import pywt  # here, because those who restore with a network need not have it

    levels = []
    for channel in image:
        details = pywt.dwtn(channel, "db2")["dd"]
        seen = np.abs(details[details != 0])
        levels.append(float(np.median(seen)) / MEDIAN_ABSOLUTE_DEVIATION if seen.size else 0.0)
    return levels
