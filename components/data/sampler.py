"""Training pairs as a function of (seed, step, index in the global batch)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from components.data.packs import Pack
from components.data.randomness import Stream, generator

Degradation = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class PatchSampler:
    """Draws a crop of a random clean image, degrades it afresh, and turns the pair if asked to.

    Attributes:
        pack: the clean images; every image is equally likely, every position in it too.
        degradation: ``(C, H, W)`` clean, generator -> degraded.
        patch_size: side of the square crop, in pixels.
        rotations: turn degraded and clean together by a random number of quarter turns, 0 to 3.
        seed: of everything drawn here.

    Raises:
        ValueError: the pack is empty or an image is smaller than a patch.
    """

    pack: Pack
    degradation: Degradation
    patch_size: int
    rotations: bool
    seed: int

    def __post_init__(self) -> None:
        if not self.pack.entries:
            raise ValueError(f"{self.pack.folder}: no images to train on")
        smallest = min(self.pack.entries, key=lambda entry: min(entry.height, entry.width))
        if self.patch_size > min(smallest.height, smallest.width):
            raise ValueError(
                f"train.patch_size: {self.patch_size} is larger than the smallest image, {smallest.name} "
                f"({smallest.width}x{smallest.height}): use {min(smallest.height, smallest.width)} or less"
            )

    def pair(self, step: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(degraded, clean), each ``(C, patch, patch)`` float32: always the same for the same arguments."""
        draw = generator(self.seed, Stream.TRAINING_IMAGE, step, index)
        which = int(draw.integers(len(self.pack)))
        entry = self.pack.entries[which]
        top = int(draw.integers(entry.height - self.patch_size + 1))
        left = int(draw.integers(entry.width - self.patch_size + 1))
        turns = int(draw.integers(4))
        clean = self.pack.clean_crop(which, top, left, self.patch_size)
        degraded = self.degradation(clean, draw)
        if self.rotations:
            clean, degraded = (np.rot90(image, turns, axes=(-2, -1)) for image in (clean, degraded))
        return degraded, clean

    def batch(self, step: int, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(degraded, clean), each ``(len(indices), C, patch, patch)``, of these indices of the global batch."""
        pairs = [self.pair(step, index) for index in indices]
        degraded, clean = (np.stack(images) for images in zip(*pairs, strict=True))
        return torch.from_numpy(degraded), torch.from_numpy(clean)
