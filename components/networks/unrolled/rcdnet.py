"""RCDNet: an unrolled algorithm that separates an image from rain by a convolutional dictionary of rain kernels.

Legend: B images, C channels of an image (3 as published), H rows, W columns; k maps, p dual channels, S stages; Y the
rainy image, X the restored image, P its dual channels, R the rain, M the maps.

The model is ``Y = X + R`` with ``R = sum_k C_k * M_k``; ``*`` is a convolution, ``*T`` its adjoint. All stages share
the kernels C, and each has step sizes and networks of its own:

- ``X, P = X-net(Y, D * Y)``, 3x3 kernels D that begin as a mean over 3x3 pixels;
- ``M = M-net(C0 / 10 *T relu(Y - X - tau))``, kernels C0 of its own;
- ``R = C / 10 * M`` and ``X, P = X-net(X - eta / 10 (X - (Y - R)), P)``;
- then, in S - 1 further stages, ``M = M-net(M - eta' / 10 C / 10 *T (R - (Y - X)))``, and R and X as above;
- at last ``X = X-net(X, P)``.

The X-net takes and gives ``(B, C + p, H, W)``, the M-net ``(B, k, H, W)``: see `components.networks.unrolled.proximal`
and `components.networks.unrolled.separation`. The kernels are 9x9.

Source: Wang, Xie, Zhao, Meng, *A Model-driven Deep Neural Network for Single Image Rain Removal*, CVPR 2020 (arXiv
2005.01333). Reference: https://github.com/hongwang01/RCDNet at c6e1539, ``rcdnet.py`` for synthetic rain (the official
form), and https://github.com/hongwang01/RCDNet_simple at d2c2401 (the simple form). The names, order and shapes of the
parameters are those of the references. Both forms compute the same; the official one has numbers that nothing uses: a
step size, an M-net, and all but the second of S - 1 copies of C. What differs:

- C0 and C begin as straight lines in all directions (`components.networks.unrolled.dictionary.line_kernels`) unless
  there is the file that the references read, which they do not license.
- No two parameters share their storage. In the references C0 and C do, and the copies of C, and all step sizes, until
  the network is moved to another device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from components.networks.form import RestorationNetwork
from components.networks.unrolled.dictionary import (
    DICTIONARY_SCALE,
    FIRST_STEP_OF_IMAGE,
    FIRST_STEP_OF_MAPS,
    FIRST_THRESHOLD_OF_LAYER,
    WHITE,
    first_kernels,
)
from components.networks.unrolled.proximal import ImageNetwork, MapNetwork
from components.networks.unrolled.separation import (
    Parts,
    Separation,
    SeparationSettings,
    scaled,
    separate,
    supervised_images,
    supervised_weights,
)
from components.registry import check_between, check_one_of

Form = Literal["official", "simple"]
USED_COPY = 1
"""Which of the copies of C the official form uses."""


class RCDNet(nn.Module):
    """The published network in both forms; the width of the EQ-Reg paper is ``dual_channels=33, form="simple"``.

    Shapes: ``(B, C, H, W)`` -> ``Separation``, float, in 0..255, any H and W from 1 pixel. The image is ``images[-1]``,
    the rain of each stage is in ``layers``.

    Args:
        maps: k, the channels of the rain maps (published name num_M).
        dual_channels: p, the channels beside the image in its network (num_Z).
        residual_blocks: of each network (T).
        stages: S, at least 3 in the official form and 2 in the simple one (stage, S).
        form: whose names and parameters it has.
        colours: C, the channels of an image.
        kernel_file: as of `components.networks.unrolled.dictionary.first_kernels`.

    Example:
        >>> network = RCDNet(maps=4, dual_channels=5, residual_blocks=1, stages=3)
        >>> output = network(255 * torch.rand(1, 3, 6, 5, generator=torch.manual_seed(0)))
        >>> output.images[-1].shape, len(output.images), len(output.layers)
        (torch.Size([1, 3, 6, 5]), 4, 3)
    """

    def __init__(
        self,
        maps: int = 32,
        dual_channels: int = 32,
        residual_blocks: int = 4,
        stages: int = 17,
        form: Form = "official",
        colours: int = 3,
        kernel_file: str = "",
    ) -> None:
        super().__init__()
        self.form = form
        width, kernels = colours + dual_channels, first_kernels(maps, colours, kernel_file)
        dual_kernels = torch.full((dual_channels, colours, 3, 3), 1 / 9)
        if form == "official":
            self.eta1 = nn.Parameter(torch.full((1,), FIRST_STEP_OF_MAPS))  # published, and never used
            self.eta2 = nn.Parameter(torch.full((1,), FIRST_STEP_OF_IMAGE))
            self.eta11 = nn.Parameter(torch.full((stages - 1, 1), FIRST_STEP_OF_MAPS))
            self.eta12 = nn.Parameter(torch.full((stages - 1, 1), FIRST_STEP_OF_IMAGE))
            self.weight0 = nn.Parameter(kernels.clone())
            self.conv = nn.Parameter(kernels.repeat(stages - 1, 1, 1, 1, 1))  # one copy of them is used
            self.w_z_f = nn.Parameter(dual_kernels)
            self.xnet = ImageNetwork(width, residual_blocks, "resx")
            self.mnet = MapNetwork(maps, residual_blocks, "resm")  # published, and never used
            self.x_stage = nn.Sequential(*(ImageNetwork(width, residual_blocks, "resx") for _ in range(stages)))
            self.m_stage = nn.Sequential(*(MapNetwork(maps, residual_blocks, "resm") for _ in range(stages)))
            self.fxnet = ImageNetwork(width, residual_blocks, "resx")
        else:
            self.etaM_S = nn.Parameter(torch.full((stages - 1, 1), FIRST_STEP_OF_MAPS))
            self.etaB_S = nn.Parameter(torch.full((stages, 1), FIRST_STEP_OF_IMAGE))
            self.C0 = nn.Parameter(kernels.clone())
            self.C = nn.Parameter(kernels)
            self.C_z = nn.Parameter(dual_kernels)
            self.proxNet_B_0 = ImageNetwork(width, residual_blocks)
            self.proxNet_B_S = nn.Sequential(*(ImageNetwork(width, residual_blocks) for _ in range(stages)))
            self.proxNet_M_S = nn.Sequential(*(MapNetwork(maps, residual_blocks) for _ in range(stages)))
            self.proxNet_B_last_layer = ImageNetwork(width, residual_blocks)
        self.tau = nn.Parameter(torch.full((1,), FIRST_THRESHOLD_OF_LAYER))

    def forward(self, input: Tensor) -> Separation:
        """Remove the rain from a batch of images.

        Args:
            input: rainy images in 0..255, ``(B, C, H, W)``.

        Returns:
            The images and rain of all stages.
        """
        return separate(input, input, None, self._parts())

    def _parts(self) -> Parts:
        """What the algorithm takes, by the names of the form."""
        if self.form == "official":
            return Parts(
                dual_kernels=self.w_z_f,
                first_kernels=self.weight0 / DICTIONARY_SCALE,
                kernels=self.conv[USED_COPY] / DICTIONARY_SCALE,  # (S - 1, C, k, 9, 9) -> (C, k, 9, 9)
                threshold=self.tau,
                map_steps=scaled(self.eta11),
                image_steps=[self.eta2 / DICTIONARY_SCALE, *scaled(self.eta12)],
                first_network=self.xnet,
                image_networks=self.x_stage,
                map_networks=self.m_stage,
                last_network=self.fxnet,
            )
        return Parts(
            dual_kernels=self.C_z,
            first_kernels=self.C0 / DICTIONARY_SCALE,
            kernels=self.C / DICTIONARY_SCALE,
            threshold=self.tau,
            map_steps=scaled(self.etaM_S),
            image_steps=scaled(self.etaB_S),
            first_network=self.proxNet_B_0,
            image_networks=self.proxNet_B_S,
            map_networks=self.proxNet_M_S,
            last_network=self.proxNet_B_last_layer,
        )


class RCDNetForm(RestorationNetwork, RCDNet):
    """The product's form: images in [0, 1].

    In training with ``supervised="all"`` it gives the image of every stage, and of every stage ``Y - R``, the image
    without its rain. The loss of ``Y - R`` is that of the rain against its truth ``Y - X``. The weights are published:
    1 for the result and the rain of the last stage, 0.1 for all others.

    The result at a pixel depends on pixels far away: with S stages and T blocks, on those at most
    ``(8 + 4 T) S + 4 T + 1`` pixels to each side, 425 as published. Tiles of a larger image with a smaller overlap
    differ from the image restored at once.

    Shapes: as of `components.networks.form`, any H and W from 1 pixel.

    Args:
        settings: of the network.
        in_channels: channels of the stack.
        out_channels: C, the channels of an image.
        scale: 1.
        inputs: names of the images in the stack.

    Raises:
        ValueError: as of `RestorationNetwork.describe`.
    """

    needs = ("image",)
    scales = (1,)
    published_class = RCDNet

    @dataclass(frozen=True, kw_only=True)
    class Settings(SeparationSettings):
        """Settings of the network; the defaults are the published ones.

        Those of the EQ-Reg paper, whose channels divide by 4, are ``form="simple", dual_channels=33``.
        """

        maps: int = 32
        """k, the channels of the rain maps."""
        residual_blocks: int = 4
        """Blocks of each network for the image and for the maps."""
        stages: int = 17
        """S; at least 3 in the official form, 2 in the simple one."""
        form: Form = "official"
        """Whose parameters the network has: "official" (RCDNet), or "simple" (RCDNet_simple, without unused ones)."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_one_of(self, form=("official", "simple"))
            check_between(self, maps=(1, 1024), stages=(3 if self.form == "official" else 2, 1000))

        def channels_for(self, colours: int) -> dict[str, int]:
            """The channels of the networks for the maps, and of those for the image and its dual channels."""
            return {"maps": self.maps, f"dual_channels + {colours}": colours + self.dual_channels}

    def __init__(
        self,
        settings: Settings,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        scale: int = 1,
        inputs: Sequence[str] = needs,
    ) -> None:
        RCDNet.__init__(
            self,
            settings.maps,
            settings.dual_channels,
            settings.residual_blocks,
            settings.stages,
            settings.form,
            out_channels,
            settings.kernel_file,
        )
        self.describe(in_channels, out_channels, scale, inputs)
        if settings.supervised == "all":
            self.output_weights = supervised_weights(settings.stages, last_layer=1.0)
        if settings.form == "official":  # several processes wait for the gradient of every parameter that can have one
            self.eta1.requires_grad_(False)
            self.mnet.requires_grad_(False)

    def forward(self, stack: Tensor) -> Tensor | tuple[Tensor, ...]:  # type: ignore[override]
        """Restore a batch of stacks; in training with several supervised outputs, the result comes first."""
        (image,) = self.take(stack)
        output = RCDNet.forward(self, WHITE * image)
        if self.training and self.output_weights:
            return supervised_images(image, output)
        return output.images[-1] / WHITE
