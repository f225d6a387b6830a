"""With exactly equivariant convolutions the networks are exactly equivariant; the regulariser and the doctor see it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.equivariance import EquivarianceRegularizer, diagnose
from tests.components.equivariance.exact import random_images
from tests.components.networks.exact_networks import convolutions, exact_network, random_network

pytestmark = pytest.mark.unit

RESTORATIONS = [(name, scale) for name in ("dncnn", "unet") for scale in (1, 2, 3, 4)]
STACK: dict[str, object] = {"in_channels": 5, "out_channels": 3, "width": 8, "depth": 3}


def change(network: nn.Module, images: Tensor, element: int) -> float:
    """How much the output of turned images differs from the turned output, relative to its size."""
    with torch.inference_mode():
        output, turned = network(images), network(images.rot90(element, (-2, -1)))
    expected = output.rot90(element, (-2, -1)) if output.ndim == 4 else output
    return float((turned - expected).norm() / output.norm())


@pytest.mark.parametrize("element", [1, 2, 3])
@pytest.mark.parametrize(("name", "scale"), RESTORATIONS)
def test_a_restoration_with_exact_kernels_turns_with_its_stack_of_inputs(name: str, scale: int, element: int) -> None:
    images = random_images(2, 5, 12, 20)
    assert change(exact_network(name, scale=scale, norm="batch", **STACK), images, element) < 1e-12
    assert change(random_network(name, scale=scale, norm="batch", **STACK), images, element) > 0.05


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_enlarging_commutes_with_quarter_turns_at_odd_sizes(scale: int) -> None:
    assert change(exact_network("dncnn", scale=scale, **STACK), random_images(1, 5, 7, 11), 1) < 1e-12


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("element", [1, 2, 3])
@pytest.mark.parametrize("size", [(16, 16), (8, 8), (12, 20)])
def test_logits_of_exact_kernels_are_invariant_where_all_poolings_meet_the_grid(
    size: tuple[int, int], element: int, norm: str
) -> None:
    images = random_images(2, 3, *size)
    exact = exact_network("resnet", width=8, depth=3, classes=10, norm=norm)
    assert change(exact, images, element) < 1e-12
    assert change(random_network("resnet", width=8, depth=3, classes=10, norm=norm), images, element) > 1e-2
    with torch.inference_mode():
        first, second = exact(images)
    assert (first - second).norm() > 1e-2 * first.norm()  # invariant, not constant


@pytest.mark.parametrize("size", [13, 14])
def test_logits_are_not_exactly_invariant_where_a_pooling_does_not_meet_the_grid(size: int) -> None:
    network = exact_network("resnet", width=8, depth=3, classes=10)
    assert change(network, random_images(1, 3, size, size), 1) > 1e-5
    assert change(exact_network("resnet", width=8, depth=1, classes=10), random_images(1, 3, size, size), 1) < 1e-12


@pytest.mark.parametrize(
    ("size", "can_be_exact", "fitting_size"), [(16, True, None), (13, False, (12, 12)), (14, False, (12, 12))]
)
def test_the_doctor_says_whether_logits_can_be_invariant(
    size: int, can_be_exact: bool, fitting_size: tuple[int, int] | None
) -> None:
    found = diagnose(random_network("resnet", width=8, depth=3, norm="none"), random_images(1, 3, size, size))
    assert found.output == "no place"
    assert "exactly invariant" in found.verdict
    assert (found.can_be_exact, found.fitting_size) == (can_be_exact, fitting_size)
    assert {kind for _, incompatibility in found.fatal if (kind := incompatibility.kind)} == (
        set() if can_be_exact else {"pool"}
    )


@pytest.mark.parametrize(("name", "scale"), [("dncnn", 2), ("unet", 3)])
def test_the_doctor_finds_nothing_against_an_enlarging_network(name: str, scale: int) -> None:
    found = diagnose(random_network(name, scale=scale, **STACK), random_images(1, 5, 12, 12))
    assert (found.output, found.can_be_exact) == ("image", True)
    assert found.layers[-1].field == "trivial"
    assert not any(layer.incompatibilities for layer in found.layers)


def penalties_of_a_step(network: nn.Module, scale: int) -> dict[str, float]:
    """One regularised step, backward pass included, of low-resolution inputs and their targets; by layer."""
    regularizer = EquivarianceRegularizer(network.train())
    targets = random_images(4, 3, 12 * scale, 12 * scale, seed=7)
    batch = regularizer.pair(random_images(4, 5, 12, 12), targets, element=1)
    output = network(batch.inputs)
    assert output.shape == batch.targets.shape
    penalty = regularizer.penalty()
    (F.l1_loss(output, batch.targets) + penalty).backward()
    assert regularizer.skipped == {}
    assert all(
        bool(parameter.grad.isfinite().all()) for parameter in network.parameters() if parameter.grad is not None
    )
    return {name: float(value) for name, value in regularizer.layer_penalties().items()}


@pytest.mark.parametrize(("name", "scale"), [("dncnn", 1), ("dncnn", 2), ("unet", 3)])
def test_the_penalty_of_every_layer_is_zero_with_exact_kernels_and_not_with_others(name: str, scale: int) -> None:
    exact = exact_network(name, scale=scale, **STACK)
    found = penalties_of_a_step(exact, scale)
    assert set(found) == set(convolutions(exact))
    assert max(found.values()) < 1e-20
    other = random_network(name, scale=scale, **STACK)
    assert min(penalties_of_a_step(other, scale).values()) > 1e-2
    assert all(float(parameter.grad.norm()) > 0 for parameter in other.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "scale"), [("dncnn", 2), ("unet", 3)])
def test_sub_pixels_out_of_order_are_penalised_at_the_last_layer_alone(name: str, scale: int) -> None:
    network = exact_network(name, scale=scale, **STACK)
    last = list(convolutions(network).values())[-1]
    last.weight.data = last.weight.data.unflatten(0, (3, -1)).roll(1, 1).flatten(0, 1)
    *hidden, at_the_last = penalties_of_a_step(network, scale).values()
    assert max(hidden) < 1e-20
    assert at_the_last > 1e-2


@pytest.mark.parametrize("classes", [10, 100])
def test_the_regulariser_penalises_all_convolutions_of_a_classifier_and_leaves_its_linear_layer(classes: int) -> None:
    def penalties(network: nn.Module) -> dict[str, float]:
        regularizer = EquivarianceRegularizer(network.train())
        images, labels = random_images(8, 3, 16, 16), torch.arange(8)
        batch = regularizer.pair(images, labels, fields={"targets": "invariant"}, element=3)
        assert batch.targets.tolist() == [0, 1, 0, 1, *range(4, 8)]
        (F.cross_entropy(network(batch.inputs), batch.targets) + regularizer.penalty()).backward()
        assert list(regularizer.skipped) == ["classifier"]
        assert "no place" in regularizer.skipped["classifier"]
        return {name: float(value) for name, value in regularizer.layer_penalties().items()}

    exact, other = (make("resnet", width=8, depth=3, classes=classes) for make in (exact_network, random_network))
    found = penalties(exact)
    assert set(found) == set(convolutions(exact))
    assert max(found.values()) < 1e-20
    assert min(penalties(other).values()) > 0.1
    assert all(bool(parameter.grad.isfinite().all()) for parameter in other.parameters())  # type: ignore[union-attr]


def test_kernels_of_a_classifier_are_projected_but_for_its_linear_layer() -> None:
    network = exact_network("resnet", in_channels=3, classes=8, width=8, depth=2).train()
    regularizer = EquivarianceRegularizer(network, penalty="projection", pairing="none")
    images, labels = random_images(4, 3, 16, 16), torch.arange(4)
    batch = regularizer.pair(images, labels, fields={"targets": "invariant"})
    network(batch.inputs)
    assert regularizer.penalty() < 1e-20  # its kernels are exact; the linear layer's are anything
    assert "no place" in regularizer.skipped["classifier"]
