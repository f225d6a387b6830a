"""NAFNet: what its fingerprint cannot say."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from components.networks import build_network
from tests.components.networks.small import SMALL, random, stack

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("size", [(5, 9), (8, 12), (24, 6)])
def test_nafnet_gives_what_the_published_module_gives(size: tuple[int, int]) -> None:
    """But for a side of at most 4 pixels, which the form extends further."""
    network = random("nafnet")
    image = stack(network, *size)
    torch.testing.assert_close(network(image), network.published(image), rtol=0, atol=0)
    wide = F.pad(image, (0, -size[1] % 4, 0, -size[0] % 4))
    expected = network.published(wide)[..., : size[0], : size[1]]
    torch.testing.assert_close(network(image), expected, rtol=0, atol=0)


def test_nafnet_sees_an_image_of_a_few_pixels_in_a_frame_of_zeros() -> None:
    network = random("nafnet")
    image = stack(network, 3, 12)
    expected = network.published(F.pad(image, (0, 0, 0, 5)))[..., :3, :]
    torch.testing.assert_close(network(image), expected, rtol=0, atol=0)


def test_a_new_nafnet_corrects_by_its_outer_layers_alone() -> None:
    """Each block of it is the identity, so only ``beta`` and ``gamma`` have a gradient in the blocks."""
    network = build_network("nafnet", **SMALL["nafnet"])
    network(torch.rand(1, 3, 16, 16)).square().mean().backward()
    moved = {key for key, value in network.named_parameters() if value.grad is not None and value.grad.any()}
    of_blocks = {key.rpartition(".")[2] for key in moved if key.startswith(("encoders", "middle_blks", "decoders"))}
    assert of_blocks == {"beta", "gamma"}
