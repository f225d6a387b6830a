"""FBPConvNet: its up-sampling, its sizes, and what forbids equivariance in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from components.equivariance import EquivarianceRegularizer, diagnose, equivariance_error, projected
from components.networks import build_network
from components.networks.unets.fbpconvnet import FBPConvNet
from tests.components.networks.small import random, stack

pytestmark = pytest.mark.unit

PUBLISHED = [("matconvnet", "crop", "crop after block_3.7"), ("pytorch_port", "stride", "block_3.7")]


@pytest.mark.parametrize(("upsampling", "reached"), [("matconvnet", (4, 6)), ("pytorch_port", (3, 5))])
def test_a_coarse_pixel_reaches_three_fine_pixels_that_are_not_around_those_it_was_pooled_from(
    upsampling: Any, reached: tuple[int, int]
) -> None:
    """It was pooled from the fine pixels 4 and 5."""
    up = FBPConvNet(width=1, levels=2, upsampling=upsampling).block_2[7]  # type: ignore[index]
    nn.init.ones_(up.weight)
    coarse = torch.zeros(1, 2, 5, 5)
    coarse[:, :, 2, 2] = 1
    fine = up(coarse)
    assert fine.shape == (1, 1, 10, 10)
    rows, columns = fine[0, 0].nonzero().T
    assert (int(rows.min()), int(rows.max())) == (int(columns.min()), int(columns.max())) == reached


def test_in_place_a_coarse_pixel_reaches_the_four_fine_pixels_that_it_was_pooled_from() -> None:
    up = FBPConvNet(width=1, levels=2, upsampling="in_place").block_2[7]  # type: ignore[index]
    nn.init.ones_(up.weight)
    coarse = torch.zeros(1, 2, 5, 5)
    coarse[:, :, 2, 2] = 1
    assert up(coarse)[0, 0].nonzero().tolist() == [[4, 4], [4, 5], [5, 4], [5, 5]]


@pytest.mark.parametrize(("upsampling", "kind", "where"), PUBLISHED)
def test_the_diagnosis_says_that_the_published_network_cannot_be_exact_and_why(
    upsampling: str, kind: str, where: str
) -> None:
    network = random("fbpconvnet", upsampling=upsampling)
    found = diagnose(network, stack(network, 16, 16))
    assert found.can_be_exact is False
    assert found.fitting_size is None
    places = {place for place, incompatibility in found.fatal if incompatibility.kind == kind}
    assert places == {where, where.replace("block_3.7", "block_2_2.6")}
    assert len(found.fatal) == 2
    for _, incompatibility in found.fatal:
        assert "one side only" in incompatibility.reason
        assert "kernel 2 with padding 0" in incompatibility.hint
    assert equivariance_error(projected(network, stack(network, 16, 16)), stack(network, 16, 16))["output"] > 1e-6


def test_the_diagnosis_says_that_it_can_be_exact_in_place() -> None:
    network = random("fbpconvnet", upsampling="in_place")
    found = diagnose(network, stack(network, 16, 16))
    assert found.can_be_exact
    assert found.fatal == ()
    assert diagnose(network, stack(network, 18, 18)).can_be_exact  # one pixel around it makes 20
    odd = diagnose(network, stack(network, 17, 17))
    assert odd.can_be_exact is not True
    assert odd.fitting_size in ((16, 16), (18, 18))


@pytest.mark.parametrize("upsampling", ["matconvnet", "pytorch_port"])
def test_the_regulariser_leaves_the_published_upsampling_out_and_says_why(upsampling: str) -> None:
    network = random("fbpconvnet", upsampling=upsampling).train()
    regularizer = EquivarianceRegularizer(network, pairing="append", pair_fraction=1.0)
    images = stack(network, 16, 16, batch=2)
    batch = regularizer.pair(images, images, element=1)
    network(batch.inputs)
    regularizer.penalty()
    assert set(regularizer.skipped) == {"block_3.7", "block_2_2.6"}
    assert all("one side only" in reason for reason in regularizer.skipped.values())
    convolutions = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    assert set(regularizer.layer_penalties()) == set(convolutions)


@pytest.mark.parametrize("size", [(1, 1), (5, 16), (30, 17), (12, 12)])
def test_an_image_is_reflected_around_it_to_multiples_of_the_coarsest_pixel(size: tuple[int, int]) -> None:
    """Oracle: numpy's padding, here to multiples of 4 (three levels), and 8 at least."""
    network = random("fbpconvnet")
    image = stack(network, *size)
    missing = [max(8, -(-side // 4) * 4) - side for side in size]
    around = [(0, 0), (0, 0), *((each // 2, each - each // 2) for each in missing)]
    wide = torch.from_numpy(np.pad(image.numpy(), around, mode="reflect"))
    top, left = missing[0] // 2, missing[1] // 2
    expected = network.published(wide)[..., top : top + size[0], left : left + size[1]]
    torch.testing.assert_close(network(image), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("levels", [2, 3, 6])
def test_each_level_halves_the_size_and_doubles_the_channels(levels: int) -> None:
    network = build_network("fbpconvnet", width=2, levels=levels).eval()
    sizes = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.MaxPool2d):
            module.register_forward_hook(lambda _, __, output, name=name: sizes.update({name: tuple(output.shape[1:])}))
    network(torch.rand(1, 1, 64, 64))
    assert list(sizes.values()) == [(2 * 2**k, 32 >> k, 32 >> k) for k in range(levels - 1)]
    assert network(torch.rand(1, 1, 3, 70)).shape == (1, 1, 3, 70)


def test_new_weights_are_those_of_matconvnet() -> None:
    torch.manual_seed(0)
    network = FBPConvNet(width=16, levels=3)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            assert module.bias is not None
            assert not module.bias.any()
            if module.weight.numel() > 1000:
                assert float(module.weight.detach().std()) == pytest.approx(0.01, rel=0.1)
        if isinstance(module, nn.BatchNorm2d):
            assert module.momentum == 0.05
