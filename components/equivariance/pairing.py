"""Pairs: images and their turned copies in one batch, ordered originals, copies, singles.

Legend: B images brought, k pairs, C channels, H rows, W columns; n an element of the group (n quarter turns in C4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor

from .groups import C4, Group, is_channels_last
from .options import check_choice, nearest

Pairing = Literal["replace", "append", "none"]
LARGEST_PAIR_FRACTION: dict[Pairing, float] = {"replace": 0.5, "append": 1.0}

EntryField = Literal["image", "invariant"]
"""What a turn does to an entry of a batch: ``(B, C, H, W)`` turned at its own size, or copied (a label)."""

Entries = Tensor | Mapping[str, Tensor]
"""One tensor, or several by name."""

NonSquare = Literal["crop", "pad"]
"""What becomes of images that are not square where the group needs squares."""


@dataclass(frozen=True)
class PairedBatch:
    """A batch whose first ``num_pairs`` images are followed by their turned copies, then by singles.

    `inputs` and `targets` are what was given, a tensor or a dict of tensors. `turns` is the element of the group
    between an original and its copy: for C4 the number of quarter turns. `shift` is the channel shift that the penalty
    "channel" uses in this step, `position` and `field_position` in [0, 1) what decides which layers and fields are
    compared where they are sampled.
    """

    inputs: Any
    targets: Any
    turns: int
    shift: int
    num_pairs: int
    position: float = 0.0
    field_position: float = 0.0

    @property
    def num_images(self) -> int:
        """All images, copies included."""
        return len(first_entry(self.inputs))

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the inputs, in their order."""
        return tuple(tuple(entry.shape) for entry in entries_of(self.inputs))

    @property
    def copies(self) -> slice:
        """Where the copies lie: ``inputs[copies]`` are the copies of ``inputs[:num_pairs]``."""
        return slice(self.num_pairs, 2 * self.num_pairs)


def first_entry(entries: Entries) -> Tensor:
    """The tensor, or the first of several."""
    return entries if isinstance(entries, Tensor) else next(iter(entries.values()))


def entries_of(entries: Entries) -> list[Tensor]:
    """The tensor, or all of several."""
    return [entries] if isinstance(entries, Tensor) else list(entries.values())


def entry_fields(inputs: Entries, targets: Entries, declared: Mapping[str, EntryField]) -> dict[str, EntryField]:
    """The field of every entry: as declared, else "image" for four axes.

    Entries are called by their keys; a lone tensor is "inputs" or "targets".

    Raises:
        ValueError: an entry of other than four axes without a declaration, a declared image that is none, a name that
            is no entry, entries of different numbers of images, or none at all.
    """
    named = _named("inputs", inputs) | _named("targets", targets)
    if not _named("inputs", inputs) or not _named("targets", targets):
        raise ValueError("inputs and targets must each hold at least one tensor")
    for name, field in declared.items():
        if name not in named:
            raise ValueError(f"fields: {name!r} is no entry of the batch{nearest(name, named)} ({', '.join(named)})")
        check_choice(f"fields[{name!r}]", field, ("image", "invariant"))
    fields: dict[str, EntryField] = {}
    for name, entry in named.items():
        fields[name] = declared.get(name, "image")
        if fields[name] == "image" and entry.ndim != 4:
            raise ValueError(
                f"{name}: {tuple(entry.shape)} is no image (B, C, H, W); declare it with "
                f"fields={{{name!r}: 'invariant'}} if a turn leaves it as it is"
            )
    if len({len(entry) if entry.ndim else 0 for entry in named.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(entry.shape)}" for name, entry in named.items())
        raise ValueError(f"inputs and targets must hold as many images each, not {shapes}")
    return fields


def _named(which: str, entries: Entries) -> dict[str, Tensor]:
    return {which: entries} if isinstance(entries, Tensor) else dict(entries)


def each_entry(which: str, entries: Entries, change: Callable[[str, Tensor], Tensor]) -> Tensor | dict[str, Tensor]:
    """Apply ``change(name, entry)`` to a tensor or to each of several."""
    changed = {name: change(name, entry) for name, entry in _named(which, entries).items()}
    return changed[which] if isinstance(entries, Tensor) else changed


def make_square(images: Mapping[str, Tensor], how: NonSquare) -> dict[str, Tensor]:
    """Cut or pad every image of a batch to a square, at the same place of the scene: the middle.

    Entries may have different sizes, as a low-resolution input and its target. Of the smallest entry, H x W, the side
    is ``min(H, W)`` (crop) or ``max(H, W)`` (pad, zeros), and what is left over is shared by both ends, an odd pixel at
    the far end. An entry r times as large is cut or padded r times as far.

    Raises:
        ValueError: an entry whose size is no whole multiple of the smallest's.
    """
    if all(entry.shape[-2] == entry.shape[-1] for entry in images.values()):
        return dict(images)
    height, width = min((tuple(entry.shape[-2:]) for entry in images.values()), key=lambda size: size[0] * size[1])
    side = min(height, width) if how == "crop" else max(height, width)
    squares = {}
    for name, entry in images.items():
        rows, columns = entry.shape[-2:]
        factor = rows // height
        if (rows, columns) != (factor * height, factor * width):
            raise ValueError(
                f"{name}: {rows} x {columns} pixels are no whole multiple of {height} x {width}, the smallest entry "
                "of the batch: crop both to squares before pair()"
            )
        top, left = (factor * (abs(size - side) // 2) for size in (height, width))
        if how == "crop":
            squares[name] = entry[..., top : top + factor * side, left : left + factor * side]
        else:
            square = entry.new_zeros((*entry.shape[:-2], factor * side, factor * side))
            square[..., top : top + rows, left : left + columns] = entry
            squares[name] = square
    return squares


def check_turns_fit(images: Tensor, turns: int, group: Group = C4) -> None:
    """Raise a ValueError if the element makes the images' shape another: odd quarter turns, not square."""
    height, width = images.shape[-2:]
    if height != width and (group.quarter_turns(turns) or 0) % 2:
        raise ValueError(
            f"turns: an odd number of quarter turns does not fit into a batch of {height} x {width} images; "
            "crop them to squares, or pass turns=2"
        )


def insert_copies(
    entry: Tensor, num_pairs: int, num_given_up: int, turns: int, field: EntryField, group: Group = C4
) -> Tensor:
    """Insert turned copies of the first images behind them: originals, copies, singles.

    ``(B, ...)`` -> ``(B + k - g, ...)``, in the same memory format; the g images behind the k originals are given up
    for the copies.

    Raises:
        ValueError: k is not in 1..B; an odd number of quarter turns of images that are not square.
    """
    if not 1 <= num_pairs <= len(entry):
        raise ValueError(f"num_pairs: {num_pairs} is not in 1..{len(entry)}, the images of the batch")
    originals = entry[:num_pairs]
    copies = originals
    if field == "image":
        check_turns_fit(entry, turns, group)
        # What a group off the grid cuts off from the copies must not show in the originals' features either.
        originals, copies = group.crop(originals), group.spatial(originals, turns)
        if is_channels_last(entry):  # the batch stays what the network and the loss are fast with
            copies = copies.contiguous(memory_format=torch.channels_last)
    singles = entry[num_pairs + num_given_up :]
    return torch.cat((originals, copies, singles) if len(singles) else (originals, copies))


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


def draw_uniform(number: int, generator: torch.Generator | None) -> list[float]:
    """Numbers uniform in [0, 1), from the generator (torch's default one if None)."""
    device = generator.device if generator is not None else torch.device("cpu")
    drawn: list[float] = torch.rand(number, generator=generator, device=device, dtype=torch.float64).tolist()
    return drawn
