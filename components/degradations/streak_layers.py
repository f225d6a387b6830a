"""Rain from given pairs: the light that rain added to one photograph, added to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NOISE = 2  # grey levels by which a rainy image may be darker than the clean one, for rounding and the like
MOST_DARKENED = 0.05  # share of the pixels darker than that, in what still counts as a pair that differs by rain


@dataclass(frozen=True, eq=False)
class StreakLayers:
    """``degraded = clip(clean + streak / 255, 0, 1)``, the streak a random crop of a random layer.

    It is equal in all channels. Where the image is larger than the layer, the layer goes on as its own mirror image.

    Attributes:
        layers: ``(h, w)`` uint8 each (`streak_layer`); anything with a length and an index, such as memory-mapped
            arrays, of which only the crop is read.
        flips: mirror the layer left to right in half of the images. Never upside down: rain falls.

    Raises:
        ValueError: there is no layer; when called, a layer is not ``(h, w)`` uint8.
    """

    layers: Sequence[np.ndarray]
    flips: bool = True

    def __post_init__(self) -> None:
        if not len(self.layers):
            raise ValueError("layers: there are none; give at least one streak layer")

    def streaks(self, height: int, width: int, generator: np.random.Generator) -> np.ndarray:
        """A random layer of light, ``(H, W)`` float32 in [0, 1]."""
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
    """``(height, width)`` of ``(h, w)``, every place equally likely; mirrored on along an axis that is too short."""
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
    """The light that rain added: ``max(rainy - clean, 0)`` in grey levels, the median over the channels.

    Where a channel of the rainy image is white, the largest difference: a white channel does not tell all of the light
    that fell on it. For rain that was added equally to R, G and B this is the layer itself, up to clipping.

    Shape: two ``(C, H, W)`` uint8 -> ``(H, W)`` uint8.

    Raises:
        ValueError: the images do not belong together (shape, dtype), nothing was added, or so much became darker that
            the difference is no rain: the two are exchanged, not aligned, or of different photographs.
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
