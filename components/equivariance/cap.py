"""The cap on a layer's penalty gradient: at the layer's output it never outgrows the gradient of everything after it.

Legend: B images of the batch, P pairs (images 0..P-1 are originals, P..2P-1 their copies), C channels, H rows,
W columns.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def capped_penalty(
    maps: Tensor, num_pairs: int, value_of: Callable[[Tensor], Tensor], max_gradient_ratio: float
) -> tuple[Tensor, Tensor]:
    """Computes a penalty on a layer's output and ties its gradient to that output, capped.

    In backward, with g_p the gradient of the (weighted) penalty and a_p the gradient arriving from everything after the
    layer, both over the maps of pair p (original and copy), the layer's output receives

    ``a_p + g_p min(1, max_gradient_ratio |a_p| / |g_p|)``.

    So the sum depends on all of ``a_p``: it must come in the same backward pass as the penalty's. Source: METHOD.md
    section 3.

    Args:
        maps: ``(B, C, H, W)``, the layer's output; taken over, as by an operation in place.
        num_pairs: P.
        value_of: ``(2P, C, H, W)``, originals then copies -> scalar penalty.
        max_gradient_ratio: above 0.

    Returns:
        The same maps, to go on with, and the penalty.
    """
    with torch.enable_grad():
        paired = maps[: 2 * num_pairs].detach().clone().requires_grad_()
        value = value_of(paired)
        (gradient,) = torch.autograd.grad(value, paired)
    tied: tuple[Tensor, Tensor] = _Tie.apply(maps, value.detach(), gradient, max_gradient_ratio)
    return tied


def capped(gradient: Tensor, arriving: Tensor, max_gradient_ratio: float) -> Tensor:
    """``g_p min(1, ratio |a_p| / |g_p|)`` for each pair p; both ``(2P, C, H, W)``, originals then copies."""
    own, others = (_pair_norms(maps) for maps in (gradient, arriving))  # (P,)
    factors = (max_gradient_ratio * others / own.clamp_min(torch.finfo(own.dtype).tiny)).clamp_max(1)
    return gradient * factors.repeat(2)[:, None, None, None].to(gradient.dtype)


def _pair_norms(maps: Tensor) -> Tensor:
    """The norm over both maps of each pair: ``(2P, C, H, W)`` -> ``(P,)``, in at least single precision."""
    precise = maps.to(torch.promote_types(maps.dtype, torch.float32))
    originals, copies = precise.square().sum(dim=(1, 2, 3)).chunk(2)  # (2P,) -> 2 of (P,)
    return (originals + copies).sqrt()


class _Tie(torch.autograd.Function):
    """Passes maps and value through; in backward adds the capped gradient of the value to that of the maps."""

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, value: Tensor, gradient: Tensor, max_gradient_ratio: float
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.gradient, ctx.max_gradient_ratio = gradient, max_gradient_ratio
        # Unchanged, but marked as written to: what follows may then overwrite them in place.
        ctx.mark_dirty(maps)
        return maps, value.clone()

    @staticmethod
    def backward(
        ctx: Any, arriving: Tensor | None, value_gradient: Tensor | None
    ) -> tuple[Tensor | None, None, None, None]:
        if arriving is None or value_gradient is None:
            return arriving, None, None, None
        num_maps = len(ctx.gradient)
        own = capped(value_gradient * ctx.gradient, arriving[:num_maps], ctx.max_gradient_ratio)
        # A new tensor: the arriving one may be shared with another branch of the network.
        total = arriving.clone()
        total[:num_maps] += own.to(total.dtype)
        return total, None, None, None
