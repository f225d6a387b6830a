"""The actions of docs/explanation/method.md, and other groups: mirrors, half turns, turns by any angle."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.equivariance import (
    EquivarianceRegularizer,
    act,
    act_regular,
    circular_mask,
    field_residual,
    group_named,
    pair_scale,
    relative_mse,
    rotate,
    rotate_by,
    shift_channels,
)
from tests.components.equivariance.exact import (
    exact_network,
    loop_regular,
    loop_rotate,
    loop_size,
    plain_network,
    random_images,
)
from tests.components.equivariance.exact_groups import C2, C4, D4

pytestmark = pytest.mark.unit

SIZES = [(6, 6), (5, 5), (4, 7)]


def test_one_turn_is_counter_clockwise() -> None:
    image = torch.tensor([[[[1, 2], [3, 4]]]])
    assert rotate(image, 1).tolist() == [[[[2, 4], [1, 3]]]]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("element", [0, 1, 2, 3])
def test_actions_agree_with_explicit_loops(element: int, size: tuple[int, int]) -> None:
    maps = random_images(2, 8, *size)
    assert torch.equal(rotate(maps, element), loop_rotate(maps, element))
    assert torch.equal(act_regular(maps, element), loop_regular(maps, element))
    assert torch.equal(act(maps, element, "regular"), loop_regular(maps, element))
    assert torch.equal(act(maps, element, "trivial"), loop_rotate(maps, element))


@pytest.mark.parametrize("first", [1, 2, 3])
@pytest.mark.parametrize("second", [1, 2, 3])
def test_acting_twice_is_acting_with_the_sum(first: int, second: int) -> None:
    maps = random_images(1, 8, 5, 6)
    assert torch.equal(act_regular(act_regular(maps, first), second), act_regular(maps, (first + second) % 4))


def test_channels_are_shifted_within_their_group_and_t_is_the_fast_axis() -> None:
    maps = torch.arange(8.0).reshape(1, 8, 1, 1)  # the values are the channels' numbers: (8,) -> (1, 8, 1, 1)
    assert shift_channels(maps, 1).flatten().tolist() == [3, 0, 1, 2, 7, 4, 5, 6]
    assert shift_channels(maps, 1, "all").flatten().tolist() == [7, 0, 1, 2, 3, 4, 5, 6]
    assert shift_channels(maps, 1, 2).flatten().tolist() == [1, 0, 3, 2, 5, 4, 7, 6]


def test_a_whole_group_of_shifts_is_the_identity() -> None:
    maps = random_images(2, 12, 3, 5)
    assert torch.equal(shift_channels(shift_channels(maps, 3), 1), maps)
    assert torch.equal(shift_channels(shift_channels(maps, 5, "all"), 7, "all"), maps)


def test_channels_that_do_not_divide_into_groups_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"6 channels.*groups of 4"):
        shift_channels(random_images(1, 6, 2, 2), 1)


def test_any_whole_number_of_quarter_turns_is_taken_modulo_four() -> None:
    maps = random_images(1, 8, 3, 5)
    for element in (-5, -1, 4, 6, 9):
        assert torch.equal(act(maps, element, "regular"), loop_regular(maps, element % 4))


GROUPS = {"C2": C2, "C4": C4, "D4": D4}
every_group = pytest.mark.parametrize("name", GROUPS)


@every_group
def test_composition_and_inverses_are_those_read_off_an_asymmetric_array(name: str) -> None:
    group, oracle = group_named(name), GROUPS[name]
    elements = range(oracle.order)
    assert group.order == oracle.order
    assert [[group.compose(g, h) for h in elements] for g in elements] == oracle.table
    assert [group.inverse(g) for g in elements] == [oracle.inverse(g) for g in elements]


@every_group
@pytest.mark.parametrize("size", SIZES)
def test_fields_of_every_group_move_as_asymmetric_arrays_do(name: str, size: tuple[int, int]) -> None:
    group, oracle = group_named(name), GROUPS[name]
    maps = random_images(2, 2 * oracle.order, *size)
    for g in range(oracle.order):
        assert torch.equal(group.act(maps, g, "trivial"), oracle.spatial(maps, g))
        assert torch.equal(group.act(maps, g, "regular"), oracle.regular(maps, g))


def test_an_element_that_is_none_of_a_group_with_mirrors_is_refused() -> None:
    for element in (-1, 8):
        with pytest.raises(ValueError, match=rf"element: {element} is not in 0..7, the elements of D4"):
            group_named("D4").act(random_images(1, 8, 4, 4), element)


@pytest.mark.parametrize("name", ["C1", "C0", "D2", "c4", "D8", "SO2", "C", "C-4", "", 4])
def test_an_unknown_group_is_refused_with_those_that_are_known(name: object) -> None:
    with pytest.raises(ValueError, match="is not one of C2, C4, D4, C8 or C<N>"):
        group_named(name)  # type: ignore[arg-type]


def _penalties(network: nn.Module, images: Tensor, element: int, **options: object) -> dict[str, float]:
    regularizer = EquivarianceRegularizer(network, **options)  # type: ignore[arg-type]
    for _ in range(2):  # the first forward is traced
        network(regularizer.pair(images, images, element=element).inputs)
        regularizer.penalty()
    return regularizer.layer_penalties()


@every_group
def test_exact_networks_of_a_group_have_no_penalty_for_any_of_its_elements(name: str) -> None:
    oracle = GROUPS[name]
    images = random_images(4, 3, 5, 6) if name == "C2" else random_images(4, 3, 6, 6)
    for element in range(1, oracle.order):
        penalties = _penalties(oracle.exact_network(), images, element, group=name)
        assert list(penalties) == ["0", "2", "4"]
        assert max(penalties.values()) < 1e-24
    assert _penalties(oracle.exact_network(), images, 1, group=name, penalty="projection")["2"] < 1e-24


@every_group
def test_random_networks_agree_with_explicit_loops_for_every_element(name: str) -> None:
    oracle, network, images = GROUPS[name], plain_network(8), random_images(4, 3, 5, 5)
    for element in range(1, oracle.order):
        originals, transformed = images[:1], oracle.spatial(images[:1], element)
        expected = {}
        for layer, module in network.named_children():
            originals, transformed = module(originals), module(transformed)
            if layer in ("0", "2", "4"):
                moved = (oracle.spatial if layer == "4" else oracle.regular)(originals, element)
                expected[layer] = loop_size(transformed, moved)
        assert _penalties(network, images, element, group=name) == pytest.approx(expected, rel=1e-9)


def test_quarter_turns_alone_do_not_make_a_network_equivariant_to_mirrors() -> None:
    network, images = exact_network(), random_images(4, 3, 6, 6)
    assert max(_penalties(network, images, 3, group="D4", penalty="rotation").values()) > 0.1
    output = _penalties(network, images, 3, group="D4", layers={"4": "trivial"})
    mirrored = _penalties(network, images, 5, group="D4", layers={"4": "trivial"})
    assert output["4"] < 1e-24
    assert mirrored["4"] > 0.1


@pytest.mark.parametrize("element", range(1, 8))
def test_an_exact_group_convolution_with_mirrors_scores_about_two_under_rotation(element: int) -> None:
    layer = nn.Conv2d(16, 64, 3, padding=1, bias=False).double()
    layer.weight.data.copy_(D4.group_kernel(8, 2))
    maps = random_images(2, 16, 20, 20)
    first, second = layer(maps), layer(D4.regular(maps, element))
    assert loop_size(second, D4.regular(first, element)) < 1e-24
    assert loop_size(second, D4.spatial(first, element)) == pytest.approx(2, abs=0.25)


def test_half_turns_allow_images_and_kernels_that_are_not_square() -> None:
    def half_turn(array: Tensor) -> Tensor:
        return torch.from_numpy(np.rot90(array.numpy(), 2, axes=(-2, -1)).copy())

    lifting, group, projection = (random_images(*shape, 3, 5) for shape in ((2, 3), (2, 2, 2), (3, 2)))
    kernels = (
        torch.stack((lifting, half_turn(lifting)), 1).flatten(0, 1),  # (2, 3, ..) -> (2, 2, 3, ..) -> (4, 3, ..)
        torch.stack((group, half_turn(group.flip(2))), 1).flatten(2, 3).flatten(0, 1),  # (o, i, m, ..) -> (4, 4, ..)
        torch.stack((projection, half_turn(projection)), 2).flatten(1, 2),  # (3, 2, ..) -> (3, 2, 2, ..) -> (3, 4, ..)
    )
    layers: list[nn.Module] = []
    for kernel in kernels:
        layer = nn.Conv2d(kernel.shape[1], kernel.shape[0], (3, 5), padding=(1, 2), bias=False).double()
        layer.weight.data.copy_(kernel)
        layers += [layer, nn.ReLU()]
    network = nn.Sequential(*layers[:-1])
    images = random_images(4, 3, 5, 8)
    for penalty in ("regular", "projection"):
        penalties = _penalties(network, images, 1, group="C2", penalty=penalty)
        assert list(penalties) == ["0", "2", "4"]
        assert max(penalties.values()) < 1e-24
    regularizer = EquivarianceRegularizer(network, group="C2")
    assert regularizer.pair(images, images).inputs.shape == (4, 3, 5, 8)  # nothing is cropped
    quarter = EquivarianceRegularizer(exact_network(), group="C4").pair(images, images)
    assert quarter.inputs.shape == (4, 3, 5, 5)


# ----------------------------------------------------------------------------------------------------- any angle


def turning_matrix(side: int, degrees: float) -> Tensor:
    """Bilinear turns of square images as a matrix ``(H W, H W)``, rows outside the inscribed circle zero, by loops."""
    matrix = torch.zeros(side * side, side * side, dtype=torch.float64)
    centre, angle = (side - 1) / 2, math.radians(degrees)
    for row in range(side):
        for column in range(side):
            right, up = column - centre, centre - row
            if math.hypot(right, up) > centre + 1e-6:
                continue
            # turned back: clockwise
            x = right * math.cos(angle) + up * math.sin(angle) + centre
            y = centre - (up * math.cos(angle) - right * math.sin(angle))
            left, top = math.floor(x + 1e-9), math.floor(y + 1e-9)
            for i, j in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                share = max(0.0, 1 - abs(y - i)) * max(0.0, 1 - abs(x - j))
                if 0 <= i < side and 0 <= j < side:
                    matrix[row * side + column, i * side + j] += share
    return matrix


def turned(maps: Tensor, matrix: Tensor) -> Tensor:
    """Maps ``(B, C, H, W)`` by a turning matrix."""
    return (maps.flatten(2) @ matrix.t()).unflatten(2, maps.shape[-2:])


@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize(("name", "element"), [("C8", 1), ("C8", 2), ("C8", 5), ("C12", 1), ("C12", 9), ("C6", 1)])
def test_turns_by_any_angle_agree_with_bilinear_interpolation_in_loops(name: str, element: int, side: int) -> None:
    group, maps = group_named(name), random_images(2, 3, side, side)
    matrix = turning_matrix(side, 360 * element / group.order)
    torch.testing.assert_close(group.spatial(maps, element), turned(maps, matrix), rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (7, 10)])
def test_a_turn_by_ninety_degrees_is_a_quarter_turn_inside_the_circle(size: tuple[int, int]) -> None:
    maps = random_images(2, 3, *size)
    mask = circular_mask(*size)
    for quarters in (1, 2, 3):
        by_degrees = rotate_by(maps, 90.0 * quarters)
        if size[0] == size[1] or quarters == 2:
            inside = (loop_rotate(maps, quarters) - by_degrees)[..., mask]
            assert inside.abs().max() < 1e-9


@pytest.mark.parametrize("side", [7, 8])
def test_the_circle_is_the_largest_through_pixel_centres_and_no_turn_of_it_reads_outside(side: int) -> None:
    mask, centre = circular_mask(side, side), (side - 1) / 2
    for row in range(side):
        for column in range(side):
            assert mask[row, column].item() == (math.hypot(row - centre, column - centre) <= centre + 1e-6)
    ones = torch.ones(1, 1, side, side, dtype=torch.float64)
    for degrees in (10, 45, 77.7):
        torch.testing.assert_close(rotate_by(ones, degrees)[..., mask], ones[..., mask], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "quarter"), [("C8", 2), ("C12", 3), ("C16", 4)])
def test_quarter_turns_of_finer_groups_are_exact(name: str, quarter: int) -> None:
    group, maps = group_named(name), random_images(1, 3, 9, 9)
    mask = circular_mask(9, 9)
    for n in (1, 2, 3):
        assert torch.equal(group.spatial(maps, n * quarter), loop_rotate(maps, n) * mask)


@pytest.mark.parametrize("order", [3, 6, 8, 12])
def test_regular_fields_of_cyclic_groups_shift_by_the_element(order: int) -> None:
    group, maps = group_named(f"C{order}"), random_images(1, 2 * order, 1, 1)
    for element in range(-1, order + 2):
        rolled = torch.roll(maps.view(2, order), element, dims=1)  # (1, 2t, 1, 1) -> (2, t)
        assert torch.equal(group.act(maps, element, "regular").view(2, order), rolled)
        assert group.compose(element, order - 1) == (element - 1) % order
        assert group.compose(group.inverse(element), element) == 0


def smooth_image(side: int) -> Tensor:
    """A scene without symmetry, black near the circle's edge, sampled at any resolution: ``(1, 1, H, W)``."""
    places = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) / (side / 2)
    y, x = torch.meshgrid(places, places, indexing="ij")
    blobs = ((0.2, 0.1, 0.12, 1.0), (-0.25, 0.2, 0.1, -0.7), (-0.1, -0.3, 0.14, 0.5))
    return sum(a * torch.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * s * s)) for u, v, s, a in blobs)[None, None]


def oriented_kernel(degrees: float | None, size: int = 7, sigma: float = 1.3) -> Tensor:
    """A Gaussian, or its derivative along a direction counter-clockwise from the right."""
    places = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    y, x = torch.meshgrid(places, places, indexing="ij")
    blob = torch.exp(-(x * x + y * y) / (2 * sigma**2))
    if degrees is None:
        return blob
    angle = math.radians(degrees)
    return blob * (x * math.cos(angle) - y * math.sin(angle))


def _residuals(kernels: list[Tensor], element: int, field: str) -> list[float]:
    group, weight, found = group_named("C8"), torch.stack(kernels)[:, None], []  # (C, k, k) -> (C, 1, k, k)
    for side in (16, 32, 64, 128):
        image = smooth_image(side)
        first, second = (F.conv2d(x, weight, padding=3) for x in (image, group.spatial(image, element)))
        residual = field_residual(first, second, element, field, group)  # type: ignore[arg-type]
        found.append(relative_mse(residual, pair_scale(group.crop(first), group.crop(second))).item() ** 0.5)
    return found


@pytest.mark.parametrize("element", [1, 3])
def test_a_radial_filter_has_a_residual_at_odd_eighths_that_falls_with_resolution(element: int) -> None:
    residuals = _residuals([oriented_kernel(None)], element, "trivial")
    assert all(finer < coarser for coarser, finer in pairwise(residuals))
    assert residuals[-1] < 0.1 * residuals[0]
    assert residuals[-1] < 0.01


@pytest.mark.parametrize("element", [1, 3])
def test_a_filter_with_a_direction_has_a_residual_that_stays(element: int) -> None:
    residuals = _residuals([oriented_kernel(0)], element, "trivial")
    assert min(residuals) > 0.5


@pytest.mark.parametrize("element", [1, 3, 6])
def test_eight_turned_kernels_are_a_regular_field_but_for_interpolation(element: int) -> None:
    kernels = [oriented_kernel(45 * h) for h in range(8)]
    residuals = _residuals(kernels, element, "regular")
    assert residuals[-1] < max(0.15 * residuals[0], 1e-5)
    assert residuals[-1] < 0.02
    assert min(_residuals(kernels[::-1], element, "regular")) > 0.5  # turned the other way


@pytest.mark.parametrize("scale_gradient", [False, True])
@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize("element", [1, 2, 7])
def test_value_and_gradient_under_c8_are_those_of_autograd_written_out_by_hand(
    element: int, side: int, scale_gradient: bool
) -> None:
    network, images = plain_network(8), random_images(4, 3, side, side)
    matrix, circle = turning_matrix(side, 45 * element), turning_matrix(side, 0)
    regularizer = EquivarianceRegularizer(network, group="C8", scale_gradient=scale_gradient)
    for _ in range(2):
        batch = regularizer.pair(images, images, element=element)
        torch.testing.assert_close(batch.inputs[1:2], turned(images[:1], matrix), rtol=0, atol=1e-9)
        network(batch.inputs)
        value = regularizer.penalty()
        expected, maps = torch.zeros((), dtype=torch.float64), batch.inputs[:2]
        for name, module in network.named_children():
            maps = module(maps)
            if name in ("0", "2", "4"):
                first, second = turned(maps[:1], matrix), turned(maps[1:], circle)
                if name != "4":
                    first = torch.roll(first, element, 1)  # one field of 8 channels
                scale = (turned(maps, circle) ** 2).mean()
                scale = scale if scale_gradient else scale.detach()
                expected = expected + ((second - first) ** 2).mean() / scale / 3
        assert value.item() == pytest.approx(expected.item(), rel=1e-6)
        found, wanted = (torch.autograd.grad(v, list(network.parameters())) for v in (value, expected))
        for gradient, reference in zip(found, wanted, strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-6, atol=1e-9)


def test_images_are_cropped_to_squares_where_corners_would_be_lost() -> None:
    images = random_images(4, 3, 6, 9)
    regularizer = EquivarianceRegularizer(plain_network(8), group="C8")
    for element in (1, 2):
        assert regularizer.pair(images, images, element=element).inputs.shape == (4, 3, 6, 6)


def test_under_c8_what_is_cut_off_from_the_copies_does_not_show_in_the_originals_features() -> None:
    """One radial filter on a fine image: what is left is interpolation, not the dark corners."""
    side = 64
    y, x = torch.meshgrid(torch.arange(5.0) - 2, torch.arange(5.0) - 2, indexing="ij")
    network = nn.Conv2d(1, 8, 5, padding=2, bias=False).double()
    network.weight.data.copy_(torch.exp(-(x**2 + y**2) / 2).expand(8, 1, 5, 5))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    images = (2 + torch.sin(rows * 0.15) + torch.cos(columns * 0.11)).double().expand(4, 1, side, side)
    regularizer = EquivarianceRegularizer(network, group="C8", layers={"*": "trivial"})
    batch = regularizer.pair(images, images, element=1)
    assert torch.equal(batch.inputs[0], images[0] * circular_mask(side, side))
    assert torch.equal(batch.inputs[-1], images[-1])  # a single stays as it is
    network(batch.inputs)
    group, whole, turned = group_named("C8"), network(images[:1]), network(batch.inputs[1:2])
    scale = pair_scale(group.crop(whole), group.crop(turned))
    uncropped = relative_mse(field_residual(whole, turned, 1, "trivial", group), scale)
    assert regularizer.penalty() < 0.2 * uncropped
