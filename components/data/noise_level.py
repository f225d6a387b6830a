"""The noise level of an image as one more channel of the network's inputs.

Legend: C channels of an image, H rows, W columns; sigma is in grey levels of 255.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

NOISE_LEVEL = "noise_level"
"""Name of the channel in a stack, and of the entry of a model's metadata."""


class NoiseWithLevel(Protocol):
    """A degradation that also says which noise level it has drawn."""

    def with_level(self, clean: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, float]:
        """Return (noisy image, sigma), the image as of a plain call."""
        ...


def with_noise_level(image: np.ndarray, sigma: float) -> np.ndarray:
    """Append a constant channel ``sigma / 255``: ``(C, H, W)`` float32 -> ``(C + 1, H, W)`` float32.

    Example:
        >>> with_noise_level(np.zeros((1, 1, 2), dtype=np.float32), 51)
        array([[[0. , 0. ]],
        <BLANKLINE>
               [[0.2, 0.2]]], dtype=float32)
    """
    return np.concatenate((image, np.full_like(image[:1], sigma / 255)))


@dataclass(frozen=True)
class StackedNoise:
    """Noise whose result has its level as one more channel, ``(C, H, W)`` -> ``(C + 1, H, W)``.

    Attributes:
        noise: the noise.
    """

    noise: NoiseWithLevel

    def __call__(self, clean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """``(C, H, W)`` float32 in [0, 1] -> noisy image and noise level, ``(C + 1, H, W)``."""
        return with_noise_level(*self.noise.with_level(clean, generator))
