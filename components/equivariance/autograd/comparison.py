"""Comparison of one call of one layer: the value of its penalty, and the gradient of that value at the layer's output.

Legend: B images of the batch, P pairs (images 0..P-1 are the originals, P..2P-1 the transformed images), C channels,
H rows, W columns.

The gradient has a closed form, so the forward pass keeps only the residual d of the pairs. With
``value = sum_p v_p |d_p|^2`` and v held constant, the gradient is ``2 v_p d_p`` at the transformed images and
``-rho^-1(2 v_p d_p)`` at the originals, because rho is orthogonal. There is no closed form if the gradient flows
through the scale, if the group is not on the grid, or if a function of the user measures the size. Then autograd
computes the gradient at once, and the forward pass keeps it instead of the residual.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..groups import FieldType, Group
from ..layers.layouts import Layout, Maps
from ..penalties import EPSILON, Measure, Size, field_residual, l2_norm, pair_scale, relative_mse
from . import fused


@dataclass(frozen=True, eq=False, kw_only=True)
class ComparisonRule:
    """How the maps of a step's pairs are compared.

    Attributes:
        group: the group.
        element: the element of the group that maps an original to its transformed image.
        num_pairs: P.
        size: how the size of a residual is measured.
        measure: another size of a comparison (`penalties.Measure`); None for `size`.
        scale_gradient: whether the gradient flows through the scale of a relative size.
        field_share: the share of a layer's regular fields that is compared, sampled in each step; None for all.
    """

    group: Group
    element: int
    num_pairs: int
    size: Size
    scale_gradient: bool
    field_share: float | None = None
    measure: Measure | None = None

    def value(self, originals: Tensor, transformed: Tensor, field: FieldType) -> Tensor:
        """The size of the residual: a differentiable scalar.

        Args:
            originals: ``(P, C, H, W)``.
            transformed: ``(P, C, H, W)``.
            field: "trivial" or "regular".
        """
        if self.measure is not None:
            value = self.measure(originals, transformed, self.element, field, self.group)
            if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
                found = f"{tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"penalty: the measure gives {found}: it must give a scalar tensor that depends on both maps by "
                    "operations of torch"
                )
            return value
        residual = field_residual(originals, transformed, self.element, field, self.group)
        if self.size == "paper":
            return l2_norm(residual)
        if self.size == "none":
            return relative_mse(residual)
        scale = pair_scale(self.group.crop(originals), self.group.crop(transformed))
        return relative_mse(residual, scale if self.scale_gradient else scale.detach())

    def chosen_channels(self, channels: int, field: FieldType, position: float) -> list[int] | None:
        """The channels of the sampled fields; None for all channels.

        Systematic sampling takes m of F fields: those at ``floor((i + u) F / m)`` for i = 0..m-1, where u = `position`
        is uniform in [0, 1). Each field has the same probability, so the expected mean over the sampled fields is the
        mean over all, and the sampled fields are spread over the layer. Trivial fields are always compared (the image
        has few of them), and so are all fields if the gradient has no closed form.

        Args:
            channels: the number C of channels.
            field: "trivial" or "regular".
            position: u.
        """
        if self.field_share is None or field == "trivial" or not self.is_closed:
            return None
        order = self.group.order
        num_fields = channels // order
        number = max(1, round(self.field_share * num_fields))
        if number >= num_fields:
            return None
        fields = [min(num_fields - 1, int((i + position) * num_fields / number)) for i in range(number)]
        return [field * order + channel for field in fields for channel in range(order)]

    @property
    def is_closed(self) -> bool:
        """Whether the gradient has a closed form, so that it follows from the residual."""
        has_gradient_of_scale = self.size == "relative" and self.scale_gradient
        return self.group.is_on_grid and self.measure is None and not has_gradient_of_scale


@dataclass(frozen=True)
class PairScale:
    """What a comparison adds in a backward pass: three tensors ``(P,)``.

    Attributes:
        scale: the factor of each pair's residual (or of the kept gradient), before any cap.
        own: the norm of the gradient that results.
        limit: the cap divided by `own`; None without a cap.
    """

    scale: Tensor
    own: Tensor
    limit: Tensor | None


class LayerComparison:
    """The comparison of one call of a layer in one field.

    It is made when the layer runs. In a first forward it is not yet known how to compare. Then the maps are kept, and
    `compare` follows later, before the backward pass.

    Args:
        rule: how the maps of this step are compared.
        position: a number, uniform in [0, 1), that decides which fields are sampled.
        num_images: B.
        output: of the layer, ``(B, ...)``.

    Attributes:
        num_entries: the number of entries on the batch axis that belong to the pairs.
        probability: with which the layer was sampled in this step.
        share: in a backward pass, what this comparison adds to the gradient at its layer.
    """

    def __init__(self, rule: ComparisonRule, position: float, num_images: int, output: Tensor) -> None:
        self.rule = rule
        self.position = position
        per_image = len(output) // num_images  # above 1 for windows
        self.num_entries = 2 * rule.num_pairs * per_image
        self._raw: Tensor | None = output.detach().narrow(0, 0, self.num_entries)
        self._layout: Layout
        self._field: FieldType
        self._num_channels = 0
        self._channels: Tensor | None = None  # the compared channels; None for all
        self._residual: Tensor | None = None  # (P, C, H, W), C the number of compared channels
        self._turn: fused.Turn | None = None  # if the fused C code computes the residual
        self._gradient: Tensor | None = None  # (2P, C, H, W)
        self._norms: Tensor | None = None  # of the residual, (P,), until `compute_values` has used them
        self._map_norms: Tensor | None = None  # of the maps, (2P,)
        self._sizes = (1, 1)  # the numbers of entries of a residual and of a map
        self._values_row: Tensor | None = None  # a row of `compute_values`
        self.probability = 1.0
        """The probability with which the layer was sampled in this step."""
        self.share: PairScale
        """In a backward pass: what this comparison adds to the gradient at its layer."""

    @property
    def field_share(self) -> float:
        """The share of the layer's channels that is compared."""
        return 1.0 if self._channels is None else len(self._channels) / self._num_channels

    @property
    def value(self) -> Tensor:
        """The size of the residual: a scalar, detached."""
        return compute_values([self])[0, 0]

    def keep(self) -> None:
        """Clone the maps, because later operations may overwrite them in place."""
        assert self._raw is not None
        self._raw = self._raw.clone()

    @property
    def is_compared(self) -> bool:
        """Whether `compare` or `drop` has released the maps."""
        return self._raw is None

    def drop(self) -> None:
        """Drop the maps without comparing them."""
        self._raw = None

    def compare(self, layout: Layout, field: FieldType) -> None:
        """Compute the value and what the backward pass needs, then release the (detached) maps."""
        assert self._raw is not None
        self._layout, self._field = layout, field
        maps = layout.to_maps(self._raw)  # (2P, C, H, W)
        self._raw = None
        rule = self.rule
        if not rule.is_closed:
            with torch.enable_grad():
                leaf = maps.detach().to(_precise(maps.dtype), copy=True).requires_grad_()
                originals, transformed = leaf.chunk(2)
                value = rule.value(originals, transformed, field)
                (self._gradient,) = torch.autograd.grad(value, leaf)
            own = _pair_norms(self._gradient)
            self._values_row = torch.cat((value.detach()[None], torch.ones_like(own), own))
            return
        self._num_channels = maps.shape[1]
        chosen = rule.chosen_channels(self._num_channels, field, self.position)
        if chosen is None and isinstance(layout, Maps):
            self._turn = fused.turn_of(maps, rule.group, rule.element, field)
        if self._turn is not None:
            self._residual, self._values_row = fused.residual(self._turn, maps, rule.size)
            return
        originals, transformed = maps.chunk(2)
        if chosen is not None:
            self._channels = torch.tensor(chosen, device=maps.device)
            originals, transformed = (half.index_select(1, self._channels) for half in (originals, transformed))
        residual = field_residual(originals, transformed, rule.element, field, rule.group)
        self._residual, self._norms = residual, _norms(residual)
        if rule.size == "relative":
            self._map_norms = _norms(maps)
        self._sizes = (math.prod(residual.shape[1:]), math.prod(maps.shape[1:]))

    def add_share(self, total: Tensor, measures: bool) -> Tensor | None:
        """Add this comparison's capped gradient to the gradient at the layer's output, in place.

        Args:
            total: the gradient at the layer's output, ``(B, ...)``.
            measures: whether to return the norms even without a cap.

        Returns:
            The norm of the gradient that arrived, over both maps of each pair, ``(P,)``. None if there is no cap and
            `measures` is false.
        """
        share, scale, arriving = self.share, self.share.scale, None
        if self._turn is not None and self._residual is not None and fused.can_add(self._turn, total, scale):
            return fused.add(self._turn, total, self._residual, scale, share.limit, measures)
        if share.limit is not None or measures:
            arriving = self._arriving_norms(total)
            if share.limit is not None:
                scale = scale * (share.limit * arriving).clamp_max_(1)
        self._add(total, scale)
        return arriving

    def _add(self, total: Tensor, scale: Tensor) -> None:
        """Add ``scale_p`` times the residual (or the kept gradient) of each pair."""
        scale = scale[:, None, None, None]  # (P, 1, 1, 1)
        half = self.num_entries // 2
        at_originals, at_transformed = total.narrow(0, 0, half), total.narrow(0, half, half)
        if self._gradient is not None:
            originals, transformed = self._gradient.chunk(2)
            self._enter(at_originals, originals, scale)
            self._enter(at_transformed, transformed, scale)
            return
        assert self._residual is not None
        group = self.rule.group
        self._enter(at_transformed, self._residual, scale)
        turned_back = group.act(self._residual, group.inverses[self.rule.element], self._field)
        self._enter(at_originals, turned_back, scale, sign=-1)

    def _enter(self, part: Tensor, maps: Tensor, scale: Tensor, sign: int = 1) -> None:
        """Add ``sign * scale_p`` times the maps ``(P, C, H, W)`` to the gradient of these images, in place."""
        if maps.dtype != torch.float16:  # large features make the scale too small for float16
            scale = scale.to(maps.dtype)
        if self._channels is None and isinstance(self._layout, Maps) and maps.dtype == part.dtype == scale.dtype:
            part.addcmul_(maps, scale, value=sign)
            return
        gradient = maps * (scale if sign == 1 else -scale)
        if self._channels is not None and isinstance(self._layout, Maps):
            part.index_add_(1, self._channels, gradient.to(part.dtype))
            return
        if self._channels is not None:
            full = gradient.new_zeros((len(gradient), self._num_channels, *gradient.shape[2:]))
            gradient = full.index_copy_(1, self._channels, gradient)
        part.add_(self._layout.from_maps(gradient).reshape(part.shape))

    def _arriving_norms(self, arriving: Tensor) -> Tensor:
        """The norm of a gradient at the layer's output over both maps of each pair: ``(B, ...)`` -> ``(P,)``."""
        pairs = arriving.narrow(0, 0, self.num_entries)
        if self.num_entries != 2 * self.rule.num_pairs:
            pairs = pairs.unflatten(0, (2 * self.rule.num_pairs, -1))  # (2P, windows, ...)
        return _pair_norms(pairs)


def compute_values(comparisons: Sequence[LayerComparison]) -> Tensor:
    """Compute the values, coefficients and norms of all comparisons at once, because each one is small.

    r_p is the norm of a residual with R entries; a_p and b_p are the norms of the maps, with M entries each. The value
    is ``sum_p v_p r_p^2`` with ``v_p = 1 / (P R)``, divided by the scale ``(a_p^2 + b_p^2) / (2 M) + eps`` if the size
    is relative.

    Returns:
        ``(L, 1 + 2 P)``, one row for each comparison: its value; then 2 v_p, or 1 if the gradient is kept; then the
        norm of the value's gradient over both maps of each pair.
    """
    kinds: dict[tuple[torch.device, torch.dtype, ComparisonRule], list[LayerComparison]] = {}
    for each in comparisons:
        if each._norms is not None:
            kinds.setdefault((each._norms.device, each._norms.dtype, each.rule), []).append(each)
    for (device, dtype, rule), alike in kinds.items():
        norms = torch.stack([each._norms for each in alike if each._norms is not None])  # (L, P)
        if rule.size == "paper":
            values = torch.linalg.vector_norm(norms, dim=1)  # (L,)
            # The gradient of a norm is taken as 0 at 0.
            inverse = torch.where(values > 0, 1 / values.clamp_min(torch.finfo(dtype).tiny), 0.0)
            coefficients = inverse[:, None].expand_as(norms)
        else:
            # An operation takes longer than its few numbers, so few are used: 2 v_p is f / (a_p^2 + b_p^2 + e).
            P, constants = rule.num_pairs, []
            for entries, map_entries in (each._sizes for each in alike):
                constants.append((4 * map_entries / (P * entries), 2 * map_entries * EPSILON, 2 / (P * entries)))
            f, e, unscaled = torch.tensor(constants, device=device, dtype=dtype).T[:, :, None]  # (L, 1)
            if rule.size == "relative":
                both = torch.stack([each._map_norms for each in alike if each._map_norms is not None])  # (L, 2P)
                coefficients = f / both.square_().view(len(alike), 2, -1).sum(dim=1).add_(e)  # (L, P)
            else:
                coefficients = unscaled.expand_as(norms)
            values = (coefficients * norms.square()).sum(dim=1).mul_(0.5)
        own = (coefficients * norms).mul_(2**0.5)
        rows = torch.cat((values[:, None], coefficients, own), dim=1)
        for each, each._values_row in zip(alike, rows.unbind(), strict=True):
            each._norms = each._map_norms = None
    found = [each._values_row for each in comparisons if each._values_row is not None]
    assert len(found) == len(comparisons)
    return torch.stack(found)


def _norms(maps: Tensor) -> Tensor:
    """The norm of each entry, in at least single precision: ``(P, ...)`` -> ``(P,)``."""
    return torch.linalg.vector_norm(maps, dim=tuple(range(1, maps.ndim)), dtype=_precise(maps.dtype))


def _precise(dtype: torch.dtype) -> torch.dtype:
    """The type itself, or single precision if that is more precise."""
    return torch.promote_types(dtype, torch.float32)


def _pair_norms(maps: Tensor) -> Tensor:
    """The norm over both entries of each pair: ``(2P, ...)``, originals first, -> ``(P,)``."""
    return torch.linalg.vector_norm(_norms(maps).view(2, -1), dim=0)
