"""The nearest exactly equivariant weights of networks that are not of our own kind; oracle: the error of the output."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn.utils import spectral_norm
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

from components.equivariance import diagnose, equivariance_error, projected
from components.equivariance.diagnosis.projection import Fields

pytestmark = pytest.mark.unit


def convolution(inputs: int, outputs: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups)


class Repeated(nn.Module):
    """Calls one layer three times, and adds its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = convolution(3, 8), convolution(8, 8), convolution(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.first(images)
        for _ in range(3):
            maps = torch.relu(self.middle(maps)) + maps
        restored: torch.Tensor = self.last(maps) + images
        return restored


def normalised() -> nn.Module:
    """A normalisation and slopes with another value for each channel."""
    layers = (convolution(3, 8), nn.BatchNorm2d(8), nn.ReLU(), convolution(8, 8), nn.PReLU(8), convolution(8, 3))
    network = nn.Sequential(*layers)
    for layer in (network[1], network[4]):
        for value in layer.state_dict().values():
            if value.is_floating_point():
                nn.init.uniform_(value, 0.5, 1.5)
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "normalised": normalised,
    "depthwise": lambda: nn.Sequential(
        convolution(3, 8), nn.ReLU(), convolution(8, 8, 8), nn.ReLU(), convolution(8, 3)
    ),
    "grouped": lambda: nn.Sequential(
        convolution(3, 16), nn.ReLU(), convolution(16, 16, 2), nn.ReLU(), convolution(16, 3)
    ),
    "of odd widths": lambda: nn.Sequential(
        convolution(3, 7), nn.ReLU(), convolution(7, 5), nn.ReLU(), convolution(5, 3)
    ),
    "sub-pixel": lambda: nn.Sequential(convolution(3, 8), nn.ReLU(), convolution(8, 12), nn.PixelShuffle(2)),
    "transposed": lambda: nn.Sequential(convolution(3, 8), nn.ReLU(), nn.ConvTranspose2d(8, 3, 2, stride=2)),
    "repeated": Repeated,
    "one layer": lambda: convolution(3, 4),
}


@pytest.mark.parametrize("group", ["C4", "D4"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_output_of_a_projected_network_is_equivariant(kind: str, group: str) -> None:
    torch.manual_seed(0)
    network, images = NETWORKS[kind]().double().eval(), torch.rand(1, 3, 16, 12, dtype=torch.float64)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert equivariance_error(network, images)["output"] > 1e-2
    assert equivariance_error(projected(network, images[..., :12], group), images)["output"] < 1e-12
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("group", ["C4", "D4"])
def test_channel_groups_that_cut_through_regular_fields_need_trivial_ones(group: str) -> None:
    torch.manual_seed(0)
    layers = (convolution(3, 32), nn.ReLU(), convolution(32, 32, 16), nn.ReLU(), convolution(32, 3))
    network, images = nn.Sequential(*layers).double().eval(), torch.rand(1, 3, 12, 12, dtype=torch.float64)
    assert [each.kind for each in diagnose(network, images, group).layers[1].incompatibilities] == ["channel groups"]
    errors = [
        equivariance_error(projected(network, images, group, fields), images)["output"] for fields in get_args(Fields)
    ]
    assert errors[0] > 1e-2
    assert errors[1] < 1e-12


@pytest.mark.parametrize("wrapped", [weight_norm, spectral_norm])
def test_a_weight_that_is_computed_from_others_is_refused_by_the_name_of_its_layer(
    wrapped: Callable[[nn.Module], nn.Module],
) -> None:
    """Its parameters are not its kernel, so nothing would be projected."""
    network, images = nn.Sequential(convolution(3, 8), nn.ReLU(), wrapped(convolution(8, 3))), torch.rand(1, 3, 12, 12)
    with pytest.raises(ValueError, match="the weight of '2' is computed from other tensors, as that of a weight norm"):
        projected(network, images)


def test_without_its_weight_norm_a_network_can_be_projected() -> None:
    network, images = (
        nn.Sequential(convolution(3, 8), nn.ReLU(), weight_norm(convolution(8, 3))),
        torch.rand(1, 3, 9, 9),
    )
    remove_parametrizations(network[2], "weight")
    assert equivariance_error(projected(network, images), images)["output"] < 1e-6


def test_other_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="fields: 'regular': use auto or trivial"):
        projected(convolution(3, 4), torch.rand(1, 3, 8, 8), fields="regular")  # type: ignore[arg-type]
