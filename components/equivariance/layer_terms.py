"""Terms of a layer alone, with a graph of their own: the channel shift of one call, and the kernel's projection.

Their gradient reaches the layer's own parameters and nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .groups import ChannelGroup, Field, permute_fields
from .layers import LayerFacts, kernel_input_field
from .layouts import Layout
from .pairing import PairedBatch
from .penalties import kernel_residual, mean_square, pair_scale, projection_size, residual_size
from .planning import WatchOptions
from .tracing import Layer


def channel_value(
    batch: PairedBatch,
    module: Layer,
    layout: Layout,
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    options: WatchOptions,
) -> Tensor:
    """Size of ``g(shift_k h) - shift_k g(h)``: g the layer without hooks, h its input on the originals, constant."""
    hidden, *others = arguments or (keywords["input"],)
    rest = {key: value for key, value in keywords.items() if key != "input" or arguments}
    share = hidden.shape[0] // batch.num_images * batch.num_pairs
    axis = hidden.ndim - 1 if isinstance(module, nn.Linear) else 1
    with torch.enable_grad():
        plain = hidden[:share].detach()
        both = torch.cat((plain, _shifted(plain, batch.shift, axis, options)))  # originals, then shifted
        outputs = layout.to_maps(module.forward(both, *others, **rest))
        first, second = outputs.chunk(2)  # 2 of (P, C, H, W)
        residual = second - _shifted(first, batch.shift, 1, options)
        if options.size == "relative":
            scale = pair_scale(first, second)
            return residual_size(residual, scale if options.scale_gradient else scale.detach())
        return residual_size(residual)


def kernel_value(module: Layer, facts: LayerFacts, field: Field, options: WatchOptions) -> Tensor:
    """``||W - P W||^2 / ||W||^2`` of a layer's kernel, its output being of this field."""
    weight = module.weight
    if isinstance(module, nn.Linear):
        weight = weight[:, :, None, None]  # (C_out, C_in) -> (C_out, C_in, 1, 1)
    elif isinstance(module, nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)  # (C_in, C_out, ...) -> (C_out, C_in, ...)
    residual = kernel_residual(weight, kernel_input_field(facts, options.group), field, options.group)
    scale = mean_square(weight[None])[0] * weight.numel()
    return projection_size(residual, scale if options.scale_gradient else scale.detach())


def _shifted(features: Tensor, shift: int, axis: int, options: WatchOptions) -> Tensor:
    channel_group: ChannelGroup = options.channel_group
    width = features.shape[axis] if channel_group == "all" else None
    sources = [(c - shift) % width for c in range(width)] if width else options.group.sources(shift)
    return permute_fields(features, sources, axis)
