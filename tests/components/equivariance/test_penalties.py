"""Residuals and sizes of section 3 of METHOD.md, against loops, finite differences and known values."""

import pytest
import torch
from torch import Tensor

from components.equivariance import (
    channel_residual,
    pair_scale,
    regular_residual,
    residual_size,
    rotation_residual,
    shift_channels,
)
from tests.components.equivariance.exact import loop_regular, loop_rotate, loop_size, random_images

TURNS = [1, 2, 3]


def _pair(turns: int, size: tuple[int, int] = (4, 5), dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Maps of originals, and maps of the shape that their turned copies have."""
    turned = size if turns == 2 else size[::-1]
    return random_images(2, 8, *size, dtype=dtype), random_images(2, 8, *turned, dtype=dtype, seed=7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [(4, 4), (5, 5), (4, 7)])
@pytest.mark.parametrize("turns", TURNS)
def test_relative_sizes_agree_with_explicit_loops(turns: int, size: tuple[int, int], dtype: torch.dtype) -> None:
    originals, copies = _pair(turns, size, dtype)
    scale = pair_scale(originals, copies)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for residual, act in ((rotation_residual, loop_rotate), (regular_residual, loop_regular)):
        value = residual_size(residual(originals, copies, turns), scale)
        assert value.item() == pytest.approx(loop_size(copies, act(originals, turns)), rel=tolerance)


@pytest.mark.parametrize("turns", TURNS)
def test_without_normalisation_the_size_is_the_mean_square(turns: int) -> None:
    originals, copies = _pair(turns)
    value = residual_size(regular_residual(originals, copies, turns))
    expected = loop_size(copies, loop_regular(originals, turns), relative=False)
    assert value.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("group", "width"), [(4, 4), ("all", 8)])
@pytest.mark.parametrize("shift", TURNS)
def test_channel_residual_agrees_with_explicit_loops(shift: int, group: int, width: int) -> None:
    plain, shifted = random_images(2, 8, 3, 4), random_images(2, 8, 3, 4, seed=8)
    expected = torch.empty_like(plain)
    for channel in range(8):
        start = channel // width * width
        expected[:, channel] = shifted[:, channel] - plain[:, start + (channel - start - shift) % width]
    assert torch.equal(channel_residual(plain, shifted, shift, group), expected)


@pytest.mark.parametrize("turns", TURNS)
def test_gradients_agree_with_finite_differences(turns: int) -> None:
    originals, copies = (maps[:, :4, :3, :3].clone().requires_grad_() for maps in _pair(turns, (3, 3)))
    scale = torch.tensor([0.7, 1.9], dtype=torch.float64, requires_grad=True)

    def rotation(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
        return residual_size(rotation_residual(a, b, turns), s)

    def regular(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
        return residual_size(regular_residual(a, b, turns), s)

    def channel(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
        return residual_size(channel_residual(a, b, turns), s)

    for function in (rotation, regular, channel):
        assert torch.autograd.gradcheck(function, (originals, copies, scale))
    assert torch.autograd.gradcheck(lambda a, b: pair_scale(a, b), (originals, copies))
    assert torch.autograd.gradcheck(lambda a, b: residual_size(regular_residual(a, b, turns)), (originals, copies))


def test_unrelated_zero_mean_maps_have_size_two_whatever_their_scale() -> None:
    for factor in (1e-3, 1.0, 1e3):
        a, b = (factor * random_images(4, 16, 32, 32, seed=seed) for seed in (1, 2))
        assert residual_size(a - b, pair_scale(a, b)).item() == pytest.approx(2, rel=0.02)


def test_two_maps_of_zeros_have_size_zero() -> None:
    zeros = torch.zeros(2, 4, 3, 3)
    assert residual_size(zeros, pair_scale(zeros, zeros)).item() == 0


def test_every_pair_is_normalised_by_its_own_scale() -> None:
    a, b = random_images(2, 4, 5, 5), random_images(2, 4, 5, 5, seed=9)
    value = residual_size(a - b, pair_scale(a, b))
    louder = torch.tensor([1.0, 100.0], dtype=torch.float64).reshape(2, 1, 1, 1)  # (P,) -> (P, 1, 1, 1)
    assert residual_size(louder * (a - b), pair_scale(louder * a, louder * b)).item() == pytest.approx(value.item())


def test_half_precision_maps_do_not_overflow() -> None:
    maps = torch.full((1, 4, 2, 2), 1e3, dtype=torch.float16)  # its square is beyond the largest half, 65504
    assert residual_size(maps, pair_scale(maps, maps)).item() == pytest.approx(1)


def test_equal_shifts_of_plain_and_shifted_maps_leave_no_residual() -> None:
    maps = random_images(1, 8, 3, 3)
    assert not channel_residual(maps, shift_channels(maps, 3), 3).any()
