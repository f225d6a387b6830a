"""Layouts: how to convert a layer's output to maps ``(B, C, H, W)``, on which the group acts, and back.

Legend: B images, C channels, H rows, W columns, N tokens; s is the side of a window, r the factor of a sub-pixel layer.
A layout only reorders entries, so gradients are converted back the same way and norms do not change. A layout also
converts a part of the batch that consists of whole images: ``to_maps(raw[:2])``.
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
    """A reordering of a layer's output to maps, and back."""

    def to_maps(self, raw: Tensor) -> Tensor:
        """Convert a layer's output to maps ``(B, C, H, W)``."""

    def from_maps(self, maps: Tensor) -> Tensor:
        """Convert maps back to the layout of the layer's output."""


@dataclass(frozen=True)
class Maps:
    """The layout ``(B, C, H, W)`` of convolutions.

    Example:
        >>> layout, raw = Maps(), torch.rand(2, 8, 5, 5)
        >>> torch.equal(layout.to_maps(raw), raw)
        True
    """

    def to_maps(self, raw: Tensor) -> Tensor:
        """Return the output ``(B, C, H, W)`` unchanged."""
        return raw

    def from_maps(self, maps: Tensor) -> Tensor:
        """Return the maps ``(B, C, H, W)`` unchanged."""
        return maps


@dataclass(frozen=True)
class SubPixel:
    """The layout ``(B, r^2 C, H, W)`` before PixelShuffle(r); compared after it, as ``(B, C, rH, rW)``.

    A quarter turn permutes the r^2 sub-pixels, but not by a cyclic shift (docs/explanation/method.md, "Layers"). On
    the fine grid it is an ordinary quarter turn.

    Attributes:
        factor: r.

    Example:
        >>> layout, raw = SubPixel(2), torch.rand(1, 12, 4, 4)
        >>> layout.to_maps(raw).shape
        torch.Size([1, 3, 8, 8])
        >>> torch.equal(layout.from_maps(layout.to_maps(raw)), raw)
        True
    """

    factor: int

    def to_maps(self, raw: Tensor) -> Tensor:
        """Convert ``(B, r^2 C, H, W)`` to ``(B, C, rH, rW)``."""
        return F.pixel_shuffle(raw, self.factor)

    def from_maps(self, maps: Tensor) -> Tensor:
        """Convert ``(B, C, rH, rW)`` to ``(B, r^2 C, H, W)``."""
        return F.pixel_unshuffle(maps, self.factor)


@dataclass(frozen=True)
class ChannelsLast:
    """The layout ``(B, H, W, C)``.

    Attributes:
        shift: the cyclic roll (rows, columns) that the maps have undergone; `to_maps` undoes it.

    Example:
        >>> ChannelsLast().to_maps(torch.zeros(2, 6, 5, 8)).shape
        torch.Size([2, 8, 6, 5])
        >>> rolled = torch.arange(4).roll(1).view(1, 1, 4, 1)  # by one column
        >>> ChannelsLast(shift=(0, 1)).to_maps(rolled).flatten().tolist()
        [0, 1, 2, 3]
    """

    shift: tuple[int, int] = (0, 0)

    def to_maps(self, raw: Tensor) -> Tensor:
        """Convert ``(B, H, W, C)`` to ``(B, C, H, W)``, with the roll undone."""
        return _rolled(raw.permute(0, 3, 1, 2), self.shift, -1)  # (B, H, W, C) -> (B, C, H, W)

    def from_maps(self, maps: Tensor) -> Tensor:
        """Convert ``(B, C, H, W)`` to ``(B, H, W, C)``, rolled again."""
        return _rolled(maps, self.shift, 1).permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)


@dataclass(frozen=True)
class Tokens:
    """The layout ``(B, N, C)``: the N = H W tokens of a map in row order.

    Attributes:
        height: H. If `height` and `width` are both None, the map is square.
        width: W.
        shift: the cyclic roll (rows, columns) that the maps have undergone; `to_maps` undoes it.

    Example:
        >>> Tokens(height=4, width=6).to_maps(torch.zeros(2, 24, 8)).shape
        torch.Size([2, 8, 4, 6])
        >>> Tokens().sides(num_tokens=25)
        (5, 5)
    """

    height: int | None = None
    width: int | None = None
    shift: tuple[int, int] = (0, 0)

    def sides(self, num_tokens: int) -> tuple[int, int]:
        """The sides (H, W) of a map of N tokens.

        Raises:
            ValueError: N is not H W, or no side is declared and N is not a square number.
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
        """Convert ``(B, N, C)`` to ``(B, C, H, W)``, with the roll undone."""
        sides = self.sides(raw.shape[1])
        return _rolled(raw.unflatten(1, sides).permute(0, 3, 1, 2), self.shift, -1)  # (B, H W, C) -> (B, C, H, W)

    def from_maps(self, maps: Tensor) -> Tensor:
        """Convert ``(B, C, H, W)`` to ``(B, N, C)``, rolled again."""
        return _rolled(maps, self.shift, 1).permute(0, 2, 3, 1).flatten(1, 2)  # (B, C, H, W) -> (B, H W, C)


@dataclass(frozen=True)
class Windows:
    """The layout of square windows: ``(B H/s W/s, s s, C)`` or ``(B H/s W/s, s, s, C)``.

    Windows are ordered by image, then by window row, then by window column.

    Attributes:
        size: s, the side of a window in tokens.
        height: H of the whole map. If `height` and `width` are both None, the map is square.
        width: W of the whole map.
        shift: the cyclic roll (rows, columns) of the maps before they were cut into windows; `to_maps` undoes it.
        num_windows: the number of windows of one image. `height` and `width` follow from it where they are None.

    Example:
        >>> layout, raw = Windows(size=4, height=8, width=12), torch.rand(2 * 6, 16, 3)
        >>> layout.to_maps(raw).shape
        torch.Size([2, 3, 8, 12])
        >>> torch.equal(layout.from_maps(layout.to_maps(raw)), raw)
        True
    """

    size: int
    height: int | None = None
    width: int | None = None
    shift: tuple[int, int] = (0, 0)
    num_windows: int | None = None

    def counts(self, num_entries: int) -> tuple[int, int]:
        """The number of rows and of columns of windows in one image."""
        windows = self.num_windows or num_entries
        if self.height is None and self.width is None:
            return math.isqrt(windows), math.isqrt(windows)
        rows = self.height // self.size if self.height else windows * self.size // (self.width or 1)
        columns = self.width // self.size if self.width else windows // max(rows, 1)
        return rows, columns

    def to_maps(self, raw: Tensor) -> Tensor:
        """Convert windows to ``(B, C, H, W)``, with the roll undone."""
        rows, columns = self.counts(len(raw))
        windows = raw if raw.ndim == 4 else raw.unflatten(1, (self.size, self.size))
        windows = windows.unflatten(0, (-1, rows, columns))  # (B, H/s, W/s, s, s, C)
        return _rolled(windows.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3), self.shift, -1)  # (B, C, H, W)

    def from_maps(self, maps: Tensor) -> Tensor:
        """Convert ``(B, C, H, W)`` to windows ``(B H/s W/s, s s, C)``, rolled again."""
        tiled = _rolled(maps, self.shift, 1).unflatten(3, (-1, self.size)).unflatten(2, (-1, self.size))
        windows = tiled.permute(0, 2, 4, 3, 5, 1)  # (B, C, H/s, s, W/s, s) -> (B, H/s, W/s, s, s, C)
        return windows.flatten(3, 4).flatten(0, 2)  # (B H/s W/s, s s, C)


@dataclass(frozen=True)
class Patches:
    """The layout ``(B R S, C, h, w)`` of convolutions on R x S patches of each image, as images of their own.

    Patches are ordered by image, then by their row, then by their column.

    Attributes:
        rows: R, the number of patches above each other.
        columns: S, the number of patches beside each other.

    Example:
        >>> layout, raw = Patches(2, 2), torch.rand(3 * 4, 8, 5, 6)
        >>> layout.to_maps(raw).shape
        torch.Size([3, 8, 10, 12])
        >>> torch.equal(layout.from_maps(layout.to_maps(raw)), raw)
        True
    """

    rows: int
    columns: int

    def to_maps(self, raw: Tensor) -> Tensor:
        """Join the patches to ``(B, C, R h, S w)``."""
        patches = raw.unflatten(0, (-1, self.rows, self.columns))  # (B, R, S, C, h, w)
        return (
            patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        )  # -> (B, C, R, h, S, w) -> (B, C, R h, S w)

    def from_maps(self, maps: Tensor) -> Tensor:
        """Cut ``(B, C, R h, S w)`` into patches ``(B R S, C, h, w)``."""
        patches = maps.unflatten(3, (self.columns, -1)).unflatten(2, (self.rows, -1))  # (B, C, R, h, S, w)
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)  # -> (B, R, S, C, h, w) -> (B R S, C, h, w)


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
    patches: tuple[int, int] = (1, 1),
) -> Layout:
    """The layout of a layer's output: the declared one, completed, or an inferred one.

    Inferred layouts are maps, patches of maps, sub-pixels, channels last ``(B, H, W, C)``, tokens ``(B, N, C)`` of maps
    with the image's aspect ratio and, if there are more entries than images, square windows of such maps.

    Args:
        shape: of the output.
        num_images: B.
        declared: the declared layout, or None.
        is_linear: whether the layer is linear, not a convolution.
        shift: the cyclic roll (rows, columns) that the output has undergone.
        factor: r of the PixelShuffle that follows; 1 for none.
        image_size: (H, W) of the image; without it the image is taken to be square.
        patches: (rows, columns) of the patches into which a trace saw the images cut; (1, 1) for whole images.

    Raises:
        ValueError: the output has none of these layouts; the message says what to declare.
    """
    entries, ndim = shape[0], len(shape)
    if declared is None and not is_linear and factor == 1 and entries == num_images * math.prod(patches) != num_images:
        declared = Patches(*patches)
    if isinstance(declared, Patches):
        if ndim != 4 or entries != num_images * declared.rows * declared.columns:
            raise ValueError(f"its output {tuple(shape)} of {num_images} images is not laid out as {declared}")
        return declared
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
    """The declared layout for an image whose height and width are swapped."""
    if isinstance(layout, Tokens | Windows):
        return replace(layout, height=layout.width, width=layout.height)
    if isinstance(layout, Patches):
        return Patches(layout.columns, layout.rows)
    return layout


def _sides(num_places: int, image_size: tuple[int, int] | None) -> tuple[int, int]:
    """The sides (H, W) of a map with this number of positions and the image's aspect ratio.

    Raises:
        ValueError: there is no such map.
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
