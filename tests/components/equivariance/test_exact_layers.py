"""The oracles of METHOD.md section 3: layers whose symmetry is known by construction."""

import pytest
import torch
from torch import Tensor, nn

from components.equivariance import (
    channel_residual,
    pair_scale,
    regular_residual,
    residual_size,
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

SIZES = [(8, 8), (9, 9), (7, 10)]
ROUNDING = {torch.float64: 1e-24, torch.float32: 1e-10}
every_turn = pytest.mark.parametrize("turns", [1, 2, 3])
every_size = pytest.mark.parametrize("size", SIZES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def _size(residual: Tensor, first: Tensor, second: Tensor) -> float:
    return residual_size(residual, pair_scale(first, second)).item()


def _regular(layer: nn.Module, images: Tensor, turned: Tensor, turns: int) -> float:
    original, copy = layer(images), layer(turned)
    return _size(regular_residual(original, copy, turns), original, copy)


@every_dtype
@every_size
@every_turn
@pytest.mark.parametrize("channels", [1, 3])
def test_a_lifting_convolution_has_no_regular_residual(
    turns: int, size: tuple[int, int], channels: int, dtype: torch.dtype
) -> None:
    layer = convolution(lifting_kernel(4, channels)).to(dtype)
    images = random_images(2, channels, *size, dtype=dtype)
    assert _regular(layer, images, rotate(images, turns), turns) < ROUNDING[dtype]


@every_turn
def test_a_lifting_convolution_turned_the_wrong_way_is_seen_except_by_half_turns(turns: int) -> None:
    layer = convolution(lifting_kernel(256, 3, sign=-1))
    images = random_images(1, 3, 24, 24)
    relative_residual = _regular(layer, images, rotate(images, turns), turns) ** 0.5
    if turns == 2:
        assert relative_residual < 1e-12
    else:  # the compared kernels are half a turn apart, so unrelated but for the centre: sqrt(2 * 8/9)
        assert relative_residual == pytest.approx(1.33, abs=0.02)


@every_dtype
@every_size
@every_turn
def test_a_group_convolution_has_no_regular_residual(turns: int, size: tuple[int, int], dtype: torch.dtype) -> None:
    layer = convolution(group_kernel(3, 2)).to(dtype)
    maps = random_images(2, 8, *size, dtype=dtype)
    assert _regular(layer, maps, loop_regular(maps, turns), turns) < ROUNDING[dtype]


@every_turn
def test_an_exact_group_convolution_scores_about_two_under_rotation(turns: int) -> None:
    layer = convolution(group_kernel(16, 2))
    maps = random_images(2, 8, 24, 24)
    original, copy = layer(maps), layer(loop_regular(maps, turns))
    assert _size(rotation_residual(original, copy, turns), original, copy) == pytest.approx(2, abs=0.15)


@every_size
@every_turn
def test_a_projection_to_the_image_has_no_rotation_residual(turns: int, size: tuple[int, int]) -> None:
    layer = convolution(projection_kernel(3, 2))
    maps = random_images(2, 8, *size)
    original, copy = layer(maps), layer(loop_regular(maps, turns))
    assert _size(rotation_residual(original, copy, turns), original, copy) < ROUNDING[torch.float64]


@every_dtype
@every_size
@every_turn
def test_symmetric_kernels_have_no_rotation_residual(turns: int, size: tuple[int, int], dtype: torch.dtype) -> None:
    layer = convolution(symmetric_kernel(6, 3)).to(dtype)
    images = random_images(2, 3, *size, dtype=dtype)
    original, copy = layer(images), layer(rotate(images, turns))
    assert _size(rotation_residual(original, copy, turns), original, copy) < ROUNDING[dtype]


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
