"""Taps: how the penalty's gradient enters at a layer's output, and how its values become one differentiable number.

Each watched call has a tap, an autograd function that passes the output through. In backward it adds the gradient of
its observation to the slices of the pairs, capped where asked. The penalty is a second function whose gradient tells
every tap how much its value counts. So no full-size gradient of zeros is made, no rotated copy is kept, and whatever
the weight, the loss scale or the accumulation does to the penalty reaches the taps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .observation import Observation, Share
from .ownership import is_unshared


@dataclass
class GradientNorms:
    """Squares of norms at the penalised layers' outputs, over the maps of all pairs, summed over the layers.

    Attributes:
        arriving: of the gradient from everything after each layer.
        own: of the penalty's gradient at each layer, weighted as in the loss, before any cap.
    """

    arriving: Tensor
    own: Tensor


class Backward:
    """What all taps of a step share.

    With g_p the gradient of the (weighted) penalty and a_p the gradient arriving from everything after the layer, both
    over the maps of pair p (original and copy), a layer's output receives
    ``a_p + g_p min(1, max_gradient_ratio |a_p| / |g_p|)``. Source: METHOD.md section 3. A layer taken with probability
    pi counts 1 / pi times as much when it is taken, and so does its cap: on average the gradient is that of all layers.

    Args:
        max_gradient_ratio: the cap, or None.
        measures: whether to sum up `norms`, which costs one read of the arriving gradient (as the cap does).
    """

    def __init__(self, max_gradient_ratio: float | None, measures: bool) -> None:
        self.max_gradient_ratio = max_gradient_ratio
        self.measures = measures
        self.norms: GradientNorms | None = None

    def begin(self, observations: Sequence[Observation], settled: Tensor, upstreams: Tensor) -> None:
        """A backward pass begins, for all layers at once: what follows from its part of the loss alone.

        Args:
            settled: of `settle`, ``(L, 1 + 2 P)``.
            upstreams: how much each observation counts in the loss, ``(L,)``.
        """
        self.norms = None
        scales, own = (settled[:, 1:] * upstreams[:, None]).chunk(2, dim=1)  # (L, P)
        own = own.abs()
        limits: Sequence[Tensor | None] = [None] * len(observations)
        if self.max_gradient_ratio is not None:
            ratios = [[self.max_gradient_ratio / each.probability] for each in observations]
            # Over a norm of 0 it is finite, so that 0 times it is 0.
            limits = (torch.tensor(ratios, dtype=own.dtype, device=own.device) / own.clamp_min(1e-30)).unbind()
        for each, scale, norm, limit in zip(observations, scales.unbind(), own.unbind(), limits, strict=True):
            each.share = Share(scale, norm, limit)

    def add(self, observation: Observation, total: Tensor) -> None:
        """Add an observation's part to the gradient at its layer, in place, capped."""
        arriving = observation.add_share(total, self.measures)
        if self.measures and arriving is not None:
            self._sum_up(arriving, observation.share.own, observation)

    def _sum_up(self, arriving: Tensor, own: Tensor, observation: Observation) -> None:
        """Add an estimate of what the layer would add if all layers and fields were compared in each step."""
        share = observation.probability
        squares = GradientNorms(arriving.square().sum() / share, own.square().sum() * share * observation.field_share)
        if self.norms:
            squares = GradientNorms(self.norms.arriving + squares.arriving, self.norms.own + squares.own)
        self.norms = squares


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, output: Tensor, observation: Observation, shared: Backward, is_counted: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        # On ctx and not through save_for_backward, where activation checkpointing would look for them again.
        ctx.observation, ctx.shared, ctx.is_counted = observation, shared, is_counted
        ctx.like = (output.shape, output.stride(), output.dtype, output.device)
        # What follows may overwrite the output in place, so autograd must not take it for an alias of the input: it is
        # marked as written to, or, where it is a view, which allows no such thing, goes on as a tensor of its own.
        if output._is_view():
            output = output.data
        else:
            ctx.mark_dirty(output)
        return output, output.new_zeros((), dtype=torch.promote_types(output.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, arriving: Tensor | None, upstream: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        observation: Observation = ctx.observation
        if not (ctx.is_counted or upstream is not None) or not observation.is_compared:
            return arriving, None, None, None
        if arriving is None:
            shape, stride, dtype, device = ctx.like
            total = torch.empty_strided(shape, stride, dtype=dtype, device=device).zero_()
        else:
            total = arriving if is_unshared(arriving) else arriving.clone()
        ctx.shared.add(observation, total)
        return total, None, None, None


def tap(output: Tensor, observation: Observation, shared: Backward, is_counted: bool = False) -> tuple[Tensor, Tensor]:
    """The layer's output to go on with, in the same memory, and an anchor for `weighted_sum`.

    It is the same tensor, taken over as by an operation in place, unless it is a view, as linear layers may give.

    Args:
        is_counted: whether the observation counts though no anchor will tell: of a call that is run again in backward.
    """
    version = output._version
    tapped: tuple[Tensor, Tensor] = _Tap.apply(output, observation, shared, is_counted)
    # Nothing was written: a layer that keeps its output for its own backward, as a sigmoid does, must not be told so.
    torch._C._autograd._unsafe_set_version_counter((output,), (version,))
    return tapped


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
        return (values * ctx.weights).sum()  # no product of matrices, which autocast would round

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
    """``sum_i weight_i value_i``, a scalar whose gradient reaches the layers through their taps.

    Args:
        values: of the observations, ``(L,)``.
        anchors: of `tap`; None for a call that ran without gradients.
        on_backward: told in each backward pass, before any layer's tap, how much each observation counts, ``(L,)``.
    """
    start = None
    if all(anchor is None for anchor in anchors):  # then something else must require a gradient, so that the sum does
        start = torch.zeros((), device=values.device, requires_grad=True)
    total: Tensor = _WeightedSum.apply(start, values, list(weights), on_backward, *anchors)
    return total
