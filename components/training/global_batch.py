"""Who trains on what: the split of a global batch of B images into whole pairs and singles for each worker.

Indices are those of the plain batch of B images, so an image has the same index whether or not there are pairs.

    none      0 .. B-1 are singles
    replace   0 .. k-1 originals; k .. 2k-1 are not drawn (their places are the copies'); 2k .. B-1 singles
    append    0 .. k-1 originals; k .. B-1 singles; the copies make it B + k images
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Pairing = Literal["none", "replace", "append"]


@dataclass(frozen=True)
class Share:
    """What one worker trains on in a step, or one part of it that passes the network at once.

    Attributes:
        indices: of the images to draw, originals of pairs first.
        num_pairs: how many of them get a rotated copy.
        batch_pairs: pairs of the whole global batch.
        batch_singles: images of the whole global batch that have no copy.
        num_workers: that share it.
    """

    indices: tuple[int, ...]
    num_pairs: int
    batch_pairs: int
    batch_singles: int
    num_workers: int

    @property
    def num_images(self) -> int:
        """Images of this share, copies included."""
        return len(self.indices) + self.num_pairs

    @property
    def batch_images(self) -> int:
        """Images of a step of all workers together, copies included."""
        return 2 * self.batch_pairs + self.batch_singles

    def task_factor(self, counts_copies: bool) -> float:
        """What the mean over this share is multiplied by, so that the mean over the workers is that of the batch."""
        own = self.num_images if counts_copies else len(self.indices)
        whole = self.batch_images if counts_copies else self.batch_pairs + self.batch_singles
        return own * self.num_workers / whole

    @property
    def penalty_factor(self) -> float:
        """The same for the mean over pairs."""
        return self.num_pairs * self.num_workers / self.batch_pairs if self.batch_pairs else 1.0

    def parts(self, images_at_once: int | None) -> list[Share]:
        """The share in parts of at most so many images, copies included, pairs and singles mixed alike.

        Raises:
            ValueError: fewer than two images at once where there are pairs.
        """
        if images_at_once is None or self.num_images <= images_at_once:
            return [self]
        if images_at_once < (2 if self.num_pairs else 1):
            raise ValueError(f"train.images_at_once: {images_at_once} holds no pair: use 2 or more")
        num_parts = -(-self.num_images // images_at_once)
        while not (parts := self._cut(num_parts, images_at_once)):
            num_parts += 1
        return parts

    def _cut(self, num_parts: int, images_at_once: int) -> list[Share]:
        """So many parts, or none where one of them would be too large."""
        originals, singles = self.indices[: self.num_pairs], self.indices[self.num_pairs :]
        parts = []
        for number in range(num_parts):
            own = _piece(originals, number, num_parts)
            # The other way round: the part with a pair more has a single less.
            rest = _piece(singles, num_parts - 1 - number, num_parts)
            parts.append(replace(self, indices=(*own, *rest), num_pairs=len(own)))
        return parts if max(part.num_images for part in parts) <= images_at_once else []


def _piece(indices: tuple[int, ...], number: int, num_pieces: int) -> tuple[int, ...]:
    """A run of the indices, so long that pieces differ by one at most; the first are the longer ones."""
    size, longer = divmod(len(indices), num_pieces)
    start = number * size + min(number, longer)
    return indices[start : start + size + (number < longer)]


def count_pairs(batch_size: int, pairing: Pairing, pair_fraction: float) -> int:
    """k = pair_fraction * B, the number of pairs in the global batch.

    Raises:
        ValueError: the fraction is out of range for the pairing, or k is not a whole number of at least 1.
    """
    if pairing == "none":
        return 0
    highest = 0.5 if pairing == "replace" else 1.0
    if not 0 < pair_fraction <= highest:
        raise ValueError(
            f"equivariance.pair_fraction: {pair_fraction} is impossible with pairing '{pairing}': "
            f"use more than 0 and at most {highest:g}"
        )
    num_pairs = round(batch_size * pair_fraction)
    if num_pairs < 1 or abs(num_pairs - batch_size * pair_fraction) > 1e-3:  # 0.333333 of 12 is meant to be 4
        nearest = min(max(num_pairs, 1), int(batch_size * highest)) / batch_size
        remedy = f"use {nearest:g}" if nearest else "use a train.batch_size of 2 or more"
        raise ValueError(
            f"equivariance.pair_fraction: {pair_fraction} of train.batch_size {batch_size} is "
            f"{batch_size * pair_fraction:g} pairs, not a whole number of at least 1: {remedy}"
        )
    return num_pairs


def worker_share(batch_size: int, pairing: Pairing, num_pairs: int, rank: int, num_workers: int) -> Share:
    """The part of worker ``rank`` of ``num_workers``: whole pairs, and singles; of each one more or less than others.

    Raises:
        ValueError: there are more workers than pairs, or than images where there are no pairs.
    """
    first_single = {"none": 0, "replace": 2 * num_pairs, "append": num_pairs}[pairing]
    most = batch_size if pairing == "none" else num_pairs
    if num_workers > most:
        what = "images" if pairing == "none" else "pairs (equivariance.pair_fraction of them)"
        raise ValueError(
            f"train.batch_size: {batch_size} images hold {most} {what}, too few for {num_workers} workers, "
            f"each of which needs one: use more, or a train.num_workers of at most {most}"
        )
    originals, singles = tuple(range(num_pairs)), tuple(range(first_single, batch_size))
    own = _piece(originals, rank, num_workers)
    rest = _piece(singles, num_workers - 1 - rank, num_workers)
    return Share((*own, *rest), len(own), num_pairs, len(singles), num_workers)
