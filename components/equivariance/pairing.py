"""Pairs: images and their rotated copies in one batch, ordered originals, copies, singles.

Legend: B images brought, k pairs, C channels, H rows, W columns.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from .groups import rotate

Pairing = Literal["replace", "append"]
LARGEST_PAIR_FRACTION: dict[Pairing, float] = {"replace": 0.5, "append": 1.0}


@dataclass(frozen=True)
class PairedBatch:
    """A batch whose first ``num_pairs`` images are followed by their rotated copies, then by singles.

    `turns` is the number of quarter turns between an original and its copy, `shift` the cyclic channel shift
    that the penalty ``channel`` uses in this step.
    """

    inputs: Tensor
    targets: Tensor
    turns: int
    shift: int
    num_pairs: int

    @property
    def copies(self) -> slice:
        """Where the rotated copies lie: ``inputs[copies]`` are the copies of ``inputs[:num_pairs]``."""
        return slice(self.num_pairs, 2 * self.num_pairs)


def check_turns_fit(images: Tensor, turns: int) -> None:
    """Raise a ValueError if `turns` quarter turns make the images' shape another: odd ones, not square."""
    height, width = images.shape[-2:]
    if turns % 2 and height != width:
        raise ValueError(
            f"turns: an odd number of quarter turns does not fit into a batch of {height} x {width} images; "
            "crop them to squares, or pass turns=2"
        )


def insert_rotated_copies(images: Tensor, num_pairs: int, turns: int) -> Tensor:
    """Insert rotated copies of the first images behind them: originals, copies, singles.

    ``(B, C, H, W)`` -> ``(B + k, C, H, W)``; all images brought are kept.

    Raises:
        ValueError: num_pairs is not in 1..B; an odd number of turns of images that are not square.
    """
    num_images = len(images)
    if not 1 <= num_pairs <= num_images:
        raise ValueError(f"num_pairs: {num_pairs} is not in 1..{num_images}, the images of the batch")
    check_turns_fit(images, turns)
    originals, singles = images[:num_pairs], images[num_pairs:]
    return torch.cat((originals, rotate(originals, turns), singles))  # (k + k + (B - k), C, H, W)


def replace_by_rotated_copies(images: Tensor, num_pairs: int, turns: int) -> Tensor:
    """Replace images k..2k-1 by the rotated copies of images 0..k-1: ``(B, C, H, W)`` -> ``(B, C, H, W)``."""
    kept = torch.cat((images[:num_pairs], images[2 * num_pairs :]))  # (B - k, C, H, W)
    return insert_rotated_copies(kept, num_pairs, turns)


def check_pair_fraction(pair_fraction: float, pairing: Pairing) -> None:
    """Raise a ValueError unless the fraction is positive and not above what the pairing can hold."""
    largest = LARGEST_PAIR_FRACTION[pairing]
    if not 0 < pair_fraction <= largest:
        raise ValueError(f"pair_fraction: {pair_fraction} is not above 0 and at most {largest} (pairing {pairing!r})")


def count_pairs(num_images: int, pair_fraction: float) -> int:
    """``k = pair_fraction * B``, which must be a whole number of at least 1.

    Raises:
        ValueError: it is not; names fractions and batch sizes that fit.
    """
    exact = pair_fraction * num_images
    num_pairs = round(exact)
    if num_pairs >= 1 and abs(exact - num_pairs) < 1e-6:
        return num_pairs
    step = Fraction(pair_fraction).limit_denominator(1000).denominator
    smaller, larger = num_images // step * step, (num_images // step + 1) * step
    sizes = f"{smaller} or {larger}" if smaller else f"{larger}"
    below = max(1, int(exact))
    raise ValueError(
        f"pair_fraction: {pair_fraction} of a batch of {num_images} is {exact:g} pairs, not a whole number "
        f">= 1; use a batch of {sizes}, or a pair_fraction of {below}/{num_images} = {below / num_images:.6g}"
    )


def draw_between_one_and(largest: int, generator: torch.Generator | None) -> int:
    """A whole number, uniform in 1..largest, from the generator (torch's default one if None)."""
    device = generator.device if generator is not None else torch.device("cpu")
    return int(torch.randint(1, largest + 1, (), generator=generator, device=device))
