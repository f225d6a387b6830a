"""Oracles of the penalties: layers whose symmetry is known by construction."""

import pytest
import torch
from torch import Tensor, nn

from components.equivariance import (
    EquivarianceRegularizer,
    channel_residual,
    pair_scale,
    regular_residual,
    relative_mse,
    rotate,
    rotation_residual,
    shift_channels,
)
from tests.components.equivariance.exact import (
    circulant_kernel,
    convolution,
    group_kernel,
    lifting_kernel,
    loop_regular,
    projection_kernel,
    random_images,
    symmetric_kernel,
)
from tests.components.equivariance.exact_groups import D4

pytestmark = pytest.mark.unit

SIZES = [(8, 8), (9, 9), (7, 10)]
ROUNDING = {torch.float64: 1e-24, torch.float32: 1e-10}
every_turn = pytest.mark.parametrize("element", [1, 2, 3])
every_size = pytest.mark.parametrize("size", SIZES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def _size(residual: Tensor, first: Tensor, second: Tensor) -> float:
    return relative_mse(residual, pair_scale(first, second)).item()


def _regular(layer: nn.Module, images: Tensor, turned: Tensor, element: int) -> float:
    original, copy = layer(images), layer(turned)
    return _size(regular_residual(original, copy, element), original, copy)


@every_dtype
@every_size
@every_turn
@pytest.mark.parametrize("channels", [1, 3])
def test_a_lifting_convolution_has_no_regular_residual(
    element: int, size: tuple[int, int], channels: int, dtype: torch.dtype
) -> None:
    layer = convolution(lifting_kernel(4, channels)).to(dtype)
    images = random_images(2, channels, *size, dtype=dtype)
    assert _regular(layer, images, rotate(images, element), element) < ROUNDING[dtype]


@every_turn
def test_a_lifting_convolution_turned_the_wrong_way_is_seen_except_by_half_turns(element: int) -> None:
    layer = convolution(lifting_kernel(256, 3, sign=-1))
    images = random_images(1, 3, 24, 24)
    relative_residual = _regular(layer, images, rotate(images, element), element) ** 0.5
    if element == 2:
        assert relative_residual < 1e-12
    else:  # the compared kernels are half a turn apart, so unrelated but for the centre: sqrt(2 * 8/9)
        assert relative_residual == pytest.approx(1.33, abs=0.02)


@every_dtype
@every_size
@every_turn
def test_a_group_convolution_has_no_regular_residual(element: int, size: tuple[int, int], dtype: torch.dtype) -> None:
    layer = convolution(group_kernel(3, 2)).to(dtype)
    maps = random_images(2, 8, *size, dtype=dtype)
    assert _regular(layer, maps, loop_regular(maps, element), element) < ROUNDING[dtype]


@every_turn
def test_an_exact_group_convolution_scores_about_two_under_rotation(element: int) -> None:
    layer = convolution(group_kernel(16, 2))
    maps = random_images(2, 8, 24, 24)
    original, copy = layer(maps), layer(loop_regular(maps, element))
    assert _size(rotation_residual(original, copy, element), original, copy) == pytest.approx(2, abs=0.15)


@every_size
@every_turn
def test_a_projection_to_the_image_has_no_rotation_residual(element: int, size: tuple[int, int]) -> None:
    layer = convolution(projection_kernel(3, 2))
    maps = random_images(2, 8, *size)
    original, copy = layer(maps), layer(loop_regular(maps, element))
    assert _size(rotation_residual(original, copy, element), original, copy) < ROUNDING[torch.float64]


@every_dtype
@every_size
@every_turn
def test_symmetric_kernels_have_no_rotation_residual(element: int, size: tuple[int, int], dtype: torch.dtype) -> None:
    layer = convolution(symmetric_kernel(6, 3)).to(dtype)
    images = random_images(2, 3, *size, dtype=dtype)
    original, copy = layer(images), layer(rotate(images, element))
    assert _size(rotation_residual(original, copy, element), original, copy) < ROUNDING[dtype]


@every_dtype
@every_size
@pytest.mark.parametrize("shift", [1, 2, 3])
@pytest.mark.parametrize(("group", "kernel"), [(4, circulant_kernel(3, 2)), ("all", circulant_kernel(1, 1, 12))])
def test_circulant_kernels_have_no_channel_residual(
    shift: int, size: tuple[int, int], dtype: torch.dtype, group: int, kernel: Tensor
) -> None:
    layer = convolution(kernel).to(dtype)
    maps = random_images(2, kernel.shape[1], *size, dtype=dtype)
    plain, shifted = layer(maps), layer(shift_channels(maps, shift, group))
    assert _size(channel_residual(plain, shifted, shift, group), plain, shifted) < ROUNDING[dtype]


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_ordinary_kernels_have_a_channel_residual_of_about_two(shift: int) -> None:
    layer = convolution(random_images(32, 16, 3, 3))
    maps = random_images(2, 16, 16, 16, seed=9)
    plain, shifted = layer(maps), layer(shift_channels(maps, shift))
    assert _size(channel_residual(plain, shifted, shift), plain, shifted) == pytest.approx(2, abs=0.1)


# ------------------------------------------------------------------------------------- the same by the regulariser


def _penalties(kernels: list[Tensor], images: Tensor, element: int, **options: object) -> dict[str, float]:
    """Of convolutions with these kernels one after the other, without anything between."""
    network = nn.Sequential(*(convolution(kernel) for kernel in kernels))
    regularizer = EquivarianceRegularizer(network, **options)  # type: ignore[arg-type]
    network(regularizer.pair(images, images, element=element, shift=element).inputs)
    regularizer.penalty()
    return regularizer.layer_penalties()


@every_turn
def test_the_numbers_of_the_oracles_are_those_of_the_regulariser(element: int) -> None:
    images = random_images(4, 3, 24, 24)
    exact = [lifting_kernel(16, 3), group_kernel(16, 16), projection_kernel(3, 16)]
    assert max(_penalties(exact, images, element).values()) < 1e-24
    exact[0] = lifting_kernel(16, 48)  # of many channels: those of three alone are related
    under_rotation = _penalties(exact, random_images(4, 48, 24, 24), element, penalty="rotation")
    assert under_rotation["1"] == pytest.approx(2, abs=0.3)  # the lifting kernels of a field share their centre
    assert under_rotation["2"] < 1e-24
    reversed_lifting = _penalties([lifting_kernel(128, 3, sign=-1), random_images(3, 512, 1, 1)], images, element)["0"]
    assert reversed_lifting**0.5 == pytest.approx(0 if element == 2 else 1.32, abs=1e-12 if element == 2 else 0.03)
    unrelated = _penalties([random_images(128, 3, 3, 3), random_images(3, 128, 1, 1)], images, element)["0"]
    assert unrelated == pytest.approx(2, abs=0.15)
    symmetric = [symmetric_kernel(8, 3), symmetric_kernel(8, 8), symmetric_kernel(3, 8)]
    assert max(_penalties(symmetric, images, element, penalty="rotation").values()) < 1e-24


@pytest.mark.parametrize(("name", "order"), [("C2", 2), ("C4", 4), ("C6", 6), ("C8", 8)])
def test_block_circulant_kernels_have_no_channel_penalty_in_any_cyclic_group(name: str, order: int) -> None:
    width = 2 * order
    kernels = [random_images(width, 3, 3, 3), circulant_kernel(2, 2, order), random_images(3, width, 3, 3)]
    for shift in range(1, order):
        penalties = _penalties(kernels, random_images(4, 3, 6, 6), shift, group=name, penalty="channel")
        assert list(penalties) == ["1"]
        assert penalties["1"] < 1e-24


@pytest.mark.parametrize("element", range(1, 8))
def test_under_mirrors_the_channel_penalty_permutes_by_the_element(element: int) -> None:
    kernels = [random_images(16, 3, 1, 1), D4.group_kernel(2, 2, size=1), random_images(3, 16, 1, 1)]
    penalties = _penalties(kernels, random_images(4, 3, 6, 6), element, group="D4", penalty="channel")
    assert penalties["1"] < 1e-24
    kernels[1] = circulant_kernel(2, 2, 8)[..., :1, :1]
    penalties = _penalties(kernels, random_images(4, 3, 6, 6), element, group="D4", penalty="channel")
    assert penalties["1"] > 0.1
