"""Stochastic depth leaves out whole branches of single images, in training alone, as the given numbers say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from components.equivariance import EquivarianceRegularizer
from components.networks import build_network
from components.networks.stochastic_depth import StochasticDepth, given_depths, stochastic_depths
from tests.components.networks.small import SMALL, devices_in, random, stack

pytestmark = pytest.mark.unit


def network_with_branches() -> nn.Module:
    return random("swinir", depth=4, drop_path_rate=0.6).train()


@contextmanager
def nothing_is_drawn() -> Iterator[None]:
    """Fails if torch's default generator was used inside."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 5, 3), (4, 6, 7)])
def test_a_branch_is_kept_where_its_number_reaches_the_rate_and_is_then_larger(shape: tuple[int, ...]) -> None:
    branch, values = StochasticDepth(0.25), torch.rand(shape, dtype=torch.float64)
    numbers = torch.tensor([0.0, 0.2499, 0.25, 0.999], dtype=torch.float64)
    with given_depths([branch], numbers[:, None]), nothing_is_drawn():
        found = branch(values)
    assert found.dtype == torch.float64
    assert not found[:2].any()
    torch.testing.assert_close(found[2:], values[2:] / 0.75, rtol=0, atol=1e-15)


def test_without_given_numbers_the_rate_is_met_and_the_mean_is_kept() -> None:
    torch.manual_seed(0)
    found = StochasticDepth(0.3)(torch.ones(20_000, 1))
    assert found.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert (found == 0).double().mean() == pytest.approx(0.3, abs=0.01)
    assert found.mean() == pytest.approx(1, abs=0.02)


def test_evaluation_and_a_rate_of_zero_draw_nothing_and_change_nothing() -> None:
    values = torch.rand(3, 2)
    with nothing_is_drawn():
        assert StochasticDepth(0.9).eval()(values) is values
        assert StochasticDepth(0.0)(values) is values


def test_after_the_block_the_branches_have_no_numbers_even_after_an_error() -> None:
    branch = StochasticDepth(0.5)
    with pytest.raises(RuntimeError), given_depths([branch], torch.rand(2, 1)):
        raise RuntimeError
    assert branch.uniform is None


def test_numbers_that_do_not_fit_are_refused() -> None:
    branch = StochasticDepth(0.5)
    with pytest.raises(ValueError, match=r"\(2, 3\) numbers for 1 branches"), given_depths([branch], torch.rand(2, 3)):
        pass
    with given_depths([branch], torch.rand(2, 1)), pytest.raises(ValueError, match=r"for 2 images, .* has 4"):
        branch(torch.rand(4, 5))


def test_a_state_dict_shows_nothing_of_it() -> None:
    assert StochasticDepth(0.1).state_dict() == {}
    with_it, without = (build_network("swinir", **SMALL["swinir"], drop_path_rate=rate) for rate in (0.1, 0.0))
    assert with_it.state_dict().keys() == without.state_dict().keys()


def test_swinir_leaves_out_the_branches_of_later_layers_more_often_and_of_the_first_never() -> None:
    network = build_network("swinir", width=4, groups=2, depth=3, heads=1, window=4)
    found = [module.rate for module in network.modules() if isinstance(module, StochasticDepth)]
    assert found == pytest.approx([rate for rate in (0, 0.02, 0.04, 0.06, 0.08, 0.1) for _ in ("attention", "linear")])
    assert len(stochastic_depths(network)) == 10
    assert stochastic_depths(build_network("swinir", **SMALL["swinir"], drop_path_rate=0.0)) == []


def test_a_network_without_the_branches_is_the_network_with_these_weights_at_zero() -> None:
    """Oracle: the last linear layer of each branch that is left out is set to zero, the others are enlarged."""
    network = network_with_branches()
    images, branches = stack(network, 8, 8), stochastic_depths(network)
    owners = {}
    for layer in network.modules():
        if hasattr(layer, "attn_depth"):
            owners |= {layer.attn_depth: layer.attn.proj, layer.mlp_depth: layer.mlp.fc2}
    uniform = torch.tensor([[0.0, 0.9, 0.0, 0.9, 0.9, 0.0]], dtype=torch.float64)
    with given_depths(branches, uniform):
        found = network(images)
    other = deepcopy(network).eval()
    names = {module: name for name, module in network.named_modules()}
    for branch, number in zip(branches, uniform[0], strict=True):
        last = other.get_submodule(names[owners[branch]])
        factor = 1 / (1 - branch.rate) if number >= branch.rate else 0
        for values in (last.weight, last.bias):
            values.data.mul_(factor)
    torch.testing.assert_close(found, other(images), rtol=0, atol=1e-12)
    assert (found - network.eval()(images)).abs().max() > 1e-3


def test_each_image_passes_its_own_branches() -> None:
    network, images = network_with_branches(), torch.rand(3, 3, 8, 8, dtype=torch.float64)
    uniform = torch.rand(3, 6, dtype=torch.float64, generator=torch.manual_seed(0))
    with given_depths(stochastic_depths(network), uniform):
        together = network(images)
    for number in range(3):
        with given_depths(stochastic_depths(network), uniform[number, None]):
            torch.testing.assert_close(network(images[number, None])[0], together[number], rtol=0, atol=1e-12)
    with given_depths(stochastic_depths(network), uniform.flip(0)):
        assert (network(images) - together).abs().max() > 1e-3


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_activations_pass_the_same_branches(reentrant: bool) -> None:
    """As do those that the regulariser penalises under checkpointing."""
    from torch.utils.checkpoint import checkpoint

    uniform = torch.rand(4, 6, dtype=torch.float64, generator=torch.manual_seed(1))
    gradients = []
    for is_checkpointed in (False, True):
        network = network_with_branches()
        branches, layer = stochastic_depths(network), network.layers[0].residual_group  # type: ignore[index, union-attr]
        if is_checkpointed:
            own = layer.forward
            layer.forward = lambda *inputs, own=own: checkpoint(own, *inputs, use_reentrant=reentrant)
        regularizer = EquivarianceRegularizer(network, pairing="append", pair_fraction=1.0)
        images = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.manual_seed(2))
        batch = regularizer.pair(images, images, generator=torch.Generator().manual_seed(3))
        with given_depths(branches, uniform):
            loss = (network(batch.inputs) - batch.targets).square().mean()
            (loss + regularizer.penalty()).backward()
        regularizer.detach()
        gradients.append([parameter.grad for parameter in network.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-12)


def test_an_exported_program_draws_nothing() -> None:
    network = network_with_branches().eval()
    images = stack(network, 20, 9, batch=2)
    program = torch.export.export(network, (images,))
    assert devices_in(program) == []
    names = {str(node.target) for node in program.graph.nodes}
    assert not [name for name in names if "rand" in name or "bernoulli" in name or "dropout" in name]
    torch.testing.assert_close(program.module()(images), network(images), rtol=0, atol=1e-12)
    assert isinstance(program.module()(images), Tensor)
