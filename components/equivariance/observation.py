"""What is compared at one call of one layer: the value of its penalty, and the gradient of that value at its output.

Legend: B images of the batch, P pairs (images 0..P-1 are originals, P..2P-1 their copies), C channels, H rows, W
columns.

The gradient is known in closed form, so the forward pass keeps the residual d of the pairs alone: with
``value = sum_p v_p |d_p|^2``, v held constant, it is ``2 v_p d_p`` at the copies and ``-rho^-1(2 v_p d_p)`` at the
originals, rho being orthogonal. Where it is not (a scale that takes part in the gradient, a group that is not on the
grid) the gradient is computed by autograd at once and kept instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .groups import Field, Group
from .layouts import Layout
from .penalties import EPSILON, field_residual, pair_scale, residual_size, unsquared_size

Size = Literal["relative", "none", "paper"]
"""How the size of a residual is taken: relative to the maps, as a mean square, or as the released code does."""


@dataclass(frozen=True)
class Comparing:
    """How two maps of a pair are compared.

    Attributes:
        group, turns: the element of the group between original and copy.
        num_pairs: P.
        size: of a residual.
        scale_gradient: whether gradient flows through the scale of a relative size.
    """

    group: Group
    turns: int
    num_pairs: int
    size: Size
    scale_gradient: bool

    def value(self, originals: Tensor, copies: Tensor, field: Field) -> Tensor:
        """The size of the residual, differentiable: two ``(P, C, H, W)`` -> a scalar."""
        residual = field_residual(originals, copies, self.turns, field, self.group)
        if self.size == "paper":
            return unsquared_size(residual)
        if self.size == "none":
            return residual_size(residual)
        scale = pair_scale(self.group.crop(originals), self.group.crop(copies))
        return residual_size(residual, scale if self.scale_gradient else scale.detach())

    @property
    def is_closed(self) -> bool:
        """Whether the gradient follows from the residual."""
        return self.group.is_on_grid and not (self.size == "relative" and self.scale_gradient)


class Observation:
    """One call of a layer, compared in one field.

    Made when the layer runs. If it is not yet known how to compare (`layout` None, in a first forward) the maps are
    kept and `compare` follows later, before the backward pass.
    """

    def __init__(self, comparing: Comparing, num_images: int, output: Tensor) -> None:
        self.comparing = comparing
        per_image = len(output) // num_images  # windows are several entries an image
        self.num_entries = 2 * comparing.num_pairs * per_image
        self.upstream: Tensor | None = None
        self.value: Tensor
        self._raw: Tensor | None = output.detach()[: self.num_entries]
        self._raw_shape = self._raw.shape
        self._layout: Layout
        self._field: Field
        self._residual: Tensor | None = None  # (P, C, H, W)
        self._coefficients: Tensor  # 2 v_p, (P,)
        self._gradient: Tensor | None = None  # (2P, C, H, W)
        self.own_norms: Tensor  # of the gradient of `value`, over both maps of each pair, (P,)

    def keep(self) -> None:
        """Keep the maps as they are now: what follows may overwrite them."""
        assert self._raw is not None
        self._raw = self._raw.clone()

    @property
    def is_compared(self) -> bool:
        return self._raw is None

    def drop(self) -> None:
        """Forget the maps without comparing them."""
        self._raw = None
        self.value = torch.zeros(())

    @torch.no_grad()
    def compare(self, layout: Layout, field: Field) -> None:
        """Compute the value and what the backward pass needs; the maps themselves are let go."""
        assert self._raw is not None
        self._layout, self._field = layout, field
        maps = layout.to_maps(self._raw)  # (2P, C, H, W)
        self._raw = None
        originals, copies = maps.chunk(2)
        comparing, pairs = self.comparing, self.comparing.num_pairs
        if not comparing.is_closed:
            with torch.enable_grad():
                leaf = maps.detach().clone().requires_grad_()
                originals, copies = leaf.chunk(2)
                value = comparing.value(originals, copies, field)
                (self._gradient,) = torch.autograd.grad(value, leaf)
            self.value = value.detach()
            self.own_norms = _pair_norms(self._gradient)
            return
        residual = field_residual(originals, copies, comparing.turns, field, comparing.group)
        norms = _norms(residual)  # (P,)
        size = residual[0].numel()
        if comparing.size == "paper":
            self.value = torch.linalg.vector_norm(norms)
            # the gradient of a norm is taken as 0 at 0
            coefficient = torch.where(self.value > 0, 1 / self.value.clamp_min(torch.finfo(norms.dtype).tiny), 0.0)
            self._coefficients = coefficient.expand(pairs)
        else:
            weights = torch.full_like(norms, 1 / (pairs * size))
            if comparing.size == "relative":
                both = _norms(maps).square().view(2, pairs)  # (2P,) -> originals, copies
                weights = weights / (both.sum(dim=0) / (2 * size) + EPSILON)
            self.value = (weights * norms.square()).sum()
            self._coefficients = 2 * weights
        self._residual = residual
        self.own_norms = self._coefficients * norms * 2**0.5

    def add_gradient(self, total: Tensor, factors: Tensor) -> None:
        """Add ``factors_p`` times the gradient of `value` to one at the layer's output, ``(B, ...)``, in place."""
        originals, copies = self._gradients(factors)  # 2 of (P, C, H, W)
        half = self.num_entries // 2
        shape = (half, *self._raw_shape[1:])
        total[half : 2 * half].add_(self._layout.from_maps(copies).reshape(shape))
        total[:half].add_(self._layout.from_maps(originals).reshape(shape))

    def _gradients(self, factors: Tensor) -> tuple[Tensor, Tensor]:
        if self._gradient is not None:
            originals, copies = (self._gradient * _each(factors.repeat(2))).chunk(2)
            return originals, copies
        assert self._residual is not None
        group = self.comparing.group
        copies = self._residual * _each(factors * self._coefficients).to(self._residual.dtype)
        return -group.act(copies, group.inverses[self.comparing.turns], self._field), copies

    def arriving_norms(self, arriving: Tensor) -> Tensor:
        """The norm of a gradient at the layer's output over both maps of each pair: ``(B, ...)`` -> ``(P,)``."""
        pairs = arriving[: self.num_entries].unflatten(0, (2 * self.comparing.num_pairs, -1))  # (2P, 1 or windows, ...)
        return _pair_norms(pairs)


def _each(values: Tensor) -> Tensor:
    """One value an image, to multiply maps with: ``(P,)`` -> ``(P, 1, 1, 1)``."""
    return values[:, None, None, None]


def _norms(maps: Tensor) -> Tensor:
    """The norm of each entry: ``(P, ...)`` -> ``(P,)``, in at least single precision."""
    precise = torch.promote_types(maps.dtype, torch.float32)
    return torch.linalg.vector_norm(maps, dim=tuple(range(1, maps.ndim)), dtype=precise)


def _pair_norms(maps: Tensor) -> Tensor:
    """The norm over both entries of each pair: ``(2P, ...)``, originals then copies -> ``(P,)``."""
    return torch.linalg.vector_norm(_norms(maps).view(2, -1), dim=0)
