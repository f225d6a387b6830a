"""ACDNet: an unrolled algorithm that separates a CT image from its metal artifacts by a convolutional dictionary.

Legend: B images, H rows, W columns; N maps, d atoms (kernels of the dictionary), p dual channels, T stages; Y the image
with artifacts, L the image after linear interpolation, I the mask of what is not metal, X the restored image, P its
dual channels, A the artifacts, M the maps, K the weights of the atoms.

The model is ``Y = X + A`` outside the metal, with ``A = sum_n C_n * M_n`` and the kernels ``C_n = sum_j K_nj D_j``
that each image mixes from the common dictionary D. A stage takes a gradient step in K, then in M, then in X, and passes
each through a small network (``*`` is a convolution, ``*T`` its adjoint, D stands for ``D / 10`` throughout):

- ``R = I (Y - X - A)``, ``K = K-net(K + s sum_pixels (D_j * M_n) R)``, ``s = eta3 / (50 H W)``;
- ``A = C * M``, ``M = M-net(M + eta1 / 10 C *T (I (Y - X - A)))``;
- ``A = C * M``, ``X, P = X-net(X - eta2 / 10 I (X - (Y - A)), P)``.

The first stage has ``K = 0``, ``A = 0`` and ``s = 1`` in its first line. The step ``s`` **depends on the height and
width of the image**: that of a patch is larger than that of the whole image. It is published so, and kept.

Before, two stages run with fixed kernels (``D0``, one for each map) and give the first X, P and M:

- ``X0, P0 = X-net(L, Cp * L)``;
- ``M = M-net(D0 *T relu(I (Y - X0) - tau))``, then ``A = D0 * M`` and the step in X from X0 and P0;
- ``M = M-net(M - etaM / 10 D0 *T (I (A - (Y - X))))``, then ``A = D0 * M`` and the step in X; and at last
  ``M = V2 V1 relu(M)``, two 1x1 convolutions.

After all stages one more X-net refines X and P. Every step has networks of its own:

- X-net, ``(B, 1 + p, H, W)`` of X and P, and M-net, ``(B, N, H, W)``: residual blocks
  ``v = relu(v + BN(conv(relu(BN(conv(v))))))`` with 3x3 convolutions; the M-net then gives ``relu(v - tau)`` with one
  threshold for each map;
- K-net, ``(B, N, d)``: ``v = relu(v + linear(relu(linear(v))))`` on all ``N d`` numbers, then each row of d numbers is
  divided by its L2 norm + 1e-6. The length of K is lost thereby, so the order of the updates matters.

Source: Wang, Li, Meng, Zheng, *Adaptive Convolutional Dictionary Network for CT Metal Artifact Reduction*, IJCAI 2022
(arXiv 2205.07471). Reference: https://github.com/hongwang01/ACDNet at 9efcb5c, ``acdnet.py``. The names, order and
shapes of the parameters are those of the reference. What differs:

- ``C * M`` is computed as ``sum_j D_j * (sum_n K_nj M_n)``, its adjoint and the gradient of K likewise. The sums are
  the same but for rounding. All images share the kernels, so a program exported with a dynamic batch can run it.
- D, D0 and Cp begin with values of our own rule (``dictionary``); the reference reads a file.
- No two parameters share their storage. In the reference ``tau`` and ``tau_extend`` do, and D and D0, and the two 1x1
  convolutions, until the network is moved to another device.
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
from components.networks.unrolled.dictionary import (
    DICTIONARY_SCALE,
    EARLIER,
    FIRST_STEP_OF_IMAGE,
    FIRST_STEP_OF_MAPS,
    FIRST_THRESHOLD_OF_LAYER,
    KERNEL_SIZE,
    WHITE,
    analysis,
    synthesis,
)
from components.networks.unrolled.proximal import ImageNetwork, MapNetwork
from components.registry import check_between, check_one_of

FIRST_STEP_OF_WEIGHTS = 5.0
FIRST_THRESHOLD_OF_WEIGHTS = 0.1
WEIGHT_STEP_DIVISOR = 50.0
NORM_EPSILON = 1e-6
WARM_UP_STAGES = 2


class ACDNetOutput(NamedTuple):
    """What the network gives, in the published order; each image is ``(B, 1, H, W)`` in 0..255."""

    first_image: Tensor
    """X0, from the linear interpolation alone."""
    images: list[Tensor]
    """X after each stage, and the refined X: ``stages + 1`` images, the result last."""
    artifacts: list[Tensor]
    """A of each stage."""
    warm_up_images: list[Tensor]
    """X of the two stages with fixed kernels."""
    warm_up_artifacts: list[Tensor]
    """A of the two stages with fixed kernels."""


def dictionary(kernels: int) -> Tensor:
    """Draw the first kernels of a dictionary, ``(1, kernels, 9, 9)``.

    Each is the absolute values of independent standard normal numbers, divided by their sum. So a kernel has no
    negative entry and the sum 1, as those that the reference reads from its file. The numbers come from torch's global
    generator, as those of all other layers: ``torch.manual_seed`` decides them.
    """
    values = torch.randn(1, kernels, KERNEL_SIZE, KERNEL_SIZE).abs()
    return values / values.sum(dim=(-2, -1), keepdim=True)


class ACDNet(nn.Module):
    """The published network; the widths of the EQ-Reg paper are ``maps=8, dual_channels=35``.

    Shapes: three times ``(B, 1, H, W)`` -> ``ACDNetOutput``, float, in 0..255 (the mask 0 or 1), any H and W from 1
    pixel. The image is ``images[-1]``.

    Args:
        maps: N, the channels of the artifacts' maps (published name N).
        dual_channels: p, the channels beside the image in its network (Np).
        atoms: d, the kernels of the dictionary (d).
        residual_blocks: of each network for the image and for the maps (num_res).
        stages: T, those with kernels of each image's own (T).

    Example:
        >>> network = ACDNet(maps=2, dual_channels=3, atoms=4, residual_blocks=1, stages=2)
        >>> image, interpolated = 255 * torch.rand(2, 1, 1, 6, 5, generator=torch.manual_seed(0))
        >>> output = network(image, interpolated, torch.ones(1, 1, 6, 5))
        >>> output.images[-1].shape, len(output.images), len(output.artifacts)
        (torch.Size([1, 1, 6, 5]), 3, 2)
    """

    def __init__(
        self,
        maps: int = 6,
        dual_channels: int = 32,
        atoms: int = 32,
        residual_blocks: int = 3,
        stages: int = 10,
    ) -> None:
        super().__init__()
        kernels = dictionary(max(atoms, maps))
        self.eta1_T = nn.Parameter(torch.full((stages, 1), FIRST_STEP_OF_MAPS))
        self.eta2_T = nn.Parameter(torch.full((stages, 1), FIRST_STEP_OF_IMAGE))
        self.eta3_T = nn.Parameter(torch.full((stages, 1), FIRST_STEP_OF_WEIGHTS))
        self.D = nn.Parameter(kernels[:, :atoms].clone())
        self.tau = nn.Parameter(torch.full((1,), FIRST_THRESHOLD_OF_LAYER))
        self.tau_extend = nn.Parameter(torch.full((1,), FIRST_THRESHOLD_OF_LAYER))  # published, and never used
        self.Cp = nn.Parameter(torch.full((dual_channels, 1, 3, 3), 1 / 9))
        self.etaX_nonK = nn.Parameter(torch.full((WARM_UP_STAGES, 1), FIRST_STEP_OF_IMAGE))
        self.etaM_nonK = nn.Parameter(torch.full((WARM_UP_STAGES - 1, 1), FIRST_STEP_OF_MAPS))
        self.D0 = nn.Parameter(kernels[:, :maps].clone())
        self.convert_conv_layer1 = nn.Parameter(torch.eye(maps)[:, :, None, None].clone())  # (N, N, 1, 1)
        self.convert_conv_layer2 = nn.Parameter(torch.eye(maps)[:, :, None, None].clone())

        def image_networks(count: int) -> nn.Sequential:
            return nn.Sequential(*(ImageNetwork(1 + dual_channels, residual_blocks) for _ in range(count)))

        def map_networks(count: int) -> nn.Sequential:
            return nn.Sequential(*(MapNetwork(maps, residual_blocks) for _ in range(count)))

        self.proxNet_X_T = image_networks(stages)
        self.proxNet_M_T = map_networks(stages)
        self.proxNet_K_T = nn.Sequential(*(_WeightNetwork(maps, atoms) for _ in range(stages)))
        self.proxNet_X_last_layer = ImageNetwork(1 + dual_channels, residual_blocks)
        self.proxNet_X_0 = ImageNetwork(1 + dual_channels, residual_blocks)
        self.proxNet_M_init = map_networks(WARM_UP_STAGES)
        self.proxNet_X_init = image_networks(WARM_UP_STAGES)

    def forward(self, Xma: Tensor, XLI: Tensor, Mask: Tensor) -> ACDNetOutput:
        """Reduce the metal artifacts of a batch of images.

        Args:
            Xma: images with artifacts, in 0..255.
            XLI: images after linear interpolation of the sinogram, in 0..255.
            Mask: 1 where there is no metal, 0 in the metal.

        Returns:
            The images and artifacts of all stages.
        """
        first = self.proxNet_X_0(torch.cat((XLI, F.conv2d(XLI, self.Cp, padding=1)), dim=1))  # (B, 1 + p, H, W)
        image_and_dual, maps, warm_up_images, warm_up_artifacts = self._warm_up(Xma, Mask, first)

        D = self.D / DICTIONARY_SCALE  # (1, d, 9, 9)
        images, artifacts = [], []
        residual = Mask * (Xma - image_and_dual[:, :1])
        weights: Tensor | None = None
        for stage in range(len(self.proxNet_K_T)):
            # K
            gradient = torch.einsum("bnhw,bdhw->bnd", maps, analysis(residual, D))
            if weights is None:
                weights = self.proxNet_K_T[stage](gradient)
            else:
                step = self.eta3_T[stage] / (WEIGHT_STEP_DIVISOR * Xma.shape[-2] * Xma.shape[-1])
                weights = self.proxNet_K_T[stage](weights + step * gradient)
            # M
            artifact = synthesis(_mixed(maps, weights), D)
            residual = Mask * (Xma - image_and_dual[:, :1] - artifact)
            gradient = torch.einsum("bnd,bdhw->bnhw", weights, analysis(residual, D))
            maps = self.proxNet_M_T[stage](maps + self.eta1_T[stage] / DICTIONARY_SCALE * gradient)
            # X
            artifact = synthesis(_mixed(maps, weights), D)
            image_and_dual = self.proxNet_X_T[stage](
                _image_step(image_and_dual, Xma - artifact, Mask, self.eta2_T[stage])
            )
            images.append(image_and_dual[:, :1])
            artifacts.append(artifact)
            residual = Mask * (Xma - image_and_dual[:, :1] - artifact)
        images.append(self.proxNet_X_last_layer(image_and_dual)[:, :1])
        return ACDNetOutput(first[:, :1], images, artifacts, warm_up_images, warm_up_artifacts)

    def _warm_up(
        self, Xma: Tensor, Mask: Tensor, image_and_dual: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Return X with P ``(B, 1 + p, H, W)`` and M ``(B, N, H, W)`` after two stages with the kernels D0.

        The lists are the images and the artifacts of both stages.
        """
        D0 = self.D0 / DICTIONARY_SCALE  # (1, N, 9, 9)
        maps = self.proxNet_M_init[0](analysis(F.relu(Mask * (Xma - image_and_dual[:, :1]) - self.tau), D0))
        artifact = synthesis(maps, D0)
        image_and_dual = self.proxNet_X_init[0](_image_step(image_and_dual, Xma - artifact, Mask, self.etaX_nonK[0]))
        images, artifacts = [image_and_dual[:, :1]], [artifact]

        gradient = analysis(Mask * (artifact - (Xma - image_and_dual[:, :1])), D0)
        maps = self.proxNet_M_init[1](maps - self.etaM_nonK[0] / DICTIONARY_SCALE * gradient)
        artifact = synthesis(maps, D0)
        image_and_dual = self.proxNet_X_init[1](_image_step(image_and_dual, Xma - artifact, Mask, self.etaX_nonK[1]))
        images, artifacts = [*images, image_and_dual[:, :1]], [*artifacts, artifact]

        maps = F.conv2d(F.conv2d(F.relu(maps), self.convert_conv_layer1), self.convert_conv_layer2)
        return image_and_dual, maps, images, artifacts


def _mixed(maps: Tensor, weights: Tensor) -> Tensor:
    """``sum_n K_nj M_n``, one map for each atom: ``(B, N, H, W), (B, N, d) -> (B, d, H, W)``."""
    return torch.einsum("bnd,bnhw->bdhw", weights, maps)


def _image_step(image_and_dual: Tensor, target: Tensor, mask: Tensor, step: Tensor) -> Tensor:
    """``X - eta / 10 I (X - target)`` beside an unchanged P, all in one ``(B, 1 + p, H, W)``."""
    image, dual = image_and_dual[:, :1], image_and_dual[:, 1:]
    return torch.cat((image - step / DICTIONARY_SCALE * mask * (image - target), dual), dim=1)


class _WeightNetwork(nn.Module):
    """K-net: one residual block of two linear layers on all weights of an image, then a norm, ``(B, N, d)``."""

    def __init__(self, maps: int, atoms: int) -> None:
        super().__init__()
        self.tau = nn.Parameter(torch.full((1, maps, atoms), FIRST_THRESHOLD_OF_WEIGHTS))  # published, and never used
        size = maps * atoms
        self.layer = nn.Sequential(nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size)))

    def forward(self, weights: Tensor) -> Tensor:
        values = weights.flatten(1)  # (B, N d)
        values = F.relu(values + self.layer[0](values))
        values = values.view_as(weights)  # (B, N, d)
        return values / (torch.linalg.vector_norm(values, dim=2, keepdim=True) + NORM_EPSILON)


class ACDNetForm(RestorationNetwork, ACDNet):
    """The product's form: images in [0, 1], and the mask of what is metal.

    In training with ``supervised="all"`` it gives the image of every stage, and of every stage ``Y - A``, the image
    without its artifacts. The loss of ``Y - A`` is that of the artifacts against their truth ``Y - X``. The published
    loss has these outputs with these weights, and an L1 term of its own.

    The weights K of the atoms depend on the whole image. A tile of an image is therefore restored differently from the
    image: use a tile that holds a slice.

    Shapes: as of `components.networks.form`, any H and W from 1 pixel.

    Args:
        settings: of the network.
        in_channels: channels of the stack.
        out_channels: 1.
        scale: 1.
        inputs: names of the images in the stack.

    Raises:
        ValueError: the image has more than one channel, or as of `RestorationNetwork.describe`.
    """

    needs = ("image", "li", "metal_mask")
    scales = (1,)
    published_class = ACDNet

    @dataclass(frozen=True, kw_only=True)
    class Settings(NetworkSettings):
        """Settings of the network; the defaults are the published ones.

        Those of the EQ-Reg paper, whose channels divide by 4, are ``maps=8, dual_channels=35``.
        """

        maps: int = 6
        """N, the channels of the artifacts' maps."""
        dual_channels: int = 32
        """Channels beside the image in its network."""
        atoms: int = 32
        """Kernels of the dictionary."""
        residual_blocks: int = 3
        """Blocks of each network for the image and for the maps."""
        stages: int = 10
        """Stages with kernels of each image's own."""
        supervised: Literal["last", "all"] = "all"
        """Outputs with a task loss: the result alone, or the images and artifacts of all stages."""

        def __post_init__(self) -> None:
            check_between(
                self,
                maps=(1, 1024),
                dual_channels=(1, MOST_CHANNELS),
                atoms=(1, 1024),
                residual_blocks=(1, 1000),
                stages=(1, 1000),
            )
            check_one_of(self, supervised=("last", "all"))

        @property
        def channels(self) -> dict[str, int]:
            """The channels of the networks for the maps, and of those for the image and its dual channels."""
            return {"maps": self.maps, "dual_channels + 1": 1 + self.dual_channels}

    def __init__(
        self,
        settings: Settings,
        *,
        in_channels: int = 3,
        out_channels: int = 1,
        scale: int = 1,
        inputs: Sequence[str] = needs,
    ) -> None:
        if out_channels != 1:
            raise ValueError(f"acdnet restores images of one channel, got {out_channels}")
        ACDNet.__init__(
            self,
            settings.maps,
            settings.dual_channels,
            settings.atoms,
            settings.residual_blocks,
            settings.stages,
        )
        self.describe(in_channels, out_channels, scale, inputs)
        if settings.supervised == "all":
            self.output_weights = (1.0, *[EARLIER] * (2 * settings.stages + 1 + 2 * WARM_UP_STAGES))
        # Several processes wait for the gradient of every parameter that can have one.
        self.tau_extend.requires_grad_(False)
        for network in self.proxNet_K_T:
            network.tau.requires_grad_(False)

    def forward(self, stack: Tensor) -> Tensor | tuple[Tensor, ...]:  # type: ignore[override]
        """Restore a batch of stacks; in training with several supervised outputs, the result comes first."""
        image, interpolated, metal = self.take(stack)
        output = ACDNet.forward(self, WHITE * image, WHITE * interpolated, 1 - metal)
        *earlier, result = (each / WHITE for each in output.images)
        if not (self.training and self.output_weights):
            return result
        others = [output.first_image / WHITE, *(each / WHITE for each in output.warm_up_images)]
        artifacts = [image - each / WHITE for each in (*output.artifacts, *output.warm_up_artifacts)]
        return result, *earlier, *others, *artifacts
