"""The equivariance error of a network, at any time."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from components.equivariance import EquivarianceRegularizer, equivariance_error, equivariance_error_by_element
from components.equivariance.diagnosis.equivariance_error import _pieces
from tests.components.equivariance.exact import (
    convolution,
    exact_network,
    group_kernel,
    lifting_kernel,
    loop_regular,
    loop_rotate,
    loop_size,
    plain_network,
    random_images,
)
from tests.components.equivariance.exact_groups import C2, C4, D4
from tests.components.equivariance.small_networks import SubPixelNetwork, WindowAttentionNetwork

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [(8, 8), (9, 9), (7, 10)])
@pytest.mark.parametrize("element", [1, 2, 3])
def test_an_exact_network_has_no_error_anywhere(element: int, size: tuple[int, int], dtype: torch.dtype) -> None:
    errors = equivariance_error(exact_network(dtype), random_images(2, 3, *size, dtype=dtype), element)
    assert list(errors) == ["0", "2", "4", "output"]
    assert max(errors.values()) < (1e-12 if dtype == torch.float64 else 1e-5)


def _expected_errors(network: nn.Sequential, images: Tensor, element: tuple[int, ...]) -> dict[str, float]:
    """Layer by layer, pixel by pixel, for a sequence of convolutions "0", "2", "4" with ReLU between."""
    sizes: dict[str, list[float]] = {"0": [], "2": [], "4": [], "output": []}
    for image in images:
        for n in element:
            first, second = image[None], loop_rotate(image[None], n)
            for name, module in network.named_children():
                first, second = module(first), module(second)
                if name in ("0", "2"):
                    sizes[name].append(loop_size(second, loop_regular(first, n)))
            sizes["4"].append(loop_size(second, loop_rotate(first, n)))
            sizes["output"].append(sizes["4"][-1])
    return {name: math.sqrt(sum(values) / len(values)) for name, values in sizes.items()}


@pytest.mark.parametrize("element", [(1,), (2,), (3,), (1, 2, 3)])
def test_the_error_is_the_root_of_the_mean_size_over_images_and_turns(element: tuple[int, ...]) -> None:
    network, images = plain_network(), random_images(3, 3, 5, 6)
    expected = _expected_errors(network, images, element)
    assert equivariance_error(network, images, element) == pytest.approx(expected, rel=1e-9)


def test_what_follows_a_layer_may_overwrite_its_output_in_place() -> None:
    images = random_images(2, 3, 6, 6)
    assert equivariance_error(plain_network(in_place=True), images) == equivariance_error(plain_network(), images)


def test_layers_come_in_the_order_of_execution_and_one_that_no_field_fits_is_left_out() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Conv2d(8, 3, 3, padding=1)
            self.six = nn.Conv2d(8, 6, 1)
            self.flat = nn.Conv2d(6, 8, (1, 3), padding=(0, 1))
            self.first = nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            return self.last(self.flat(self.six(self.first(images))))

    assert list(equivariance_error(Backwards(), torch.rand(1, 3, 6, 7))) == ["first", "last", "output"]


def test_every_call_of_a_layer_counts() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift = convolution(lifting_kernel(2, 3))
            self.body = convolution(group_kernel(2, 2))
            self.tail = convolution(random_images(3, 8, 3, 3))

        def forward(self, images: Tensor) -> Tensor:
            lifted = self.body(self.lift(images))  # exact: size 0
            return self.tail(self.body(torch.flip(lifted, dims=(1,))))  # reversed channels are no regular field

    errors = equivariance_error(Recurrent(), random_images(2, 3, 8, 8))
    network = Recurrent()
    alone = [network.body(torch.flip(network.body(network.lift(x)), dims=(1,))) for x in _turned_images()]
    sizes = [loop_size(alone[n], loop_regular(alone[0], n)) for n in (1, 2, 3)]
    assert errors["lift"] < 1e-12
    assert errors["body"] == pytest.approx(math.sqrt((0 + sum(sizes) / 3) / 2), rel=1e-9)


def _turned_images() -> list[Tensor]:
    images = random_images(2, 3, 8, 8)
    return [loop_rotate(images, n) for n in range(4)]


def test_the_network_is_left_as_it_was_frozen_parts_included() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.Conv2d(8, 3, 3))
    network[1].eval()
    modes = [module.training for module in network.modules()]
    state = copy.deepcopy(network.state_dict())
    equivariance_error(network, torch.rand(2, 3, 9, 9))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_dropout_does_not_enter_the_measurement() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(), nn.Conv2d(8, 3, 3))
    images = torch.rand(2, 3, 9, 9)
    assert equivariance_error(network, images) == equivariance_error(network, images)


def test_a_failing_forward_leaves_neither_hooks_nor_another_mode() -> None:
    network = plain_network()
    with pytest.raises(RuntimeError, match="channels"):
        equivariance_error(network, random_images(1, 2, 6, 6))
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())


def test_measuring_in_the_middle_of_a_step_changes_neither_the_measure_nor_the_penalty() -> None:
    network, images = plain_network(), random_images(4, 3, 6, 6)
    expected = equivariance_error(network, images)
    regularizer = EquivarianceRegularizer(network)
    batch = regularizer.pair(images, images, element=1)
    network(batch.inputs)
    undisturbed = regularizer.penalty()
    batch = regularizer.pair(images, images, element=1)
    assert equivariance_error(network, images) == expected
    network(batch.inputs)
    assert equivariance_error(network, images) == expected
    assert torch.equal(regularizer.penalty(), undisturbed)


def test_a_layer_named_output_does_not_hide_the_output() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.output = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            return images + self.output(images)

    errors = equivariance_error(Residual(), torch.rand(1, 3, 6, 6))
    assert list(errors) == ["output (layer)", "output"]
    assert errors["output"] < errors["output (layer)"]


def test_nothing_to_measure_is_refused() -> None:
    network = plain_network()
    for images, element in (
        (random_images(0, 3, 6, 6), 1),
        (random_images(3, 6, 6), 1),
        (random_images(1, 3, 6, 6), ()),
    ):
        with pytest.raises(ValueError, match="must be"):
            equivariance_error(network, images, element)


def test_a_network_that_returns_neither_image_nor_class_scores_is_refused() -> None:
    with pytest.raises(ValueError, match="returns one tensor"):
        equivariance_error(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2)), torch.rand(1, 3, 6, 6))


def test_class_scores_are_measured_as_invariants() -> None:
    images = random_images(2, 3, 6, 6)
    invariant = nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).double()
    assert equivariance_error(invariant, images)["output"] < 1e-6
    other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(128, 5)).double()
    with torch.no_grad():
        expected = [
            (
                (other(image.rot90(n, (-2, -1))) - other(image)).square().mean()
                / ((other(image.rot90(n, (-2, -1))).square().mean() + other(image).square().mean()) / 2)
            )
            for image in images.split(1)
            for n in (1, 2, 3)
        ]
    error = equivariance_error(other, images)["output"]
    assert error == pytest.approx(float(torch.stack(expected).mean().sqrt()), rel=1e-5)


# ------------------------------------------------------------------------------------------- elements and other groups


@pytest.mark.parametrize("size", [(6, 6), (5, 7)])
def test_each_element_has_an_error_of_its_own_and_their_mean_square_is_that_of_all(size: tuple[int, int]) -> None:
    network, images = plain_network(), random_images(3, 3, *size)
    by_turn = equivariance_error_by_element(network, images)
    assert list(by_turn) == [1, 2, 3]
    for element, errors in by_turn.items():
        assert errors == pytest.approx(_expected_errors(network, images, (element,)), rel=1e-9)
        assert errors == pytest.approx(equivariance_error(network, images, element))
    assert list(equivariance_error_by_element(network, images, (3, 1))) == [3, 1]
    together = equivariance_error(network, images)
    for name, error in together.items():
        assert error == pytest.approx(math.sqrt(sum(errors[name] ** 2 for errors in by_turn.values()) / 3))


@pytest.mark.parametrize("name", ["C2", "C4", "D4"])
def test_errors_of_other_groups_are_those_of_explicit_loops(name: str) -> None:
    oracle, network, images = {"C2": C2, "C4": C4, "D4": D4}[name], plain_network(8), random_images(1, 3, 4, 6)
    found = equivariance_error_by_element(network, images, group=name)
    assert list(found) == list(range(1, oracle.order))
    for element, errors in found.items():
        first, second = images, oracle.spatial(images, element)
        for layer, module in network.named_children():
            first, second = module(first), module(second)
            if layer in errors:
                moved = (oracle.spatial if layer == "4" else oracle.regular)(first, element)
                assert errors[layer] == pytest.approx(math.sqrt(loop_size(second, moved)), rel=1e-9)
        assert errors["output"] == errors["4"]
    exact = equivariance_error(oracle.exact_network(), images, group=name)
    assert max(exact.values()) < 1e-12


def test_a_network_of_quarter_turns_is_exact_for_the_turns_of_d4_alone() -> None:
    network, images = C4.exact_network(), random_images(2, 3, 6, 6)
    outputs = {n: errors["output"] for n, errors in equivariance_error_by_element(network, images, group="D4").items()}
    assert max(outputs[n] for n in (1, 2, 3)) < 1e-12
    assert min(outputs[n] for n in (4, 5, 6, 7)) > 0.1


@pytest.mark.parametrize("size", [(9, 9), (8, 8), (8, 11)])
def test_under_c8_what_is_pointwise_is_exact_inside_the_circle_at_quarter_turns_and_nearly_between(
    size: tuple[int, int],
) -> None:
    class Pointwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = (nn.Conv2d(i, o, 1, bias=False).double() for i, o in ((3, 8), (8, 3)))
            self.first.weight.data.copy_(random_images(1, 3, 1, 1).expand(8, -1, -1, -1))  # a field of equal channels

        def forward(self, images: Tensor) -> Tensor:
            return self.last(self.first(images))

    errors = equivariance_error_by_element(Pointwise(), random_images(2, 3, *size), group="C8")
    assert list(errors) == [1, 2, 3, 4, 5, 6, 7]
    for by_layer in errors.values():  # linear and pointwise: it commutes with interpolation too
        assert list(by_layer) == ["first", "last", "output"]
        assert max(by_layer.values()) < 1e-10


@pytest.mark.parametrize("element", [0, 4, -1, (1, 5)])
def test_an_element_that_is_none_is_refused(element: int | tuple[int, ...]) -> None:
    if element == 0:  # the identity is an element, and its error 0
        assert max(equivariance_error(plain_network(), random_images(1, 3, 6, 6), element).values()) == 0
        return
    with pytest.raises(ValueError, match=r"elements: .* is not one of 0, 1, 2, 3"):
        equivariance_error(plain_network(), random_images(1, 3, 6, 6), element)


def test_an_unknown_group_or_side_is_refused() -> None:
    with pytest.raises(ValueError, match="group: 'C1' is not one of"):
        equivariance_error(plain_network(), random_images(1, 3, 6, 6), group="C1")
    with pytest.raises(ValueError, match="max_side: 0 must be at least 1"):
        equivariance_error(plain_network(), random_images(1, 3, 6, 6), max_side=0)


# ------------------------------------------------------------------------------------------------------ large images


@pytest.mark.parametrize(
    ("size", "max_side"),
    [((600, 400), 64), ((65, 64), 64), ((577, 33), 64), ((50, 500), 100), ((20, 11), 7), ((40, 40), 1)],
)
def test_pieces_make_up_the_image_and_keep_what_its_sides_divide_by(size: tuple[int, int], max_side: int) -> None:
    image = torch.arange(float(math.prod(size))).view(1, 1, *size)
    pieces = list(_pieces(image, max_side))
    rows, row = [], []
    for piece in pieces:
        row.append(piece)
        if sum(part.shape[-1] for part in row) == size[1]:
            rows.append(torch.cat(row, -1))
            row = []
    assert torch.equal(torch.cat(rows, -2), image)
    for axis in (-2, -1):
        sides = [piece.shape[axis] for piece in pieces]
        assert max(sides) <= max_side
        for divisor in (2, 4, 8, 16):
            if max_side >= 16 and size[axis] % divisor == 0:
                assert all(side % divisor == 0 for side in sides)
        assert min(sides) > min(size[axis], max_side) / 4


def test_a_large_image_is_measured_in_pieces_each_as_an_image_of_its_own() -> None:
    network, image = plain_network(), random_images(1, 3, 32, 48)
    pieces = [image[..., i : i + 16, j : j + 16] for i in (0, 16) for j in (0, 16, 32)]
    expected = equivariance_error(network, torch.cat(pieces))
    assert equivariance_error(network, image, max_side=16) == pytest.approx(expected, rel=1e-12)
    assert equivariance_error(network, image, max_side=48) != pytest.approx(expected, rel=1e-3)


def test_a_network_that_needs_whole_windows_gets_them_in_every_piece() -> None:
    network = WindowAttentionNetwork().make_exact()
    errors = equivariance_error(network, random_images(1, 3, 40, 24), max_side=32)
    assert max(errors.values()) < 1e-10


class LargestTensor(TorchDispatchMode):
    """The most numbers in any tensor that an operation returns without a share in the images' memory."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.most = 0
        self._memory = images.untyped_storage().data_ptr()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() != self._memory:
                self.most = max(self.most, leaf.numel())
        return result


def test_memory_is_bounded_by_a_piece_whatever_the_image() -> None:
    network, most = plain_network().float(), {}
    for size in ((600, 400), (128, 64)):
        images = torch.rand(2, 3, *size)
        with LargestTensor(images) as largest:
            equivariance_error(network, images, 1, max_side=64)
        most[size] = largest.most
    assert most[600, 400] == most[128, 64] == 8 * 64 * 64  # the widest layer has 8 channels


# ----------------------------------------------------------------------------------------------- kinds of networks


@pytest.mark.parametrize("build", [plain_network, WindowAttentionNetwork, lambda: SubPixelNetwork("both")])
def test_an_exported_program_has_the_errors_of_its_module(build: Any) -> None:
    network, images = build().eval(), random_images(2, 3, 8, 8)
    program = torch.export.export(network, (images[:1],)).module()
    expected = equivariance_error_by_element(network, images)
    found = equivariance_error_by_element(program, images)
    assert found.keys() == expected.keys()
    for element, errors in expected.items():
        assert list(found[element]) == list(errors)
        assert found[element] == pytest.approx(errors, rel=1e-9)


@pytest.mark.parametrize("outputs", [lambda y: (y, y), lambda y: {"restored": y}, lambda y: [y], lambda y: y[0]])
def test_a_network_with_several_outputs_or_no_batch_is_refused(outputs: Any) -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, images: Tensor) -> Any:
            return outputs(self.layer(images))

    with pytest.raises(ValueError, match=r"returns one tensor \(B, C, H, W\)"):
        equivariance_error(Several(), torch.rand(1, 3, 6, 6))


def test_a_network_that_runs_other_layers_on_a_turned_image_is_refused() -> None:
    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))

        def forward(self, images: Tensor) -> Tensor:
            return (self.one if images.shape[-1] > images.shape[-2] else self.other)(images)

    with pytest.raises(ValueError, match="runs other layers on a turned image"):
        equivariance_error(Fickle(), torch.rand(1, 3, 6, 8), 1)
