"""FFDNet: what its fingerprint cannot say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from components.networks import build_network
from tests.components.networks.small import random, stack

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("size", [(8, 6), (7, 6), (3, 5), (24, 21)])
def test_ffdnet_gets_the_noise_level_of_each_image_from_the_stack(size: tuple[int, int]) -> None:
    network = random("ffdnet")
    image, sigma = (
        torch.rand(2, 1, *size, dtype=torch.float64),
        torch.tensor([10, 50.0]).double().view(2, 1, 1, 1) / 255,
    )
    output = network(torch.cat((image, sigma.expand(2, 1, *size)), dim=1))
    torch.testing.assert_close(output, network.published(image, sigma), rtol=0, atol=0)
    assert (output - network(torch.cat((image, sigma.flip(0).expand(2, 1, *size)), dim=1))).abs().min() > 0


@pytest.mark.parametrize("size", [(1, 1), (7, 6), (4, 9), (5, 5)])
def test_ffdnet_repeats_the_last_row_and_column_of_an_image_of_odd_size(size: tuple[int, int]) -> None:
    """Oracle: numpy's padding by the edge."""
    network = random("ffdnet").published
    image, sigma = torch.rand(1, 1, *size, dtype=torch.float64), torch.full((1, 1, 1, 1), 0.1, dtype=torch.float64)
    even = np.pad(image.numpy(), [(0, 0), (0, 0), *((0, side % 2) for side in size)], mode="edge")
    expected = network(torch.from_numpy(even), sigma)[..., : size[0], : size[1]]  # type: ignore[operator]
    torch.testing.assert_close(network(image, sigma), expected, rtol=0, atol=0)  # type: ignore[operator]


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 7), (2, 6)])
def test_ffdnet_sees_an_image_of_a_few_pixels_with_its_last_row_and_column_repeated(size: tuple[int, int]) -> None:
    """Oracle: numpy's padding by the edge, to 4 pixels or to an even number of them."""
    network = random("ffdnet")
    inputs = stack(network, *size)
    sides = [max(4, side + side % 2) for side in size]
    pads = [(0, 0), (0, 0), *((0, after - side) for after, side in zip(sides, size, strict=True))]
    image, level = torch.from_numpy(np.pad(inputs.numpy(), pads, mode="edge")).split(1, dim=1)
    expected = network.published(image, level[..., :1, :1])[..., : size[0], : size[1]]
    torch.testing.assert_close(network(inputs), expected, rtol=0, atol=0)


def test_ffdnet_has_its_published_settings_for_colours() -> None:
    """12 convolutions, of 13 maps to 96 channels first and of 96 to 12 maps last: 3 colours of 4 sub-pixels each."""
    network = build_network("ffdnet", width=96, depth=12, in_channels=4, out_channels=3)
    shapes = [tuple(value.shape) for name, value in network.named_parameters() if name.endswith("weight")]
    assert shapes == [(96, 13, 3, 3), *[(96, 96, 3, 3)] * 10, (12, 96, 3, 3)]
    assert network(torch.rand(1, 4, 9, 7)).shape == (1, 3, 9, 7)
