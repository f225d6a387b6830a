"""The equivariance error of a network, at any time."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from components.equivariance import EquivarianceRegularizer, equivariance_error
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [(8, 8), (9, 9), (7, 10)])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_an_exact_network_has_no_error_anywhere(turns: int, size: tuple[int, int], dtype: torch.dtype) -> None:
    errors = equivariance_error(exact_network(dtype), random_images(2, 3, *size, dtype=dtype), turns)
    assert list(errors) == ["0", "2", "4", "output"]
    assert max(errors.values()) < (1e-12 if dtype == torch.float64 else 1e-5)


def _expected_errors(network: nn.Sequential, images: Tensor, turns: tuple[int, ...]) -> dict[str, float]:
    """Layer by layer, pixel by pixel, for a sequence of convolutions "0", "2", "4" with ReLU between."""
    sizes: dict[str, list[float]] = {"0": [], "2": [], "4": [], "output": []}
    for image in images:
        for n in turns:
            first, second = image[None], loop_rotate(image[None], n)
            for name, module in network.named_children():
                first, second = module(first), module(second)
                if name in ("0", "2"):
                    sizes[name].append(loop_size(second, loop_regular(first, n)))
            sizes["4"].append(loop_size(second, loop_rotate(first, n)))
            sizes["output"].append(sizes["4"][-1])
    return {name: math.sqrt(sum(values) / len(values)) for name, values in sizes.items()}


@pytest.mark.parametrize("turns", [(1,), (2,), (3,), (1, 2, 3)])
def test_the_error_is_the_root_of_the_mean_size_over_images_and_turns(turns: tuple[int, ...]) -> None:
    network, images = plain_network(), random_images(3, 3, 5, 6)
    expected = _expected_errors(network, images, turns)
    assert equivariance_error(network, images, turns) == pytest.approx(expected, rel=1e-9)


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
    batch = regularizer.pair(images, images, turns=1)
    network(batch.inputs)
    undisturbed = regularizer.penalty()
    batch = regularizer.pair(images, images, turns=1)
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
    for images, turns in ((random_images(0, 3, 6, 6), 1), (random_images(3, 6, 6), 1), (random_images(1, 3, 6, 6), ())):
        with pytest.raises(ValueError, match="must be"):
            equivariance_error(network, images, turns)


def test_a_network_that_returns_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="returns one tensor"):
        equivariance_error(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()), torch.rand(1, 3, 6, 6))
