"""DICDNet and OSCNet: what their fingerprints cannot say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from components.equivariance import diagnose, equivariance_error, projected
from components.equivariance.groups import Group, group_named
from components.networks.unrolled.dictionary import analysis
from components.networks.unrolled.oscnet import OrientedKernels, oriented_basis
from tests.components.networks.fingerprints.oscnet import reference_basis
from tests.components.networks.small import random, stack

pytestmark = pytest.mark.unit


def waves(orientations: int) -> np.ndarray:
    """``w cos(a x + b y)`` and ``w sin(a x + b y)`` of all 25 pairs a, b in all orientations, one column each."""
    side = np.linspace(-1, 1, 9)
    x, y = np.meshgrid(side, side)
    window = np.exp(-np.maximum(x**2 + y**2 - 1, 0) / 0.2)
    multiples = 4 * np.pi / 5 * np.arange(-2, 3)
    columns = []
    for wave in (np.cos, np.sin):
        for a in multiples:
            for b in multiples:
                turned = []
                for angle in 2 * np.pi * np.arange(orientations) / orientations:
                    u, v = x * np.cos(angle) - y * np.sin(angle), y * np.cos(angle) + x * np.sin(angle)
                    turned.append(window * wave(a * u + b * v))
                columns.append(np.stack(turned, axis=-1).ravel())
    return np.stack(columns, axis=-1)  # (81 n, 50)


@pytest.mark.parametrize("orientations", [1, 3, 4, 6, 8])
def test_the_basis_holds_the_principal_components_of_turned_waves(orientations: int) -> None:
    """By a singular value decomposition of all of them; functions of equal singular values are compared as planes."""
    functions, factors = oriented_basis(orientations)
    own = (functions / factors).reshape(-1, len(factors)).numpy()
    np.testing.assert_allclose(own.T @ own, np.eye(len(factors)), atol=1e-6)
    left, values, _ = np.linalg.svd(waves(orientations), full_matrices=False)
    kept = values**2 > 1e-4
    assert kept.sum() == len(factors)
    start = 0
    for stop in [*(np.flatnonzero(np.diff(values[kept]) < -1e-6 * values[0]) + 1), len(factors)]:
        ours, theirs = own[:, start:stop], left[:, start:stop]
        np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-6)
        start = stop


@pytest.mark.parametrize("orientations", [1, 2, 5, 8])
def test_a_function_that_changes_more_with_the_orientation_has_a_smaller_factor(orientations: int) -> None:
    """By the standard deviations and means of numpy."""
    functions, factors = oriented_basis(orientations)
    values = (functions / factors).numpy().reshape(81, orientations, -1)
    sums, squares = values.sum(axis=0) ** 2, 81 * (values**2).sum(axis=0)
    change = (sums.std(axis=0) + squares.std(axis=0)) / (sums + squares).mean(axis=0)
    np.testing.assert_allclose(factors.numpy(), 1 / np.maximum(change, 0.04) / 25)
    assert 0 < factors.min() <= factors.max() <= 1
    assert orientations != 8 or factors.min() < 0.2


def test_the_basis_of_the_reference_spans_the_same_functions_with_the_same_factors() -> None:
    own, factors = oriented_basis(8)
    theirs = (reference_basis().double() / factors).reshape(-1, 25)
    ours = (own / factors).reshape(-1, 25)
    torch.testing.assert_close(theirs @ theirs.T, ours @ ours.T, rtol=0, atol=1e-6)


@pytest.mark.parametrize("orientations", [4, 8, 12])
def test_a_quarter_turn_of_the_dictionary_is_its_next_orientation_but_some(orientations: int) -> None:
    torch.manual_seed(0)
    kernels = OrientedKernels(3, orientations).double()().detach().unflatten(1, (3, orientations))  # (1, 3, n, 9, 9)
    assert kernels.std() > 0.01
    turned = kernels.rot90(1, (-2, -1))
    torch.testing.assert_close(turned, kernels.roll(-orientations // 4, dims=2), rtol=0, atol=1e-14)


def test_the_orientations_between_turn_the_kernel_by_their_angle() -> None:
    """The centre of what a kernel holds on one side turns by 45 degrees, up to the grid."""
    torch.manual_seed(0)
    kernels = OrientedKernels(20, 8)().detach().double().numpy().reshape(20, 8, 9, 9)
    y, x = np.mgrid[-4:5, -4:5]
    inside = x**2 + y**2 <= 16
    first = (kernels * inside * (x + 1j * -y)).sum(axis=(-2, -1))  # the first moment, y upwards
    ratio = first[:, 1] / first[:, 0]
    strong = np.abs(first[:, 0]) > np.median(np.abs(first[:, 0]))
    np.testing.assert_allclose(np.angle(ratio[strong]), np.pi / 4, atol=0.2)


def test_the_maps_of_a_kernel_are_a_regular_field_of_the_group_of_its_orientations() -> None:
    """Of a smooth image, which turns by 45 degrees with little loss; its inner part is compared."""
    torch.manual_seed(0)
    kernels = OrientedKernels(2, 8)().detach().double()
    image = F.interpolate(torch.rand(1, 1, 8, 8, dtype=torch.float64), size=(64, 64), mode="bicubic")

    def residual(group: Group, element: int) -> float:
        expected = group.act(analysis(image, kernels), element, "regular")
        found = analysis(group.spatial(image, element), kernels)
        return float((found - expected)[..., 20:44, 20:44].norm() / found[..., 20:44, 20:44].norm())

    assert residual(group_named("C8"), 2) < 1e-12  # a quarter turn
    assert residual(group_named("C8"), 1) < 0.05
    assert residual(group_named("C4"), 1) > 0.3


def test_the_bias_of_the_dictionary_is_added_in_the_first_stage_alone() -> None:
    network, inputs = random("oscnet").published, stack(random("oscnet"))
    image, interpolated, metal = inputs[:, :1], inputs[:, 1:2], inputs[:, 2:]
    before = network(255 * image, 255 * interpolated, 1 - metal)  # type: ignore[operator]
    network.fcnn.c.data.add_(1)  # type: ignore[operator, union-attr]
    for name in ("proxNet_X_S.0", "proxNet_M_S.1"):  # what follows does not see the first stage
        network.get_submodule(name).register_forward_hook(lambda _, inputs, output: 0 * output)
    after = network(255 * image, 255 * interpolated, 1 - metal)  # type: ignore[operator]
    torch.testing.assert_close(after.layers[0], before.layers[0] + 1)
    assert not after.layers[1].any()


@pytest.mark.parametrize("name", ["dicdnet", "oscnet"])
def test_it_is_supervised_by_all_images_and_artifacts_with_the_published_weights(name: str) -> None:
    """Of X: 1 for the last, 0.1 for the others; of A: 0.1 each, and 1 more for the last."""
    network = random(name, stages=3).train()
    inputs = stack(network, batch=2)
    outputs = network(inputs)
    published = network.published(255 * inputs[:, :1], 255 * inputs[:, 1:2], 1 - inputs[:, 2:])  # type: ignore[operator]
    wanted = [(published.images[-1], 1.0), *((each, 0.1) for each in (*published.images[:-1], published.first_image))]
    wanted += [
        (255 * inputs[:, :1] - each, weight) for each, weight in zip(published.layers, (0.1, 0.1, 1.1), strict=True)
    ]
    assert network.output_weights == tuple(weight for _, weight in wanted)
    torch.testing.assert_close(list(outputs), [each / 255 for each, _ in wanted])
    assert isinstance(network.eval()(inputs), Tensor)
    assert isinstance(random(name, supervised="last").train()(inputs), Tensor)


@pytest.mark.parametrize("name", ["dicdnet", "oscnet"])
def test_no_two_parameters_share_their_storage(name: str) -> None:
    parameters = list(random(name).parameters())
    assert len({parameter.untyped_storage().data_ptr() for parameter in parameters}) == len(parameters)
    assert all(parameter.untyped_storage().nbytes() == parameter.nbytes for parameter in parameters)


@pytest.mark.parametrize("settings", [{"kernels": 2, "orientations": 3}, {"kernels": 1, "orientations": 8}])
def test_what_lies_in_the_metal_decides_nothing_but_through_the_interpolation(settings: dict[str, Any]) -> None:
    for name, own in (("dicdnet", {}), ("oscnet", settings)):
        network = random(name, **own)
        inputs = stack(network, 11, 13)
        other = torch.cat((torch.where(inputs[:, 2:] > 0, 1 - inputs[:, :1], inputs[:, :1]), inputs[:, 1:]), dim=1)
        assert not torch.equal(other, inputs)
        torch.testing.assert_close(network(other), network(inputs))


@pytest.mark.parametrize(("orientations", "group"), [(4, "C4"), (2, "C2")])
def test_the_dictionary_of_oscnet_is_exact_as_it_is_if_its_orientations_are_the_group(
    orientations: int, group: str
) -> None:
    """The maps of a kernel are a regular field, so the kernels need no projection."""
    network = random("oscnet", orientations=orientations, kernels=8 // orientations)
    images = stack(network)
    copy = projected(network, images, group)
    assert torch.equal(copy.fcnn.weights, network.fcnn.weights)  # type: ignore[union-attr, arg-type]
    found = equivariance_error(copy, images, group=group)
    assert found["output"] < 1e-12 < 1e-2 < equivariance_error(network, images, group=group)["output"]
    assert found["fcnn.weights (adjoint)"] < 1e-12
    output = copy(images)
    assert (output - images[:, :1]).std() > 1e-3 * images.std()


def test_eight_orientations_are_no_regular_fields_of_quarter_turns() -> None:
    """A quarter turn moves the maps of a kernel by two, and those of a regular field by one; scalar fields are left."""
    network = random("oscnet", orientations=8)
    images = stack(network)
    assert equivariance_error(projected(network, images), images)["output"] > 1e-4
    basis = network.fcnn.Basis  # type: ignore[union-attr]
    turned = basis.rot90(1, (0, 1))  # type: ignore[operator]
    is_symmetric = (turned - basis).abs().amax(dim=(0, 1, 2)) < 1e-6  # type: ignore[operator]
    assert 3 <= is_symmetric.sum() < 25
    network.fcnn.weights.data *= is_symmetric  # type: ignore[union-attr, operator]
    copy = projected(network, images, fields="trivial")
    assert equivariance_error(copy, images)["output"] < 1e-6  # the rounding of the basis to single precision
    assert diagnose(network, images).can_be_exact
