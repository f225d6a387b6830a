"""Terms of a layer alone, with a graph of their own: the channel shift of one call, and the kernel's projection.

Their gradient reaches the layer's own parameters and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .groups import Field, permute_fields
from .layers import LayerFacts, kernel_input_field
from .layouts import Layout, SubPixel
from .pairing import PairedBatch
from .penalties import kernel_residual, mean_square, pair_scale, projection_size, residual_size
from .planning import WatchOptions
from .tracing import Layer


@dataclass(frozen=True)
class ChannelCall:
    """One call of a layer g, on the originals: what the size of ``g(shift_k h) - shift_k g(h)`` is computed from.

    Attributes:
        hidden: h, the part of its input that belongs to the originals, constant.
        output: g(h), likewise.
        others, keywords: what else the layer was called with.
    """

    module: Layer
    hidden: Tensor
    output: Tensor
    others: tuple[Any, ...]
    keywords: dict[str, Any]
    shift: int

    @classmethod
    def of(
        cls, batch: PairedBatch, module: Layer, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Tensor
    ) -> ChannelCall:
        """Of a call with the whole batch."""
        hidden, *others = arguments or (keywords["input"],)
        rest = {key: value for key, value in keywords.items() if key != "input" or arguments}
        share = hidden.shape[0] // batch.num_images * batch.num_pairs
        return cls(module, hidden[:share].detach(), output[:share].detach(), tuple(others), rest, batch.shift)

    def kept(self) -> ChannelCall:
        """The same with maps of its own: what follows may overwrite them."""
        return replace(self, hidden=self.hidden.clone(), output=self.output.clone())

    def value(self, layout: Layout, options: WatchOptions) -> Tensor:
        """The size, g being the layer without hooks; its gradient reaches the layer's own parameters alone."""
        module, hidden, shift = self.module, self.hidden, self.shift
        with torch.enable_grad():
            first = layout.to_maps(self.output)  # (P, C, H, W)
            residual = None if options.scale_gradient else _unshifted_residual(module, hidden, layout, shift, options)
            if residual is not None:
                second = residual.detach() + first
            else:
                axis = hidden.ndim - 1 if isinstance(module, nn.Linear) else 1
                both = torch.cat((hidden, _shifted(hidden, shift, axis, options)))  # originals, then shifted
                first, second = layout.to_maps(module.forward(both, *self.others, **self.keywords)).chunk(2)
                residual = second - _shifted(first, shift, 1, options)
            if options.size == "relative":
                scale = pair_scale(first, second)
                return residual_size(residual, scale if options.scale_gradient else scale.detach())
            return residual_size(residual)


def _unshifted_residual(
    module: Layer, hidden: Tensor, layout: Layout, shift: int, options: WatchOptions
) -> Tensor | None:
    """``shift_k^-1 g(shift_k h) - g(h)`` by one application of the layer; None for layers where it takes two.

    The layer being linear, that is the layer with ``shift_k^-1 W shift_k - W`` for its kernel and ``shift_k^-1 b - b``
    for its bias. Its size is that of ``g(shift_k h) - shift_k g(h)``, since a shift only moves channels about.
    """
    is_depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels
    if not (isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and (module.groups == 1 or is_depthwise))):
        return None
    factor = layout.factor if isinstance(layout, SubPixel) else 1
    weight, outputs = module.weight, module.weight.shape[0] // factor**2
    back = _sources(outputs, shift, options, inverse=True)
    # Channels of the fine grid lie in blocks of r^2 sub-pixels.
    blocks = [factor**2 * source + pixel for source in back for pixel in range(factor**2)]
    turned = permute_fields(weight, blocks, 0)
    if not is_depthwise:
        turned = permute_fields(turned, _sources(weight.shape[1], shift, options, inverse=True), 1)
    bias = None if module.bias is None else permute_fields(module.bias, blocks, 0) - module.bias
    if not torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(weight.dtype)  # a first step is compared later, outside of its autocast
    if isinstance(module, nn.Conv2d):
        return layout.to_maps(module._conv_forward(hidden, turned - weight, bias))
    return layout.to_maps(F.linear(hidden, turned - weight, bias))


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
    return permute_fields(features, _sources(features.shape[axis], shift, options), axis)


def _sources(channels: int, shift: int, options: WatchOptions, inverse: bool = False) -> list[int]:
    """Where each channel of a field comes from: element k of the group, or k places among all channels."""
    if options.channel_group == "all":
        return [(channel + (shift if inverse else -shift)) % channels for channel in range(channels)]
    return options.group.sources(options.group.inverses[shift] if inverse else shift)
