"""Recognition: images of any size for a network that was trained on one size, and the likeliest classes.

Legend: B images, C channels, H rows, W columns, h and w of the training images, N classes, K of them are shown.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional


def to_trained_size(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Give an image the size of the training images: resized until it covers that size, then its centre.

    The sides keep their proportion; the interpolation is bilinear, antialiased where the image becomes smaller.

    Args:
        image: ``(C, H, W)`` float32.
        size: (h, w) in pixels; None if it is unknown, then the image is unchanged.

    Returns:
        ``(C, h, w)`` float32; an image of that size is returned unchanged.

    Example:
        >>> to_trained_size(np.zeros((3, 100, 150), dtype=np.float32), (32, 32)).shape
        (3, 32, 32)
    """
    if size is None or image.shape[1:] == size:
        return image
    scale = max(wanted / given for wanted, given in zip(size, image.shape[1:], strict=True))
    sides = [max(wanted, round(scale * given)) for wanted, given in zip(size, image.shape[1:], strict=True)]
    pixels = functional.interpolate(torch.from_numpy(image)[None], size=sides, mode="bilinear", antialias=True)[0]
    top, left = ((side - wanted) // 2 for side, wanted in zip(sides, size, strict=True))
    return np.ascontiguousarray(pixels[:, top : top + size[0], left : left + size[1]].numpy())


def likeliest(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes with the highest probabilities, ``softmax(scores)``.

    Args:
        scores: ``(B, N)``, outputs of the network.
        count: K, at most N.

    Returns:
        (classes ``(B, K)``, probabilities ``(B, K)`` float64), the likeliest first; of equal ones the first class.
    """
    shifted = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(probabilities, order, axis=1)
