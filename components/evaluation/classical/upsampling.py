"""Up-sampling by interpolation, the baselines of super-resolution.

Pixels are areas: the centre of pixel i of the small image is at ``scale (i + 1/2)`` in the large one, as in MATLAB's
imresize. An image is extended beyond its border by its mirror image. Legend: images are numpy ``(C, h, w)`` float32.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

KERNELS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,  # a = -0.5
    "lanczos": Image.Resampling.LANCZOS,  # 3 lobes
}

BORDER = 4
"""Number of mirrored pixels on every side: more than the radius of the widest kernel."""


def upsample(image: np.ndarray, scale: int, kernel: str) -> np.ndarray:
    """Enlarge an image: ``(C, h, w) -> (C, scale h, scale w)``, not clipped; bicubic and Lanczos overshoot at edges.

    Args:
        image: ``(C, h, w)``.
        scale: factor of the enlargement.
        kernel: a key of `KERNELS`. "bicubic" is the kernel of Keys with a = -1/2, as in MATLAB. "lanczos" has three
            lobes.

    Raises:
        ValueError: the scale is not an integer of 1 or more, or the kernel is unknown.

    Source: Keys, *Cubic Convolution Interpolation for Digital Image Processing*, IEEE TASSP 1981; Duchon, *Lanczos
    Filtering in One and Two Dimensions*, J. Applied Meteorology 1979.
    """
    if scale < 1 or scale != int(scale):
        raise ValueError(f"scale {scale}: use a whole number from 1 on")
    if kernel not in KERNELS:
        raise ValueError(f"kernel {kernel!r}: use one of {', '.join(KERNELS)}")
    padded = np.pad(image, ((0, 0), (BORDER, BORDER), (BORDER, BORDER)), mode="symmetric")
    size = (scale * padded.shape[2], scale * padded.shape[1])
    large = np.stack([np.asarray(Image.fromarray(channel).resize(size, KERNELS[kernel])) for channel in padded])
    cut = scale * BORDER
    return large[:, cut:-cut, cut:-cut]
