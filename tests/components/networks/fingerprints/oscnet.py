"""The basis with which the fingerprints of OSCNet were made.

The fingerprints do not hold it, and the reference takes it from a singular value decomposition. Of six pairs of equal
singular values the decomposition may give any two orthonormal functions of the same plane, and of every other function
either sign. These numbers say which ones it gave. They were found by running the decomposition on the machine where the
fingerprints were made, and are data: nothing else about the basis is taken from it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from components.networks.unrolled.oscnet import oriented_basis

NEGATIVE = (0, 5, 11, 16, 24)
"""Functions outside the pairs with the other sign."""

PAIRS = {
    1: (-1.9042251530520176, 1),
    6: (2.8859121976737714, -1),
    8: (-1.4636949634500052, 1),
    13: (-2.1481961656087463, -1),
    18: (-0.7589060957523236, 1),
    22: (-0.7435935079454145, -1),
}
"""First of two functions -> the angle by which the plane was turned, and 1, or -1 if it was mirrored, too."""


def reference_basis() -> Tensor:
    """The basis of the reference in single precision, ``(9, 9, 8, 25)``."""
    functions, _ = oriented_basis(8)
    change = np.eye(25)
    change[NEGATIVE, NEGATIVE] = -1
    for first, (angle, determinant) in PAIRS.items():
        c, s = np.cos(angle), np.sin(angle)
        change[first : first + 2, first : first + 2] = [[c, s], [-determinant * s, determinant * c]]
    return (functions @ torch.from_numpy(change)).float()
