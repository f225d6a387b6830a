"""Penalty terms with their own autograd graph: the channel shift of one call, and the projection of the kernel.

Their gradient reaches only the parameters of their layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..compat import convolve
from ..groups import FieldType, permute_fields
from ..layers.calls import LayerCall
from ..layers.kernels import kernel_and_bias
from ..layers.layouts import Layout, SubPixel
from ..layers.plan import RecorderOptions
from ..layers.spec import LayerSpec, kernel_input_field
from ..layers.tracing import Layer
from ..pairing import PairedBatch
from ..penalties import kernel_relative_mse, kernel_residual, mean_square, pair_scale, relative_mse


@dataclass(frozen=True)
class ChannelCall:
    """One call of a layer g on the originals, from which the size of ``g(shift_k h) - shift_k g(h)`` is computed.

    Attributes:
        module: g.
        hidden: h, the part of the input that belongs to the originals, detached.
        output: g(h), detached.
        others: the other positional arguments of the call.
        keywords: the other keyword arguments of the call.
        shift: k.
    """

    module: Layer
    hidden: Tensor
    output: Tensor
    others: tuple[Any, ...]
    keywords: dict[str, Any]
    shift: int

    @classmethod
    def of(cls, batch: PairedBatch, module: Layer, call: LayerCall) -> ChannelCall:
        """The call, reduced from the whole batch to the originals."""
        hidden, others = call.hidden, call.arguments[1:]
        rest = {key: value for key, value in call.keywords.items() if key != "input" or call.arguments}
        share = hidden.shape[0] // batch.num_images * batch.num_pairs
        return cls(module, hidden[:share].detach(), call.output[:share].detach(), others, rest, batch.shift)

    def kept(self) -> ChannelCall:
        """The same call with clones of its maps, because later operations may overwrite them in place."""
        return replace(self, hidden=self.hidden.clone(), output=self.output.clone())

    def value(self, layout: Layout, options: RecorderOptions) -> Tensor:
        """The size of the residual; g runs without hooks, and the gradient reaches only the layer's own parameters."""
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
                return relative_mse(residual, scale if options.scale_gradient else scale.detach())
            return relative_mse(residual)


def _unshifted_residual(
    module: Layer, hidden: Tensor, layout: Layout, shift: int, options: RecorderOptions
) -> Tensor | None:
    """``shift_k^-1 g(shift_k h) - g(h)`` by one application of the layer; None for layers that need two.

    The layer is linear. So this is the layer with the kernel ``shift_k^-1 W shift_k - W`` and the bias
    ``shift_k^-1 b - b``. Its size is that of ``g(shift_k h) - shift_k g(h)``, because a shift only reorders channels.
    """
    is_depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels
    if not (isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and (module.groups == 1 or is_depthwise))):
        return None
    factor = layout.factor if isinstance(layout, SubPixel) else 1
    weight, offsets = kernel_and_bias(module)
    outputs = weight.shape[0] // factor**2
    back = _sources(outputs, shift, options, inverse=True)
    # The channels of the fine grid lie in blocks of r^2 sub-pixels.
    blocks = [factor**2 * source + pixel for source in back for pixel in range(factor**2)]
    turned = permute_fields(weight, blocks, 0)
    if not is_depthwise:
        turned = permute_fields(turned, _sources(weight.shape[1], shift, options, inverse=True), 1)
    bias = None if offsets is None else permute_fields(offsets, blocks, 0) - offsets
    if not torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(weight.dtype)  # a first step is compared later, outside its autocast context
    if isinstance(module, nn.Conv2d):
        return layout.to_maps(convolve(module, hidden, turned - weight, bias))
    return layout.to_maps(F.linear(hidden, turned - weight, bias))


def kernel_value(module: Layer, spec: LayerSpec, field: FieldType, options: RecorderOptions) -> Tensor:
    """The size ``||W - P W||^2 / ||W||^2`` of a layer's kernel.

    Args:
        module: the layer.
        spec: of the layer.
        field: of its output.
        options: of the recorder.
    """
    weight, _ = kernel_and_bias(module)
    if isinstance(module, nn.Linear):
        weight = weight[:, :, None, None]  # (C_out, C_in) -> (C_out, C_in, 1, 1)
    elif isinstance(module, nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)  # (C_in, C_out, ...) -> (C_out, C_in, ...)
    residual = kernel_residual(weight, kernel_input_field(spec, options.group), field, options.group)
    scale = mean_square(weight[None])[0] * weight.numel()
    return kernel_relative_mse(residual, scale if options.scale_gradient else scale.detach())


def _shifted(features: Tensor, shift: int, axis: int, options: RecorderOptions) -> Tensor:
    return permute_fields(features, _sources(features.shape[axis], shift, options), axis)


def _sources(channels: int, shift: int, options: RecorderOptions, inverse: bool = False) -> list[int]:
    """The source of each channel: under element k of the group, or under a shift by k among all channels."""
    if options.channel_group == "all":
        return [(channel + (shift if inverse else -shift)) % channels for channel in range(channels)]
    return options.group.sources(options.group.inverses[shift] if inverse else shift)
