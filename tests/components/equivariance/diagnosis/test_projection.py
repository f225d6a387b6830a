"""Projected weights: exact where the layers' fields fit together, the same where they were exact before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from components.equivariance import EquivarianceRegularizer, equivariance_error, projected
from tests.components.equivariance.exact import random_images
from tests.components.equivariance.small_networks import (
    SharedNetwork,
    SmallNetwork,
    StridedNetwork,
    SubPixelNetwork,
    TransposedAttentionNetwork,
    UnshuffledResidualNetwork,
    relative_error,
)

pytestmark = pytest.mark.unit

NETWORKS: dict[str, Callable[[], SmallNetwork]] = {
    "transposed attention": TransposedAttentionNetwork,
    "sub-pixels inside": SubPixelNetwork,
    "unshuffled": lambda: SubPixelNetwork("head"),
    "both": lambda: SubPixelNetwork("both"),
    "strided": lambda: StridedNetwork(kernel=2, padding=0),
    "shared": SharedNetwork,
    "added to sub-pixels": UnshuffledResidualNetwork,
}
IMAGES = random_images(1, 3, 8, 8)


@pytest.mark.parametrize("case", NETWORKS)
def test_projected_weights_are_exact_at_every_layer(case: str) -> None:
    network = NETWORKS[case]()
    copy = projected(network, IMAGES)
    assert relative_error(network, 1, IMAGES) > 1e-2
    assert max(relative_error(copy, element, IMAGES) for element in (1, 2, 3)) < 1e-12
    assert max(equivariance_error(copy, IMAGES).values()) < 1e-12
    assert copy(IMAGES).std() > 1e-3


@pytest.mark.parametrize("case", NETWORKS)
def test_exact_weights_are_their_own_projection(case: str) -> None:
    """The exact weights are made by the textbook, without the trace of a forward."""
    network = NETWORKS[case]().make_exact()
    copy = projected(network, IMAGES)
    torch.testing.assert_close(dict(copy.state_dict()), dict(network.state_dict()), rtol=0, atol=1e-12)


def test_the_regulariser_finds_no_penalty_in_exact_layers_that_are_added_to_sub_pixels() -> None:
    def penalties(network: nn.Module) -> dict[str, float]:
        regularizer = EquivarianceRegularizer(network.train(), pairing="append", pair_fraction=1.0)
        images = random_images(2, 3, 8, 8)
        network(regularizer.pair(images, images, element=1).inputs)
        regularizer.penalty()
        assert not regularizer.skipped
        return {name: float(value) for name, value in regularizer.layer_penalties().items()}

    exact = penalties(UnshuffledResidualNetwork().make_exact())
    assert list(exact) == ["first", "body", "merge", "back", "last"]
    assert max(exact.values()) < 1e-20
    assert min(penalties(UnshuffledResidualNetwork()).values()) > 1e-2
