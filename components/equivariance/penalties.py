"""Residuals (the part of a map that does not transform as it should) and their size. Pure functions.

Legend: P pairs, C channels, H rows, W columns; n quarter turns; f a layer's output on the originals,
f' its output on their rotated copies. Source of all formulas: METHOD.md section 3.
"""

import torch
from torch import Tensor

from .groups import GROUP_ORDER, ChannelGroup, Field, act, shift_channels

EPSILON = 1e-12
"""Added to the scale, so that two maps of zeros have size 0. It has the scale's unit: mean square."""


def field_residual(originals: Tensor, copies: Tensor, turns: int, field: Field) -> Tensor:
    """``f' - rho(n) f`` with rho the action on the given field; all shapes as `copies`, ``(P, C, H, W)``."""
    return copies - act(originals, turns, field)


def rotation_residual(originals: Tensor, copies: Tensor, turns: int) -> Tensor:
    """``f' - rot(f, n)``: every channel a trivial field; shape ``(P, C, H, W)``."""
    return field_residual(originals, copies, turns, "trivial")


def regular_residual(originals: Tensor, copies: Tensor, turns: int) -> Tensor:
    """``f' - rho(n) f``: rotation and cyclic shift together; shape ``(P, C, H, W)``, C divisible by 4."""
    return field_residual(originals, copies, turns, "regular")


def channel_residual(plain: Tensor, shifted: Tensor, shift: int, channel_group: ChannelGroup = GROUP_ORDER) -> Tensor:
    """``shifted - shift_k plain`` with ``plain = g(h)``, ``shifted = g(shift_k h)``; ``(P, C, H, W)``."""
    return shifted - shift_channels(plain, shift, channel_group)


def mean_square(maps: Tensor) -> Tensor:
    """``mean |y|^2`` of each map over C, H, W: ``(P, C, H, W)`` -> ``(P,)``, in at least single precision."""
    precise = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return precise.square().mean(dim=(1, 2, 3))  # (P, C, H, W) -> (P,)


def pair_scale(first: Tensor, second: Tensor) -> Tensor:
    """``(mean |a|^2 + mean |b|^2) / 2`` of each pair: the denominator of a relative size; shape ``(P,)``."""
    return (mean_square(first) + mean_square(second)) / 2


def residual_size(residual: Tensor, scale: Tensor | None = None) -> Tensor:
    """How large a residual is: a scalar, averaged over the pairs.

    ``mean_p [ mean |r_p|^2 / (scale_p + eps) ]``; with no scale (``normalise: none``)
    ``mean_p [ mean |r_p|^2 ]``. Inner means are over C, H, W. It is relative per pair, so any split of whole
    pairs into equal parts gives the same mean. Between unrelated zero-mean maps of one scale it is 2.
    Gradient flows through the scale unless the caller detaches it.

    Args:
        residual: ``(P, C, H, W)``.
        scale: ``(P,)`` from `pair_scale`, or None.
    """
    squares = mean_square(residual)  # (P,)
    return squares.mean() if scale is None else (squares / (scale + EPSILON)).mean()
