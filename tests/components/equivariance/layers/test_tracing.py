"""A trace tells the roles of a weight apart, and knows where channels are cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.equivariance.diagnosis.equivariance_error import specs_of
from components.equivariance.layers.tracing import Trace, tracing

pytestmark = pytest.mark.unit


def traced(network: nn.Module, *images: Tensor) -> Trace:
    with torch.no_grad(), tracing(network) as trace:
        network(*images)
    return trace


class Dictionary(nn.Module):
    """Codes by the adjoint of a dictionary, and gives their synthesis."""

    def __init__(self) -> None:
        super().__init__()
        self.atoms = nn.Parameter(torch.rand(1, 8, 3, 3))
        self.first_atoms = nn.Parameter(torch.rand(1, 8, 3, 3))

    def forward(self, images: Tensor) -> Tensor:
        codes = F.relu(F.conv_transpose2d(images, self.first_atoms / 10, padding=1))
        for _ in range(2):
            left = images - F.conv2d(codes, self.atoms / 10, padding=1)
            codes = F.relu(codes + F.conv_transpose2d(left, self.atoms / 10, padding=1))
        return F.conv2d(codes, self.atoms / 10, padding=1)


def test_a_weight_that_a_convolution_and_its_adjoint_share_is_two_layers() -> None:
    trace = traced(Dictionary(), torch.rand(1, 1, 7, 7))
    assert [call.name for call in trace.calls] == [
        "first_atoms",
        *["atoms", "atoms (adjoint)"] * 2,
        "atoms",
    ]
    assert {call.parameter for call in trace.calls[1:]} == {"atoms"}
    specs = specs_of(trace)
    assert (specs["atoms"].inputs, specs["atoms"].outputs, specs["atoms"].field) == (8, 1, "trivial")
    adjoint = specs["atoms (adjoint)"]
    assert (adjoint.inputs, adjoint.outputs, adjoint.field) == (1, 8, "regular")


class OfABasis(nn.Module):
    """Two kernels, each a sum of functions of a fixed basis."""

    basis: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("basis", torch.rand(4, 3, 3))
        self.factors = nn.Parameter(torch.rand(2, 4))

    def forward(self, images: Tensor) -> Tensor:
        kernels = torch.einsum("fhw,kf->khw", 2 * self.basis, self.factors)[:, None]
        return F.conv2d(images, kernels, padding=1)


def test_a_kernel_made_of_a_fixed_basis_has_the_name_of_its_factors() -> None:
    assert [(call.name, call.parameter) for call in traced(OfABasis(), torch.rand(1, 1, 5, 5)).calls] == [
        ("factors", "factors")
    ]


class Joined(nn.Module):
    """Features beside the image, refined by a residual block, and split again by ``part``."""

    def __init__(self, features: int, part: Callable[[Tensor], Tensor] = lambda maps: maps[:, :3]) -> None:
        super().__init__()
        self.beside = nn.Conv2d(3, features, 3, padding=1)
        self.first = nn.Conv2d(3 + features, 3 + features, 3, padding=1)
        self.second = nn.Conv2d(3 + features, 3 + features, 3, padding=1)
        self.last = nn.Conv2d(3, 3, 3, padding=1)
        self.part = part

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.cat((images, self.beside(images)), dim=1)
        return self.last(self.part(F.relu(maps + self.second(F.relu(self.first(maps))))))


def cuts(network: nn.Module, *images: Tensor) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Layer -> the cuts of its output and of its input."""
    return {name: (spec.cuts, spec.input_cuts) for name, spec in specs_of(traced(network, *images)).items()}


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(lambda maps: maps[:, :3], id="slice"),
        pytest.param(lambda maps: maps.narrow(1, 0, 3), id="narrow"),
        pytest.param(lambda maps: maps.split((3, 5), dim=1)[0], id="split"),
        pytest.param(lambda maps: torch.split(maps, [3, 5], 1)[0], id="torch.split"),
    ],
)
def test_maps_that_are_joined_with_others_and_what_is_added_to_them_are_cut_there(
    part: Callable[[Tensor], Tensor],
) -> None:
    assert cuts(Joined(5, part), torch.rand(1, 3, 6, 6)) == {
        "beside": ((3,), ()),
        "first": ((), (3,)),  # between both layers of the block, nothing is cut
        "second": ((3,), ()),
        "last": ((), ()),
    }


class Sliced(nn.Module):
    """Two layers that are added, and a slice of the first one alone."""

    def __init__(self, part: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(1 if k == 0 else 6, 6, 3, padding=1) for k in range(3))
        self.last = nn.Conv2d(6, 1, 3, padding=1)
        self.part = part

    def forward(self, images: Tensor) -> Tensor:
        one = self.one(images)
        two = self.two(one.relu())
        three = self.three((one + two).relu())
        return self.last(three) + self.part(one).mean()


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        pytest.param(lambda maps: maps[:, 2:5], (2, 5), id="slice"),
        pytest.param(lambda maps: maps[:, 2], (2, 3), id="one channel"),
        pytest.param(lambda maps: maps[:, ::2], (1, 2, 3, 4, 5), id="every second"),
        pytest.param(lambda maps: maps.chunk(2, dim=1)[0], (3,), id="chunk"),
        pytest.param(lambda maps: maps.chunk(2, dim=2)[0], (), id="chunk of rows"),
        pytest.param(lambda maps: maps[:, :], (), id="everything"),
        pytest.param(lambda maps: maps[:, :, :3], (), id="rows"),
        pytest.param(lambda maps: maps[:1], (), id="images"),
        pytest.param(lambda maps: maps.permute(0, 2, 3, 1)[:, :3], (), id="rows of channels last"),
    ],
)
def test_a_slice_of_channels_cuts_all_layers_that_are_added_to_it(
    part: Callable[[Tensor], Tensor], expected: tuple[int, ...]
) -> None:
    found = cuts(Sliced(part), torch.rand(1, 1, 8, 7))
    assert found["one"] == (expected, ())
    assert found["two"] == (expected, expected)
    assert found["three"] == ((), expected)  # it reads their sum
    assert found["last"] == ((), ())


def test_an_exported_program_has_the_same_cuts() -> None:
    network, images = Joined(5).eval(), torch.rand(1, 3, 6, 6)
    program = torch.export.export(network, (images,)).module()
    assert cuts(program, images) == cuts(network, images)
