"""Residuals (the part of a map that does not transform as it should) and their sizes, as pure functions.

Legend: P pairs, C channels, H rows, W columns; n is an element of the group (n quarter turns in C4), t the number of
its elements, rho(n) the action of n on maps, k a shift of channels. f is a layer's output for the originals, f' its
output for their transformed images; g is the layer as a function, h its input, K its kernel. Source:
docs/explanation/method.md, "Penalties".

    penalty            formula for one layer
    rotation           relative_mse(rotation_residual(f, f', n), scale)
    channel            relative_mse(channel_residual(g(h), g(shift_k h), k), scale)
    regular            relative_mse(regular_residual(f, f', n), scale)
    rotation+channel   the sum of the first two
    projection         kernel_relative_mse(kernel_residual(K), |K|^2)
    paper              l2_norm(regular_residual(f, f', n))

Here ``scale`` is ``pair_scale`` of the two maps compared. ``normalise: none`` omits it; ``scale_gradient`` says whether
gradient flows through it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .groups import C4, GROUP_ORDER, ChannelGroup, FieldType, Group, permute_fields, shift_channels

Size = Literal["relative", "none", "paper"]
"""How the size of a residual is measured: relative to the maps, as a mean square, or as in the released code."""

Measure = Callable[[Tensor, Tensor, int, FieldType, Group], Tensor]
"""(originals, transformed, element, field, group) -> the penalty of one layer, a differentiable scalar.

The maps are ``(P, C, H, W)`` for P pairs: a layer's output for the originals, and for their transformed images.
"""

EPSILON = 1e-12
"""Added to the scale, so that two maps of zeros have size 0. Its unit is that of the scale."""


def field_residual(originals: Tensor, transformed: Tensor, element: int, field: FieldType, group: Group = C4) -> Tensor:
    """The residual ``f' - rho(n) f``, where rho is the action on the given field.

    If the group is not on the grid, the residual is 0 outside the inscribed circle.

    Args:
        originals: f, ``(P, C, H, W)``.
        transformed: f', of the shape that the element gives to f.
        element: n.
        field: "trivial" or "regular".
        group: the group of the element.

    Returns:
        The shape of `transformed`.

    Example:
        >>> originals = torch.rand(2, 8, 5, 5)
        >>> transformed = C4.act(originals, 1, "regular")
        >>> field_residual(originals, transformed, 1, "regular").abs().max().item()
        0.0
    """
    return group.crop(transformed) - group.act(originals, element, field)


def rotation_residual(originals: Tensor, transformed: Tensor, element: int) -> Tensor:
    """The residual ``f' - rot(f, n)``: every channel is a trivial field.

    Args:
        originals: f, ``(P, C, H, W)``.
        transformed: f'.
        element: the number n of quarter turns.

    Example:
        >>> originals = torch.rand(2, 3, 5, 5)
        >>> rotation_residual(originals, torch.rot90(originals, 1, dims=(2, 3)), 1).abs().max().item()
        0.0
    """
    return field_residual(originals, transformed, element, "trivial")


def regular_residual(originals: Tensor, transformed: Tensor, element: int) -> Tensor:
    """The residual ``f' - rho(n) f``: rotation and cyclic channel shift together.

    Args:
        originals: f, ``(P, C, H, W)`` with C divisible by 4.
        transformed: f'.
        element: the number n of quarter turns.

    Example:
        >>> originals = torch.rand(2, 8, 5, 5)
        >>> regular_residual(originals, C4.act(originals, 1, "regular"), 1).abs().max().item()
        0.0
    """
    return field_residual(originals, transformed, element, "regular")


def channel_residual(plain: Tensor, shifted: Tensor, shift: int, channel_group: ChannelGroup = GROUP_ORDER) -> Tensor:
    """The residual ``shifted - shift_k plain`` of a channel shift.

    Args:
        plain: ``g(h)``, ``(P, C, H, W)``.
        shifted: ``g(shift_k h)``, of the same shape.
        shift: k.
        channel_group: how many neighbouring channels are shifted among each other.

    Example:
        >>> layer, hidden = torch.nn.ReLU(), torch.randn(2, 8, 5, 5)
        >>> plain, shifted = layer(hidden), layer(shift_channels(hidden, 1))
        >>> channel_residual(plain, shifted, 1).abs().max().item()
        0.0
    """
    return shifted - shift_channels(plain, shift, channel_group)


def sum_square(maps: Tensor) -> Tensor:
    """``sum |y|^2`` of each map: ``(P, ...)`` -> ``(P,)``, in at least single precision."""
    return maps.to(torch.promote_types(maps.dtype, torch.float32)).flatten(1).square().sum(dim=1)


def mean_square(maps: Tensor) -> Tensor:
    """``mean |y|^2`` of each map over C, H, W: ``(P, C, H, W)`` -> ``(P,)``, in at least single precision."""
    return sum_square(maps) / maps[0].numel()


def pair_scale(first: Tensor, second: Tensor) -> Tensor:
    """The denominator of a relative size: ``(mean |a|^2 + mean |b|^2) / 2`` of each pair; shape ``(P,)``.

    Example:
        >>> originals, transformed = torch.ones(2, 4, 3, 3), torch.full((2, 4, 3, 3), 3.0)
        >>> pair_scale(originals, transformed).tolist()
        [5.0, 5.0]
    """
    return (mean_square(first) + mean_square(second)) / 2


def relative_mse(residual: Tensor, scale: Tensor | None = None) -> Tensor:
    """The size of a residual: a scalar, averaged over the pairs.

    With a scale it is ``mean_p [ mean |r_p|^2 / (scale_p + eps) ]``. Without a scale (``normalise: none``) it is
    ``mean_p [ mean |r_p|^2 ]``. The inner means are over C, H, W. Each pair has its own scale, so any split of whole
    pairs into equal parts gives the same mean. Two unrelated zero-mean maps of the same scale have size 2. The
    gradient flows through the scale unless the caller detaches it.

    Args:
        residual: ``(P, C, H, W)``.
        scale: ``(P,)`` from `pair_scale`, or None.

    Example:
        >>> originals, transformed = torch.zeros(2, 4, 3, 3), torch.ones(2, 4, 3, 3)
        >>> relative_mse(transformed - originals).item()
        1.0
        >>> relative_mse(transformed - originals, pair_scale(originals, transformed)).item()
        2.0
    """
    squares = mean_square(residual)  # (P,)
    return squares.mean() if scale is None else (squares / (scale + EPSILON)).mean()


def l2_norm(residual: Tensor) -> Tensor:
    """The size in the released code (penalty "paper"): ``||r||_2`` over the whole tensor, all pairs together.

    It grows with the square root of P C H W. Its gradient is undefined at 0 and is taken as 0 there.

    Example:
        >>> residual = torch.ones(1, 4, 2, 2)
        >>> l2_norm(residual).item()
        4.0
    """
    return torch.linalg.vector_norm(residual.to(torch.promote_types(residual.dtype, torch.float32)))


def act_on_kernel(weight: Tensor, element: int, field_in: FieldType, field_out: FieldType, group: Group = C4) -> Tensor:
    """The kernel of a layer in a transformed frame: ``rho_out(n) W rho_in(n)^-1``.

    ``(n . W)[o, i] = spatial_n(W[n^-1 o, n^-1 i])``; an index is permuted only if its field is regular.

    Args:
        weight: W, ``(C_out, C_in, kh, kw)``.
        element: n.
        field_in: the field of the input channels.
        field_out: the field of the output channels.
        group: the group of the element.

    Raises:
        ValueError: a field is regular and t does not divide its channels, or the group is not on the grid.

    Example:
        >>> weight = torch.tensor([[[[1, 2], [3, 4]]]])
        >>> act_on_kernel(weight, 1, "trivial", "trivial").tolist()
        [[[[2, 4], [1, 3]]]]
    """
    if not group.is_on_grid:
        raise ValueError(f"projection: kernels cannot be turned exactly by {group.name}; use C2, C4 or D4")
    for field, dim in ((field_out, 0), (field_in, 1)):
        if field == "regular":
            weight = permute_fields(weight, group.sources(element), dim)
    return group.spatial(weight, element)


def kernel_residual(weight: Tensor, field_in: FieldType, field_out: FieldType, group: Group = C4) -> Tensor:
    """The residual ``W - P W``, where P averages the transformed kernels over the group.

    Args:
        weight: W, ``(C_out, C_in, kh, kw)``.
        field_in: the field of the input channels.
        field_out: the field of the output channels.
        group: the group.

    Returns:
        The shape of W.

    Example:
        >>> kernel_residual(torch.eye(2).view(1, 1, 2, 2), "trivial", "trivial").tolist()
        [[[[0.5, -0.5], [-0.5, 0.5]]]]
        >>> kernel_residual(torch.ones(8, 4, 3, 3), "regular", "regular").abs().max().item()
        0.0
    """
    turned = [act_on_kernel(weight, element, field_in, field_out, group) for element in range(group.order)]
    return weight - torch.stack(turned).mean(dim=0)


def kernel_relative_mse(residual: Tensor, scale: Tensor | None = None) -> Tensor:
    """The size of a kernel's residual, ``||W - P W||_F^2 / (scale + eps)``: a scalar.

    It is 0 for exactly equivariant kernels and about ``1 - 1/t`` for random ones. Source: arXiv 2601.05028.

    Args:
        residual: from `kernel_residual`.
        scale: ``||W||_F^2``; None gives the sum of squares itself.

    Example:
        >>> weight = torch.eye(2).view(1, 1, 2, 2)
        >>> residual = kernel_residual(weight, "trivial", "trivial")
        >>> kernel_relative_mse(residual, weight.square().sum()).item()
        0.5
    """
    square = residual.square().sum()
    return square if scale is None else square / (scale + EPSILON)
