"""Who trains on what: the split of a global batch of B images into whole pairs and singles for each worker.

Indices are those of the plain batch of B images, so an image has the same index whether or not there are pairs.

    none      0 .. B-1 are singles
    replace   0 .. k-1 originals; k .. 2k-1 are not drawn (their places are the copies'); 2k .. B-1 singles
    append    0 .. k-1 originals; k .. B-1 singles; the copies make it B + k images
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Pairing = Literal["none", "replace", "append"]


@dataclass(frozen=True)
class Share:
    """What one worker draws.

    Attributes:
        indices: of the images to draw, originals of pairs first.
        num_pairs: how many of them get a rotated copy.
    """

    indices: tuple[int, ...]
    num_pairs: int

    @property
    def num_images(self) -> int:
        """Images this worker trains on in a step, copies included."""
        return len(self.indices) + self.num_pairs


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
    """The part of worker ``rank`` of ``num_workers``: an equal number of whole pairs and of singles.

    Raises:
        ValueError: pairs or singles do not divide by the workers.
    """
    first_single = {"none": 0, "replace": 2 * num_pairs, "append": num_pairs}[pairing]
    num_singles = batch_size - first_single
    for what, count in (("pairs", num_pairs), ("single images", num_singles)):
        if count % num_workers:
            raise ValueError(
                f"train.batch_size: {batch_size} images hold {count} {what}, which do not divide by "
                f"{num_workers} workers: change train.batch_size, equivariance.pair_fraction or train.num_workers"
            )
    pairs, singles = num_pairs // num_workers, num_singles // num_workers
    originals = range(rank * pairs, (rank + 1) * pairs)
    rest = range(first_single + rank * singles, first_single + (rank + 1) * singles)
    return Share((*originals, *rest), pairs)
