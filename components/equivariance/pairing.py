"""Pairs: originals and their transformed images in one batch, in the order originals, transformed, unpaired.

Legend: B images in the given batch, k pairs, C channels, H rows, W columns; n is an element of the group (n quarter
turns in C4).
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
"""How an element acts on an entry: it transforms an "image" ``(B, C, H, W)`` and copies an "invariant" (a label)."""

Entries = Tensor | Mapping[str, Tensor]
"""One tensor, or several by name."""

NonSquare = Literal["crop", "pad"]
"""What happens to non-square images where the group needs squares."""


@dataclass(frozen=True)
class PairedBatch:
    """A batch in the order originals, transformed images of these originals, unpaired images.

    Attributes:
        inputs: a tensor or a dict of tensors, as `pair` received them.
        targets: likewise.
        element: the element of the group that maps an original to its transformed image; for C4 the number of quarter
            turns.
        shift: the channel shift of the penalty "channel" in this step.
        num_pairs: k, the number of originals and also of transformed images.
        position: a number in [0, 1) that decides which layers are compared if layers are sampled.
        field_position: a number in [0, 1) that decides which fields are compared if fields are sampled.

    Example:
        >>> original = torch.rand(1, 1, 8, 8)
        >>> images = torch.cat((original, C4.act(original, 1, "trivial"), torch.rand(2, 1, 8, 8)))
        >>> batch = PairedBatch(images, images, element=1, shift=1, num_pairs=1)
        >>> batch.num_images, batch.transformed
        (4, slice(1, 2, None))
    """

    inputs: Any
    targets: Any
    element: int
    shift: int
    num_pairs: int
    position: float = 0.0
    field_position: float = 0.0

    @property
    def num_images(self) -> int:
        """The number of all images, including transformed images."""
        return len(first_entry(self.inputs))

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the inputs, in their order."""
        return tuple(tuple(entry.shape) for entry in entries_of(self.inputs))

    @property
    def transformed(self) -> slice:
        """Where the transformed images are: ``inputs[transformed]`` belong to the originals ``inputs[:num_pairs]``."""
        return slice(self.num_pairs, 2 * self.num_pairs)


def first_entry(entries: Entries) -> Tensor:
    """The tensor itself, or the first of several."""
    return entries if isinstance(entries, Tensor) else next(iter(entries.values()))


def entries_of(entries: Entries) -> list[Tensor]:
    """A list of the tensor, or of all tensors."""
    return [entries] if isinstance(entries, Tensor) else list(entries.values())


def entry_fields(inputs: Entries, targets: Entries, declared: Mapping[str, EntryField]) -> dict[str, EntryField]:
    """The field of every entry: the declared one, else "image" for a tensor with four axes.

    An entry has the name of its key. A single tensor has the name "inputs" or "targets".

    Args:
        inputs: one tensor, or several by name.
        targets: likewise.
        declared: the declared fields by the name of the entry.

    Raises:
        ValueError: an entry that is declared an image, or not declared at all, does not have four axes; a declared
            name is not an entry; the entries have different numbers of images; or inputs or targets are empty.
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
    """Apply ``change(name, entry)`` to a single tensor or to each of several.

    Args:
        which: the name of a single tensor.
        entries: one tensor, or several by name.
        change: the function to apply.
    """
    changed = {name: change(name, entry) for name, entry in _named(which, entries).items()}
    return changed[which] if isinstance(entries, Tensor) else changed


def make_square(images: Mapping[str, Tensor], how: NonSquare) -> dict[str, Tensor]:
    """Crop or pad every image of a batch to a square around its centre.

    Entries may have different sizes, for example a low-resolution input and its target. The smallest entry, H x W, gets
    the side ``min(H, W)`` (crop) or ``max(H, W)`` (pad, with zeros). Both ends lose or gain equally many pixels; an odd
    pixel is lost or gained at the far end. An entry r times as large is cropped or padded by r times as many pixels, so
    all entries keep the same part of the scene.

    Raises:
        ValueError: the size of an entry is not a whole multiple of the smallest entry's size.
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


def check_element_fits(images: Tensor, element: int, group: Group = C4) -> None:
    """Raise a ValueError if the element changes the shape of the images: an odd number of quarter turns, H != W.

    Args:
        images: ``(B, C, H, W)``.
        element: n.
        group: the group of the element.
    """
    height, width = images.shape[-2:]
    if height != width and (group.quarter_turns(element) or 0) % 2:
        raise ValueError(
            f"element: an odd number of quarter turns does not fit into a batch of {height} x {width} images; "
            "crop them to squares, or pass element=2"
        )


def insert_transformed(
    entry: Tensor, num_pairs: int, num_dropped: int, element: int, field: EntryField, group: Group = C4
) -> Tensor:
    """Insert the transformed images behind their originals; the unpaired images come last.

    The entry ``(B, ...)`` becomes ``(B + k - g, ...)``, in the same memory format.

    Args:
        entry: ``(B, ...)``.
        num_pairs: k; the first k images are the originals.
        num_dropped: g; the g images after the originals are dropped to make place for the transformed images.
        element: n.
        field: what the element does to this entry.
        group: the group of the element.

    Raises:
        ValueError: k is not in 1..B, or the element is an odd number of quarter turns and the images are not square.
    """
    if not 1 <= num_pairs <= len(entry):
        raise ValueError(f"num_pairs: {num_pairs} is not in 1..{len(entry)}, the images of the batch")
    originals = entry[:num_pairs]
    transformed = originals
    if field == "image":
        check_element_fits(entry, element, group)
        # The group may crop the transformed images: the originals' features must not show these pixels either.
        originals, transformed = group.crop(originals), group.spatial(originals, element)
        if is_channels_last(entry):  # network and loss are fast with the memory format that the entry has
            transformed = transformed.contiguous(memory_format=torch.channels_last)
    unpaired = entry[num_pairs + num_dropped :]
    return torch.cat((originals, transformed, unpaired) if len(unpaired) else (originals, transformed))


def check_pair_fraction(pair_fraction: float, pairing: Pairing) -> None:
    """Raise a ValueError unless the fraction is above 0 and at most the largest that the pairing allows."""
    largest = LARGEST_PAIR_FRACTION[pairing]
    if not 0 < pair_fraction <= largest:
        raise ValueError(f"pair_fraction: {pair_fraction} is not above 0 and at most {largest} (pairing {pairing!r})")


def count_pairs(num_images: int, pair_fraction: float) -> int:
    """The number of pairs ``k = pair_fraction * B``, which must be a whole number of at least 1.

    Raises:
        ValueError: k is not such a number. The message names fractions and batch sizes that fit.
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
    """Random numbers, uniform in [0, 1), from the generator (torch's default generator if None)."""
    device = generator.device if generator is not None else torch.device("cpu")
    drawn: list[float] = torch.rand(number, generator=generator, device=device, dtype=torch.float64).tolist()
    return drawn
