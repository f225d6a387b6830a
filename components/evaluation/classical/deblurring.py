"""Deblurring that is not told the kernel: it takes it for a Gaussian of an assumed width.

Beyond its border an image is taken to go on as its mirror image, the outermost pixels twice. A Gaussian is then
diagonal in the cosine transform and its own adjoint, so that nothing rings at the border and nothing has to be padded
(Ng, Chan, Tang, SIAM J. Sci. Comput. 1999). Legend: images are numpy ``(C, H, W)`` float32.
"""

from __future__ import annotations

import numpy as np
from scipy import fft, ndimage
from skimage import filters

REACH = 4.0
"""Where a Gaussian is cut off, in standard deviations: scipy's default."""


def unsharp_mask(image: np.ndarray, radius: float, amount: float) -> np.ndarray:
    """``x + amount (x - G x)``, G a Gaussian of standard deviation ``radius`` pixels."""
    return filters.unsharp_mask(image, radius=radius, amount=amount, channel_axis=0, preserve_range=True)


def wiener(image: np.ndarray, sigma: float, noise: float) -> np.ndarray:
    """``argmin_u |G u - x|^2 + noise |L u|^2``, G a Gaussian of ``sigma`` pixels, L the Laplacian of 4 neighbours.

    In the cosine transform ``u = g x / (g^2 + noise l^2)``, with the eigenvalues g of G and l of L.

    Source: Hunt, *The Application of Constrained Least Squares Estimation to Image Restoration*, IEEE Trans.
    Computers 1973.
    """
    height, width = image.shape[-2:]
    blur = gaussian_eigenvalues(height, sigma)[:, None] * gaussian_eigenvalues(width, sigma)  # (H, W)
    laplacian = 4 - 2 * (_cosines(height, 1)[:, None] + _cosines(width, 1))
    gain = blur / (blur**2 + noise * laplacian**2)
    return fft.idctn(fft.dctn(image.astype(np.float64), axes=(1, 2)) * gain, axes=(1, 2))


def richardson_lucy(image: np.ndarray, sigma: float, iterations: int) -> np.ndarray:
    """``u <- u G(x / G u)`` from ``u = x``, G a Gaussian of ``sigma`` pixels; what is negative in x counts as 0.

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
    """Of the Gaussian along a mirrored axis: ``sum_n k_n cos(pi n i / N)`` for the i-th cosine, ``(N,)``."""
    reach = int(REACH * sigma + 0.5)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    cosines = np.stack([_cosines(length, int(offset)) for offset in offsets])  # (taps, N)
    return kernel @ cosines / kernel.sum()


def _cosines(length: int, offset: int) -> np.ndarray:
    return np.cos(np.pi * offset * np.arange(length) / length)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(image, (0, sigma, sigma), mode="reflect", truncate=REACH)
