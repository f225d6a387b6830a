"""What is compared at one call of one layer: the value of its penalty, and the gradient of that value at its output.

Legend: B images of the batch, P pairs (images 0..P-1 are originals, P..2P-1 their copies), C channels, H rows, W
columns.

The gradient is known in closed form, so the forward pass keeps the residual d of the pairs alone: with
``value = sum_p v_p |d_p|^2``, v held constant, it is ``2 v_p d_p`` at the copies and ``-rho^-1(2 v_p d_p)`` at the
originals, rho being orthogonal. Where it is not (a scale that takes part in the gradient, a group that is not on the
grid) the gradient is computed by autograd at once and kept instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import fused
from .groups import Field, Group
from .layouts import Layout, Maps
from .penalties import EPSILON, Size, field_residual, pair_scale, residual_size, unsquared_size


@dataclass(frozen=True, eq=False)
class Comparing:
    """How the maps of a step's pairs are compared.

    Attributes:
        group, turns: the element of the group between original and copy.
        num_pairs: P.
        size: of a residual.
        scale_gradient: whether gradient flows through the scale of a relative size.
        field_share: what part of a layer's regular fields is compared, drawn anew in each step; None for all.
    """

    group: Group
    turns: int
    num_pairs: int
    size: Size
    scale_gradient: bool
    field_share: float | None = None

    def value(self, originals: Tensor, copies: Tensor, field: Field) -> Tensor:
        """The size of the residual, differentiable: two ``(P, C, H, W)`` -> a scalar."""
        residual = field_residual(originals, copies, self.turns, field, self.group)
        if self.size == "paper":
            return unsquared_size(residual)
        if self.size == "none":
            return residual_size(residual)
        scale = pair_scale(self.group.crop(originals), self.group.crop(copies))
        return residual_size(residual, scale if self.scale_gradient else scale.detach())

    def chosen_channels(self, channels: int, field: Field, position: float) -> list[int] | None:
        """The channels of the fields that are compared, each field with the same probability; None for all.

        Systematic sampling of m of F fields: those at ``floor((i + u) F / m)``, i = 0..m-1, u = `position`, uniform in
        [0, 1). So the mean over what is chosen is on average the mean over all, and the fields chosen are spread over
        the layer. Trivial fields are always compared (the image has few), and so is everything where the gradient is
        not closed.
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
        """Whether the gradient follows from the residual."""
        return self.group.is_on_grid and not (self.size == "relative" and self.scale_gradient)


@dataclass(frozen=True)
class Share:
    """What an observation adds in a backward pass: each ``(P,)``.

    Attributes:
        scale: what the residual (or the gradient kept) of each pair is multiplied with, before any cap.
        own: the norm of what is added then.
        limit: the cap over `own`; None without cap.
    """

    scale: Tensor
    own: Tensor
    limit: Tensor | None


class Observation:
    """One call of a layer, compared in one field.

    Made when the layer runs. If it is not yet known how to compare, in a first forward, the maps are kept and `compare`
    follows later, before the backward pass.

    Args:
        comparing: of the step.
        position: what the choice of fields follows from, uniform in [0, 1).
        num_images: B.
        output: of the layer, ``(B, ...)``.
    """

    def __init__(self, comparing: Comparing, position: float, num_images: int, output: Tensor) -> None:
        self.comparing = comparing
        self.position = position
        per_image = len(output) // num_images  # windows are several entries an image
        self.num_entries = 2 * comparing.num_pairs * per_image
        self._raw: Tensor | None = output.detach().narrow(0, 0, self.num_entries)
        self._layout: Layout
        self._field: Field
        self._num_channels = 0
        self._channels: Tensor | None = None  # those compared; None for all
        self._residual: Tensor | None = None  # (P, C, H, W), C those compared
        self._turn: fused.Turn | None = None  # where it is computed in one pass
        self._gradient: Tensor | None = None  # (2P, C, H, W)
        self._norms: Tensor | None = None  # of the residual, (P,), as long as what follows from them is not computed
        self._map_norms: Tensor | None = None  # of the maps, (2P,)
        self._sizes = (1, 1)  # entries of a residual, of a map
        self._settled: Tensor | None = None  # a row of `settle`
        self.probability = 1.0
        """With which the layer was taken in this step."""
        self.share: Share
        """In a backward pass: what it adds to the gradient at its layer."""

    @property
    def field_share(self) -> float:
        """What part of the layer's channels is compared."""
        return 1.0 if self._channels is None else len(self._channels) / self._num_channels

    @property
    def value(self) -> Tensor:
        """The size of the residual, a scalar, detached."""
        return settle([self])[0, 0]

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

    def compare(self, layout: Layout, field: Field) -> None:
        """Compute the value and what the backward pass needs; the maps, which are detached, are let go."""
        assert self._raw is not None
        self._layout, self._field = layout, field
        maps = layout.to_maps(self._raw)  # (2P, C, H, W)
        self._raw = None
        comparing = self.comparing
        if not comparing.is_closed:
            with torch.enable_grad():
                leaf = maps.detach().to(_precise(maps.dtype), copy=True).requires_grad_()
                originals, copies = leaf.chunk(2)
                value = comparing.value(originals, copies, field)
                (self._gradient,) = torch.autograd.grad(value, leaf)
            own = _pair_norms(self._gradient)
            self._settled = torch.cat((value.detach()[None], torch.ones_like(own), own))
            return
        self._num_channels = maps.shape[1]
        chosen = comparing.chosen_channels(self._num_channels, field, self.position)
        if chosen is None and isinstance(layout, Maps):
            self._turn = fused.turn_of(maps, comparing.group, comparing.turns, field)
        if self._turn is not None:
            self._residual, self._settled = fused.residual(self._turn, maps, comparing.size)
            return
        originals, copies = maps.chunk(2)
        if chosen is not None:
            self._channels = torch.tensor(chosen, device=maps.device)
            originals, copies = (half.index_select(1, self._channels) for half in (originals, copies))
        residual = field_residual(originals, copies, comparing.turns, field, comparing.group)
        self._residual, self._norms = residual, _norms(residual)
        if comparing.size == "relative":
            self._map_norms = _norms(maps)
        self._sizes = (math.prod(residual.shape[1:]), math.prod(maps.shape[1:]))

    def add_share(self, total: Tensor, measures: bool) -> Tensor | None:
        """Add `share`, capped, to the gradient at the layer's output, ``(B, ...)``, in place.

        Returns:
            The norm of what had arrived over both maps of each pair, P entries, if there is a cap or it is measured.
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
        """Add ``scale_p`` times the residual, or the gradient kept, of each pair."""
        scale = scale[:, None, None, None]  # (P, 1, 1, 1)
        half = self.num_entries // 2
        at_originals, at_copies = total.narrow(0, 0, half), total.narrow(0, half, half)
        if self._gradient is not None:
            originals, copies = self._gradient.chunk(2)
            self._enter(at_originals, originals, scale)
            self._enter(at_copies, copies, scale)
            return
        assert self._residual is not None
        group = self.comparing.group
        self._enter(at_copies, self._residual, scale)
        turned_back = group.act(self._residual, group.inverses[self.comparing.turns], self._field)
        self._enter(at_originals, turned_back, scale, sign=-1)

    def _enter(self, part: Tensor, maps: Tensor, scale: Tensor, sign: int = 1) -> None:
        """Add ``sign scale_p`` times maps ``(P, C, H, W)`` to the gradient on these images, in place."""
        if maps.dtype != torch.float16:  # below whose range it may be where features are large
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
        if self.num_entries != 2 * self.comparing.num_pairs:
            pairs = pairs.unflatten(0, (2 * self.comparing.num_pairs, -1))  # (2P, windows, ...)
        return _pair_norms(pairs)


def settle(observations: Sequence[Observation]) -> Tensor:
    """Values, coefficients and norms of what has been compared: of all layers at once, since each is small.

    With r_p the norm of a residual of R entries, and a_p, b_p those of the maps of M entries, the value is
    ``sum_p v_p r_p^2`` with ``v_p = 1 / (P R)`` over the scale ``(a_p^2 + b_p^2) / (2 M) + eps`` if it is relative.

    Returns:
        ``(L, 1 + 2 P)``, a row an observation: its value; 2 v_p, or 1 where the gradient is kept; the norm of the
        gradient of the value over both maps of each pair.
    """
    kinds: dict[tuple[torch.device, torch.dtype, Comparing], list[Observation]] = {}
    for each in observations:
        if each._norms is not None:
            kinds.setdefault((each._norms.device, each._norms.dtype, each.comparing), []).append(each)
    for (device, dtype, comparing), alike in kinds.items():
        norms = torch.stack([each._norms for each in alike if each._norms is not None])  # (L, P)
        if comparing.size == "paper":
            values = torch.linalg.vector_norm(norms, dim=1)  # (L,)
            # the gradient of a norm is taken as 0 at 0
            inverse = torch.where(values > 0, 1 / values.clamp_min(torch.finfo(dtype).tiny), 0.0)
            coefficients = inverse[:, None].expand_as(norms)
        else:
            # Few operations, each of which takes longer than its few numbers: 2 v_p is f / (a_p^2 + b_p^2 + e).
            P, constants = comparing.num_pairs, []
            for entries, map_entries in (each._sizes for each in alike):
                constants.append((4 * map_entries / (P * entries), 2 * map_entries * EPSILON, 2 / (P * entries)))
            f, e, unscaled = torch.tensor(constants, device=device, dtype=dtype).T[:, :, None]  # (L, 1)
            if comparing.size == "relative":
                both = torch.stack([each._map_norms for each in alike if each._map_norms is not None])  # (L, 2P)
                coefficients = f / both.square_().view(len(alike), 2, -1).sum(dim=1).add_(e)  # (L, P)
            else:
                coefficients = unscaled.expand_as(norms)
            values = (coefficients * norms.square()).sum(dim=1).mul_(0.5)
        own = (coefficients * norms).mul_(2**0.5)
        rows = torch.cat((values[:, None], coefficients, own), dim=1)
        for each, each._settled in zip(alike, rows.unbind(), strict=True):
            each._norms = each._map_norms = None
    settled = [each._settled for each in observations if each._settled is not None]
    assert len(settled) == len(observations)
    return torch.stack(settled)


def _norms(maps: Tensor) -> Tensor:
    """The norm of each entry: ``(P, ...)`` -> ``(P,)``, in at least single precision."""
    return torch.linalg.vector_norm(maps, dim=tuple(range(1, maps.ndim)), dtype=_precise(maps.dtype))


def _precise(dtype: torch.dtype) -> torch.dtype:
    """At least single precision."""
    return torch.promote_types(dtype, torch.float32)


def _pair_norms(maps: Tensor) -> Tensor:
    """The norm over both entries of each pair: ``(2P, ...)``, originals then copies -> ``(P,)``."""
    return torch.linalg.vector_norm(_norms(maps).view(2, -1), dim=0)
