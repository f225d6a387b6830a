"""ACDNet: what its fingerprint cannot say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from components.equivariance import diagnose, equivariance_error, projected
from components.networks.unrolled.acdnet import ACDNet, dictionary
from tests.components.networks.small import random, stack

pytestmark = pytest.mark.unit


def small() -> ACDNet:
    torch.manual_seed(0)
    return ACDNet(maps=2, dual_channels=3, atoms=4, residual_blocks=1, stages=3).double().eval()


def images(batch: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Image, interpolation and non-metal mask."""
    generator = torch.Generator().manual_seed(1)
    image, interpolated = 255 * torch.rand(2, batch, 1, height, width, generator=generator, dtype=torch.float64)
    return image, interpolated, (torch.rand(batch, 1, height, width, generator=generator) > 0.2).double()


def test_the_first_kernels_are_positive_have_the_sum_one_and_are_decided_by_the_seed() -> None:
    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return dictionary(5)

    assert drawn(3).shape == (1, 5, 9, 9)
    assert drawn(3).min() >= 0
    torch.testing.assert_close(drawn(3).sum(dim=(2, 3)), torch.ones(1, 5))
    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))


def test_more_maps_than_atoms_have_kernels_of_their_own() -> None:
    assert ACDNet(maps=6, atoms=2, dual_channels=1, residual_blocks=1, stages=1).D0.shape == (1, 6, 9, 9)


def test_no_two_parameters_share_their_storage() -> None:
    parameters = list(small().parameters())
    assert len({parameter.untyped_storage().data_ptr() for parameter in parameters}) == len(parameters)
    assert all(parameter.untyped_storage().nbytes() == parameter.nbytes for parameter in parameters)


def test_an_image_is_restored_alone_as_in_a_batch() -> None:
    """Each image has kernels of its own, which no other image may see."""
    network, batch = small(), images(3, 11, 9)
    together = network(*batch).images[-1]
    alone = torch.cat([network(*(each[k : k + 1] for each in batch)).images[-1] for k in range(3)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (5, 8)])
def test_an_image_has_any_height_and_width(height: int, width: int) -> None:
    output = small()(*images(2, height, width))
    assert all(torch.isfinite(each).all() and each.shape == (2, 1, height, width) for each in output.images)


def test_the_artifacts_are_the_maps_convolved_with_the_kernels_of_the_image() -> None:
    """By a convolution for each image, as in the paper, where the module mixes the maps first."""
    network, batch = small(), images(2, 12, 10)
    seen: dict[str, Tensor] = {}
    network.proxNet_K_T[2].register_forward_hook(lambda _, inputs, output: seen.update(K=output))
    network.proxNet_M_T[2].register_forward_hook(lambda _, inputs, output: seen.update(M=output))
    artifacts = network(*batch).artifacts[2]
    for b in range(2):
        kernels = sum(seen["K"][b, :, j, None, None] * network.D[0, j] / 10 for j in range(4))  # (N, 9, 9)
        expected = F.conv2d(seen["M"][b : b + 1], kernels[None], padding=4)  # type: ignore[index]
        torch.testing.assert_close(artifacts[b : b + 1], expected)
    assert artifacts.abs().max() > 1e-3


def test_what_lies_in_the_metal_decides_nothing_but_through_the_interpolation() -> None:
    network, (image, interpolated, mask) = small(), images(2, 12, 10)
    changed = torch.where(mask > 0, image, 255 - image)
    assert not torch.equal(changed, image)
    torch.testing.assert_close(
        network(changed, interpolated, mask).images[-1], network(image, interpolated, mask).images[-1]
    )


def test_acdnet_is_supervised_by_all_images_and_artifacts_with_the_published_weights() -> None:
    network = random("acdnet").train()
    inputs = stack(network)
    outputs = network(inputs)
    assert network.output_weights == (1.0, *[0.1] * (len(outputs) - 1))
    published = network.published(255 * inputs[:, :1], 255 * inputs[:, 1:2], 1 - inputs[:, 2:])
    torch.testing.assert_close(outputs[0], published.images[-1] / 255)
    torch.testing.assert_close(outputs[-1], inputs[:, :1] - published.warm_up_artifacts[-1] / 255)
    wanted = 1 + 2 + 1 + 2 + 2 + 2  # result; earlier images, first image, warm-up images; artifacts of both
    assert len(outputs) == wanted
    assert isinstance(network.eval()(inputs), Tensor)


def test_regular_fields_do_not_pass_the_linear_layers_of_acdnet() -> None:
    network = random("acdnet")
    inputs = stack(network)
    assert equivariance_error(projected(network, inputs), inputs)["output"] > 1e-9
    assert equivariance_error(projected(network, inputs, fields="trivial"), inputs)["output"] < 1e-12
    assert diagnose(network, inputs).can_be_exact
