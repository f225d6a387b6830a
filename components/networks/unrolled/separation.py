"""The unrolled algorithm that RCDNet, DICDNet and OSCNet share: an image is a background and a layer of sparse maps.

The model is ``Y = X + A`` with the layer ``A = sum_k C_k * M_k`` (``*`` is a convolution, ``*T`` its adjoint). ``Y`` is
the degraded image, ``I`` a mask of the pixels that count (1 everywhere without one), ``P`` the dual channels of X.

- ``X, P = X-net(Z, D * Z)``, where ``Z`` is the image to start from;
- ``M = M-net(C0 *T relu(I (Y - X) - tau))``, with a dictionary ``C0`` of its own;
- ``A = C * M`` and ``X, P = X-net(X - s I (X - (Y - A)), P)``;
- then, stage after stage, ``M = M-net(M - t C *T (I (A - (Y - X))))``, and A and X as above;
- at last ``X = X-net(X, P)``.

The step sizes s and t and the networks are those of the stage. The networks are those of
`components.networks.unrolled.proximal`.

Legend: B images, C channels of an image, p dual channels, k maps, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.networks.unrolled.dictionary import DICTIONARY_SCALE, EARLIER, WHITE, analysis, synthesis


class Separation(NamedTuple):
    """What the networks give, in the published order; each image is ``(B, C, H, W)`` in 0..255."""

    first_image: Tensor
    """X of the first network alone."""
    images: list[Tensor]
    """X after each stage, and the refined X: one more than there are stages, the result last."""
    layers: list[Tensor]
    """A of each stage."""


@dataclass(frozen=True, eq=False)
class Parts:
    """The weights and networks of the algorithm for S stages.

    Attributes:
        dual_kernels: D, ``(p, C, 3, 3)``.
        first_kernels: C0, ``(C, k, 9, 9)``.
        kernels: C, ``(C, k, 9, 9)``.
        threshold: tau, ``(1,)``.
        map_steps: t of each stage but the first, ``(1,)`` each.
        image_steps: s of each stage, ``(1,)`` each.
        first_network: the X-net before the stages.
        image_networks: the X-net of each stage.
        map_networks: the M-net of each stage.
        last_network: the X-net after the stages.
        bias: what is added to A in the first stage, ``(1, C, 1, 1)``; None for nothing.
    """

    dual_kernels: Tensor
    first_kernels: Tensor
    kernels: Tensor
    threshold: Tensor
    map_steps: Sequence[Tensor]
    image_steps: Sequence[Tensor]
    first_network: nn.Module
    image_networks: nn.Sequential
    map_networks: nn.Sequential
    last_network: nn.Module
    bias: Tensor | None = None


def separate(image: Tensor, start: Tensor, mask: Tensor | None, parts: Parts) -> Separation:
    """Run all stages.

    Args:
        image: Y, ``(B, C, H, W)``.
        start: Z, ``(B, C, H, W)``.
        mask: I, ``(B, 1, H, W)``; None for 1 everywhere.
        parts: of the network.
    """

    def counted(values: Tensor) -> Tensor:
        return values if mask is None else mask * values

    number = image.shape[1]
    image_and_dual = parts.first_network(torch.cat((start, F.conv2d(start, parts.dual_kernels, padding=1)), dim=1))
    first = restored = image_and_dual[:, :number]  # of (B, C + p, H, W)
    values = analysis(F.relu(counted(image - restored) - parts.threshold), parts.first_kernels)  # (B, k, H, W)
    images, layers = [], []
    for stage, (refine_image, refine_maps) in enumerate(zip(parts.image_networks, parts.map_networks, strict=True)):
        maps = refine_maps(values)
        layer = synthesis(maps, parts.kernels)
        if parts.bias is not None and not stage:
            layer = layer + parts.bias
        restored = restored - parts.image_steps[stage] * counted(restored - (image - layer))
        image_and_dual = refine_image(torch.cat((restored, image_and_dual[:, number:]), dim=1))
        restored = image_and_dual[:, :number]
        images.append(restored)
        layers.append(layer)
        if stage < len(parts.map_steps):
            gradient = analysis(counted(layer - (image - restored)), parts.kernels)
            values = maps - parts.map_steps[stage] * gradient
    images.append(parts.last_network(image_and_dual)[:, :number])
    return Separation(first, images, layers)


def scaled(steps: Tensor) -> list[Tensor]:
    """The step sizes of all stages, ``(S, 1) -> S times (1,)``, as the algorithm takes them."""
    return list((steps / DICTIONARY_SCALE).unbind())


def supervised_images(image: Tensor, output: Separation) -> tuple[Tensor, ...]:
    """Return all images with a loss, in [0, 1]: the result, the earlier ones, and ``Y - A`` of each stage.

    The loss of ``Y - A`` against the clean image X is that of A against ``Y - X``.

    Args:
        image: Y in [0, 1], ``(B, C, H, W)``.
        output: of the published network.
    """
    *earlier, result = output.images
    images = (result, *earlier, output.first_image)
    return (*(each / WHITE for each in images), *(image - each / WHITE for each in output.layers))


def supervised_weights(stages: int, last_layer: float) -> tuple[float, ...]:
    """The published weights of what `supervised_images` gives.

    Args:
        stages: of the network.
        last_layer: weight of A of the last stage.

    Example:
        >>> supervised_weights(2, 1.0)
        (1.0, 0.1, 0.1, 0.1, 0.1, 1.0)
    """
    return (1.0, *[EARLIER] * (stages + 1), *[EARLIER] * (stages - 1), last_layer)
