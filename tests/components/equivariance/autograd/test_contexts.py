"""The regulariser in the contexts in which networks are trained: values and gradients are those of plain autograd."""

import copy
import gc
import io
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from components.equivariance import EquivarianceRegularizer, NonFiniteFeaturesError, PairedBatch
from tests.components.equivariance.exact import plain_network, random_images
from tests.components.equivariance.plain_autograd import (
    gradients_of,
    layer_outputs,
    mean_square_error,
    penalty_of,
    plain_step,
)
from tests.components.equivariance.small_networks import SharedNetwork, WindowAttentionNetwork

pytestmark = pytest.mark.unit

WEIGHT = 0.7


def paired(regularizer: EquivarianceRegularizer, element: int = 1, seed: int = 6) -> PairedBatch:
    images = random_images(6, 3, 6, 6, seed=seed)
    return regularizer.pair(images, 0.5 * images.flip(1), element=element, num_pairs=2)


def step(regularizer: EquivarianceRegularizer, network: nn.Module, element: int = 1) -> tuple[Tensor, PairedBatch]:
    """One step of training as users write it; the gradients are left on the network."""
    network.zero_grad()
    batch = paired(regularizer, element)
    output = network(batch.inputs)
    penalty = regularizer.penalty()
    (mean_square_error(output, batch.targets) + WEIGHT * penalty).backward()
    return penalty.detach(), batch


def assert_as_plain_autograd(network: nn.Module, **options: object) -> None:
    """Over a first step, which is traced, and two more."""
    regularizer = EquivarianceRegularizer(network, **options)  # type: ignore[arg-type]
    for element in (1, 2, 3):
        penalty, batch = step(regularizer, network, element)
        expected, gradients = plain_step(network, batch, WEIGHT)
        torch.testing.assert_close(penalty, expected)
        torch.testing.assert_close(gradients_of(network), gradients)


def num_hooks(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


# ----------------------------------------------------------------------------------------------- sharing, branches


def test_every_call_of_shared_layers_and_tied_parameters_counts() -> None:
    assert_as_plain_autograd(SharedNetwork())


class Branching(nn.Module):
    """Skips around layers, a dense concatenation, outputs used twice, and what writes in place where it may."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.skipped = nn.Conv2d(8, 8, 3, padding=1)
            self.dense = nn.Conv2d(16, 8, 3, padding=1)
            self.twice = nn.Conv2d(8, 8, 1)
            self.last = nn.Conv2d(8, 3, 3, padding=1)
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images)
        maps = maps + self.skipped(maps)
        dense = torch.relu_(self.dense(torch.cat((maps, torch.tanh(maps)), dim=1)))
        used = self.twice(dense)
        maps = used * torch.sigmoid(used) + dense
        return images + self.last(maps)


def test_branching_networks_have_the_gradients_of_plain_autograd() -> None:
    assert_as_plain_autograd(Branching())


@pytest.mark.parametrize("with_penalty", [True, False])
def test_a_gradient_that_the_user_holds_is_never_written_to(with_penalty: bool) -> None:
    network = plain_network()
    regularizer = EquivarianceRegularizer(network, max_gradient_ratio=0.5 if with_penalty else None)
    batch = paired(regularizer)
    output, penalty = network(batch.inputs), regularizer.penalty()
    held = random_images(*output.shape, seed=9)
    before = held.clone()
    torch.autograd.backward((output, penalty), (held, None))
    assert torch.equal(held, before)


def test_a_layer_whose_output_is_needed_for_its_own_backward_pass_may_be_penalised() -> None:
    class SigmoidConvolution(nn.Conv2d):
        def forward(self, maps: Tensor) -> Tensor:
            return torch.sigmoid(super().forward(maps))

    torch.manual_seed(0)
    assert_as_plain_autograd(
        nn.Sequential(SigmoidConvolution(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)).double()
    )


# --------------------------------------------------------------------------------------------- other kinds of layers


class TokenNetwork(nn.Module):
    """Linear layers on ``(B, H, W, C)``, whose outputs are views in single precision, written to by what follows."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(3, 8, 1), nn.Linear(8, 8)
            self.third, self.last = nn.Linear(8, 8), nn.Conv2d(8, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.first(images).permute(0, 2, 3, 1).contiguous()  # (B, C, H, W) -> (B, H, W, C)
        tokens = torch.relu_(self.second(tokens))
        tokens = tokens + self.third(tokens).mul_(2.0)
        return self.last(tokens.permute(0, 3, 1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_layers_whose_outputs_are_views_have_the_gradients_of_plain_autograd(dtype: torch.dtype) -> None:
    network = TokenNetwork().to(dtype)
    regularizer = EquivarianceRegularizer(network)
    images = random_images(6, 3, 6, 6, dtype=dtype)
    for element in (1, 2, 3):
        network.zero_grad()
        batch = regularizer.pair(images, images, element=element, num_pairs=2)
        output, penalty = network(batch.inputs), regularizer.penalty()
        (mean_square_error(output, batch.targets) + WEIGHT * penalty).backward()
        twin = copy.deepcopy(network)
        twin.zero_grad()
        output, outputs = layer_outputs(twin, lambda twin=twin, batch=batch: twin(batch.inputs))
        for name in ("second", "third"):
            outputs[name] = [maps.permute(0, 3, 1, 2) for maps in outputs[name]]  # (B, H, W, C) -> (B, C, H, W)
        expected = penalty_of(outputs, batch)
        (mean_square_error(output, batch.targets) + WEIGHT * expected).backward()
        torch.testing.assert_close(penalty, expected)
        torch.testing.assert_close(gradients_of(network), gradients_of(twin))


def test_windows_are_followed_through_outputs_that_are_views() -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        network = WindowAttentionNetwork().to(dtype)
        regularizer = EquivarianceRegularizer(network)
        images = random_images(4, 3, 8, 8, dtype=dtype)
        for _ in range(2):
            network(regularizer.pair(images, images, element=1).inputs)
            regularizer.penalty()
            found.append(regularizer.layer_penalties())
    assert len(found[0]) == 10
    for penalties in found:
        assert penalties == pytest.approx(found[-1], rel=1e-4)


def test_weight_norm_is_followed_to_its_parameters() -> None:
    network = plain_network()
    weight_norm(network[2])
    assert_as_plain_autograd(network)


def test_a_layer_that_is_only_used_by_a_function_is_named() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 8, 1)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.last = nn.Conv2d(8, 3, 1)

        def forward(self, images: Tensor) -> Tensor:
            maps = self.first(images)
            tokens = maps.flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, H W, C)
            tokens, _ = self.attention(tokens, tokens, tokens, need_weights=False)
            return self.last(maps + tokens.transpose(1, 2).view_as(maps))

    network = Attending().double()
    regularizer = EquivarianceRegularizer(network)
    step(regularizer, network)
    assert "not called in the latest forward" in regularizer.skipped["attention.out_proj"]
    assert list(regularizer.layer_penalties()) == ["first", "last"]
    assert_as_plain_autograd(network)


# ------------------------------------------------------------------------------------------ activation checkpointing


class Checkpointed(nn.Module):
    """Parts with one and with several layers, one layer in two parts, ReLUs that overwrite the layers' outputs.

    `how`: None for none, else what `use_reentrant` is.
    """

    def __init__(self, how: bool | None) -> None:
        super().__init__()
        self.how = how
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.head = nn.Conv2d(3, 8, 3, padding=1)
            self.one = nn.Conv2d(8, 8, 3, padding=1)
            self.two = nn.Conv2d(8, 8, 3, padding=1)
            self.three = nn.Conv2d(8, 8, 3, padding=1)
            self.shared = nn.Conv2d(8, 8, 3, padding=1)
            self.tail = nn.Conv2d(8, 3, 3, padding=1)
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.head(images)
        for part in (
            lambda maps: torch.relu_(self.one(maps)),
            lambda maps: maps + torch.relu_(self.shared(torch.relu_(self.three(torch.relu_(self.two(maps)))))),
            lambda maps: torch.relu_(self.shared(torch.relu_(self.shared(maps)))),
        ):
            maps = part(maps) if self.how is None else checkpoint(part, maps, use_reentrant=self.how)
        return self.tail(maps)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale_gradient": True},
        {"max_gradient_ratio": 0.05},
        {"penalty": "rotation+channel"},
        {"penalty": "projection"},
        {"sample_layers": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_parts_have_the_gradients_of_the_same_network_without(
    use_reentrant: bool, options: dict[str, object]
) -> None:
    found = []
    for how in (None, use_reentrant):
        network = Checkpointed(how)
        regularizer = EquivarianceRegularizer(network, **options)  # type: ignore[arg-type]
        torch.manual_seed(1)  # what layers and shifts are drawn from
        found.append([(step(regularizer, network, element)[0], gradients_of(network)) for element in (1, 2, 3)])
        assert num_hooks(network) == 0
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_parts_have_the_gradients_of_plain_autograd(use_reentrant: bool) -> None:
    network, plain = Checkpointed(use_reentrant), Checkpointed(None)
    regularizer = EquivarianceRegularizer(network)
    for element in (1, 3):
        penalty, batch = step(regularizer, network, element)
        expected, gradients = plain_step(plain, batch, WEIGHT)
        torch.testing.assert_close(penalty, expected)
        torch.testing.assert_close(gradients_of(network), gradients)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_nothing_is_kept_alive_by_checkpointed_steps(use_reentrant: bool) -> None:
    network = Checkpointed(use_reentrant)
    regularizer = EquivarianceRegularizer(network)
    step(regularizer, network)
    seen: list[weakref.ref[Tensor]] = []
    for layer in (network.head, network.two, network.shared):
        layer.register_forward_hook(lambda module, arguments, output: seen.append(weakref.ref(output)))
    gc.collect()
    gc.disable()  # reference counts alone must do it
    try:
        step(regularizer, network)
        assert len(seen) > 3
        assert [reference() for reference in seen] == [None] * len(seen)
    finally:
        gc.enable()


@pytest.mark.parametrize("use_reentrant", [None, False, True])
@pytest.mark.parametrize("what", ["no backward", "no penalty"])
def test_a_step_left_half_way_does_not_disturb_the_next(use_reentrant: bool | None, what: str) -> None:
    network = Checkpointed(use_reentrant)
    regularizer = EquivarianceRegularizer(network)
    step(regularizer, network)
    output = network(paired(regularizer, 3, seed=8).inputs)
    if what == "no backward":
        kept = regularizer.penalty()
        assert num_hooks(network) == 0
        del kept
    else:
        output.square().mean().backward()  # runs parts again while their layers are watched
    penalty, batch = step(regularizer, network, 2)
    expected, gradients = plain_step(Checkpointed(None), batch, WEIGHT)
    torch.testing.assert_close(penalty, expected)
    torch.testing.assert_close(gradients_of(network), gradients)


def test_parts_run_again_by_an_early_backward_pass_are_not_counted_twice() -> None:
    network = Checkpointed(False)
    regularizer = EquivarianceRegularizer(network)
    for element in (1, 3):
        batch = paired(regularizer, element)
        task = mean_square_error(network(batch.inputs), batch.targets)
        task.backward(retain_graph=True)
        network.zero_grad()
        penalty = regularizer.penalty()
        (task + WEIGHT * penalty).backward()
        expected, gradients = plain_step(Checkpointed(None), batch, WEIGHT)
        torch.testing.assert_close(penalty.detach(), expected)
        torch.testing.assert_close(gradients_of(network), gradients)
        network.zero_grad()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_penalties_of_two_steps_in_one_backward_pass_reach_their_own_calls(use_reentrant: bool) -> None:
    network, plain = Checkpointed(use_reentrant), Checkpointed(None)
    regularizer = EquivarianceRegularizer(network)
    loss, expected = torch.zeros((), dtype=torch.float64), None
    for element, factor in ((1, 1.0), (2, 10.0)):
        batch = paired(regularizer, element, seed=element)
        output = network(batch.inputs)
        loss = loss + mean_square_error(output, batch.targets) + factor * regularizer.penalty()
        _, gradients = plain_step(plain, batch, factor)
        expected = gradients if expected is None else {name: expected[name] + g for name, g in gradients.items()}
    loss.backward()
    torch.testing.assert_close(gradients_of(network), expected)


def test_the_penalty_alone_is_refused_where_reentrant_checkpointing_would_lose_it() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = plain_network(in_place=True)

        def forward(self, images: Tensor) -> Tensor:
            return checkpoint(self.body, images.requires_grad_(), use_reentrant=True)

    network = Whole()
    regularizer = EquivarianceRegularizer(network)
    network(paired(regularizer).inputs)
    with pytest.raises(RuntimeError, match=r"body.0.* reentrant .* task loss and penalty in one backward pass"):
        regularizer.penalty().backward()
    network.zero_grad()
    penalty, batch = step(regularizer, network)  # an error in backward does not disturb the next step
    expected, gradients = plain_step(network.body, batch, WEIGHT)
    torch.testing.assert_close(penalty, expected)
    torch.testing.assert_close(gradients_of(network.body), gradients)


def test_the_penalty_of_single_layers_lost_to_reentrant_checkpointing_is_warned_of() -> None:
    network = Checkpointed(True)
    regularizer = EquivarianceRegularizer(network, layers=["head", "two", "shared"])
    network(paired(regularizer).inputs)
    with pytest.warns(UserWarning, match=r"two, shared ran under reentrant"):
        regularizer.penalty().backward()


# ------------------------------------------------------------------------------------------------ backward passes


def test_micro_batches_of_whole_pairs_sum_to_the_big_batch() -> None:
    network, images = plain_network(in_place=True), random_images(8, 3, 6, 6)
    regularizer = EquivarianceRegularizer(network)
    for part in images.chunk(4):
        batch = regularizer.pair(part, 0.5 * part, element=3, num_pairs=2)
        task = mean_square_error(network(batch.inputs), batch.targets)
        ((task + WEIGHT * regularizer.penalty()) / 4).backward()
    whole = regularizer.pair(images, 0.5 * images, element=3, num_pairs=8)
    torch.testing.assert_close(gradients_of(network), plain_step(network, whole, WEIGHT)[1])


def test_two_backward_passes_through_one_graph_give_twice_the_gradient() -> None:
    network = plain_network(in_place=True)
    regularizer = EquivarianceRegularizer(network, measure_gradients=True)
    batch = paired(regularizer)
    loss = mean_square_error(network(batch.inputs), batch.targets) + WEIGHT * regularizer.penalty()
    loss.backward(retain_graph=True)
    once = regularizer.gradient_norms()
    loss.backward()
    expected = {name: 2 * gradient for name, gradient in plain_step(network, batch, WEIGHT)[1].items()}
    torch.testing.assert_close(gradients_of(network), expected)
    assert once is not None
    assert regularizer.gradient_norms() == once  # of the latest pass, not of both


@pytest.mark.parametrize("what", ["task", "penalty", "task, then both"])
def test_the_gradient_of_each_part_of_the_loss_is_that_of_plain_autograd(what: str) -> None:
    network = plain_network(in_place=True)
    regularizer = EquivarianceRegularizer(network)
    for element in (1, 3):
        batch = paired(regularizer, element)
        twin = copy.deepcopy(network)
        output, outputs = layer_outputs(twin, lambda twin=twin, batch=batch: twin(batch.inputs))
        expected = {"task": mean_square_error(output, batch.targets), "penalty": penalty_of(outputs, batch)}
        task = mean_square_error(network(batch.inputs), batch.targets)
        found = {"task": task, "penalty": regularizer.penalty()}
        if what == "task, then both":
            for losses, model in ((expected, twin), (found, network)):
                losses["alone"] = torch.autograd.grad(losses["task"], list(model.parameters()), retain_graph=True)
                losses["both"] = torch.autograd.grad(losses["task"] + losses["penalty"], list(model.parameters()))
            torch.testing.assert_close(found["alone"], expected["alone"])
            torch.testing.assert_close(found["both"], expected["both"])
        else:
            for losses, model in ((expected, twin), (found, network)):
                losses["alone"] = torch.autograd.grad(losses[what], list(model.parameters()))
            torch.testing.assert_close(found["alone"], expected["alone"])


def test_frozen_first_layers_count_in_the_value_and_keep_no_hooks() -> None:
    network = plain_network(in_place=True)
    network[0].requires_grad_(False)
    network[2].weight.requires_grad_(False)
    assert_as_plain_autograd(network)
    assert num_hooks(network) == 0


def test_a_part_without_gradients_counts_in_the_value_alone() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = plain_network(channels=3)
            self.rest = plain_network(channels=3, seed=7)

        def forward(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                maps = self.body(images)
            return self.rest(maps)

    network = Half()
    assert_as_plain_autograd(network)
    assert num_hooks(network) == 0


# ------------------------------------------------------------------------------------------- copies, files, outputs


@pytest.mark.parametrize("moment", ["after pair", "after forward", "after penalty", "after backward"])
@pytest.mark.parametrize("how", ["deepcopy", "AveragedModel", "pickle"])
def test_a_copy_made_at_any_time_is_whole_and_independent(how: str, moment: str) -> None:
    network = plain_network(in_place=True)
    regularizer = EquivarianceRegularizer(network)
    keys, probe = list(network.state_dict()), random_images(4, 3, 6, 6, seed=11)

    def copied() -> nn.Module:
        if how == "deepcopy":
            return copy.deepcopy(network)
        if how == "AveragedModel":
            average = torch.optim.swa_utils.AveragedModel(network)
            average.update_parameters(network)
            return average.module
        file = io.BytesIO()
        torch.save(network, file)
        file.seek(0)
        twin: nn.Module = torch.load(file, weights_only=False)
        return twin

    for _ in range(2):
        batch = paired(regularizer)
        if moment == "after pair":
            twin = copied()
        output = network(batch.inputs)
        if moment == "after forward":
            twin = copied()
        twin_ran = moment in ("after pair", "after forward")
        if twin_ran:
            twin.train()(probe).square().mean().backward()  # in the middle of the step, and not seen by it
        penalty = regularizer.penalty()
        if moment == "after penalty":
            twin = copied()
        (mean_square_error(output, batch.targets) + WEIGHT * penalty).backward()
        if moment == "after backward":
            twin = copied()
        expected, gradients = plain_step(network, batch, WEIGHT)
        torch.testing.assert_close(penalty.detach(), expected)
        torch.testing.assert_close(gradients_of(network), gradients)
        assert list(twin.state_dict()) == list(network.state_dict()) == keys
        assert torch.equal(twin(probe), network.eval()(probe))
        torch.save(twin, io.BytesIO())  # a copy can be saved, whenever it was made
        network.train().zero_grad()


@pytest.mark.parametrize("training", [True, False])
def test_outputs_are_the_same_to_the_bit_with_and_without(training: bool) -> None:
    for network in (plain_network(in_place=True).float(), WindowAttentionNetwork().float(), SharedNetwork()):
        network.train(training)
        images = random_images(4, 3, 8, 8, dtype=next(network.parameters()).dtype)
        regularizer = EquivarianceRegularizer(network)
        for _ in range(2):
            batch = regularizer.pair(images, images)
            expected = copy.deepcopy(network)(batch.inputs)
            assert torch.equal(network(batch.inputs), expected)
            if training:
                regularizer.penalty()


def test_a_detached_network_is_traced_and_exported_with_the_same_outputs() -> None:
    network = SharedNetwork()
    images = random_images(4, 3, 6, 6)
    with EquivarianceRegularizer(network) as regularizer:
        step(regularizer, network)
        paired(regularizer)  # detached in the middle of a step
    assert network._compiled_call_impl is None
    network.eval()
    assert torch.equal(torch.jit.trace(network, (images,))(images), network(images))
    assert torch.equal(torch.export.export(network, (images,)).module()(images), network(images))


# ------------------------------------------------------------------------------------------------------- exceptions


class Failing(nn.Module):
    """Raises in the middle when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.body = plain_network()
        self.error: BaseException | None = None

    def forward(self, images: Tensor) -> Tensor:
        maps = self.body[1](self.body[0](images))
        if self.error is not None:
            raise self.error
        return self.body[4](self.body[3](self.body[2](maps)))


@pytest.mark.parametrize("is_first", [True, False], ids=["first step", "later step"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_forward_pass_leaves_nothing_behind(error: type[BaseException], is_first: bool) -> None:
    network = Failing()
    regularizer = EquivarianceRegularizer(network)
    if not is_first:
        step(regularizer, network)
    batch = paired(regularizer)
    network.error = error("stop")
    with pytest.raises(error, match="stop"):
        network(batch.inputs)
    network.error = None
    assert _get_current_function_mode_stack() == []
    assert network._compiled_call_impl is None
    if is_first or error is RuntimeError:
        assert num_hooks(network) == 0
        with pytest.raises(RuntimeError, match=r"penalty\(\) comes after pair"):
            regularizer.penalty()
    for element in (2, 3):
        penalty, batch = step(regularizer, network, element)
        expected, gradients = plain_step(network, batch, WEIGHT)
        torch.testing.assert_close(penalty, expected)
        torch.testing.assert_close(gradients_of(network), gradients)


def test_an_error_in_the_backward_pass_leaves_nothing_behind() -> None:
    network = Checkpointed(True)
    regularizer = EquivarianceRegularizer(network)
    batch = paired(regularizer)
    output = network(batch.inputs)

    def fail(gradient: Tensor) -> None:
        raise ArithmeticError("stop")

    loss = mean_square_error(output, batch.targets) + regularizer.penalty()
    handle = network.one.weight.register_hook(fail)
    with pytest.raises(ArithmeticError, match="stop"):
        loss.backward()
    handle.remove()
    penalty, batch = step(regularizer, network, 2)
    expected, gradients = plain_step(Checkpointed(None), batch, WEIGHT)
    torch.testing.assert_close(penalty, expected)
    torch.testing.assert_close(gradients_of(network), gradients)
    assert num_hooks(network) == 0


# ------------------------------------------------------------------------------------------------------ wrong input


def test_the_first_layer_with_nan_features_is_named() -> None:
    network = plain_network()
    regularizer = EquivarianceRegularizer(network)
    for _ in range(2):
        batch = paired(regularizer)
        with torch.no_grad():
            network[2].weight[0, 0, 0, 0] = float("nan")
        network(batch.inputs)
        with pytest.raises(NonFiniteFeaturesError, match=r"^2: its features are NaN or infinite"):
            regularizer.penalty()
        with torch.no_grad():
            network[2].weight[0, 0, 0, 0] = 0.0
    images = random_images(4, 3, 6, 6).index_fill(0, torch.tensor(0), float("nan"))
    fresh = EquivarianceRegularizer(network)
    network(fresh.pair(images, images).inputs)
    with pytest.raises(NonFiniteFeaturesError, match=r"^0: "):
        fresh.penalty()


def test_a_batch_of_another_size_is_refused_with_the_layer_and_the_remedy() -> None:
    network = plain_network()
    regularizer = EquivarianceRegularizer(network)
    for _ in range(2):
        network(paired(regularizer).inputs[:5])
        with pytest.raises(ValueError, match=r"0: its output has 5 entries .* paired batch 8 .* given batch.inputs"):
            regularizer.penalty()


WRONG: dict[str, Callable[[PairedBatch], Tensor]] = {
    "shuffled": lambda batch: batch.inputs.flip(0),
    "another batch": lambda batch: random_images(*batch.inputs.shape, seed=12),
    "noise added": lambda batch: batch.inputs + 0.05 * random_images(*batch.inputs.shape, seed=12),
    "shifted": lambda batch: batch.inputs.roll(1, -1),
    "nearly constant": lambda batch: 100 + random_images(*batch.inputs.shape, seed=12),
}


@pytest.mark.parametrize(
    ("group", "what"),
    [(group, what) for group in ("C4", "D4") for what in WRONG]
    # turns by an eighth interpolate, so that only what is no pair at all can be told
    + [("C8", what) for what in ("shuffled", "another batch", "nearly constant")],
)
def test_what_is_no_pair_any_more_is_refused_at_the_first_forward(what: str, group: str) -> None:
    network = plain_network()
    regularizer = EquivarianceRegularizer(network, group=group)
    images = random_images(6, 3, 12, 12)
    batch = regularizer.pair(images, images, element=1, num_pairs=2)
    with pytest.raises(ValueError, match=r"image 2 is not image 0 turned: call network\(batch.inputs\)"):
        network(WRONG[what](batch))
    assert num_hooks(network) == 0
    network(regularizer.pair(images, images, element=1, num_pairs=2).inputs)
    assert regularizer.penalty() > 0


RIGHT: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda inputs: inputs,
    "channels last": lambda inputs: inputs.to(memory_format=torch.channels_last),
    "half": lambda inputs: inputs.half().float(),
    "bfloat16": lambda inputs: inputs.bfloat16().float(),
    "double": lambda inputs: inputs.double().float(),
    "normalised": lambda inputs: (inputs - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / 0.229,
    "normalised, then rounded": lambda inputs: ((inputs - 0.45) / 0.22).bfloat16().float(),
    "gamma": lambda inputs: inputs.clamp_min(0).pow(1 / 2.2),
}


@pytest.mark.parametrize("group", ["C4", "D4", "C8"])
@pytest.mark.parametrize("what", RIGHT)
def test_what_leaves_pairs_pairs_is_accepted(what: str, group: str) -> None:
    network = plain_network().float()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 24, 24, generator=generator)
    for element in range(1, {"C4": 4}.get(group, 8)):
        regularizer = EquivarianceRegularizer(network, group=group)
        network(RIGHT[what](regularizer.pair(images, images, element=element).inputs))
        assert torch.isfinite(regularizer.penalty())


def test_inputs_in_other_types_by_keyword_and_nested_are_looked_at_too() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = plain_network().to(torch.bfloat16)

        def forward(self, *, given: dict[str, list[Tensor]]) -> Tensor:
            output: Tensor = self.body(given["images"][0])
            return output

    network = Nested()
    images = random_images(4, 3, 6, 6)
    regularizer = EquivarianceRegularizer(network)
    batch = regularizer.pair({"images": images}, images, element=1)
    with pytest.raises(ValueError, match="image 1 is not image 0 turned"):
        network(given={"images": [batch.inputs["images"].bfloat16().flip(0)]})
    batch = regularizer.pair({"images": images}, images, element=1)
    network(given={"images": [batch.inputs["images"].bfloat16()]})
    assert regularizer.penalty() > 0


def test_a_second_call_of_the_network_in_another_thread_is_none_of_this_step() -> None:
    """Gradients are enabled per thread, and what runs there, runs without them."""
    network = plain_network()
    regularizer = EquivarianceRegularizer(network)
    step(regularizer, network)
    batch = paired(regularizer)

    def validate() -> None:
        with torch.no_grad():
            network(random_images(2, 3, 6, 6))

    network(batch.inputs)
    thread = threading.Thread(target=validate)
    thread.start()
    thread.join()
    torch.testing.assert_close(regularizer.penalty().detach(), plain_step(network, batch)[0])
