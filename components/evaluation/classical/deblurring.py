"""Deblurring without knowledge of the kernel: the kernel is assumed to be a Gaussian of a given width.

An image is extended beyond its border by its mirror image, in which the outermost pixels occur twice. A Gaussian is
then diagonal in the cosine transform and self-adjoint. There is no ringing at the border, and no padding is needed (Ng,
Chan, Tang, SIAM J. Sci. Comput. 1999). Legend: images are numpy ``(C, H, W)`` float32.
"""

from __future__ import annotations

import numpy as np
from scipy import fft, ndimage
from skimage import filters

REACH = 4.0
"""Truncation of a Gaussian in standard deviations: scipy's default."""


def unsharp_mask(image: np.ndarray, radius: float, amount: float) -> np.ndarray:
    """Compute ``x + amount (x - G x)`` with a Gaussian G.

    Args:
        image: x, ``(C, H, W)``.
        radius: standard deviation of G in pixels.
        amount: weight of the difference.
    """
    return filters.unsharp_mask(image, radius=radius, amount=amount, channel_axis=0, preserve_range=True)


def wiener(image: np.ndarray, sigma: float, noise: float) -> np.ndarray:
    """Compute ``argmin_u |G u - x|^2 + noise |L u|^2`` with a Gaussian G and the Laplacian L of 4 neighbours.

    In the cosine transform, ``u = g x / (g^2 + noise l^2)`` with the eigenvalues g of G and l of L.

    Args:
        image: x, ``(C, H, W)``.
        sigma: standard deviation of G in pixels.
        noise: weight of the regularisation.

    Source: Hunt, *The Application of Constrained Least Squares Estimation to Image Restoration*, IEEE Trans.
    Computers 1973.
    """
    height, width = image.shape[-2:]
    blur = gaussian_eigenvalues(height, sigma)[:, None] * gaussian_eigenvalues(width, sigma)  # (H, W)
    laplacian = 4 - 2 * (_cosines(height, 1)[:, None] + _cosines(width, 1))
    gain = blur / (blur**2 + noise * laplacian**2)
    return fft.idctn(fft.dctn(image.astype(np.float64), axes=(1, 2)) * gain, axes=(1, 2))


def richardson_lucy(image: np.ndarray, sigma: float, iterations: int) -> np.ndarray:
    """Iterate ``u <- u G(x / G u)`` from ``u = x`` with a Gaussian G; negative values of x are set to 0.

    Args:
        image: x, ``(C, H, W)``.
        sigma: standard deviation of G in pixels.
        iterations: number of iterations.

    Source: Richardson, JOSA 1972; Lucy, Astronomical Journal 1974.
    """
    seen = np.maximum(image, 0)
    restored = seen
    for _ in range(iterations):
        blurred = _blur(restored, sigma)
        ratio = np.divide(seen, blurred, out=np.zeros_like(seen), where=blurred > 0)
        restored = restored * _blur(ratio, sigma)
    return restored


def gaussian_eigenvalues(length: int, sigma: float) -> np.ndarray:
    """Return the eigenvalues of a Gaussian along a mirrored axis, ``(N,)``.

    The eigenvalue of the i-th cosine is ``sum_n k_n cos(pi n i / N)``.
    """
    reach = int(REACH * sigma + 0.5)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    cosines = np.stack([_cosines(length, int(offset)) for offset in offsets])  # (taps, N)
    return kernel @ cosines / kernel.sum()


def _cosines(length: int, offset: int) -> np.ndarray:
    return np.cos(np.pi * offset * np.arange(length) / length)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(image, (0, sigma, sigma), mode="reflect", truncate=REACH)
