"""Residuals (the part of a map that does not transform as it should) and their size. Pure functions.

Legend: P pairs, C channels, H rows, W columns; n an element of the group (n quarter turns in C4); f a layer's output on
the originals, f' its output on their turned copies. Source of all formulas: METHOD.md section 3.

    penalty            of a layer
    rotation           residual_size(rotation_residual(f, f', n), scale)
    channel            residual_size(channel_residual(g(h), g(shift_k h), k), scale)
    regular            residual_size(regular_residual(f, f', n), scale)
    rotation+channel   the sum of the first two
    projection         projection_size(kernel_residual(W), |W|^2)
    paper              unsquared_size(regular_residual(f, f', n))

with ``scale = pair_scale(f, f')``, held constant or not, or None.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .groups import C4, GROUP_ORDER, ChannelGroup, Field, Group, permute_fields, shift_channels

Size = Literal["relative", "none", "paper"]
"""How the size of a residual is taken: relative to the maps, as a mean square, or as the released code does."""

EPSILON = 1e-12
"""Added to the scale, so that two maps of zeros have size 0. It has the scale's unit: mean square."""


def field_residual(originals: Tensor, copies: Tensor, turns: int, field: Field, group: Group = C4) -> Tensor:
    """``f' - rho(n) f`` with rho the action on the given field; all shapes as `copies`, ``(P, C, H, W)``.

    Outside the inscribed circle it is 0 if the group is not on the grid.
    """
    return group.crop(copies) - group.act(originals, turns, field)


def rotation_residual(originals: Tensor, copies: Tensor, turns: int) -> Tensor:
    """``f' - rot(f, n)``: every channel a trivial field; shape ``(P, C, H, W)``."""
    return field_residual(originals, copies, turns, "trivial")


def regular_residual(originals: Tensor, copies: Tensor, turns: int) -> Tensor:
    """``f' - rho(n) f``: rotation and cyclic shift together; shape ``(P, C, H, W)``, C divisible by 4."""
    return field_residual(originals, copies, turns, "regular")


def channel_residual(plain: Tensor, shifted: Tensor, shift: int, channel_group: ChannelGroup = GROUP_ORDER) -> Tensor:
    """``shifted - shift_k plain`` with ``plain = g(h)``, ``shifted = g(shift_k h)``; ``(P, C, H, W)``."""
    return shifted - shift_channels(plain, shift, channel_group)


def sum_square(maps: Tensor) -> Tensor:
    """``sum |y|^2`` of each map: ``(P, ...)`` -> ``(P,)``, in at least single precision."""
    return maps.to(torch.promote_types(maps.dtype, torch.float32)).flatten(1).square().sum(dim=1)


def mean_square(maps: Tensor) -> Tensor:
    """``mean |y|^2`` of each map over C, H, W: ``(P, C, H, W)`` -> ``(P,)``, in at least single precision."""
    return sum_square(maps) / maps[0].numel()


def pair_scale(first: Tensor, second: Tensor) -> Tensor:
    """``(mean |a|^2 + mean |b|^2) / 2`` of each pair: the denominator of a relative size; shape ``(P,)``."""
    return (mean_square(first) + mean_square(second)) / 2


def residual_size(residual: Tensor, scale: Tensor | None = None) -> Tensor:
    """How large a residual is: a scalar, averaged over the pairs.

    ``mean_p [ mean |r_p|^2 / (scale_p + eps) ]``; with no scale (``normalise: none``) ``mean_p [ mean |r_p|^2 ]``.
    Inner means are over C, H, W. It is relative per pair, so any split of whole pairs into equal parts gives the same
    mean. Between unrelated zero-mean maps of one scale it is 2. Gradient flows through the scale unless the caller
    detaches it.

    Args:
        residual: ``(P, C, H, W)``.
        scale: ``(P,)`` from `pair_scale`, or None.
    """
    squares = mean_square(residual)  # (P,)
    return squares.mean() if scale is None else (squares / (scale + EPSILON)).mean()


def unsquared_size(residual: Tensor) -> Tensor:
    """``||r||_2`` over the whole tensor, all pairs together: the size of the released code (penalty "paper").

    It grows with the square root of P C H W, and its gradient is undefined at 0 (taken as 0).
    """
    return torch.linalg.vector_norm(residual.to(torch.promote_types(residual.dtype, torch.float32)))


def act_on_kernel(weight: Tensor, turns: int, field_in: Field, field_out: Field, group: Group = C4) -> Tensor:
    """The kernel of the layer seen from a turned frame: ``rho_out(n) W rho_in(n)^-1``; ``(C_out, C_in, kh, kw)``.

    ``(n . W)[o, i] = spatial_n(W[n^-1 o, n^-1 i])``, each index permuted only if its field is regular.

    Raises:
        ValueError: a regular field whose channels do not divide by t, or a group that is not on the grid.
    """
    if not group.is_on_grid:
        raise ValueError(f"projection: kernels cannot be turned exactly by {group.name}; use C2, C4 or D4")
    for field, dim in ((field_out, 0), (field_in, 1)):
        if field == "regular":
            weight = permute_fields(weight, group.sources(turns), dim)
    return group.spatial(weight, turns)


def kernel_residual(weight: Tensor, field_in: Field, field_out: Field, group: Group = C4) -> Tensor:
    """``W - P W``, P the average over the group of the transformed kernels; shape of W, ``(C_out, C_in, kh, kw)``."""
    turned = [act_on_kernel(weight, element, field_in, field_out, group) for element in range(group.order)]
    return weight - torch.stack(turned).mean(dim=0)


def projection_size(residual: Tensor, scale: Tensor | None = None) -> Tensor:
    """``||W - P W||_F^2 / (scale + eps)``: 0 for exact kernels, about ``1 - 1/t`` for random ones; a scalar.

    Args:
        residual: from `kernel_residual`.
        scale: ``||W||_F^2``, or None for the sum of squares itself.

    Source: arXiv 2601.05028.
    """
    square = residual.square().sum()
    return square if scale is None else square / (scale + EPSILON)
