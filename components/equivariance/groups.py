"""The group C4 (quarter turns) and how it acts on images and feature maps.

Legend: B images, C channels, H rows, W columns; t channels make one regular field (the fast axis: channel
``4c + k`` is orientation k of field c); n quarter turns, counter-clockwise.
"""

from typing import Literal

import torch
from torch import Tensor

GROUP_ORDER = 4
"""t: the number of elements of C4, and of channels in one regular field."""

Field = Literal["trivial", "regular"]
"""How the channels of a map transform: each by itself, or cyclically in groups of t."""

ChannelGroup = int | Literal["all"]
"""How many neighbouring channels are shifted cyclically among themselves."""


def rotate(images: Tensor, turns: int) -> Tensor:
    """Turn images counter-clockwise by quarter turns: the action on a trivial field.

    ``rot(y, n) = torch.rot90(y, n, dims=(-2, -1))``; shape ``(..., H, W)``, or ``(..., W, H)`` for odd n.
    """
    return torch.rot90(images, turns, dims=(-2, -1))


def shift_channels(features: Tensor, shift: int, group_size: ChannelGroup = GROUP_ORDER) -> Tensor:
    """Shift channels cyclically inside groups of t neighbours.

    ``out[c, k] = y[c, (k - shift) mod t]``, shape ``(B, C, H, W)`` in and out; ``t = group_size``, or C for
    "all".

    Raises:
        ValueError: C does not divide by t.
    """
    channels = features.shape[1]
    width = channels if group_size == "all" else group_size
    if channels % width:
        raise ValueError(f"features have {channels} channels, which do not divide into groups of {width}")
    # (B, C, H, W) -> (B, C/t, t, H, W), t fast; roll t; -> (B, C, H, W)
    return features.unflatten(1, (channels // width, width)).roll(shift, dims=2).flatten(1, 2)


def act_regular(features: Tensor, turns: int) -> Tensor:
    """Act on a regular field: turn the maps and shift the channels of each field.

    ``out[c, k] = rot(y, n)[c, (k - n) mod 4]``; shape ``(B, C, H, W)``, C divisible by 4.
    Source: METHOD.md section 2.
    """
    return shift_channels(rotate(features, turns), turns)


def act(features: Tensor, turns: int, field: Field) -> Tensor:
    """Act on features of the given field with n quarter turns."""
    return act_regular(features, turns) if field == "regular" else rotate(features, turns)
