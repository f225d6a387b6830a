"""The residuals and sizes of docs/explanation/method.md, against loops, finite differences and known values."""

import pytest
import torch
from torch import Tensor

from components.equivariance import (
    Group,
    channel_residual,
    field_residual,
    group_named,
    kernel_relative_mse,
    kernel_residual,
    l2_norm,
    pair_scale,
    regular_residual,
    relative_mse,
    rotation_residual,
    shift_channels,
)
from tests.components.equivariance.exact import loop_regular, loop_rotate, loop_size, random_images
from tests.components.equivariance.exact_groups import C2, C4, D4, PlaneGroup

pytestmark = pytest.mark.unit

TURNS = [1, 2, 3]


def _pair(element: int, size: tuple[int, int] = (4, 5), dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Maps of originals, and maps of the shape that their turned copies have."""
    turned = size if element == 2 else size[::-1]
    return random_images(2, 8, *size, dtype=dtype), random_images(2, 8, *turned, dtype=dtype, seed=7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [(4, 4), (5, 5), (4, 7)])
@pytest.mark.parametrize("element", TURNS)
def test_relative_sizes_agree_with_explicit_loops(element: int, size: tuple[int, int], dtype: torch.dtype) -> None:
    originals, transformed = _pair(element, size, dtype)
    scale = pair_scale(originals, transformed)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for residual, act in ((rotation_residual, loop_rotate), (regular_residual, loop_regular)):
        value = relative_mse(residual(originals, transformed, element), scale)
        assert value.item() == pytest.approx(loop_size(transformed, act(originals, element)), rel=tolerance)


@pytest.mark.parametrize("element", TURNS)
def test_without_normalisation_the_size_is_the_mean_square(element: int) -> None:
    originals, transformed = _pair(element)
    value = relative_mse(regular_residual(originals, transformed, element))
    expected = loop_size(transformed, loop_regular(originals, element), relative=False)
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


@pytest.mark.parametrize("element", TURNS)
def test_gradients_agree_with_finite_differences(element: int) -> None:
    originals, transformed = (maps[:, :4, :3, :3].clone().requires_grad_() for maps in _pair(element, (3, 3)))
    scale = torch.tensor([0.7, 1.9], dtype=torch.float64, requires_grad=True)

    def rotation(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
        return relative_mse(rotation_residual(a, b, element), s)

    def regular(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
        return relative_mse(regular_residual(a, b, element), s)

    def channel(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
        return relative_mse(channel_residual(a, b, element), s)

    for function in (rotation, regular, channel):
        assert torch.autograd.gradcheck(function, (originals, transformed, scale))
    assert torch.autograd.gradcheck(lambda a, b: pair_scale(a, b), (originals, transformed))
    assert torch.autograd.gradcheck(
        lambda a, b: relative_mse(regular_residual(a, b, element)), (originals, transformed)
    )


def test_unrelated_zero_mean_maps_have_size_two_whatever_their_scale() -> None:
    for factor in (1e-3, 1.0, 1e3):
        a, b = (factor * random_images(4, 16, 32, 32, seed=seed) for seed in (1, 2))
        assert relative_mse(a - b, pair_scale(a, b)).item() == pytest.approx(2, rel=0.02)


def test_two_maps_of_zeros_have_size_zero() -> None:
    zeros = torch.zeros(2, 4, 3, 3)
    assert relative_mse(zeros, pair_scale(zeros, zeros)).item() == 0


def test_every_pair_is_normalised_by_its_own_scale() -> None:
    a, b = random_images(2, 4, 5, 5), random_images(2, 4, 5, 5, seed=9)
    value = relative_mse(a - b, pair_scale(a, b))
    louder = torch.tensor([1.0, 100.0], dtype=torch.float64).reshape(2, 1, 1, 1)  # (P,) -> (P, 1, 1, 1)
    assert relative_mse(louder * (a - b), pair_scale(louder * a, louder * b)).item() == pytest.approx(value.item())


def test_half_precision_maps_do_not_overflow() -> None:
    maps = torch.full((1, 4, 2, 2), 1e3, dtype=torch.float16)  # its square is beyond the largest half, 65504
    assert relative_mse(maps, pair_scale(maps, maps)).item() == pytest.approx(1)


def test_equal_shifts_of_plain_and_shifted_maps_leave_no_residual() -> None:
    maps = random_images(1, 8, 3, 3)
    assert not channel_residual(maps, shift_channels(maps, 3), 3).any()


ELEMENTS = [(name, element) for name in ("C2", "C4", "D4", "C8") for element in range(1, group_named(name).order)]


def _leaves(group: Group, element: int, num_pairs: int = 2) -> tuple[Tensor, Tensor]:
    """Maps of originals, not square where the group allows it, and of their copies."""
    height, width = (3, 2) if group.is_on_grid else (4, 4)
    swaps = group.is_on_grid and (group.quarter_turns(element) or 0) % 2
    sides = (width, height) if swaps else (height, width)
    originals, transformed = (
        random_images(num_pairs, group.order, *size, seed=seed) for size, seed in (((height, width), 1), (sides, 2))
    )
    return originals.requires_grad_(), transformed.requires_grad_()


@pytest.mark.parametrize(("name", "element"), ELEMENTS)
@pytest.mark.parametrize("field", ["trivial", "regular"])
def test_gradients_of_rotation_and_regular_sizes_agree_with_finite_differences_for_every_element(
    field: str, name: str, element: int
) -> None:
    group = group_named(name)
    originals, transformed = _leaves(group, element, num_pairs=1 if name == "C8" else 2)
    scale = 0.5 + torch.rand(len(originals), dtype=torch.float64)

    def residual(a: Tensor, b: Tensor) -> Tensor:
        return field_residual(a, b, element, field, group)  # type: ignore[arg-type]

    for size in (
        lambda a, b: relative_mse(residual(a, b), scale),  # a constant scale
        lambda a, b: relative_mse(residual(a, b), pair_scale(group.crop(a), group.crop(b))),  # a moving one
        lambda a, b: relative_mse(residual(a, b)),
        lambda a, b: l2_norm(residual(a, b)),
    ):
        assert torch.autograd.gradcheck(size, (originals, transformed), fast_mode=name == "C8")


@pytest.mark.parametrize("shift", TURNS)
def test_gradients_of_rotation_and_channel_together_agree_with_finite_differences(shift: int) -> None:
    originals, transformed, plain, shifted = (
        random_images(2, 4, 2, 2, seed=seed).requires_grad_() for seed in range(4)
    )
    scales = random_images(2, 2).square() + 0.5

    def constant(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        rotation = relative_mse(rotation_residual(a, b, shift), scales[0])
        return rotation + relative_mse(channel_residual(c, d, shift), scales[1])

    def moving(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        rotation = relative_mse(rotation_residual(a, b, shift), pair_scale(a, b))
        return rotation + relative_mse(channel_residual(c, d, shift), pair_scale(c, d))

    for size in (constant, moving):
        assert torch.autograd.gradcheck(size, (originals, transformed, plain, shifted))


@pytest.mark.parametrize("name", ["C2", "C4", "D4"])
@pytest.mark.parametrize(("field_in", "field_out"), [("trivial", "regular"), ("regular", "regular")])
def test_gradients_of_the_projection_agree_with_finite_differences(name: str, field_in: str, field_out: str) -> None:
    group = group_named(name)
    inputs = group.order if field_in == "regular" else 2
    weight = random_images(group.order, inputs, 2, 2).requires_grad_()

    def residual(kernel: Tensor) -> Tensor:
        return kernel_residual(kernel, field_in, field_out, group)  # type: ignore[arg-type]

    constant = weight.detach().square().sum()
    for size in (
        lambda kernel: kernel_relative_mse(residual(kernel), constant),
        lambda kernel: kernel_relative_mse(residual(kernel), kernel.square().sum()),
        lambda kernel: kernel_relative_mse(residual(kernel)),
    ):
        assert torch.autograd.gradcheck(size, (weight,))


@pytest.mark.parametrize("element", TURNS)
def test_the_unsquared_size_is_one_norm_over_all_pairs(element: int) -> None:
    originals, transformed = _pair(element)
    expected = sum(value**2 for value in (transformed - loop_regular(originals, element)).flatten().tolist()) ** 0.5
    assert l2_norm(regular_residual(originals, transformed, element)).item() == pytest.approx(expected, rel=1e-12)


def test_the_gradient_of_the_unsquared_size_is_zero_where_it_is_undefined() -> None:
    zeros = torch.zeros(1, 4, 2, 2, requires_grad=True)
    l2_norm(zeros).backward()
    assert zeros.grad is not None
    assert not zeros.grad.any()


GROUPS = {"C2": C2, "C4": C4, "D4": D4}


def _projection(kernel: Tensor, field_in: str, field_out: str, name: str) -> float:
    residual = kernel_residual(kernel, field_in, field_out, group_named(name))  # type: ignore[arg-type]
    return kernel_relative_mse(residual, kernel.square().sum()).item()


@pytest.mark.parametrize("name", GROUPS)
def test_exact_kernels_have_no_projection_residual(name: str) -> None:
    oracle = GROUPS[name]
    for kernel, field_in, field_out in (
        (oracle.lifting_kernel(2, 3), "trivial", "regular"),
        (oracle.group_kernel(2, 3), "regular", "regular"),
        (oracle.projection_kernel(3, 2), "regular", "trivial"),
        (_averaged(oracle, random_images(3, 2, 3, 3)), "trivial", "trivial"),
    ):
        assert _projection(kernel, field_in, field_out, name) < 1e-28


def _averaged(oracle: PlaneGroup, kernel: Tensor) -> Tensor:
    return torch.stack([oracle.spatial(kernel, g) for g in range(oracle.order)]).mean(0)


@pytest.mark.parametrize("name", GROUPS)
def test_random_kernels_have_a_projection_residual_of_one_minus_one_over_t(name: str) -> None:
    order = GROUPS[name].order
    for fields in (("regular", "regular"), ("trivial", "regular"), ("regular", "trivial")):
        kernel = random_images(8 * order, 8 * order, 5, 5)
        assert _projection(kernel, *fields, name) == pytest.approx(1 - 1 / order, abs=0.03)


def test_an_exact_kernel_of_another_field_is_seen() -> None:
    assert _projection(C4.group_kernel(4, 4), "regular", "regular", "D4") > 0.3
    assert _projection(C4.lifting_kernel(4, 4), "regular", "regular", "C4") > 0.3


def test_kernels_cannot_be_turned_by_groups_off_the_grid() -> None:
    with pytest.raises(ValueError, match="kernels cannot be turned exactly by C8; use C2, C4 or D4"):
        kernel_residual(random_images(8, 8, 3, 3), "regular", "regular", group_named("C8"))
