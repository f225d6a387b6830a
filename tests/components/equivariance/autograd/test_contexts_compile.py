"""Under torch.compile: the same values and gradients as without."""

import copy
import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from components.equivariance import EquivarianceRegularizer
from tests.components.equivariance.exact import random_images
from tests.components.equivariance.plain_autograd import gradients_of, mean_square_error, plain_step
from tests.components.equivariance.small_networks import SubPixelNetwork

pytestmark = pytest.mark.process

WEIGHT = 0.7
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler, found none"
)


class Network(nn.Module):
    """Convolutions, one of them called twice, and ReLUs that write in place."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.body = nn.Conv2d(8, 8, 3, padding=1)
            self.last = nn.Conv2d(8, 3, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu(self.first(images))
        for _ in range(2):
            maps = self.relu(self.body(maps))
        return self.last(maps)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(network: nn.Module, backend: str) -> nn.Module:
    """``eager`` and ``aot_eager`` take the network apart as ``inductor`` does, and write no machine code."""
    return torch.compile(network, backend=backend)  # type: ignore[return-value]


def images_and_targets() -> tuple[Tensor, Tensor]:
    images = random_images(6, 3, 6, 6, dtype=torch.float32)
    return images, 0.5 * images


def assert_step_as_plain_autograd(
    regularizer: EquivarianceRegularizer, network: nn.Module, called: nn.Module, element: int
) -> None:
    network.zero_grad()
    batch = regularizer.pair(*images_and_targets(), element=element, num_pairs=2)
    output = called(batch.inputs)
    penalty = regularizer.penalty()
    (mean_square_error(output, batch.targets) + WEIGHT * penalty).backward()
    expected, gradients = plain_step(network, batch, WEIGHT)
    torch.testing.assert_close(penalty.detach(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients_of(network), gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("backend", "validates_first"),
    [
        ("eager", False),
        ("aot_eager", False),
        ("aot_eager", True),
        pytest.param("inductor", False, marks=[needs_compiler, pytest.mark.timeout(300)]),
    ],
)
def test_compiled_steps_with_validation_between_them_are_those_of_plain_autograd(
    backend: str, validates_first: bool
) -> None:
    network, images = Network(), random_images(2, 3, 6, 6, dtype=torch.float32, seed=8)
    called = compiled(network, backend)
    regularizer = EquivarianceRegularizer(network)

    def validate() -> None:
        network.eval()
        with torch.no_grad():
            torch.testing.assert_close(called(images), copy.deepcopy(network)(images))
        network.train()

    if validates_first:
        validate()
    for element in (1, 2, 3, 1):
        assert_step_as_plain_autograd(regularizer, network, called, element)
        validate()
    regularizer.detach()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert network._compiled_call_impl is None
    torch.testing.assert_close(called(images), copy.deepcopy(network)(images))


def test_a_network_compiled_in_place_is_watched_too() -> None:
    network = Network()
    network.compile(backend="aot_eager")
    compiled_call = network._compiled_call_impl
    regularizer = EquivarianceRegularizer(network)
    for element in (1, 2, 3):
        network.zero_grad()
        batch = regularizer.pair(*images_and_targets(), element=element, num_pairs=2)
        output, penalty = network(batch.inputs), regularizer.penalty()
        assert network._compiled_call_impl is compiled_call
        (mean_square_error(output, batch.targets) + WEIGHT * penalty).backward()
        expected, gradients = plain_step(network, batch, WEIGHT)
        torch.testing.assert_close(penalty.detach(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradients_of(network), gradients, rtol=1e-5, atol=1e-6)


def test_a_compiled_part_of_the_network_and_a_compiled_whole_around_it_are_watched_too() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Network()

        def forward(self, images: Tensor) -> Tensor:
            return images + self.inner(images)

    around = Around()
    called = compiled(around, "aot_eager")
    regularizer = EquivarianceRegularizer(around.inner)
    for element in (1, 2, 3):
        around.zero_grad()
        batch = regularizer.pair(*images_and_targets(), element=element, num_pairs=2)
        output, penalty = called(batch.inputs), regularizer.penalty()
        (mean_square_error(output, batch.targets) + WEIGHT * penalty).backward()
        expected, gradients = plain_step(around, batch, WEIGHT)
        torch.testing.assert_close(penalty.detach(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradients_of(around), gradients, rtol=1e-5, atol=1e-6)


def test_sub_pixel_layers_are_found_in_the_first_step_though_compiled() -> None:
    found = []
    for compiles in (False, True):
        network = SubPixelNetwork()
        called = compiled(network, "eager") if compiles else network
        regularizer = EquivarianceRegularizer(network)
        images = random_images(4, 3, 6, 6)
        for _ in range(3):
            called(regularizer.pair(images, images, element=1).inputs)
            regularizer.penalty()
            found.append(regularizer.layer_penalties())
    for penalties in found:
        assert penalties == pytest.approx(found[0], rel=1e-9)


def test_a_first_compiled_training_call_before_any_pair_is_refused_with_the_remedy() -> None:
    network = Network()
    called = compiled(network, "eager")
    images, targets = images_and_targets()
    called(images[[0, 0, 1, 1, 2, 3, 4, 5]]).sum().backward()  # of the paired batch's size
    regularizer = EquivarianceRegularizer(network)
    assert_step_as_plain_autograd(regularizer, network, called, 1)  # a first step runs as it is written
    batch = regularizer.pair(images, targets, num_pairs=2)
    called(batch.inputs)
    with pytest.raises(RuntimeError, match=r"first compiled call came after pair.*torch.compiler.reset\(\)"):
        regularizer.penalty()
    torch.compiler.reset()
    assert_step_as_plain_autograd(regularizer, network, called, 2)
