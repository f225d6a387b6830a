"""DRUNet: what its fingerprint cannot say."""

from __future__ import annotations

import pytest
import torch

from tests.components.networks.small import random, stack

pytestmark = pytest.mark.unit


def test_drunet_gives_twice_the_image_for_twice_the_image_and_noise_level() -> None:
    network = random("drunet")
    inputs = stack(network, 16, 24)
    torch.testing.assert_close(network(2 * inputs), 2 * network(inputs), rtol=1e-12, atol=0)
    louder = inputs.clone()
    louder[:, -1] *= 2
    assert (network(louder) - network(inputs)).abs().max() > 1e-3


def test_drunet_finds_the_noise_level_wherever_it_lies_in_the_stack() -> None:
    network, other = random("drunet"), random("drunet", inputs=("noise_level", "image"))
    inputs = stack(network, 16, 16)
    torch.testing.assert_close(other(inputs[:, [3, 0, 1, 2]]), network(inputs), rtol=0, atol=0)
