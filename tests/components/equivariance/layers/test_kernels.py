"""A layer that computes its kernel from fewer weights is penalised, measured and projected by its kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.equivariance import EquivarianceRegularizer, diagnose, projected
from components.equivariance.layers.kernels import kernel_and_bias
from tests.components.equivariance.exact import random_images

pytestmark = pytest.mark.unit


class Repeated(nn.Conv2d):
    """A convolution of which each pair of input channels shares a kernel, and all outputs share a bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(outputs, inputs // 2, 3, 3))
        self.bias = nn.Parameter(torch.randn(1))

    def computed_kernel(self) -> Tensor:
        return self.weight.repeat_interleave(2, dim=1)

    def computed_bias(self) -> Tensor:
        assert self.bias is not None
        return self.bias.expand(self.out_channels)

    def forward(self, maps: Tensor) -> Tensor:
        return F.conv2d(maps, self.computed_kernel(), self.computed_bias(), padding=1)


def network(layer: Callable[[int, int], nn.Conv2d]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), layer(8, 8), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)
    ).double()


def with_repeated_kernels() -> tuple[nn.Sequential, nn.Sequential]:
    """A network with such a layer, and the same with a plain convolution of its kernel."""
    repeated, plain = network(Repeated), network(lambda inputs, outputs: nn.Conv2d(inputs, outputs, 3, padding=1))
    for number in (0, 4):
        plain[number].load_state_dict(repeated[number].state_dict())
    with torch.no_grad():
        plain[2].weight.copy_(repeated[2].computed_kernel())
        plain[2].bias.copy_(repeated[2].computed_bias())
    return repeated, plain


def penalties(model: nn.Module, options: dict[str, Any]) -> dict[str, float]:
    regularizer = EquivarianceRegularizer(model.train(), **options)
    images = random_images(4, 3, 8, 8)
    for _ in range(2):  # the first step compares in another way than the others
        model.zero_grad()
        batch = regularizer.pair(images, images, element=1, shift=1)
        model(batch.inputs)
        regularizer.penalty().backward()
    return regularizer.layer_penalties()


@pytest.mark.parametrize("scale_gradient", [False, True])
@pytest.mark.parametrize("penalty", ["regular", "channel", "rotation+channel", "projection", "paper"])
def test_penalties_and_gradients_are_those_of_the_kernel(penalty: str, scale_gradient: bool) -> None:
    repeated, plain = with_repeated_kernels()
    options = {"penalty": penalty, "scale_gradient": scale_gradient, "max_gradient_ratio": None}
    found, expected = penalties(repeated, options), penalties(plain, options)
    assert found == pytest.approx(expected, rel=1e-9)
    assert found["2"] > 1e-3
    gradient = plain[2].weight.grad.unflatten(1, (-1, 2)).sum(dim=2)
    torch.testing.assert_close(repeated[2].weight.grad, gradient)
    assert gradient.abs().max() > 0
    if plain[2].bias.grad is not None:
        torch.testing.assert_close(repeated[2].bias.grad, plain[2].bias.grad.sum()[None])


def test_the_kernel_of_a_plain_layer_is_its_weight() -> None:
    for layer in (nn.Conv2d(3, 8, 3), nn.Linear(3, 8), nn.ConvTranspose2d(3, 8, 3, bias=False)):
        kernel, bias = kernel_and_bias(layer)
        assert kernel is layer.weight
        assert bias is layer.bias


def test_weights_that_are_no_entries_of_a_kernel_are_not_projected() -> None:
    repeated, _ = with_repeated_kernels()
    copy = projected(repeated, random_images(1, 3, 8, 8))
    kept = [name for name, value in copy.named_parameters() if torch.equal(value, repeated.get_parameter(name))]
    assert kept == ["2.weight", "2.bias", "4.bias"]  # the last one is the bias of an image, which nothing turns


def test_a_bias_that_is_no_value_for_each_channel_is_not_called_untied() -> None:
    repeated, plain = with_repeated_kernels()
    assert [each.name for each in diagnose(repeated, random_images(1, 3, 8, 8)).untied] == ["0.bias"]
    plain[2].bias.data[0] += 1
    assert {each.name for each in diagnose(plain, random_images(1, 3, 8, 8)).untied} == {"0.bias", "2.bias"}
