"""DICDNet: an unrolled algorithm that separates a CT image from its metal artifacts by a convolutional dictionary.

Legend: B images, H rows, W columns; k maps, p dual channels, S stages; Y the image with artifacts, L the image after
linear interpolation, I the mask of what is not metal, X the restored image, P its dual channels, A the artifacts, M the
maps.

The model is ``Y = X + A`` outside the metal, with ``A = sum_j K_j * M_j``; ``*`` is a convolution, ``*T`` its adjoint.
All stages share the kernels K, and each has step sizes and networks of its own:

- ``X, P = X-net(L, Kq * L)``, 3x3 kernels Kq that begin as a mean over 3x3 pixels;
- ``M = M-net(K0 / 10 *T relu(I (Y - X) - tau))``, kernels K0 of its own;
- ``A = K / 10 * M`` and ``X, P = X-net(X - eta / 10 I (X - (Y - A)), P)``;
- then, in S - 1 further stages, ``M = M-net(M - eta' / 10 K / 10 *T (I (A - (Y - X))))``, and A and X as above;
- at last ``X = X-net(X, P)``.

The X-net takes and gives ``(B, 1 + p, H, W)``, the M-net ``(B, k, H, W)``: see `components.networks.unrolled.proximal`
and `components.networks.unrolled.separation`. The kernels are 9x9.

Source: Wang, Li, He, Ma, Meng, Zheng, *DICDNet: Deep Interpretable Convolutional Dictionary Network for Metal Artifact
Reduction in CT Images*, IEEE Transactions on Medical Imaging 41(4), 2022. Reference:
https://github.com/hongwang01/DICDNet at 6498998, ``dicdnet.py``. The names, order and shapes of the parameters are
those of the reference. What differs:

- K0 and K begin as straight lines in all directions (`components.networks.unrolled.dictionary.line_kernels`) unless
  there is the file that the reference reads, which it does not license.
- No two parameters share their storage. In the reference K0 and K do, and all step sizes, until the network is moved to
  another device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from components.networks.unrolled.dictionary import (
    DICTIONARY_SCALE,
    FIRST_STEP_OF_IMAGE,
    FIRST_STEP_OF_MAPS,
    FIRST_THRESHOLD_OF_LAYER,
    first_kernels,
)
from components.networks.unrolled.proximal import ImageNetwork, MapNetwork
from components.networks.unrolled.separation import (
    MetalArtifactForm,
    Parts,
    Separation,
    SeparationSettings,
    scaled,
    separate,
)
from components.registry import check_between


class DICDNet(nn.Module):
    """The published network; the width of the EQ-Reg paper is ``dual_channels=35``.

    Shapes: three times ``(B, 1, H, W)`` -> ``Separation``, float, in 0..255 (the mask 0 or 1), any H and W from 1
    pixel. The image is ``images[-1]``, the artifacts of each stage are in ``layers``.

    Args:
        maps: k, the channels of the artifacts' maps (published name num_M).
        dual_channels: p, the channels beside the image in its network (num_Q).
        residual_blocks: of each network (T).
        stages: S, at least 2 (S).
        kernel_file: as of `components.networks.unrolled.dictionary.first_kernels`.

    Example:
        >>> network = DICDNet(maps=4, dual_channels=3, residual_blocks=1, stages=2)
        >>> image, interpolated = 255 * torch.rand(2, 1, 1, 6, 5, generator=torch.manual_seed(0))
        >>> output = network(image, interpolated, torch.ones(1, 1, 6, 5))
        >>> output.images[-1].shape, len(output.images), len(output.layers)
        (torch.Size([1, 1, 6, 5]), 3, 2)
    """

    def __init__(
        self,
        maps: int = 32,
        dual_channels: int = 32,
        residual_blocks: int = 3,
        stages: int = 10,
        kernel_file: str = "",
    ) -> None:
        super().__init__()
        kernels = first_kernels(maps, file=kernel_file)
        self.etaM_S = nn.Parameter(torch.full((stages - 1, 1), FIRST_STEP_OF_MAPS))
        self.etaX_S = nn.Parameter(torch.full((stages, 1), FIRST_STEP_OF_IMAGE))
        self.K0 = nn.Parameter(kernels.clone())
        self.K = nn.Parameter(kernels)
        self.K_q = nn.Parameter(torch.full((dual_channels, 1, 3, 3), 1 / 9))
        self.tau = nn.Parameter(torch.full((1,), FIRST_THRESHOLD_OF_LAYER))
        self.proxNet_X_0 = ImageNetwork(1 + dual_channels, residual_blocks)
        self.proxNet_X_S = nn.Sequential(*(ImageNetwork(1 + dual_channels, residual_blocks) for _ in range(stages)))
        self.proxNet_M_S = nn.Sequential(*(MapNetwork(maps, residual_blocks) for _ in range(stages)))
        self.proxNet_X_last_layer = ImageNetwork(1 + dual_channels, residual_blocks)

    def forward(self, CT_ma: Tensor, LIct: Tensor, Mask: Tensor) -> Separation:
        """Reduce the metal artifacts of a batch of images.

        Args:
            CT_ma: images with artifacts, in 0..255.
            LIct: images after linear interpolation of the sinogram, in 0..255.
            Mask: 1 where there is no metal, 0 in the metal.

        Returns:
            The images and artifacts of all stages.
        """
        parts = Parts(
            dual_kernels=self.K_q,
            first_kernels=self.K0 / DICTIONARY_SCALE,
            kernels=self.K / DICTIONARY_SCALE,
            threshold=self.tau,
            map_steps=scaled(self.etaM_S),
            image_steps=scaled(self.etaX_S),
            first_network=self.proxNet_X_0,
            image_networks=self.proxNet_X_S,
            map_networks=self.proxNet_M_S,
            last_network=self.proxNet_X_last_layer,
        )
        return separate(CT_ma, LIct, Mask, parts)


class DICDNetForm(MetalArtifactForm, DICDNet):  # type: ignore[misc]  # another forward
    """The product's form; see `components.networks.unrolled.separation.MetalArtifactForm`.

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

    published_class = DICDNet

    @dataclass(frozen=True, kw_only=True)
    class Settings(SeparationSettings):
        """Settings of the network; the defaults are the published ones.

        Those of the EQ-Reg paper, whose channels divide by 4, are ``dual_channels=35``.
        """

        maps: int = 32
        """k, the channels of the artifacts' maps."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_between(self, maps=(1, 1024))

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
        inputs: Sequence[str] = MetalArtifactForm.needs,
    ) -> None:
        DICDNet.__init__(
            self,
            settings.maps,
            settings.dual_channels,
            settings.residual_blocks,
            settings.stages,
            settings.kernel_file,
        )
        self.describe_stages(
            in_channels, out_channels, scale, inputs, stages=settings.stages, supervised=settings.supervised
        )
