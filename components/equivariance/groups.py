"""Groups of turns and mirrors, and how they act on images and feature maps.

Legend: B images, C channels, H rows, W columns; t the order of the group; t neighbouring channels make one regular
field (t is the fast axis: channel ``t c + h`` is element h of field c).

    C2, C4   half and quarter turns, counter-clockwise; element n is n turns. C4 is the group of the paper.
    D4       quarter turns and mirrors; element ``h = n + 4 m`` mirrors left to right if m = 1, then turns n quarters.
    C<N>     any other N, as C8: turns by n / N of the circle, bilinear, inside the inscribed circle only.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

GROUP_ORDER = 4
"""t of C4, the default group."""

Field = Literal["trivial", "regular"]
"""How the channels of a map transform: each by itself, or permuted in groups of t by the element."""

ChannelGroup = int | Literal["all"]
"""How many neighbouring channels are shifted cyclically among themselves."""


@dataclass(frozen=True)
class Group:
    """A group of ``num_rotations`` turns, with mirrors or without; elements are 0..order-1, 0 the identity."""

    num_rotations: int
    has_mirror: bool = False

    @property
    def name(self) -> str:
        """C4, D4 and so on."""
        return f"{'D' if self.has_mirror else 'C'}{self.num_rotations}"

    @property
    def order(self) -> int:
        """t: the number of elements, and of channels in one regular field."""
        return self.num_rotations * (2 if self.has_mirror else 1)

    @property
    def is_on_grid(self) -> bool:
        """Whether every element maps pixels to pixels: only half and quarter turns, and mirrors."""
        return self.num_rotations in (1, 2, 4)

    @property
    def needs_squares(self) -> bool:
        """Whether some element changes the shape of an image that is not square, or cannot keep its corners."""
        return self.num_rotations != 2

    def quarter_turns(self, element: int) -> int | None:
        """The turn of an element in quarters, after its mirror; None if it is no whole number of quarters."""
        quarters, rest = divmod(4 * (element % self.num_rotations), self.num_rotations)
        return None if rest else quarters

    def describe(self, element: int) -> str:
        """An element in words: "90 degrees", "mirror + 180 degrees"."""
        degrees = f"{360 * (element % self.num_rotations) / self.num_rotations:g} degrees"
        return f"mirror + {degrees}" if self.has_mirror and element >= self.num_rotations else degrees

    def compose(self, first: int, second: int) -> int:
        """The element ``first second``: apply `second`, then `first`."""
        N = self.num_rotations
        if not self.has_mirror:
            return (first + second) % N
        (turn, mirror), (other_turn, other_mirror) = (divmod(e, N)[::-1] for e in (first, second))
        return (turn + (-1) ** mirror * other_turn) % N + N * ((mirror + other_mirror) % 2)

    def inverse(self, element: int) -> int:
        """The element that undoes another."""
        return next(other for other in range(self.order) if self.compose(element, other) == 0)

    @lru_cache(maxsize=256)  # noqa: B019 - groups are few, frozen and compared by value
    def sources(self, element: int) -> list[int]:
        """The regular permutation: channel h of a turned field comes from channel ``g^-1 h``, h = 0..t-1."""
        inverse = self.inverse(element)
        return [self.compose(inverse, channel) for channel in range(self.order)]

    def spatial(self, images: Tensor, element: int) -> Tensor:
        """Move the pixels: the action on a trivial field, ``(..., H, W)``; sides swap for odd quarter turns.

        Outside the inscribed circle a group that is not on the grid gives 0 (for each of its elements).

        Raises:
            ValueError: a number that is no element of a group with mirrors; without mirrors it is taken modulo t.
        """
        if self.has_mirror and not 0 <= element < self.order:
            raise ValueError(f"element: {element} is not in 0..{self.order - 1}, the elements of {self.name}")
        if self.has_mirror and element >= self.num_rotations:
            images = images.flip(-1)
        quarters = self.quarter_turns(element)
        if quarters is None:
            return self.crop(rotate_by(images, 360 * (element % self.num_rotations) / self.num_rotations))
        return self.crop(torch.rot90(images, quarters, dims=(-2, -1)) if quarters else images)

    def crop(self, maps: Tensor) -> Tensor:
        """What of a map can be compared: all of it, or the inscribed circle if the group is not on the grid."""
        return maps if self.is_on_grid else maps * circular_mask(maps.shape[-2], maps.shape[-1], maps.device)

    def act(self, features: Tensor, element: int, field: Field = "regular") -> Tensor:
        """Act on features of the given field: ``out[c, h] = spatial_g(y)[c, g^-1 h]`` if regular; ``(B, C, H, W)``.

        Raises:
            ValueError: a regular field whose C does not divide by t.
        """
        if field == "regular":
            features = permute_fields(features, self.sources(element))
        return self.spatial(features, element)

    @cached_property
    def inverses(self) -> list[int]:
        """The inverse of each element."""
        return [self.inverse(element) for element in range(self.order)]


C4 = Group(4)


def group_named(name: str) -> Group:
    """The group called C2, C4, D4, C8 or C<N>.

    Raises:
        ValueError: another name.
    """
    match = re.fullmatch(r"(C)([1-9]\d*)|(D)(4)", name) if isinstance(name, str) else None
    if not match or name == "C1":
        raise ValueError(f"group: {name!r} is not one of C2, C4, D4, C8 or C<N> with N >= 2")
    return Group(4, has_mirror=True) if match[3] else Group(int(match[2]))


def rotate(images: Tensor, turns: int) -> Tensor:
    """Turn images counter-clockwise by quarter turns: the action of C4 on a trivial field.

    ``rot(y, n) = torch.rot90(y, n, dims=(-2, -1))``; shape ``(..., H, W)``, or ``(..., W, H)`` for odd n.
    """
    return torch.rot90(images, turns, dims=(-2, -1))


def rotate_by(images: Tensor, degrees: float) -> Tensor:
    """Turn images counter-clockwise about their centre by any angle: bilinear, 0 outside; ``(B, C, H, W)``.

    Whole numbers and truth values, which may be classes or masks, are not mixed: each takes its nearest neighbour.

    The output pixel at ``(x, y)`` from the centre (x right, y down) reads the input at
    ``(x cos - y sin, x sin + y cos)``. Computed in at least single precision.
    """
    height, width = images.shape[-2:]
    precise = images.to(torch.promote_types(images.dtype, torch.float32))
    y, x = _from_centre(height, width, precise.device, precise.dtype)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # grid_sample's coordinates: -1 and 1 are the borders of the image, not the centres of its pixels
    grid = torch.stack((2 / width * (x * cosine - y * sine), 2 / height * (x * sine + y * cosine)), dim=-1)  # (H, W, 2)
    mode = "bilinear" if images.is_floating_point() else "nearest"
    turned = F.grid_sample(precise, grid.expand(len(images), -1, -1, -1), mode, "zeros", align_corners=False)
    return turned.to(images.dtype)


def circular_mask(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """True inside the largest circle through pixel centres that fits into the image: ``(H, W)``."""
    y, x = _from_centre(height, width, device or torch.device("cpu"), torch.float64)
    return x.square() + y.square() <= ((min(height, width) - 1) / 2) ** 2 + 1e-9


def _from_centre(height: int, width: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(y, x) of every pixel from the centre of the image, in pixels; each ``(H, W)``."""
    rows = torch.arange(height, device=device, dtype=dtype) - (height - 1) / 2
    columns = torch.arange(width, device=device, dtype=dtype) - (width - 1) / 2
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return y, x


def is_channels_last(images: Tensor) -> bool:
    """Whether the channels of a pixel are neighbours in memory, ``(B, C, H, W)``, and it is not (also) contiguous."""
    return images.ndim == 4 and images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


def permute_fields(features: Tensor, sources: list[int], dim: int = 1) -> Tensor:
    """``out[c, h] = y[c, sources[h]]`` in groups of ``t = len(sources)`` neighbours along an axis.

    Raises:
        ValueError: the axis does not divide by t.
    """
    channels, width = features.shape[dim], len(sources)
    if channels % width:
        raise ValueError(f"features have {channels} channels, which do not divide into groups of {width}")
    permutation = _permutation(channels, tuple(sources), features.device)
    if dim == 1 and is_channels_last(features):
        rows = features.permute(0, 2, 3, 1)  # (B, H, W, C), contiguous: picked from rows, it takes a third of the time
        picked = rows.reshape(-1, channels).index_select(1, permutation)  # (B H W, C)
        return picked.view(rows.shape).permute(0, 3, 1, 2)
    return features.index_select(dim, permutation)


@lru_cache(maxsize=1024)
def _permutation(channels: int, sources: tuple[int, ...], device: torch.device) -> Tensor:
    """The source of each channel, ``(C,)``."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not take part in training later
        first = torch.arange(0, channels, len(sources), device=device)
        return (first[:, None] + torch.tensor(sources, device=device)).flatten()  # (C/t, t) -> (C,)


def shift_channels(features: Tensor, shift: int, group_size: ChannelGroup = GROUP_ORDER) -> Tensor:
    """Shift channels cyclically inside groups of t neighbours.

    ``out[c, k] = y[c, (k - shift) mod t]``, shape ``(B, C, H, W)`` in and out; ``t = group_size``, or C for "all".

    Raises:
        ValueError: C does not divide by t.
    """
    width = features.shape[1] if group_size == "all" else group_size
    return permute_fields(features, [(channel - shift) % width for channel in range(width)])


def act_regular(features: Tensor, turns: int) -> Tensor:
    """Act on a regular field of C4: turn the maps and shift the channels of each field.

    ``out[c, k] = rot(y, n)[c, (k - n) mod 4]``; shape ``(B, C, H, W)``, C divisible by 4.
    Source: METHOD.md section 2.
    """
    return C4.act(features, turns, "regular")


def act(features: Tensor, turns: int, field: Field) -> Tensor:
    """Act on features of the given field with n quarter turns (C4)."""
    return C4.act(features, turns, field)
