"""The product's form of a restoration network, around a published module or by itself.

A published module has its own arguments and its own range of values. The product's form takes one stack
``(B, in_channels, H, W)`` of floats in [0, 1], of any height and width, and gives the restored image
``(B, out_channels, scale H, scale W)`` in the range of the stack. In training mode it may give several supervised
images, the final one first.

Legend: B images, C channels of the restored image, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.networks.blocks import SCALES

COLOURED = ("image", "li")
"""Inputs with the channels of the restored image; every other input has one channel."""

Extension = Literal["zero", "copy", "reflection"]
"""What the pixels hold that extend an image: zeros, copies of its last pixels, or its reflection."""


class RestorationNetwork(nn.Module):
    """Base class of the restoration networks.

    Attributes:
        needs: the inputs that the network takes, by name, in the order of its published arguments: "image"; "li", the
            image with linear interpolation in the sinogram; "metal_mask", 1 inside metal; "mask", 1 where pixels are
            missing; "noise_level", in each pixel the standard deviation of the noise in the units of the image. None:
            the network takes the whole stack of any task and corrects the first image of it.
        scales: the sizes of the output / size of the input that it can have.
        layer_choices: choices of layers that ``equivariance.layers`` can name, each as the name patterns of its layers.
            "eqreg-t" has those that the released code of EQ-Reg for transformers penalises. A network may have more
            patterns than its class, for layers that only some settings give.
        published_class: the published module, if the network is a subclass of one; None if its own form is published.
        output_weights: weights of the losses of the supervised images in training; empty for equal weights.
        in_channels: channels of the stack.
        out_channels: channels of the restored image.
        scale: size of the output / size of the input.
    """

    is_classifier: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...] | None] = None
    scales: ClassVar[tuple[int, ...]] = SCALES
    layer_choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    published_class: ClassVar[type[nn.Module] | None] = None
    output_weights: tuple[float, ...] = ()

    in_channels: int
    out_channels: int
    scale: int

    @property
    def published(self) -> nn.Module:
        """The published module, which has the published arguments; its weights and layers are those of the network.

        Both are one state: weights loaded into one are in the other, and so are the device and the mode.
        """
        if self.published_class is None:
            return self
        view = self.published_class.__new__(self.published_class)
        view.__dict__ = self.__dict__
        return view

    def describe(self, in_channels: int, out_channels: int, scale: int, inputs: Sequence[str]) -> None:
        """Check and keep the shape of the network, and where its inputs lie in the stack; called once, by ``__init__``.

        Args:
            in_channels: channels of the stack.
            out_channels: channels of the restored image.
            scale: size of the output / size of the input.
            inputs: names of the images in the stack, in order; it may hold more than the network takes.

        Raises:
            ValueError: an input that the network needs is not in the stack, the numbers of channels do not agree, or
                the network has no such scale.
        """
        name = type(self).__name__.removesuffix("Form").lower()
        if scale not in self.scales:
            raise ValueError(f"{name} scale {scale}: use {' or '.join(map(str, self.scales))}")
        channels = _channels(inputs, out_channels)
        needs = self.needs or ()
        if missing := [each for each in needs if each not in channels]:
            raise ValueError(f"{name} needs {' and '.join(missing)}, and the stack holds {', '.join(inputs)}")
        if out_channels < 1 or sum(channels.values()) != in_channels:
            raise ValueError(
                f"{name} with {out_channels} channels takes a stack of {', '.join(inputs)}, which has "
                f"{sum(channels.values())} channels, got {in_channels}"
            )
        self.in_channels, self.out_channels, self.scale = in_channels, out_channels, scale
        stops = dict(zip(channels, accumulate(channels.values()), strict=True))
        self._places = tuple((stops[each] - channels[each], stops[each]) for each in needs)

    def take(self, stack: Tensor) -> tuple[Tensor, ...]:
        """Return the inputs of the published module, in the order of `needs`: ``(B, C or 1, H, W)`` each.

        Raises:
            ValueError: the stack has another number of channels, so that its images lie elsewhere.
        """
        if stack.shape[1] != self.in_channels:
            raise ValueError(f"a stack {tuple(stack.shape)}: this network takes {self.in_channels} channels")
        return tuple(stack[:, start:stop] for start, stop in self._places)


def stack_channels(inputs: Sequence[str], out_channels: int) -> int:
    """Return the number of channels of a stack.

    Args:
        inputs: names of the images in it.
        out_channels: channels of the restored image.

    Example:
        >>> stack_channels(("image", "mask"), 3), stack_channels(("li", "image", "metal_mask"), 1)
        (4, 3)
    """
    return sum(_channels(inputs, out_channels).values())


def _channels(inputs: Sequence[str], out_channels: int) -> dict[str, int]:
    """Name of an image in a stack -> its channels."""
    return {each: out_channels if each in COLOURED else 1 for each in inputs}


def extend(images: Tensor, least: int, multiple: int = 1) -> Tensor:
    """Extend images to a least height and width by reflection, as many pixels before as after, or one more after.

    The extension commutes with quarter turns if the missing number of pixels is even or 0. It uses indices: an exported
    padding by reflection would fix how the size compares with ``least``.

    Args:
        images: ``(B, C, H, W)``, of at least one pixel.
        least: height and width of the result at least, in pixels.
        multiple: height and width of the result are multiples of it.

    Example:
        >>> extend(torch.arange(3.0).view(1, 1, 1, 3), 6)[0, 0, 0]
        tensor([1., 0., 1., 2., 1., 0.])
        >>> extend(torch.zeros(1, 1, 20, 9), 8, multiple=8).shape
        torch.Size([1, 1, 24, 16])
    """
    height, width = images.shape[-2:]
    if not torch.compiler.is_exporting() and height % multiple == width % multiple == 0 and min(height, width) >= least:
        return images
    for axis, line in ((-2, images[0, 0, :, 0]), (-1, images[0, 0, 0, :])):
        missing = _missing(line, least, multiple)
        images = images.index_select(axis, _reflected(line, missing // 2, missing - missing // 2))
    return images


def surround(images: Tensor, width: int) -> Tensor:
    """Surround images by their reflection, so many pixels wide: ``(B, C, H, W) -> (B, C, H + 2 width, W + 2 width)``.

    The images may be of any size: a small one is reflected to and fro.

    Example:
        >>> surround(torch.arange(2.0).view(1, 1, 1, 2), 2)[0, 0, 2]
        tensor([0., 1., 0., 1., 0., 1.])
    """
    for axis, line in ((-2, images[0, 0, :, 0]), (-1, images[0, 0, 0, :])):
        images = images.index_select(axis, _reflected(line, width, width))
    return images


def extend_to_multiple(images: Tensor, multiple: int, mode: Extension, least: int = 1) -> Tensor:
    """Extend images at the bottom and on the right, until their height and width are multiples of a number.

    The extension commutes with no quarter turn, unless it adds nothing. It uses indices, as that of `extend`; what it
    added, ``crop(extended, images, 1)`` takes away.

    Args:
        images: ``(B, C, H, W)``, of at least one pixel.
        multiple: the number.
        mode: what the new pixels hold. "reflection" does not repeat the last row and column; a small image is reflected
            to and fro.
        least: height and width of the result at least, in pixels; a multiple of the number.

    Example:
        >>> image = torch.arange(3.0).view(1, 1, 1, 3)
        >>> for mode in ("zero", "copy", "reflection"):
        ...     extend_to_multiple(image, 8, mode)[0, 0, 0]
        tensor([0., 1., 2., 0., 0., 0., 0., 0.])
        tensor([0., 1., 2., 2., 2., 2., 2., 2.])
        tensor([0., 1., 2., 1., 0., 1., 2., 1.])
    """
    height, width = images.shape[-2:]
    if not torch.compiler.is_exporting() and height % multiple == width % multiple == 0 and min(height, width) >= least:
        return images
    down, right = (_next_multiple(side, multiple, least) - side for side in (height, width))
    if mode == "zero":
        return F.pad(images, (0, right, 0, down))
    for axis, line, missing in ((-2, images[0, 0, :, 0], down), (-1, images[0, 0, 0, :], right)):
        places = positions(F.pad(line, (0, missing)))
        images = images.index_select(axis, _mirrored(places, line) if mode == "reflection" else _kept(places, line))
    return images


def _next_multiple(side: int, multiple: int, least: int) -> int:
    """The least multiple of a number that is not below a side and not below ``least``."""
    found: int = (side + multiple - 1) // multiple * multiple
    return torch.sym_max(found, least) if least > multiple else found


def crop(extended: Tensor, images: Tensor, least: int, multiple: int = 1) -> Tensor:
    """Return the part of what `extend` gave, or of maps of that size, where the images lie: ``(B, C', H, W)``."""
    if not torch.compiler.is_exporting() and extended.shape[-2:] == images.shape[-2:]:
        return extended
    for axis, line in ((-2, images[0, 0, :, 0]), (-1, images[0, 0, 0, :])):
        extended = extended.index_select(axis, positions(line) + _missing(line, least, multiple) // 2)
    return extended


def _missing(line: Tensor, least: int, multiple: int) -> int:
    """Number of pixels that a line ``(N,)`` lacks."""
    return _next_multiple(torch.sym_max(line.shape[0], least), multiple, 1) - line.shape[0]


def positions(line: Tensor) -> Tensor:
    """``0, 1, ..., N - 1`` on the device of a line ``(N,)``.

    They are a cumulative sum, because ``torch.arange`` needs a device, and an export would write it into the graph.
    """
    return torch.ones_like(line, dtype=torch.int64).cumsum(0) - 1


def _reflected(line: Tensor, before: int, after: int) -> Tensor:
    """Positions in a line ``(N,)`` of the pixels of its extension by reflection, ``(before + N + after,)``."""
    return _mirrored(positions(F.pad(line, (before, after))) - before, line)


def _mirrored(places: Tensor, line: Tensor) -> Tensor:
    """The positions in a line ``(N,)`` that its reflection has at these places, which may lie outside."""
    last = _last(line)
    period = (2 * last).clamp(min=1)
    places = places.remainder(period)
    return torch.minimum(torch.minimum(places, period - places), last)


def _kept(places: Tensor, line: Tensor) -> Tensor:
    """The positions in a line ``(N,)`` that are nearest to these places, from 0 up."""
    return torch.minimum(places, _last(line))


def _last(line: Tensor) -> Tensor:
    """N - 1 of a line ``(N,)``: a tensor, which every exporter can compute with."""
    return torch.ones_like(line, dtype=torch.int64).sum() - 1
