"""Groups of rotations and mirror reflections, and their actions on images and feature maps.

Legend: B images, C channels, H rows, W columns; t is the order of the group. A regular field has t neighbouring
channels. t is the fast axis: channel ``t c + h`` is element h of field c.

    C2, C4   rotations, counter-clockwise: element n is n half turns (C2) or n quarter turns (C4). The paper uses C4.
    D4       quarter turns and mirrors: element ``h = n + 4 m`` mirrors left to right if m = 1, then makes n quarter
             turns.
    C<N>     any other N, for example C8: element n rotates by n / N of the circle. These groups use bilinear
             interpolation, and only the inside of the inscribed circle.
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
"""The order t of C4, the default group."""

FieldType = Literal["trivial", "regular"]
"""How an element acts on channels: "trivial" leaves each in its place, "regular" permutes them in groups of t."""

ChannelGroup = int | Literal["all"]
"""How many neighbouring channels are shifted cyclically among each other; "all" means all channels."""


@dataclass(frozen=True)
class Group:
    """A group of ``num_rotations`` rotations, with or without mirrors.

    The elements are the numbers 0..order-1. Element 0 is the identity.

    Attributes:
        num_rotations: the number of rotations in the group.
        has_mirror: whether the group also has mirrors.

    Example:
        >>> group = Group(4, has_mirror=True)
        >>> group.name, group.order, group.describe(5)
        ('D4', 8, 'mirror + 90 degrees')
        >>> group.compose(5, group.inverse(5))
        0
    """

    num_rotations: int
    has_mirror: bool = False

    @property
    def name(self) -> str:
        """The name of the group: C4, D4 and so on."""
        return f"{'D' if self.has_mirror else 'C'}{self.num_rotations}"

    @property
    def order(self) -> int:
        """t: the number of elements, and the number of channels in one regular field."""
        return self.num_rotations * (2 if self.has_mirror else 1)

    @property
    def is_on_grid(self) -> bool:
        """Whether every element maps pixels to pixels, as half turns, quarter turns and mirrors do."""
        return self.num_rotations in (1, 2, 4)

    @property
    def needs_squares(self) -> bool:
        """Whether some element changes the shape of a non-square image, or cannot keep its corners."""
        return self.num_rotations != 2

    def quarter_turns(self, element: int) -> int | None:
        """The rotation of an element in quarter turns, without its mirror; None if it is not a whole number of them."""
        quarters, rest = divmod(4 * (element % self.num_rotations), self.num_rotations)
        return None if rest else quarters

    def describe(self, element: int) -> str:
        """An element in words, for example "90 degrees" or "mirror + 180 degrees"."""
        degrees = f"{360 * (element % self.num_rotations) / self.num_rotations:g} degrees"
        return f"mirror + {degrees}" if self.has_mirror and element >= self.num_rotations else degrees

    def compose(self, first: int, second: int) -> int:
        """The product of two elements: apply `second`, then `first`."""
        N = self.num_rotations
        if not self.has_mirror:
            return (first + second) % N
        (turn, mirror), (other_turn, other_mirror) = (divmod(e, N)[::-1] for e in (first, second))
        return (turn + (-1) ** mirror * other_turn) % N + N * ((mirror + other_mirror) % 2)

    def inverse(self, element: int) -> int:
        """The inverse of an element."""
        return next(other for other in range(self.order) if self.compose(element, other) == 0)

    @lru_cache(maxsize=256)  # noqa: B019 - groups are few, frozen and compared by value
    def sources(self, element: int) -> list[int]:
        """The permutation of a regular field: channel h comes from channel ``g^-1 h``, for h = 0..t-1."""
        inverse = self.inverse(element)
        return [self.compose(inverse, channel) for channel in range(self.order)]

    def spatial(self, images: Tensor, element: int) -> Tensor:
        """Move the pixels of images ``(..., H, W)``: the action on a trivial field.

        An odd number of quarter turns swaps H and W. If the group is not on the grid, every element sets the pixels
        outside the inscribed circle to 0.

        Raises:
            ValueError: the group has mirrors and the number is not one of its elements. In a group without mirrors
                the number is taken modulo t.
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
        """The comparable part of a map: all of it, or the inscribed circle if the group is not on the grid."""
        return maps if self.is_on_grid else maps * circular_mask(maps.shape[-2], maps.shape[-1], maps.device)

    def act(self, features: Tensor, element: int, field: FieldType = "regular") -> Tensor:
        """Act on features of the given field.

        For a regular field, ``out[c, h] = spatial_g(y)[c, g^-1 h]``.

        Args:
            features: ``(B, C, H, W)``.
            element: the element g of the group.
            field: "trivial" or "regular".

        Raises:
            ValueError: the field is regular and C is not divisible by t.
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
    """The group with this name: C2, C4, D4, C8 or any other C<N>.

    Raises:
        ValueError: there is no such group.

    Example:
        >>> group_named("C4") == C4
        True
        >>> group_named("D4").order, group_named("C8").is_on_grid
        (8, False)
    """
    match = re.fullmatch(r"(C)([1-9]\d*)|(D)(4)", name) if isinstance(name, str) else None
    if not match or name == "C1":
        raise ValueError(f"group: {name!r} is not one of C2, C4, D4, C8 or C<N> with N >= 2")
    return Group(4, has_mirror=True) if match[3] else Group(int(match[2]))


def rotate(images: Tensor, quarter_turns: int) -> Tensor:
    """Rotate images counter-clockwise by quarter turns: the action of C4 on a trivial field.

    ``rot(y, n) = torch.rot90(y, n, dims=(-2, -1))``. Images ``(..., H, W)`` become ``(..., W, H)`` for odd n.

    Example:
        >>> rotate(torch.tensor([[1, 2], [3, 4]]), 1).tolist()
        [[2, 4], [1, 3]]
        >>> rotate(torch.zeros(1, 3, 4, 6), 1).shape
        torch.Size([1, 3, 6, 4])
    """
    return torch.rot90(images, quarter_turns, dims=(-2, -1))


def rotate_by(images: Tensor, degrees: float) -> Tensor:
    """Rotate images ``(B, C, H, W)`` counter-clockwise about their centre by any angle.

    Floating-point images are interpolated bilinearly. Integer and boolean images may hold classes or masks, so their
    values are not mixed: each pixel takes its nearest neighbour. Pixels outside the image count as 0.

    The output pixel at ``(x, y)`` from the centre (x to the right, y down) reads the input at
    ``(x cos - y sin, x sin + y cos)``. The computation has at least single precision.

    Example:
        >>> images = torch.rand(2, 3, 8, 8)
        >>> rotate_by(images, 30).shape
        torch.Size([2, 3, 8, 8])
        >>> torch.allclose(rotate_by(images, 90), rotate(images, 1), atol=1e-5)
        True
    """
    height, width = images.shape[-2:]
    precise = images.to(torch.promote_types(images.dtype, torch.float32))
    y, x = _from_centre(height, width, precise.device, precise.dtype)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # In the coordinates of grid_sample, -1 and 1 are the borders of the image, not the centres of the outer pixels.
    grid = torch.stack((2 / width * (x * cosine - y * sine), 2 / height * (x * sine + y * cosine)), dim=-1)  # (H, W, 2)
    mode = "bilinear" if images.is_floating_point() else "nearest"
    turned = F.grid_sample(precise, grid.expand(len(images), -1, -1, -1), mode, "zeros", align_corners=False)
    return turned.to(images.dtype)


def circular_mask(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """The inscribed circle: True inside the largest circle through pixel centres that fits into the image.

    Args:
        height: H.
        width: W.
        device: of the mask; the CPU if None.

    Returns:
        ``(H, W)``.

    Example:
        >>> circular_mask(3, 3).tolist()
        [[False, True, False], [True, True, True], [False, True, False]]
        >>> circular_mask(4, 6).shape
        torch.Size([4, 6])
    """
    y, x = _from_centre(height, width, device or torch.device("cpu"), torch.float64)
    return x.square() + y.square() <= ((min(height, width) - 1) / 2) ** 2 + 1e-9


def _from_centre(height: int, width: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The position (y, x) of every pixel relative to the centre of the image, in pixels; each ``(H, W)``."""
    rows = torch.arange(height, device=device, dtype=dtype) - (height - 1) / 2
    columns = torch.arange(width, device=device, dtype=dtype) - (width - 1) / 2
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return y, x


def is_channels_last(images: Tensor) -> bool:
    """Whether images ``(B, C, H, W)`` are in the memory format channels_last, and not contiguous at the same time."""
    return images.ndim == 4 and images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


def permute_fields(features: Tensor, sources: list[int], dim: int = 1) -> Tensor:
    """Permute the channels inside each field: ``out[c, h] = y[c, sources[h]]``.

    Args:
        features: the tensor whose axis is permuted.
        sources: the source of each of the ``t = len(sources)`` neighbouring channels of a field.
        dim: the axis of the channels.

    Raises:
        ValueError: the size of the axis is not divisible by t.
    """
    channels, width = features.shape[dim], len(sources)
    if channels % width:
        raise ValueError(f"features have {channels} channels, which do not divide into groups of {width}")
    permutation = _permutation(channels, tuple(sources), features.device)
    if dim == 1 and is_channels_last(features):
        rows = features.permute(0, 2, 3, 1)  # (B, H, W, C), contiguous: selecting from rows takes a third of the time
        picked = rows.reshape(-1, channels).index_select(1, permutation)  # (B H W, C)
        return picked.view(rows.shape).permute(0, 3, 1, 2)
    return features.index_select(dim, permutation)


@lru_cache(maxsize=1024)
def _permutation(channels: int, sources: tuple[int, ...], device: torch.device) -> Tensor:
    """The source of each channel, ``(C,)``."""
    with torch.inference_mode(False):  # a tensor made in inference mode cannot be used in training later
        first = torch.arange(0, channels, len(sources), device=device)
        return (first[:, None] + torch.tensor(sources, device=device)).flatten()  # (C/t, t) -> (C,)


def shift_channels(features: Tensor, shift: int, group_size: ChannelGroup = GROUP_ORDER) -> Tensor:
    """Shift channels cyclically inside groups of t neighbours.

    ``out[c, k] = y[c, (k - shift) mod t]``; the shape stays ``(B, C, H, W)``.

    Args:
        features: ``(B, C, H, W)``.
        shift: by how many channels.
        group_size: t; "all" means t = C.

    Raises:
        ValueError: C is not divisible by t.

    Example:
        >>> features = torch.arange(4).view(1, 4, 1, 1)
        >>> shift_channels(features, 1).flatten().tolist()
        [3, 0, 1, 2]
    """
    width = features.shape[1] if group_size == "all" else group_size
    return permute_fields(features, [(channel - shift) % width for channel in range(width)])


def act_regular(features: Tensor, element: int) -> Tensor:
    """Act on a regular field of C4: rotate the maps and shift the channels of each field.

    ``out[c, k] = rot(y, n)[c, (k - n) mod 4]``; the shape is ``(B, C, H, W)``, with C divisible by 4.
    Source: docs/explanation/method.md, "Actions".

    Example:
        >>> features = torch.rand(1, 8, 5, 5)
        >>> torch.equal(act_regular(features, 1), shift_channels(rotate(features, 1), 1))
        True
    """
    return C4.act(features, element, "regular")


def act(features: Tensor, element: int, field: FieldType) -> Tensor:
    """Act on features of the given field with n quarter turns (C4).

    Args:
        features: ``(B, C, H, W)``.
        element: the number n of quarter turns.
        field: "trivial" or "regular".

    Example:
        >>> features = torch.rand(1, 8, 5, 5)
        >>> torch.equal(act(features, 1, "trivial"), rotate(features, 1))
        True
        >>> torch.equal(act(features, 1, "regular"), act_regular(features, 1))
        True
    """
    return C4.act(features, element, field)
