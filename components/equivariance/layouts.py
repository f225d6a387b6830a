"""Layouts: how a layer's output is laid out, and how it becomes maps ``(B, C, H, W)`` on which the group acts.

Legend: B images, C channels, H rows, W columns, N tokens; s side of a window, r factor of a sub-pixel layer. Each
layout only reorders entries, so a gradient goes back the same way and norms are kept. A part of the batch, whole
images, may be given: ``to_maps(raw[:2])``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Layout(Protocol):
    """A reordering of a layer's output into maps, and back."""

    def to_maps(self, raw: Tensor) -> Tensor:
        """The output as ``(B, C, H, W)``."""

    def from_maps(self, maps: Tensor) -> Tensor:
        """Maps as the layer gives them out."""


@dataclass(frozen=True)
class Maps:
    """``(B, C, H, W)``, as convolutions have it."""

    def to_maps(self, raw: Tensor) -> Tensor:
        return raw

    def from_maps(self, maps: Tensor) -> Tensor:
        return maps


@dataclass(frozen=True)
class SubPixel:
    """``(B, r^2 C, H, W)`` before PixelShuffle(r): compared as ``(B, C, rH, rW)``, after it.

    A turn permutes the r^2 sub-pixels by no cyclic shift (METHOD.md section 5); on the fine grid it is an ordinary
    turn.
    """

    factor: int

    def to_maps(self, raw: Tensor) -> Tensor:
        return F.pixel_shuffle(raw, self.factor)

    def from_maps(self, maps: Tensor) -> Tensor:
        return F.pixel_unshuffle(maps, self.factor)


@dataclass(frozen=True)
class ChannelsLast:
    """``(B, H, W, C)``; `shift` is the cyclic roll (rows, columns) that the maps have undergone and that is undone."""

    shift: tuple[int, int] = (0, 0)

    def to_maps(self, raw: Tensor) -> Tensor:
        return _rolled(raw.permute(0, 3, 1, 2), self.shift, -1)  # (B, H, W, C) -> (B, C, H, W)

    def from_maps(self, maps: Tensor) -> Tensor:
        return _rolled(maps, self.shift, 1).permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)


@dataclass(frozen=True)
class Tokens:
    """``(B, N, C)`` with ``N = height * width`` in rows; both None for a square. `shift` as in `ChannelsLast`."""

    height: int | None = None
    width: int | None = None
    shift: tuple[int, int] = (0, 0)

    def sides(self, num_tokens: int) -> tuple[int, int]:
        """(H, W) of N tokens.

        Raises:
            ValueError: N is not H W, or is no square where none is declared.
        """
        if self.height is None and self.width is None:
            side = math.isqrt(num_tokens)
            height, width = side, side
        else:
            height = self.height or num_tokens // (self.width or 1)
            width = self.width or num_tokens // height
        if height * width != num_tokens:
            raise ValueError(
                f"{num_tokens} tokens are not {height} x {width}: declare Tokens(height, width) in layouts"
            )
        return height, width

    def to_maps(self, raw: Tensor) -> Tensor:
        sides = self.sides(raw.shape[1])
        return _rolled(raw.unflatten(1, sides).permute(0, 3, 1, 2), self.shift, -1)  # (B, H W, C) -> (B, C, H, W)

    def from_maps(self, maps: Tensor) -> Tensor:
        return _rolled(maps, self.shift, 1).permute(0, 2, 3, 1).flatten(1, 2)  # (B, C, H, W) -> (B, H W, C)


@dataclass(frozen=True)
class Windows:
    """``(B H/s W/s, s s, C)`` or ``(B H/s W/s, s, s, C)``: square windows of maps that were rolled by `shift` first.

    Windows are in the order of their images, then of their rows, then of their columns.

    Attributes:
        size: s, the side of a window in tokens.
        height, width: of the whole map; both None for a square.
        shift: the cyclic roll (rows, columns) before the windows were cut; it is undone.
        num_windows: windows of one image; what `height` and `width` follow from where they are None.
    """

    size: int
    height: int | None = None
    width: int | None = None
    shift: tuple[int, int] = (0, 0)
    num_windows: int | None = None

    def counts(self, num_entries: int) -> tuple[int, int]:
        """Rows and columns of windows."""
        windows = self.num_windows or num_entries
        if self.height is None and self.width is None:
            return math.isqrt(windows), math.isqrt(windows)
        rows = self.height // self.size if self.height else windows * self.size // (self.width or 1)
        columns = self.width // self.size if self.width else windows // max(rows, 1)
        return rows, columns

    def to_maps(self, raw: Tensor) -> Tensor:
        rows, columns = self.counts(len(raw))
        windows = raw if raw.ndim == 4 else raw.unflatten(1, (self.size, self.size))
        windows = windows.unflatten(0, (-1, rows, columns))  # (B, H/s, W/s, s, s, C)
        return _rolled(windows.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3), self.shift, -1)  # (B, C, H, W)

    def from_maps(self, maps: Tensor) -> Tensor:
        tiled = _rolled(maps, self.shift, 1).unflatten(3, (-1, self.size)).unflatten(2, (-1, self.size))
        windows = tiled.permute(0, 2, 4, 3, 5, 1)  # (B, C, H/s, s, W/s, s) -> (B, H/s, W/s, s, s, C)
        return windows.flatten(3, 4).flatten(0, 2)  # (B H/s W/s, s s, C)


def _rolled(maps: Tensor, shift: tuple[int, int], sign: int) -> Tensor:
    """Maps ``(B, C, H, W)`` rolled cyclically by ``sign * shift``."""
    return torch.roll(maps, (sign * shift[0], sign * shift[1]), dims=(2, 3)) if any(shift) else maps


def layout_of(
    shape: Sequence[int],
    num_images: int,
    declared: Layout | None,
    is_linear: bool,
    shift: tuple[int, int],
    factor: int,
    image_size: tuple[int, int] | None = None,
) -> Layout:
    """The layout of an output of this shape in a batch of B images: the declared one, completed, or an inferred one.

    Inferred are maps, sub-pixels (`factor` above 1), channels last ``(B, H, W, C)``, the tokens ``(B, N, C)`` of maps
    of the image's aspect and, with more entries than images, square windows of such maps. Without `image_size` the
    image is taken for a square.

    Raises:
        ValueError: it can be none of these; says what to declare.
    """
    entries, ndim = shape[0], len(shape)
    if entries != num_images and not (is_linear or isinstance(declared, Windows)):
        raise ValueError(f"its output has {entries} entries on the batch axis, the paired batch {num_images} images")
    if isinstance(declared, Windows):
        return _completed(declared, shape, num_images)
    if declared is not None:
        needed = 3 if isinstance(declared, Tokens) else 4
        if ndim != needed or entries != num_images:
            raise ValueError(f"its output {tuple(shape)} of {num_images} images is not laid out as {declared}")
        if isinstance(declared, Tokens):
            declared.sides(shape[1])
        return declared
    if not is_linear:
        return SubPixel(factor) if factor > 1 else Maps()
    if ndim == 4 and entries == num_images:
        return ChannelsLast(shift)
    if ndim == 3 and entries == num_images:
        return Tokens(*_sides(shape[1], image_size), shift)
    if ndim in (3, 4) and entries % num_images == 0:
        size = math.isqrt(shape[1]) if ndim == 3 else shape[1]
        rows, columns = _sides(entries // num_images, image_size)
        return _completed(Windows(size, rows * size, columns * size, shift), shape, num_images)
    raise ValueError(
        f"its output {tuple(shape)} of a batch of {num_images} images has no place for each entry, so it cannot turn"
    )


def transposed(layout: Layout) -> Layout:
    """The declared layout for an image with its sides swapped."""
    if isinstance(layout, Tokens | Windows):
        return replace(layout, height=layout.width, width=layout.height)
    return layout


def _sides(num_places: int, image_size: tuple[int, int] | None) -> tuple[int, int]:
    """(H, W) of a map of so many places with the image's aspect.

    Raises:
        ValueError: there is none.
    """
    height, width = image_size or (1, 1)
    rows = math.isqrt(num_places * height // width)
    columns = math.isqrt(num_places * width // height)
    if rows * columns != num_places or rows * width != columns * height:
        raise ValueError(
            f"{num_places} tokens or windows do not fill a map of the image's aspect {height}:{width}: declare "
            "Tokens(height, width) or Windows(size, height, width) in layouts (tokens of no place, as a class token, "
            "cannot turn)"
        )
    return rows, columns


def _completed(layout: Windows, shape: Sequence[int], num_images: int) -> Windows:
    entries, size = shape[0], layout.size
    of_window = shape[1] if len(shape) == 3 else shape[1] * shape[2]
    layout = replace(layout, num_windows=entries // num_images)
    rows, columns = layout.counts(entries)
    if len(shape) not in (3, 4) or of_window != size**2 or entries != num_images * rows * columns:
        raise ValueError(
            f"its output {tuple(shape)} of {num_images} images is not made of square windows of square maps: "
            "declare Windows(size, height, width) in layouts"
        )
    return layout
