"""After the regulariser nothing is left."""

import copy

import pytest
import torch
from torch import nn

from components.equivariance import EquivarianceRegularizer
from tests.components.equivariance.exact import plain_network, random_images

pytestmark = pytest.mark.unit


def _num_hooks(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in network.modules())


@pytest.mark.parametrize("moment", ["at once", "after pair", "after forward", "after penalty"])
def test_detach_leaves_the_network_as_it_was(moment: str) -> None:
    network, images = plain_network(), random_images(4, 3, 6, 6)
    state, output = copy.deepcopy(network.state_dict()), network(images)
    regularizer = EquivarianceRegularizer(network)
    if moment != "at once":
        batch = regularizer.pair(images, images)
        if moment != "after pair":
            network(batch.inputs)
            if moment == "after penalty":
                regularizer.penalty()
    regularizer.detach()
    assert _num_hooks(network) == 0
    assert list(network.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert torch.equal(network(images), output)


def test_hooks_of_others_stay() -> None:
    network, calls = plain_network(), []
    network[0].register_forward_hook(lambda *_: calls.append("called"))
    with EquivarianceRegularizer(network) as regularizer:
        regularizer.pair(random_images(4, 3, 6, 6), random_images(4, 3, 6, 6))
    network(random_images(1, 3, 6, 6))
    assert calls == ["called"]


def test_a_with_block_detaches_also_after_an_error() -> None:
    network, images = plain_network(), random_images(4, 3, 6, 6)
    with pytest.raises(RuntimeError, match="channels"), EquivarianceRegularizer(network) as regularizer:
        network(regularizer.pair(images, images).inputs[:, :2])
    assert _num_hooks(network) == 0


def test_a_detached_regulariser_pairs_no_more() -> None:
    regularizer, images = EquivarianceRegularizer(plain_network()), random_images(4, 3, 6, 6)
    regularizer.detach()
    with pytest.raises(RuntimeError, match="build a new EquivarianceRegularizer"):
        regularizer.pair(images, images)
    with pytest.raises(RuntimeError, match="comes after pair"):
        regularizer.penalty()


def test_a_detached_network_is_exported_with_the_same_outputs() -> None:
    network, images = plain_network(), random_images(4, 3, 6, 6)
    with EquivarianceRegularizer(network) as regularizer:
        network(regularizer.pair(images, images).inputs)
        regularizer.penalty().backward()
    exported = torch.export.export(network.eval(), (images,))
    assert torch.equal(exported.module()(images), network(images))
