"""Rain from given pairs: the light that rain added to one photograph is added to another photograph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NOISE = 2  # grey levels: tolerance for pixels where the rainy image is darker, because of rounding and similar effects
MOST_DARKENED = 0.05  # a pair is accepted if at most this share of its pixels is darker by more than NOISE


@dataclass(frozen=True, eq=False)
class StreakLayers:
    """``degraded = clip(clean + streak / 255, 0, 1)``, where the streak is a random crop of a random layer.

    The streak is equal in all channels. A layer that is smaller than the image is extended by its mirror image.

    Attributes:
        layers: ``(h, w)`` uint8 each (`streak_layer`). Any sequence with a length and an index is accepted. Only the
            crop is read from memory-mapped arrays.
        flips: mirror the layer left to right in half of the images. A layer is never flipped upside down, because rain
            falls.

    Raises:
        ValueError: there is no layer; when called, a layer is not ``(h, w)`` uint8.

    Example:
        >>> layer = np.full((4, 4), 51, dtype=np.uint8)
        >>> rainy = StreakLayers([layer])(np.zeros((3, 6, 6), dtype=np.float32), np.random.default_rng(0))
        >>> rainy.shape, bool((rainy == np.float32(0.2)).all())
        ((3, 6, 6), True)
    """

    layers: Sequence[np.ndarray]
    flips: bool = True

    def __post_init__(self) -> None:
        if not len(self.layers):
            raise ValueError("layers: there are none; give at least one streak layer")

    def streaks(self, height: int, width: int, generator: np.random.Generator) -> np.ndarray:
        """Return a random layer of light, ``(H, W)`` float32 in [0, 1].

        Args:
            height: H, rows of the image.
            width: W, columns of the image.
            generator: source of the random layer, crop and flip.
        """
        number = int(generator.integers(len(self.layers)))
        layer = self.layers[number]
        if layer.ndim != 2 or layer.dtype != np.uint8:
            raise ValueError(f"layer {number} is {layer.shape} of {layer.dtype}: give (h, w) of uint8")
        crop = random_crop(layer, height, width, generator)
        if self.flips and generator.integers(2):
            crop = crop[:, ::-1]
        return crop.astype(np.float32) / np.float32(255)

    def __call__(self, clean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """``(C, H, W)`` float32 in [0, 1] -> the same shape, in [0, 1]."""
        _, height, width = clean.shape
        return np.clip(clean + self.streaks(height, width, generator), 0, 1)


def random_crop(layer: np.ndarray, height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """Return a random crop ``(height, width)`` of a layer ``(h, w)``; every position is equally likely.

    The layer is extended by its mirror image along an axis that is too short.

    Args:
        layer: ``(h, w)``.
        height: rows of the crop.
        width: columns of the crop.
        generator: source of the random position.

    Example:
        >>> layer = np.arange(20).reshape(4, 5)
        >>> random_crop(layer, 2, 8, np.random.default_rng(0)).shape
        (2, 8)
    """
    rows, columns = (
        _random_interval(size, wanted, generator) for size, wanted in zip(layer.shape, (height, width), strict=True)
    )
    return np.asarray(layer[rows])[:, columns]


def _random_interval(size: int, wanted: int, generator: np.random.Generator) -> slice | np.ndarray:
    if wanted <= size:
        first = int(generator.integers(size - wanted + 1))
        return slice(first, first + wanted)
    places = (int(generator.integers(2 * size)) + np.arange(wanted)) % (2 * size)
    return np.where(places < size, places, 2 * size - 1 - places)


def streak_layer(rainy: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Return the light that rain added: ``max(rainy - clean, 0)`` in grey levels, the median over the channels.

    Where a channel of the rainy image is white, the largest difference over the channels is taken. A white channel is
    saturated, so its difference underestimates the added light. If the rain was added equally to R, G and B, the result
    is the layer itself, up to clipping.

    Shape: two ``(C, H, W)`` uint8 -> ``(H, W)`` uint8.

    Raises:
        ValueError: the images do not match (shape, dtype), no light was added, or too many pixels became darker. In
            the last case the two are exchanged, not aligned, or of different photographs.

    Example:
        >>> clean = np.full((3, 2, 2), 100, dtype=np.uint8)
        >>> streak_layer(clean + np.array([[0, 40], [0, 0]], dtype=np.uint8), clean)
        array([[ 0, 40],
               [ 0,  0]], dtype=uint8)
    """
    if rainy.shape != clean.shape or rainy.ndim != 3 or rainy.dtype != np.uint8 or clean.dtype != np.uint8:
        raise ValueError(
            f"rainy {rainy.shape} {rainy.dtype} and clean {clean.shape} {clean.dtype}: "
            "give both in one shape (C, H, W) and uint8"
        )
    differences = rainy.astype(np.int16) - clean
    white = (rainy == 255).any(axis=0)  # (H, W)
    layer = np.where(white, differences.max(axis=0), np.median(differences, axis=0))
    darkened = float((layer < -NOISE).mean())
    if darkened > MOST_DARKENED:
        raise ValueError(
            f"the rainy image is darker than the clean one in {darkened:.0%} of its pixels: rain only brightens; "
            "check that the two are one photograph, aligned, and not exchanged"
        )
    if layer.max() <= 0:
        raise ValueError("the rainy image is nowhere brighter than the clean one: leave this pair out")
    return np.rint(layer.clip(0, 255)).astype(np.uint8)
