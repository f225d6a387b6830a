"""Gradient injection: adds the penalty's gradient at the layers' outputs, and sums its values differentiably.

The output of each recorded call passes unchanged through an autograd function. In the backward pass, this function adds
the gradient of the call's comparison to the slices of the pairs, with a cap if one is set. The penalty is a second
autograd function. Its gradient tells the functions at all layers how much their values count. So no full-size gradient
of zeros is allocated and no rotated maps are kept, and weights, loss scaling and gradient accumulation act on the
penalty as on any loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..compat import set_version
from .aliasing import is_unshared
from .comparison import LayerComparison, PairScale


@dataclass
class GradientNorms:
    """Squared gradient norms at the outputs of the penalised layers, over the maps of all pairs, summed over layers.

    Attributes:
        arriving: of the gradient from everything after each layer.
        own: of the penalty's gradient at each layer, weighted as in the loss, before any cap.
        added: of the penalty's gradient after the cap: what it adds to the arriving gradient.

    Example:
        >>> norms = GradientNorms(arriving=torch.tensor(9.0), own=torch.tensor(1.0), added=torch.tensor(1.0))
        >>> (norms.own.sqrt() / (norms.arriving.sqrt() + norms.own.sqrt())).item()  # the penalty's share
        0.25
    """

    arriving: Tensor
    own: Tensor
    added: Tensor

    def __add__(self, other: GradientNorms) -> GradientNorms:
        return GradientNorms(self.arriving + other.arriving, self.own + other.own, self.added + other.added)


class Backward:
    """The state that the gradient injections of all layers share in one step.

    g_p is the gradient of the (weighted) penalty, and a_p is the gradient that arrives from everything after the layer.
    Both are over the maps of pair p (original and transformed). A layer's output receives
    ``a_p + g_p min(1, max_gradient_ratio |a_p| / |g_p|)``. Source: docs/explanation/method.md, "Loss". If a layer
    is sampled with probability pi, both its gradient and its cap are multiplied by 1 / pi when it is taken, so the
    expected gradient for a given ``a_p`` is that without sampling.

    Args:
        max_gradient_ratio: the cap, or None.
        measures: whether to sum up `norms`. This reads the arriving gradient once, as the cap does.

    Attributes:
        norms: the gradient norms of the latest backward pass; None if nothing was measured.
    """

    def __init__(self, max_gradient_ratio: float | None, measures: bool) -> None:
        self.max_gradient_ratio = max_gradient_ratio
        self.measures = measures
        self.norms: GradientNorms | None = None

    def begin(self, comparisons: Sequence[LayerComparison], rows: Tensor, upstreams: Tensor) -> None:
        """Begin a backward pass: compute for all layers at once what each one adds to its gradient.

        Args:
            comparisons: of all calls, L of them.
            rows: from `compute_values`, ``(L, 1 + 2 P)``.
            upstreams: how much each comparison counts in the loss, ``(L,)``.
        """
        self.norms = None
        scales, own = (rows[:, 1:] * upstreams[:, None]).chunk(2, dim=1)  # (L, P)
        own = own.abs()
        limits: Sequence[Tensor | None] = [None] * len(comparisons)
        if self.max_gradient_ratio is not None:
            ratios = [[self.max_gradient_ratio / each.probability] for each in comparisons]
            # The limit stays finite where the norm is 0, so that 0 times the limit is 0.
            limits = (torch.tensor(ratios, dtype=own.dtype, device=own.device) / own.clamp_min(1e-30)).unbind()
        for each, scale, norm, limit in zip(comparisons, scales.unbind(), own.unbind(), limits, strict=True):
            each.share = PairScale(scale, norm, limit)

    def add(self, comparison: LayerComparison, total: Tensor) -> None:
        """Add the capped gradient of a comparison to the gradient `total` at its layer, in place."""
        arriving = comparison.add_share(total, self.measures)
        if self.measures and arriving is not None:
            norms = _gradient_norms(arriving, comparison)
            self.norms = norms if self.norms is None else self.norms + norms


def _gradient_norms(arriving: Tensor, comparison: LayerComparison) -> GradientNorms:
    """The norms at one layer: an estimate of those without sampling of layers and fields.

    Args:
        arriving: the norm of the gradient that arrived at each pair, ``(P,)``.
        comparison: of the layer's output.
    """
    own = added = comparison.share.own
    if comparison.share.limit is not None:
        added = own * (comparison.share.limit * arriving).clamp_max(1)
    probability = comparison.probability
    factor = probability * comparison.field_share
    return GradientNorms(
        arriving=arriving.square().sum() / probability,
        own=own.square().sum() * factor,
        added=added.square().sum() * factor,
    )


class _Injection(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, output: Tensor, comparison: LayerComparison, shared: Backward, is_counted: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        # On ctx and not in save_for_backward: activation checkpointing would try to recompute them there.
        ctx.comparison, ctx.shared, ctx.is_counted = comparison, shared, is_counted
        ctx.like = (output.shape, output.stride(), output.dtype, output.device)
        # Later operations may overwrite the output in place, so autograd must not take it for an alias of the input. It
        # is marked as modified. A view cannot be marked, so it continues as a separate tensor on the same memory.
        if output._is_view():
            output = output.data
        else:
            ctx.mark_dirty(output)
        return output, output.new_zeros((), dtype=torch.promote_types(output.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, arriving: Tensor | None, upstream: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        comparison: LayerComparison = ctx.comparison
        if not (ctx.is_counted or upstream is not None) or not comparison.is_compared:
            return arriving, None, None, None
        if arriving is None:
            shape, stride, dtype, device = ctx.like
            total = torch.empty_strided(shape, stride, dtype=dtype, device=device).zero_()
        else:
            total = arriving if is_unshared(arriving) else arriving.clone()
        ctx.shared.add(comparison, total)
        return total, None, None, None


def inject(
    output: Tensor, comparison: LayerComparison, shared: Backward, is_counted: bool = False
) -> tuple[Tensor, Tensor]:
    """Inject a comparison's gradient at a layer's output.

    The result is the same tensor, as after an in-place operation. Only if the output is a view, as from some linear
    layers, it is another tensor on the same memory.

    Args:
        output: of the layer, ``(B, ...)``.
        comparison: the comparison of this call.
        shared: the state of the step.
        is_counted: whether the comparison counts although no anchor passes a gradient to it: it belongs to a call that
            is recomputed in backward.

    Returns:
        The output to continue with, and an anchor for `weighted_sum`.
    """
    version = output._version
    injected: tuple[Tensor, Tensor] = _Injection.apply(output, comparison, shared, is_counted)
    # Nothing was written. A layer that keeps its output for its own backward, as a sigmoid does, must see no change.
    set_version(output, version)
    return injected


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        start: Tensor | None,
        values: Tensor,
        weights: Sequence[float],
        on_backward: Callable[[Tensor], None],
        *anchors: Tensor | None,
    ) -> Tensor:
        ctx.on_backward = on_backward
        ctx.has_anchor = [anchor is not None for anchor in anchors]
        ctx.weights = torch.tensor(weights, device=values.device, dtype=values.dtype)
        return (values * ctx.weights).sum()  # not a matrix product, which autocast would round

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        upstreams = ctx.weights * gradient
        ctx.on_backward(upstreams)
        anchored = zip(upstreams.unbind(), ctx.has_anchor, strict=True)
        return None, None, None, None, *(upstream if has_anchor else None for upstream, has_anchor in anchored)


def weighted_sum(
    values: Tensor,
    weights: Sequence[float],
    anchors: Sequence[Tensor | None],
    on_backward: Callable[[Tensor], None],
) -> Tensor:
    """``sum_i weight_i value_i``: a scalar whose gradient reaches the layers through their injections.

    Args:
        values: of the comparisons, ``(L,)``.
        weights: of the values, L numbers.
        anchors: from `inject`; None for a call that ran without gradients.
        on_backward: called in each backward pass before any injection, with how much each comparison counts, ``(L,)``.
    """
    start = None
    if all(anchor is None for anchor in anchors):  # then only `start` can make the sum require a gradient
        start = torch.zeros((), device=values.device, requires_grad=True)
    total: Tensor = _WeightedSum.apply(start, values, list(weights), on_backward, *anchors)
    return total
