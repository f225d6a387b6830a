"""A projection is exact in the fields that the structure of a network leaves, and the diagnosis says which."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.equivariance import diagnose, equivariance_error, projected
from components.equivariance.layers.tracing import tracing
from tests.components.equivariance.layers.test_tracing import Dictionary, Joined, OfABasis

pytestmark = pytest.mark.unit

EXACT = 1e-12


def images(channels: int = 1) -> Tensor:
    return torch.rand(1, channels, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def errors(network: nn.Module, inputs: Tensor, group: str = "C4") -> dict[str, float]:
    return equivariance_error(network, inputs, group=group)


@pytest.mark.parametrize("group", ["C2", "C4", "D4"])
def test_a_dictionary_and_its_adjoint_are_exact_in_their_own_fields(group: str) -> None:
    """The maps are regular fields, and the images that are made of them trivial ones."""
    network = Dictionary().double()
    before = errors(network, images(), group)
    assert min(before["atoms (adjoint)"], before["output"]) > 1e-2
    found = errors(projected(network, images(), group), images(), group)
    assert found.keys() == {"first_atoms", "atoms", "atoms (adjoint)", "output"}
    assert max(found.values()) < EXACT


class Copies(nn.Module):
    """A parameter holds several kernels, of which the second is used."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.Parameter(torch.rand(3, 8, 1, 3, 3))
        self.last = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(F.conv2d(images, self.kernels[1], padding=1).relu())


def test_the_copies_of_a_kernel_in_one_parameter_are_projected_each_as_the_kernel() -> None:
    network = Copies().double()
    copy = projected(network, images())
    assert max(errors(copy, images()).values()) < EXACT < 1e-2 < errors(network, images())["output"]
    alone = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)).double()
    alone[0].weight.data.copy_(network.kernels[2])
    torch.testing.assert_close(copy.kernels[2], projected(alone, images())[0].weight)  # type: ignore[index, union-attr]


def test_factors_of_a_fixed_basis_are_left_as_they_are_and_the_diagnosis_says_so() -> None:
    network = nn.Sequential(OfABasis(), nn.ReLU(), nn.Conv2d(2, 1, 3, padding=1)).double()
    copy = projected(network, images())
    assert torch.equal(copy[0].factors, network[0].factors)  # type: ignore[index, union-attr, arg-type]
    assert errors(copy, images())["output"] > 1e-3
    first, last = diagnose(network, images()).layers
    assert (first.name, last.name) == ("0.factors", "2")
    assert first.notes == (
        "no module calls it, so it is measured here and no penalty compares it",
        "its kernel is computed from 0.factors, so no projection changes it",
    )
    assert last.notes == ()


@pytest.mark.parametrize("features", [5, 9, 4, 1])
def test_layers_whose_channels_are_cut_within_fields_become_trivial_fields(features: int) -> None:
    """The image is three of their channels; what lies between the two layers of a block stays a regular field."""
    network = Joined(features).double()
    copy = projected(network, images(3))
    with torch.no_grad():
        assert errors(copy, images(3))["output"] < EXACT < 1e-2 < errors(network, images(3))["output"]
    kernel = copy.second.weight  # type: ignore[union-attr]
    # A kernel from trivial fields to trivial fields is symmetric, and one from regular fields is not.
    is_symmetric = torch.allclose(kernel, kernel.rot90(1, (2, 3)), rtol=0, atol=1e-12)  # type: ignore[operator, arg-type]
    assert is_symmetric == bool((3 + features) % 4)


@pytest.mark.parametrize(
    ("features", "limits"),
    [
        (5, {"beside": "channels", "second": "cut"}),  # 5 channels; 8 channels, cut after 3
        (1, {"beside": "channels", "second": "cut"}),  # 4 channels, cut after 3
        (4, {"beside": "cut", "first": "channels", "second": "channels"}),  # 4 channels, joined with 3; 7 channels
    ],
)
def test_the_diagnosis_names_the_layers_whose_fields_are_cut(features: int, limits: dict[str, str]) -> None:
    report = diagnose(Joined(features).double(), images(3))
    assert {layer.name: each.kind for layer in report.layers for each in layer.incompatibilities} == limits
    (reason,) = {each.reason for layer in report.layers for each in layer.incompatibilities if each.kind == "cut"}
    assert reason == "its channels are sliced, or joined with others, after 3, through regular fields of 4"
    assert report.can_be_exact
    assert f"only with trivial fields, so symmetric kernels, in {len(limits)} of 4 layers" in report.verdict


def test_halves_of_whole_fields_are_not_cut() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.last = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            first, second = self.both(images).chunk(2, dim=1)
            return self.last(first * second)

    network = Gated().double()
    assert all(layer.incompatibilities == () for layer in diagnose(network, images()).layers)
    copy = projected(network, images())
    assert max(errors(copy, images()).values()) < EXACT
    assert not torch.allclose(copy.both.weight, copy.both.weight.rot90(1, (2, 3)))  # type: ignore[union-attr, operator, arg-type]
    with tracing(network) as trace:
        network(images())
    assert trace.calls[0].cuts == {8}
