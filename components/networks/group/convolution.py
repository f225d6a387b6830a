"""Group convolutions, which are exactly equivariant whatever their weights, and what stands between them.

The weights of a layer are stored once for each field. The kernel with which it convolves is computed from them in each
forward, by turning and mirroring:

- lifting, image -> regular fields: ``K[o, h, i] = h w[o, i]``;
- group convolution, regular -> regular fields: ``K[o, h, i, m] = h w[o, i, h^-1 m]``;
- projection, regular fields -> image: ``K[o, i, m] = m w[o, i]``. With the scale r, the output of a pixel is r^2
  sub-pixels, which the element m also moves.

A regular field is that of `components.equivariance.groups`: t neighbouring channels, one for each element of the group.
The regular penalty of these layers is therefore 0 up to rounding.

Source: Cohen, Welling, *Group Equivariant Convolutional Networks*, ICML 2016 (arXiv 1602.07576), the layers P4ConvZ2,
P4ConvP4, P4MConvZ2 and P4MConvP4M of https://github.com/adambielski/GrouPy at e9c2e5a,
``groupy/gconv/pytorch_gconv/splitgconv2d.py``. Names and shapes of the parameters are theirs. The order of the elements
of D4 is that of `components.equivariance.groups`; theirs mirrors up and down after turning.

Legend: B images, C channels of an image, H rows, W columns, F and O and I regular fields, t the order of the group, h
and m elements of it, k the side of a kernel, r the scale.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.equivariance.groups import Group
from components.networks.blocks import Norm, check_norm


class ComputedConvolution(nn.Conv2d):
    """Base class: a convolution with stride 1 that keeps the size, and computes its kernel from its weights.

    It is an ``nn.Conv2d`` whose ``weight`` and ``bias`` hold less than one value for each entry of the kernel and each
    channel.

    Args:
        in_channels: of the maps, not of the fields.
        out_channels: of the maps.
        kernel_size: k, an odd number.
        group: C4 or D4, or another group on the grid.
        weight_shape: of the stored weights.
        num_biases: of the stored biases; 0 for none.

    Raises:
        ValueError: the kernel has an even side, so that its centre is between pixels, or the group is not on the grid.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        group: Group,
        weight_shape: tuple[int, ...],
        num_biases: int,
    ) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: {kernel_size}: use an odd number, so that the centre is a pixel")
        if not group.is_on_grid:
            raise ValueError(f"group: {group.name} turns by angles that no pixel grid has; use C2, C4 or D4")
        # The parameters of the base class are replaced, so they need no memory.
        super().__init__(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=num_biases > 0, device="meta"
        )
        self.group = group
        self.weight = nn.Parameter(torch.empty(weight_shape))
        if num_biases:
            self.bias = nn.Parameter(torch.empty(num_biases))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights and biases, as ``nn.Conv2d`` does for as many channels."""
        bound = 1 / math.sqrt(self.in_channels * math.prod(self.kernel_size))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def computed_kernel(self) -> Tensor:
        """Return the kernel, ``(out_channels, in_channels, k, k)``."""
        raise NotImplementedError

    def computed_bias(self) -> Tensor | None:
        """Return the bias of each channel, ``(out_channels,)``, or None."""
        if self.bias is None:
            return None
        return self.bias[:, None].expand(-1, self.out_channels // len(self.bias)).reshape(-1)  # (F) -> (F, t) -> (F t)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve maps: ``(B, in_channels, H, W)`` -> ``(B, out_channels, H, W)``."""
        return F.conv2d(input, self.computed_kernel(), self.computed_bias(), padding=self.kernel_size[0] // 2)


class LiftingConvolution(ComputedConvolution):
    """From an image to regular fields: ``(B, C, H, W)`` -> ``(B, F t, H, W)``.

    Args:
        channels: C.
        fields: F.
        kernel_size: k, an odd number.
        group: with t elements.
        bias: whether each field has a bias.

    Example:
        >>> from components.equivariance import C4
        >>> layer, images = LiftingConvolution(3, 2, 3, C4), torch.rand(1, 3, 5, 5)
        >>> torch.allclose(layer(C4.spatial(images, 1)), C4.act(layer(images), 1, "regular"), atol=1e-6)
        True
    """

    def __init__(self, channels: int, fields: int, kernel_size: int, group: Group, bias: bool = True) -> None:
        shape = (fields, channels, 1, kernel_size, kernel_size)
        super().__init__(channels, fields * group.order, kernel_size, group, shape, fields * bias)

    def computed_kernel(self) -> Tensor:
        """Return the kernel, ``(F t, C, k, k)``."""
        weight = self.weight.squeeze(2)  # (F, C, 1, k, k) -> (F, C, k, k)
        turned = [self.group.spatial(weight, element) for element in range(self.group.order)]
        return torch.stack(turned, dim=1).flatten(0, 1)  # (F, t, C, k, k) -> (F t, C, k, k)


class GroupConvolution(ComputedConvolution):
    """From regular fields to regular fields: ``(B, I t, H, W)`` -> ``(B, O t, H, W)``.

    Args:
        fields_in: I.
        fields_out: O.
        kernel_size: k, an odd number.
        group: with t elements.
        bias: whether each field has a bias.

    Example:
        >>> from components.equivariance import C4
        >>> layer, maps = GroupConvolution(3, 2, 3, C4), torch.rand(1, 12, 5, 5)
        >>> torch.allclose(layer(C4.act(maps, 1, "regular")), C4.act(layer(maps), 1, "regular"), atol=1e-6)
        True
    """

    def __init__(self, fields_in: int, fields_out: int, kernel_size: int, group: Group, bias: bool = True) -> None:
        t = group.order
        shape = (fields_out, fields_in, t, kernel_size, kernel_size)
        super().__init__(fields_in * t, fields_out * t, kernel_size, group, shape, fields_out * bias)
        self._sources = [group.sources(element) for element in range(t)]  # [h][m]: the number of h^-1 m

    def computed_kernel(self) -> Tensor:
        """Return the kernel, ``(O t, I t, k, k)``."""
        planes = self.weight.unbind(2)  # t times (O, I, k, k)
        turned = [
            self.group.spatial(torch.stack([planes[source] for source in sources], dim=2), element)
            for element, sources in enumerate(self._sources)
        ]  # t times (O, I, t, k, k)
        return torch.stack(turned, dim=1).flatten(2, 3).flatten(0, 1)  # (O, t, I, t, k, k) -> (O t, I t, k, k)


class ProjectionConvolution(ComputedConvolution):
    """From regular fields to an image, or to its sub-pixels: ``(B, F t, H, W)`` -> ``(B, r^2 C, H, W)``.

    PixelShuffle(r) makes an exactly equivariant image of its output. The sub-pixels of a channel have one bias: a bias
    for each of them would be a pattern, which turns do not keep.

    Args:
        fields: F.
        channels: C, the channels of the image.
        kernel_size: k, an odd number.
        group: with t elements.
        scale: r.
        bias: whether each channel of the image has a bias.

    Example:
        >>> from components.equivariance import C4
        >>> layer, maps = ProjectionConvolution(2, 3, 3, C4, scale=2), torch.rand(1, 8, 5, 5)
        >>> turned = F.pixel_shuffle(layer(C4.act(maps, 1, "regular")), 2)
        >>> torch.allclose(turned, C4.spatial(F.pixel_shuffle(layer(maps), 2), 1), atol=1e-6)
        True
    """

    def __init__(
        self, fields: int, channels: int, kernel_size: int, group: Group, scale: int = 1, bias: bool = True
    ) -> None:
        shape = (channels * scale**2, fields, kernel_size, kernel_size)
        super().__init__(fields * group.order, channels * scale**2, kernel_size, group, shape, channels * bias)
        self.scale = scale

    def computed_kernel(self) -> Tensor:
        """Return the kernel, ``(r^2 C, F t, k, k)``."""
        fine = self.weight.unflatten(0, (-1, self.scale, self.scale))  # (r^2 C, F, k, k) -> (C, r, r, F, k, k)
        turned = []
        for element in range(self.group.order):
            moved = self.group.spatial(fine, element).movedim((1, 2), (-2, -1))  # -> (C, F, k, k, r, r)
            turned.append(self.group.spatial(moved, element).movedim((-2, -1), (1, 2)))  # -> (C, r, r, F, k, k)
        return torch.stack(turned, dim=4).flatten(3, 4).flatten(0, 2)  # (C, r, r, F, t, k, k) -> (r^2 C, F t, k, k)


class FieldBatchNorm(nn.BatchNorm3d):
    """Batch normalisation of regular fields: one scale, shift, mean and variance for each field.

    The statistics are those over the images, the elements of the group and the pixels. A statistic for each channel
    would differ inside a field, and the field would no longer be one.

    Args:
        fields: F.
        order: t.
        eps: added to the variance.

    Example:
        >>> FieldBatchNorm(2, 4)(torch.rand(3, 8, 5, 5)).shape
        torch.Size([3, 8, 5, 5])
    """

    def __init__(self, fields: int, order: int, eps: float = 1e-5) -> None:
        super().__init__(fields, eps=eps)
        self.order = order

    def forward(self, input: Tensor) -> Tensor:
        """Normalise maps ``(B, F t, H, W)``."""
        return super().forward(input.unflatten(1, (-1, self.order))).flatten(1, 2)  # as (B, F, t, H, W)


def field_normalisation(norm: Norm, fields: int, order: int) -> nn.Module:
    """Return the layer between a group convolution and its activation.

    Args:
        norm: "batch" or "none".
        fields: F.
        order: t.

    Raises:
        ValueError: ``norm`` is another word.
    """
    check_norm(norm)
    return FieldBatchNorm(fields, order) if norm == "batch" else nn.Identity()
