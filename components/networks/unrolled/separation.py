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
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.networks.blocks import MOST_CHANNELS, NetworkSettings
from components.networks.form import RestorationNetwork
from components.networks.unrolled.dictionary import DICTIONARY_SCALE, EARLIER, WHITE, analysis, synthesis
from components.registry import check_between, check_one_of


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


@dataclass(frozen=True, kw_only=True)
class SeparationSettings(NetworkSettings):
    """Base class of the settings of the networks that run the algorithm."""

    initial = ("kernel_file",)

    dual_channels: int = 32
    """Channels beside the image in its network."""
    residual_blocks: int = 3
    """Blocks of each network for the image and for the maps."""
    stages: int = 10
    """S, at least 2."""
    kernel_file: str = ""
    """Path of the published file of first kernels, which every worker must find; empty for lines in all directions.

    A model file does not hold it: a trained network does without."""
    supervised: Literal["last", "all"] = "all"
    """Outputs with a task loss: the result alone, or the images and layers (rain, artifacts) of all stages."""

    def __post_init__(self) -> None:
        check_between(self, dual_channels=(1, MOST_CHANNELS), residual_blocks=(1, 1000), stages=(2, 1000))
        check_one_of(self, supervised=("last", "all"))


LAST_ARTIFACTS = 1.1
"""Published weight of the loss of the artifacts of the last stage: 0.1 as of all stages, and 1 more."""


class MetalArtifactForm(RestorationNetwork):
    """The product's form of DICDNet and OSCNet: images in [0, 1], and the mask of what is metal.

    In training with ``supervised="all"`` it gives the image of every stage, and of every stage ``Y - A``, the image
    without its artifacts. The loss of ``Y - A`` is that of the artifacts against their truth ``Y - X``. The weights are
    published: 1 for the result, 1.1 for the artifacts of the last stage, 0.1 for all others. The published loss itself
    is another one, which is not here: outside the metal alone, the mean squares of the images, and 5e-4 times the sums
    of the absolute errors of images and artifacts.
    """

    needs = ("image", "li", "metal_mask")
    scales = (1,)

    def describe_stages(
        self,
        in_channels: int,
        out_channels: int,
        scale: int,
        inputs: Sequence[str],
        *,
        stages: int,
        supervised: Literal["last", "all"],
    ) -> None:
        """Check and keep the shape of the network, as `describe`, and the weights of its supervised images.

        Raises:
            ValueError: the image has more than one channel, or as of `describe`.
        """
        if out_channels != 1:
            name = type(self).__name__.removesuffix("Form").lower()
            raise ValueError(f"{name} restores images of one channel, got {out_channels}")
        self.describe(in_channels, out_channels, scale, inputs)
        if supervised == "all":
            self.output_weights = supervised_weights(stages, LAST_ARTIFACTS)

    def forward(self, stack: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Restore a batch of stacks; in training with several supervised outputs, the result comes first."""
        image, interpolated, metal = self.take(stack)
        assert self.published_class is not None
        output = self.published_class.forward(self, WHITE * image, WHITE * interpolated, 1 - metal)
        if self.training and self.output_weights:
            return supervised_images(image, output)
        result: Tensor = output.images[-1] / WHITE
        return result
