"""Inpainting by smoothness: missing pixels are computed from the known pixels around them.

Legend: inputs are numpy ``(C + 1, H, W)`` float32; the last channel is the mask, 1 = missing. Every method returns
``(C, H, W)`` and does not change the known pixels.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu
from skimage import restoration


def mean_fill(inputs: np.ndarray) -> np.ndarray:
    """Set every missing pixel to the mean of the known pixels of its channel."""
    image, missing = _split(inputs)
    means = image[:, ~missing].mean(axis=1)
    return np.where(missing, means[:, None, None], image)


def harmonic(inputs: np.ndarray) -> np.ndarray:
    """Make every missing pixel the mean of its 2 to 4 neighbours in the image: ``laplacian u = 0``, for each channel.

    Source: Chan, Shen, *Mathematical Models for Local Nontexture Inpaintings*, SIAM J. Applied Math. 2002.
    """
    image, missing = _split(inputs)
    height, width = missing.shape
    numbers = np.arange(height * width).reshape(height, width)
    pairs = np.concatenate(  # (E, 2), pairs of neighbours
        [
            np.stack([numbers[:-1].ravel(), numbers[1:].ravel()], axis=1),
            np.stack([numbers[:, :-1].ravel(), numbers[:, 1:].ravel()], axis=1),
        ]
    )
    one, other = np.concatenate([pairs, pairs[:, ::-1]]).T
    is_hole = missing.ravel()
    from_hole = is_hole[one]
    one, other = one[from_hole], other[from_hole]
    adjacency = sparse.csr_array((np.ones(one.size), (one, other)), shape=(is_hole.size, is_hole.size))
    rows = adjacency[is_hole]  # (missing, H W)
    matrix = sparse.diags_array(rows.sum(axis=1)) - rows[:, is_hole]
    values = image.reshape(len(image), -1).astype(np.float64)  # (C, H W)
    filled = values.copy()
    if is_hole.any():
        solver = splu(matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
        filled[:, is_hole] = solver.solve(rows[:, ~is_hole] @ values[:, ~is_hole].T).T
    return filled.reshape(image.shape)


def biharmonic(inputs: np.ndarray) -> np.ndarray:
    """Solve ``laplacian^2 u = 0`` in the missing pixels, which continues values and slopes and may overshoot.

    scikit-image clips the result to the range of the known pixels.

    Source: Damelin, Hoang, *On Surface Completion and Image Inpainting by Biharmonic Functions*, 2018.
    """
    image, missing = _split(inputs)
    return restoration.inpaint_biharmonic(image, missing, channel_axis=0)


def _split(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split inputs into the image ``(C, H, W)`` and the boolean mask of missing pixels ``(H, W)``."""
    image, missing = inputs[:-1], inputs[-1] > 0.5
    if missing.all():
        raise ValueError("nothing is known of an image: every pixel of its mask is 1; leave it out")
    return image, missing
