"""The nearest exactly equivariant weights of networks that are not of our own kind, and what the diagnosis says.

The oracle is the error of the output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

from components.equivariance import diagnose, equivariance_error, projected
from components.equivariance.diagnosis.projection import Fields
from components.equivariance.layers.tracing import tracing
from tests.components.equivariance.layers.test_tracing import Dictionary, Joined, OfABasis

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


# ------------------------------------------------------------------- weights in two roles, copies, bases, cut channels

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


# --------------------------------------------------------------------------------------------------- computed kernels


class Oriented(nn.Module):
    """Kernels in several orientations, each a quarter turn or no turn after the one before."""

    basis: Tensor

    def __init__(self, turns: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("basis", torch.rand(6, 3, 3))
        self.factors = nn.Parameter(torch.rand(2, 6))
        self.last = convolution(2 * len(turns), 1)
        self.turns = turns

    def forward(self, images: Tensor) -> Tensor:
        kernels = torch.einsum("fhw,kf->khw", self.basis, self.factors)
        turned = torch.stack([kernels.rot90(turn, (1, 2)) for turn in self.turns], dim=1).flatten(0, 1)  # (2 n, 3, 3)
        restored: Tensor = self.last(F.conv2d(images, turned[:, None], padding=1).relu())
        return restored


@pytest.mark.parametrize(
    ("turns", "group", "fits"),
    [
        ((0, 1, 2, 3), "C4", True),
        ((0, 3, 2, 1), "C4", False),
        ((0, 0, 1, 1, 2, 2, 3, 3), "C4", False),  # a turn moves the channels by two
        ((0, 2), "C2", True),
        ((0, 1, 2, 3), "C2", False),
    ],
)
def test_a_computed_kernel_that_turns_with_other_fields_is_named(
    turns: tuple[int, ...], group: str, fits: bool
) -> None:
    """The oracle is the error of its output, which no weight of another layer changes."""
    torch.manual_seed(0)
    network = Oriented(turns).double()
    first, last = diagnose(network, images(), group).layers
    assert [each.kind for each in first.incompatibilities] == ([] if fits else ["kernel"])
    assert last.incompatibilities == ()
    assert (errors(network, images(), group)["factors"] < EXACT) == fits
    if not fits:
        (limit,) = first.incompatibilities
        assert limit.reason.startswith("its kernel, which is computed from factors, does not keep the fields")
        assert not limit.is_fatal


class OfCoefficients(nn.Module):
    """As many coefficients as its kernels have entries, of a basis that is not that of the pixels."""

    basis: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("basis", torch.linalg.qr(torch.rand(9, 9, dtype=torch.float64))[0].view(9, 3, 3))
        self.coefficients = nn.Parameter(torch.rand(8, 1, 9, dtype=torch.float64))
        self.last = convolution(8, 1)

    def forward(self, images: Tensor) -> Tensor:
        kernels = torch.einsum("oij,jhw->oihw", self.coefficients, self.basis)
        restored: Tensor = self.last(F.conv2d(images, kernels, padding=1).relu())
        return restored


def test_coefficients_are_no_kernel_although_there_are_as_many() -> None:
    network = OfCoefficients().double()
    copy = projected(network, images())
    assert torch.equal(copy.coefficients, network.coefficients)  # type: ignore[arg-type]
    notes = diagnose(network, images()).layers[0].notes
    assert "its kernel is computed from coefficients, so no projection changes it" in notes


# ---------------------------------------------------------------------------------------------------- gates and strips


class Halves(nn.Module):
    """A gate of the halves of its channels, by torch's own function."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.both, self.last = convolution(1, channels), convolution(channels // 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        restored: Tensor = self.last(F.glu(self.both(images), dim=1))
        return restored


@pytest.mark.parametrize(("channels", "limits"), [(12, ["split"]), (16, [])])
def test_the_gate_of_torch_splits_its_channels(channels: int, limits: list[str]) -> None:
    network = Halves(channels).double()
    assert [each.kind for each in diagnose(network, images()).layers[0].incompatibilities] == limits
    assert errors(network, images())["output"] > 1e-2
    assert errors(projected(network, images()), images())["output"] < EXACT


@pytest.mark.parametrize(("groups", "limits"), [(1, []), (2, []), (4, ["split"]), (8, [])])
def test_the_groups_of_a_norm_must_be_whole_fields_or_single_channels(groups: int, limits: list[str]) -> None:
    network = nn.Sequential(convolution(1, 8), nn.GroupNorm(groups, 8), nn.ReLU(), convolution(8, 1)).double()
    assert [each.kind for each in diagnose(network, images()).layers[0].incompatibilities] == limits
    assert errors(network, images())["output"] > 1e-2
    assert errors(projected(network, images()), images())["output"] < EXACT


def test_a_kernel_that_is_not_square_is_refused_by_the_name_of_its_layer() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, (1, 3), padding=(0, 1)), nn.ReLU(), convolution(4, 1)).double()
    with pytest.raises(ValueError, match=r"network: '0': kernel_size \(1, 3\) is not square"):
        projected(network, images())
    assert errors(projected(network, images(), "C2"), images(), "C2")["output"] < EXACT
