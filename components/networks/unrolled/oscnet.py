"""OSCNet: DICDNet with a dictionary of few kernels, each in several orientations.

Legend: B images, H rows, W columns; k kernels, n orientations, k n maps, r functions of the basis; p dual channels, S
stages; x to the right and y down from the centre of a kernel, 1 at its borders.

The algorithm is that of `components.networks.unrolled.dicdnet`. The dictionary C of all stages has ``k n`` kernels of
9x9, kernel m in orientation o at position ``n m + o``:

``C[m, o] = sum_j weights[m, j] f_j(R_o (x, y))``, with ``R_o`` the rotation by ``2 pi o / n``: ``C[m, o + n / 4]`` is
``C[m, o]`` after a quarter turn counter-clockwise, as `torch.rot90` gives it.

It is not divided by 10. In the first stage a bias c is added to the artifacts. C0, for the first maps, has ``k n`` free
kernels.

The functions f_j are the principal components of the turned functions ``w cos(a x + b y)`` and ``w sin(a x + b y)``,
with a and b in ``4 pi / 5 {-2, -1, 0, 1, 2}`` and ``w = exp(-max(x^2 + y^2 - 1, 0) / 0.2)``: `oriented_basis`.

Source: Wang, Xie, Li, Huang, Meng, Zheng, *Orientation-Shared Convolution Representation for CT Metal Artifact
Learning*, MICCAI 2022 (arXiv 2212.13166); the basis: Xie, Zhao, Xu, Meng, *Fourier Series Expansion Based Filter
Parametrization for Equivariant Convolutions*, IEEE TPAMI 2022 (arXiv 2107.14519). Reference:
https://github.com/hongwang01/OSCNet at 1573acd, ``network/oscnet.py`` and ``network/Fconv.py``. The names, order and
shapes of the parameters and buffers are those of the reference. What differs:

- Twelve of the 25 functions form six pairs, which a quarter turn maps onto each other. Any rotation of such a pair is
  as good, and the reference leaves the choice to rounding. Here it is fixed. The basis is in the state_dict, so
  published weights bring their own.
- C0 begins as straight lines in all directions (`components.networks.unrolled.dictionary.line_kernels`); the reference
  reads a file, which it does not license.
- The kernels are computed in each forward. The reference keeps them as further buffers in evaluation mode, so they may
  be in a file of weights, from which they are left out.
- No two parameters share their storage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from components.networks.unrolled.dictionary import (
    DICTIONARY_SCALE,
    FIRST_STEP_OF_IMAGE,
    FIRST_STEP_OF_MAPS,
    FIRST_THRESHOLD_OF_LAYER,
    KERNEL_SIZE,
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

HIGHEST = 2
"""Of the multiples of the lowest frequency that the basis has."""
LOWEST_FREQUENCY = 4 * math.pi / 5
DECAY = 0.2
"""Of the window outside the circle, in squares of half a kernel."""
LEAST_EIGENVALUE = 1e-4
EPSILON = 1e-10
LEAST_CHANGE = 0.04


def oriented_basis(orientations: int = 8) -> tuple[Tensor, Tensor]:
    """Compute the functions f_j of the dictionary on the pixels of a kernel in all orientations.

    With the 25 columns ``w cos(a x) cos(b y)``, ``w sin(a x) sin(b y)``, ``w sin(a x) cos(b y)`` and
    ``w cos(a x) sin(b y)``, a and b multiples 0, 1, 2 of ``4 pi / 5``, and the pixels of all orientations as rows, the
    functions are the left singular vectors. A column counts once if a and b are 0, twice if one of them is, else four
    times: so often its products occur in the cosines and sines of all ``a x + b y``, a and b also negative. The four
    kinds of columns are orthogonal, because the pixels and the orientations are symmetric. Within a kind the singular
    values differ; the last two kinds have the same, and their functions are the same with x and y exchanged.

    A function is multiplied by ``1 / (25 max(v, 0.04))``, at most 1. Here v says how much it changes with the
    orientation: with the squared sum s and 81 times the sum of squares q over the pixels of an orientation, it is
    ``(std(s) + std(q)) / mean(s + q)`` over all orientations.

    Args:
        orientations: n.

    Returns:
        The functions, ``(9, 9, n, r)``, in order of falling singular values, of which those below 0.01 are left out;
        the first coefficient of each that is not 0 is positive. And their factors, ``(r,)``. Both in double precision.

    Example:
        >>> functions, factors = oriented_basis(8)
        >>> functions.shape, torch.allclose(functions[:, :, 2], functions[:, :, 0].rot90(1, (0, 1)))
        (torch.Size([9, 9, 8, 25]), True)
    """
    places = torch.linspace(-1, 1, KERNEL_SIZE, dtype=torch.float64)
    row, column = torch.meshgrid(places, places, indexing="ij")
    window = torch.exp(-(row**2 + column**2 - 1).clamp(min=0) / DECAY)[..., None]
    # Where quarter turns are among the orientations, they are exact copies.
    by_turns = 4 if orientations % 4 == 0 else 1
    angles = 2 * math.pi / orientations * torch.arange(orientations // by_turns, dtype=torch.float64)
    x = column[..., None] * angles.cos() - row[..., None] * angles.sin()  # (9, 9, n / turns)
    y = row[..., None] * angles.cos() + column[..., None] * angles.sin()

    def columns(first: str, second: str, u: Tensor, v: Tensor) -> Tensor:
        """Products of functions of u and v: ``(9, 9, n / turns) -> (9, 9, n, columns)``."""
        products = [
            math.sqrt(2.0 ** ((a > 0) + (b > 0))) * window * _wave(first, a, u) * _wave(second, b, v)
            for a in range(first == "sin", HIGHEST + 1)
            for b in range(second == "sin", HIGHEST + 1)
        ]
        part = torch.stack(products, dim=-1)
        return torch.cat([part.rot90(turn, (0, 1)) for turn in range(by_turns)], dim=2)

    found: list[tuple[float, Tensor]] = []
    for first, second in (("cos", "cos"), ("sin", "sin"), ("sin", "cos")):
        values = columns(first, second, x, y)
        squares, coefficients = torch.linalg.eigh(torch.einsum("hwni,hwnj->ij", values, values))
        # The other functions of the last kind are those with x and y exchanged.
        kinds = [values, columns(first, second, y, x)] if first != second else [values]
        for square, coefficient in zip(squares, coefficients.T, strict=True):
            if square > LEAST_EIGENVALUE:
                leading = coefficient[coefficient.abs() > 1e-6 * coefficient.abs().max()][0]
                unit = coefficient * leading.sign() / (square + EPSILON).sqrt()
                found += [(-float(square), kind @ unit) for kind in kinds]
    functions = torch.stack([values for _, values in sorted(found, key=lambda each: each[0])], dim=-1)

    squared_sum = functions.sum(dim=(0, 1)).square()  # (n, r)
    sum_of_squares = KERNEL_SIZE**2 * functions.square().sum(dim=(0, 1))
    spread = squared_sum.std(dim=0, correction=0) + sum_of_squares.std(dim=0, correction=0)
    factors = 1 / (25 * (spread / (squared_sum + sum_of_squares).mean(dim=0)).clamp(min=LEAST_CHANGE))
    return functions * factors, factors


def _wave(kind: str, multiple: int, values: Tensor) -> Tensor:
    phase = multiple * LOWEST_FREQUENCY * values
    return phase.sin() if kind == "sin" else phase.cos()


class OrientedKernels(nn.Module):
    """The dictionary: kernels made of a fixed basis, each in all orientations.

    Args:
        kernels: k.
        orientations: n.
    """

    Basis: Tensor

    def __init__(self, kernels: int, orientations: int) -> None:
        super().__init__()
        functions, factors = oriented_basis(orientations)
        dtype = torch.get_default_dtype()
        self.register_buffer("Basis", functions.to(dtype))
        # Uniform, of variance 2 / r for a function of factor 1
        bound = math.sqrt(6 / len(factors))
        self.weights = nn.Parameter((2 * torch.rand(kernels, 1, 1, len(factors)) - 1) * bound * factors.to(dtype))
        self.c = nn.Parameter(torch.zeros(1, 1, 1, 1))

    def forward(self) -> Tensor:
        """Return the kernels, ``(1, k n, 9, 9)``."""
        return torch.einsum("hwnr,kabr->knhw", self.Basis, self.weights).flatten(0, 1)[None]


class OSCNet(nn.Module):
    """The published network; the width of the EQ-Reg paper is ``dual_channels=35``.

    Shapes: three times ``(B, 1, H, W)`` -> ``Separation``, float, in 0..255 (the mask 0 or 1), any H and W from 1
    pixel. The image is ``images[-1]``, the artifacts of each stage are in ``layers``.

    Args:
        kernels: k, those of the dictionary (published name num_M).
        orientations: n, of each kernel (num_rot).
        dual_channels: p, the channels beside the image in its network (num_Q).
        residual_blocks: of each network (T).
        stages: S, at least 2 (S).
        kernel_file: as of `components.networks.unrolled.dictionary.first_kernels`.

    Example:
        >>> network = OSCNet(kernels=1, orientations=4, dual_channels=3, residual_blocks=1, stages=2)
        >>> image, interpolated = 255 * torch.rand(2, 1, 1, 6, 5, generator=torch.manual_seed(0))
        >>> output = network(image, interpolated, torch.ones(1, 1, 6, 5))
        >>> output.images[-1].shape, len(output.images), len(output.layers)
        (torch.Size([1, 1, 6, 5]), 3, 2)
    """

    computed: ClassVar[tuple[str, ...]] = ("fcnn.filter", "fcnn.bias")
    """Ends of the names of tensors in the state_dict of the reference that are computed from others."""

    def __init__(
        self,
        kernels: int = 4,
        orientations: int = 8,
        dual_channels: int = 32,
        residual_blocks: int = 3,
        stages: int = 10,
        kernel_file: str = "",
    ) -> None:
        super().__init__()
        maps, width = kernels * orientations, 1 + dual_channels
        self.etaM_S = nn.Parameter(torch.full((stages - 1, 1), FIRST_STEP_OF_MAPS))
        self.etaX_S = nn.Parameter(torch.full((stages, 1), FIRST_STEP_OF_IMAGE))
        number = kernels if kernel_file else maps  # as published, the kernels of a file are repeated
        self.C0 = nn.Parameter(first_kernels(number, file=kernel_file).repeat(1, maps // number, 1, 1))
        self.fcnn = OrientedKernels(kernels, orientations)
        self.C_q = nn.Parameter(torch.full((dual_channels, 1, 3, 3), 1 / 9))
        self.proxNet_X_0 = ImageNetwork(width, residual_blocks)
        self.proxNet_X_S = nn.Sequential(*(ImageNetwork(width, residual_blocks) for _ in range(stages)))
        self.proxNet_M_S = nn.Sequential(*(MapNetwork(maps, residual_blocks) for _ in range(stages)))
        self.proxNet_X_last_layer = ImageNetwork(width, residual_blocks)
        self.tau = nn.Parameter(torch.full((1,), FIRST_THRESHOLD_OF_LAYER))

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
            dual_kernels=self.C_q,
            first_kernels=self.C0 / DICTIONARY_SCALE,
            kernels=self.fcnn(),
            threshold=self.tau,
            map_steps=scaled(self.etaM_S),
            image_steps=scaled(self.etaX_S),
            first_network=self.proxNet_X_0,
            image_networks=self.proxNet_X_S,
            map_networks=self.proxNet_M_S,
            last_network=self.proxNet_X_last_layer,
            bias=self.fcnn.c,
        )
        return separate(CT_ma, LIct, Mask, parts)


class OSCNetForm(MetalArtifactForm, OSCNet):  # type: ignore[misc]  # another forward
    """The product's form; see `components.networks.unrolled.separation.MetalArtifactForm`.

    A quarter turn of the image moves the n maps of a kernel by n / 4 positions, because the dictionary turns so by
    itself. They are a regular field of the group C<n>: of C8 as published, of C4 with ``orientations=4``. Choose the
    group of the penalty so. With C4 and 8 orientations the penalty regular compares four neighbours, which the
    dictionary does not turn into each other; ``eqreg doctor`` says so. No penalty compares the dictionary, whose basis
    is fixed.

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

    published_class = OSCNet

    @dataclass(frozen=True, kw_only=True)
    class Settings(SeparationSettings):
        """Settings of the network; the defaults are the published ones.

        Those of the EQ-Reg paper, whose channels divide by 4, are ``dual_channels=35``. With 39 they divide by 8.
        """

        kernels: int = 4
        """k, the kernels of the dictionary."""
        orientations: int = 8
        """n, of each kernel; the artifacts' maps have k n channels."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_between(self, kernels=(1, 1024), orientations=(1, 1024))

        @property
        def channels(self) -> dict[str, int]:
            """The channels of the networks for the maps, and of those for the image and its dual channels."""
            return {
                "kernels * orientations": self.kernels * self.orientations,
                "dual_channels + 1": 1 + self.dual_channels,
            }

    def __init__(
        self,
        settings: Settings,
        *,
        in_channels: int = 3,
        out_channels: int = 1,
        scale: int = 1,
        inputs: Sequence[str] = MetalArtifactForm.needs,
    ) -> None:
        OSCNet.__init__(
            self,
            settings.kernels,
            settings.orientations,
            settings.dual_channels,
            settings.residual_blocks,
            settings.stages,
            settings.kernel_file,
        )
        self.describe_stages(
            in_channels, out_channels, scale, inputs, stages=settings.stages, supervised=settings.supervised
        )
