"""What the regulariser computes from one call of one layer: the value of a term of its penalty.

Legend: B images of the batch, P pairs (images 0..P-1 are originals, P..2P-1 their copies), C channels,
H rows, W columns.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .cap import capped_penalty
from .geometry import Convolution, alignment_obstacle
from .groups import ChannelGroup, Field, shift_channels
from .layers import Term
from .pairing import PairedBatch
from .penalties import channel_residual, field_residual, pair_scale, residual_size

Normalise = Literal["relative", "none"]


@dataclass(frozen=True)
class SizeOptions:
    """How the size of a residual is taken, and how far its gradient may go: see METHOD.md section 3."""

    normalise: Normalise
    scale_gradient: bool
    channel_group: ChannelGroup
    max_gradient_ratio: float | None


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer: ``output = module(hidden, *arguments, **keywords)``."""

    module: Convolution
    hidden: Tensor
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Tensor


def call_obstacle(term: Term, call: LayerCall, batch: PairedBatch) -> str | None:
    """Why this call cannot be compared between originals and copies, or None."""
    num_images, num_entries = len(batch.inputs), len(call.output)
    if num_entries != num_images:
        return f"its output has {num_entries} entries on the batch axis, the paired batch {num_images} images"
    if term == "channel":
        return None
    return alignment_obstacle(call.module, call.hidden.shape[-2:], call.output.shape[-2:])


def term_value(term: Term, call: LayerCall, batch: PairedBatch, options: SizeOptions) -> Tensor:
    """The size of the residual that the term compares: a scalar.

    It is computed while the layer runs, and keeps the residual alone for the backward pass: whatever follows
    may overwrite the layer's output in place.
    """
    if term == "channel":
        first, second = _plain_and_shifted(call, batch, options.channel_group)
        residual = channel_residual(first, second, batch.shift, options.channel_group)
    else:
        first, second = (
            call.output[: batch.num_pairs],
            call.output[batch.copies],
        )  # (B, C, H, W) -> 2 of (P, C, H, W)
        residual = field_residual(first, second, batch.turns, term)
    return _size(residual, first, second, options)


def capped_term(
    term: Field, call: LayerCall, batch: PairedBatch, options: SizeOptions, max_gradient_ratio: float
) -> tuple[Tensor, Tensor]:
    """The layer's output to go on with, and the size of the residual in a field, its gradient capped."""

    def value_of(paired: Tensor) -> Tensor:
        first, second = paired.chunk(2)  # (2P, C, H, W) -> 2 of (P, C, H, W)
        return _size(field_residual(first, second, batch.turns, term), first, second, options)

    return capped_penalty(call.output, batch.num_pairs, value_of, max_gradient_ratio)


def _size(residual: Tensor, first: Tensor, second: Tensor, options: SizeOptions) -> Tensor:
    if options.normalise == "none":
        return residual_size(residual)
    if options.scale_gradient:
        return residual_size(residual, pair_scale(first.clone(), second.clone()))
    return residual_size(residual, pair_scale(first.detach(), second.detach()))


def _plain_and_shifted(call: LayerCall, batch: PairedBatch, group: ChannelGroup) -> tuple[Tensor, Tensor]:
    """``g(h)`` and ``g(shift_k h)``, h the originals' input, constant, g the layer without hooks."""
    hidden = call.hidden[: batch.num_pairs].detach()
    both = torch.cat((hidden, shift_channels(hidden, batch.shift, group)))  # (2P, C, H, W): plain, then shifted
    output = call.module.forward(both, *call.arguments, **call.keywords)
    return output[: batch.num_pairs], output[batch.num_pairs :]
