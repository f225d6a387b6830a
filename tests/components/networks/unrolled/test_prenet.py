"""PReNet: what its fingerprint cannot say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.components.networks.small import random, stack

pytestmark = pytest.mark.unit


def test_an_image_passes_prenet_as_it_is() -> None:
    network, image = random("prenet"), torch.rand(2, 3, 9, 12, dtype=torch.float64)
    last, stages = network.published(image)
    torch.testing.assert_close(network(image), last, rtol=0, atol=0)
    assert len(stages) == 3


def test_prenet_can_be_supervised_at_every_stage() -> None:
    network = random("prenet", supervised="all").train()
    image = stack(network)
    outputs = network(image)
    stages = network.published(image)[1]
    assert [torch.equal(*pair) for pair in zip(outputs, reversed(stages), strict=True)] == [True] * 3
    assert isinstance(network.eval()(image), Tensor)
    assert isinstance(random("prenet").train()(image), Tensor)  # as published: the last stage alone
