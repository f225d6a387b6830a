"""The split of a global batch of B images into whole pairs and unpaired images for each worker.

Indices refer to the batch of B images without pairs. An image therefore has the same index with and without pairs.

    none      0 .. B-1 unpaired
    replace   0 .. k-1 originals; k .. 2k-1 not drawn (replaced by the transformed images); 2k .. B-1 unpaired
    append    0 .. k-1 originals; k .. B-1 unpaired; with the transformed images there are B + k images
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Pairing = Literal["none", "replace", "append"]


@dataclass(frozen=True)
class WorkerBatch:
    """The images of one worker in a step, or a micro-batch of them.

    Attributes:
        indices: indices of the images to draw; originals of pairs come first.
        num_pairs: number of images that get a transformed image.
        batch_pairs: number of pairs of the global batch.
        batch_unpaired: number of unpaired images of the global batch.
        num_workers: number of workers that train together.
    """

    indices: tuple[int, ...]
    num_pairs: int
    batch_pairs: int
    batch_unpaired: int
    num_workers: int

    @property
    def num_images(self) -> int:
        """Number of images of this worker, including transformed images."""
        return len(self.indices) + self.num_pairs

    @property
    def batch_images(self) -> int:
        """Number of images of all workers in a step, including transformed images."""
        return 2 * self.batch_pairs + self.batch_unpaired

    def task_factor(self, counts_transformed: bool) -> float:
        """Return the factor of this worker's mean loss.

        With these factors, the mean over the workers equals the mean over the global batch.
        """
        own = self.num_images if counts_transformed else len(self.indices)
        whole = self.batch_images if counts_transformed else self.batch_pairs + self.batch_unpaired
        return own * self.num_workers / whole

    @property
    def penalty_factor(self) -> float:
        """The corresponding factor of this worker's mean over pairs."""
        return self.num_pairs * self.num_workers / self.batch_pairs if self.batch_pairs else 1.0

    def micro_batches(self, micro_batch_size: int | None) -> list[WorkerBatch]:
        """Split the images into micro-batches of at most ``micro_batch_size`` images, including transformed images.

        Pairs and unpaired images are distributed evenly.

        Raises:
            ValueError: the size is below two although there are pairs.
        """
        if micro_batch_size is None or self.num_images <= micro_batch_size:
            return [self]
        if micro_batch_size < (2 if self.num_pairs else 1):
            raise ValueError(f"train.micro_batch_size: {micro_batch_size} holds no pair: use 2 or more")
        number_of = -(-self.num_images // micro_batch_size)
        while not (micro_batches := self._cut(number_of, micro_batch_size)):
            number_of += 1
        return micro_batches

    def _cut(self, number_of: int, micro_batch_size: int) -> list[WorkerBatch]:
        """Split into ``number_of`` micro-batches; return an empty list if one of them would be too large."""
        originals, unpaired = self.indices[: self.num_pairs], self.indices[self.num_pairs :]
        micro_batches = []
        for number in range(number_of):
            own = _run_of(originals, number, number_of)
            # Reversed order: a micro-batch with one more pair has one unpaired image less.
            rest = _run_of(unpaired, number_of - 1 - number, number_of)
            micro_batches.append(replace(self, indices=(*own, *rest), num_pairs=len(own)))
        return micro_batches if max(part.num_images for part in micro_batches) <= micro_batch_size else []


def _run_of(indices: tuple[int, ...], number: int, num_pieces: int) -> tuple[int, ...]:
    """Return run ``number`` of ``num_pieces`` consecutive runs; lengths differ by at most one, longer runs first."""
    size, longer = divmod(len(indices), num_pieces)
    start = number * size + min(number, longer)
    return indices[start : start + size + (number < longer)]


def count_pairs(batch_size: int, pairing: Pairing, pair_fraction: float) -> int:
    """Compute k = pair_fraction * B, the number of pairs in the global batch.

    Args:
        batch_size: B.
        pairing: the pairing; k is 0 for "none".
        pair_fraction: share of the images that are originals of pairs.

    Raises:
        ValueError: the fraction is out of range for the pairing, or k is not an integer of at least 1.
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
    if num_pairs < 1 or abs(num_pairs - batch_size * pair_fraction) > 1e-3:  # 0.333333 of 12 counts as 4
        nearest = min(max(num_pairs, 1), int(batch_size * highest)) / batch_size
        hint = f"use {nearest:g}" if nearest else "use a train.batch_size of 2 or more"
        raise ValueError(
            f"equivariance.pair_fraction: {pair_fraction} of train.batch_size {batch_size} is "
            f"{batch_size * pair_fraction:g} pairs, not a whole number of at least 1: {hint}"
        )
    return num_pairs


def worker_batch(batch_size: int, pairing: Pairing, num_pairs: int, rank: int, num_workers: int) -> WorkerBatch:
    """Return the images of one worker: whole pairs and unpaired images.

    The numbers of pairs of two workers differ by at most one. The same holds for the unpaired images.

    Args:
        batch_size: number of images of the global batch, without transformed images.
        pairing: the pairing.
        num_pairs: number of pairs of the global batch.
        rank: rank of the worker.
        num_workers: number of workers.

    Raises:
        ValueError: there are more workers than pairs, or more workers than images if there are no pairs.
    """
    first_single = {"none": 0, "replace": 2 * num_pairs, "append": num_pairs}[pairing]
    most = batch_size if pairing == "none" else num_pairs
    if num_workers > most:
        what = "images" if pairing == "none" else "pairs (equivariance.pair_fraction of them)"
        raise ValueError(
            f"train.batch_size: {batch_size} images hold {most} {what}, too few for {num_workers} workers, "
            f"each of which needs one: use more, or a train.num_workers of at most {most}"
        )
    originals, unpaired = tuple(range(num_pairs)), tuple(range(first_single, batch_size))
    own = _run_of(originals, rank, num_workers)
    rest = _run_of(unpaired, num_workers - 1 - rank, num_workers)
    return WorkerBatch((*own, *rest), len(own), num_pairs, len(unpaired), num_workers)
