"""Training samples as a function of (seed, step, index in the global batch)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from components.data.packs import Pack
from components.data.randomness import Stream, generator

Degradation = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""Clean ``(C, H + 2 margin, W + 2 margin)``, generator -> degraded, without the margin. A missing attribute ``margin``
means 0."""


def margin_of(degradation: Degradation | None) -> int:
    """Return the margin of a degradation: the pixels beyond each side of a crop on which its result depends."""
    return int(getattr(degradation, "margin", 0))


@dataclass(frozen=True)
class PatchSampler:
    """Draws a random crop of a random clean image, degrades it, and optionally rotates the pair.

    Attributes:
        pack: the clean images, or the pairs. All images and all positions in an image are equally likely.
        degradation: degradation of a clean crop. None if the pack holds pairs; the degraded image is then cropped at
            the same position.
        patch_size: side of the square clean crop, in pixels.
        rotations: whether to rotate degraded and clean image together by a random number of quarter turns, 0 to 3.
        seed: seed of all random draws.
        scale: size of the clean image / size of the degraded image. Crops of given pairs begin at multiples of it.

    Raises:
        ValueError: the pack is empty, pairs are needed and the pack holds none, or an image is smaller than a patch.
    """

    pack: Pack
    degradation: Degradation | None
    patch_size: int
    rotations: bool
    seed: int
    scale: int = 1

    def __post_init__(self) -> None:
        if not self.pack.entries:
            raise ValueError(f"{self.pack.folder}: no images to train on")
        if self.degradation is None and not self.pack.holds_pairs:
            raise ValueError(f"{self.pack.folder}: no degraded images here; run 'eqreg preprocess' again")
        if self.patch_size % self.scale:
            nearest = max(self.scale, self.scale * round(self.patch_size / self.scale))
            raise ValueError(
                f"train.patch_size: {self.patch_size} does not divide by the scale {self.scale}: use {nearest}"
            )
        margin = margin_of(self.degradation)
        smallest = min(self.pack.entries, key=lambda entry: min(entry.height, entry.width))
        side = min(smallest.height, smallest.width) - 2 * margin
        if self.patch_size > side:
            beyond = f" less {margin} on each side, which the degradation looks at" if margin else ""
            raise ValueError(
                f"train.patch_size: {self.patch_size} is larger than the smallest image, {smallest.name} "
                f"({smallest.width}x{smallest.height}{beyond}): use {side} or less"
            )

    def pair(self, step: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw a pair: degraded ``(C', p / scale, p / scale)`` and clean ``(C, p, p)``, float32.

        The same arguments give the same pair.
        """
        draw = generator(self.seed, Stream.TRAINING_IMAGE, step, index)
        which = int(draw.integers(len(self.pack)))
        entry = self.pack.entries[which]
        margin = margin_of(self.degradation)
        side = self.patch_size + 2 * margin
        grid = self.scale if self.degradation is None else 1
        top = int(draw.integers((entry.height - side) // grid + 1)) * grid
        left = int(draw.integers((entry.width - side) // grid + 1)) * grid
        turns = int(draw.integers(4))
        clean = self.pack.clean_crop(which, top, left, side)
        if self.degradation is None:
            place = (top // grid, left // grid, side // grid)
            degraded = self.pack.degraded_crop(which, *place)
        else:
            degraded = self.degradation(clean, draw)
            clean = clean[:, margin : side - margin, margin : side - margin]
        if self.rotations:
            clean, degraded = (np.rot90(image, turns, axes=(-2, -1)) for image in (clean, degraded))
        return degraded, clean

    def batch(self, step: int, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Draw the pairs with these indices of the global batch, and return the stacks (degraded, clean)."""
        pairs = [self.pair(step, index) for index in indices]
        degraded, clean = (np.stack(images) for images in zip(*pairs, strict=True))
        return torch.from_numpy(degraded), torch.from_numpy(clean)


@dataclass(frozen=True)
class LabelledSampler:
    """Draws a whole image and its class; the image is shifted by up to 4 pixels, mirrored, rotated and degraded.

    Shifts with reflected border and left-right mirroring are the usual augmentation of CIFAR (He et al. 2016).

    Attributes:
        pack: images of one size, each with a label.
        degradation: degradation of the image.
        rotations: whether to rotate by a random number of quarter turns, 0 to 3.
        seed: seed of all random draws.

    Raises:
        ValueError: the pack is empty, or its images have no labels or more than one size.
    """

    pack: Pack
    degradation: Degradation
    rotations: bool
    seed: int

    SHIFT = 4

    def __post_init__(self) -> None:
        entries = self.pack.entries
        if not entries:
            raise ValueError(f"{self.pack.folder}: no images to train on")
        if unlabelled := next((entry for entry in entries if entry.label is None), None):
            raise ValueError(f"{self.pack.folder}: {unlabelled.name} has no label; run 'eqreg preprocess' again")
        sizes = {(entry.height, entry.width) for entry in entries}
        if len(sizes) > 1:
            shown = ", ".join(f"{width}x{height}" for height, width in sorted(sizes)[:3])
            raise ValueError(f"{self.pack.folder}: images of {len(sizes)} sizes ({shown}, ...): bring them to one")
        ((height, width),) = sizes
        if self.rotations and height != width:
            raise ValueError(
                f"train.rotations: images of {width}x{height} pixels cannot be turned by 90 degrees: use false"
            )

    def pair(self, step: int, index: int) -> tuple[np.ndarray, int]:
        """Draw (image ``(C, H, W)`` float32, class); the same arguments give the same result."""
        draw = generator(self.seed, Stream.TRAINING_IMAGE, step, index)
        which = int(draw.integers(len(self.pack)))
        top, left = (int(shift) for shift in draw.integers(2 * self.SHIFT + 1, size=2))
        is_mirrored, turns = bool(draw.integers(2)), int(draw.integers(4))
        image = self.pack.clean(which)
        height, width = image.shape[-2:]
        padded = np.pad(image, ((0, 0), (self.SHIFT, self.SHIFT), (self.SHIFT, self.SHIFT)), mode="reflect")
        image = padded[:, top : top + height, left : left + width]
        if is_mirrored:
            image = image[..., ::-1]
        if self.rotations:
            image = np.rot90(image, turns, axes=(-2, -1))
        label = self.pack.entries[which].label
        assert label is not None  # checked in __post_init__
        return self.degradation(np.ascontiguousarray(image), draw), label

    def batch(self, step: int, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Draw the samples with these indices of the global batch: images ``(N, C, H, W)``, classes ``(N,)`` int64."""
        images, labels = zip(*(self.pair(step, index) for index in indices), strict=True)
        return torch.from_numpy(np.stack(images)), torch.tensor(labels)
