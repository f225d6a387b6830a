"""The training loop: what it optimises, when it reports, and that a killed run ends as one left alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from components.data.randomness import Stream, generator, torch_generator
from components.equivariance import (
    EquivarianceRegularizer,
    PenaltyWeight,
    pair_scale,
    regular_residual,
    relative_mse,
    rotation_residual,
)
from components.networks.stochastic_depth import stochastic_depths
from components.training.loop import Metrics, TrainingDivergedError
from components.training.losses import L1
from components.training.state import TrainingState
from tests.components.training.runs import (
    BATCH_SIZE,
    NUM_PAIRS,
    Interrupted,
    NoisySquares,
    Run,
    settings,
    tensors,
    tiny_network,
)

pytestmark = pytest.mark.unit

# Of the first five steps of the run below; a refactoring keeps them.
STORED_LOSSES = [0.3912753, 0.3046526, 0.4094168, 0.4605068, 0.1894558]
STORED_PENALTIES = [1.3081129, 1.5793225, 1.3427228, 1.3482908, 0.8857622]
SINGLES = tuple(range(2 * NUM_PAIRS, BATCH_SIZE))
DRAWN = (*range(NUM_PAIRS), *SINGLES)


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _recorded_inputs(run: Run) -> list[Tensor]:
    """What the network sees in each step of the run, filled while it trains."""
    seen: list[Tensor] = []
    run.state.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    return seen


def _gradient(run: Run) -> list[Tensor]:
    """The clipped gradient of a run's only step: Adam's first moment is a tenth of it."""
    moments = run.state.optimizer.state_dict()["state"]
    return [moments[number]["exp_avg"] / 0.1 for number in sorted(moments)]


def _norm(gradients: list[Tensor]) -> float:
    return math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))


def test_the_loss_falls() -> None:
    losses = Run(settings(steps=60)).start().losses()
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_five_seeded_steps_have_the_stored_losses_and_repeat_to_the_bit() -> None:
    runs = [Run(settings(steps=5)).start() for _ in range(2)]
    assert runs[0].losses() == pytest.approx(STORED_LOSSES, abs=1e-5)
    assert [metrics["penalty"] for _, metrics in runs[0].reports] == pytest.approx(STORED_PENALTIES, abs=1e-5)
    assert runs[0].losses() == runs[1].losses()
    assert _same(tensors(runs[0]), tensors(runs[1]))


@pytest.mark.parametrize("weight", [None, 0.5])
@pytest.mark.parametrize("stop_after", [5, 6, 9, 11])
def test_a_run_killed_at_any_step_and_resumed_ends_with_the_same_bytes(
    tmp_path: Path, weight: float | None, stop_after: int
) -> None:
    whole = Run(weight=weight).start()
    killed = Run(weight=weight, folder=tmp_path, stop_after=stop_after)
    with pytest.raises(Interrupted):
        killed.start()
    saved_at = killed.checkpoints[-1][0] if killed.checkpoints else 0
    resumed = Run(weight=weight)
    if saved_at:
        resumed.state.from_bytes((tmp_path / "checkpoint.pt").read_bytes())
    resumed.start()
    assert [step for step, _ in resumed.reports] == list(range(saved_at + 1, 13))
    assert resumed.losses() == whole.losses()[saved_at:]
    assert _same(tensors(resumed), tensors(whole))


SAMPLED = {"sample_layers": 1.5, "sample_fields": 0.5, "max_gradient_ratio": 0.3}


@pytest.mark.parametrize("balance", [None, 0.1])
@pytest.mark.parametrize("options", [SAMPLED, {"penalty": "rotation+channel", "sample_layers": 1}])
def test_a_resumed_run_draws_the_layers_and_fields_and_balances_the_weight_as_one_left_alone(
    tmp_path: Path, options: dict[str, Any], balance: float | None
) -> None:
    whole = Run(options=options, balance=balance).start()
    killed = Run(options=options, balance=balance, folder=tmp_path, stop_after=9)
    with pytest.raises(Interrupted):
        killed.start()
    resumed = Run(options=options, balance=balance)
    resumed.state.from_bytes((tmp_path / "checkpoint.pt").read_bytes())
    resumed.start()
    assert resumed.losses() == whole.losses()[5:]
    assert _same(tensors(resumed), tensors(whole))
    if balance:
        assert whole.state.penalty_weight.weight != 0.5  # it has moved
    names = {name for _, metrics in whole.reports for name in metrics if name.startswith("penalty/")}
    assert any(names - metrics.keys() for _, metrics in whole.reports)  # not all layers in every step


def test_a_run_resumed_at_its_end_does_nothing(tmp_path: Path) -> None:
    whole = Run(folder=tmp_path).start()
    resumed = Run()
    resumed.state.from_bytes((tmp_path / "checkpoint.pt").read_bytes())
    assert not resumed.start().reports
    assert _same(tensors(resumed), tensors(whole))


def test_without_pairs_the_network_sees_the_plain_global_batch() -> None:
    run = Run(weight=None)
    seen = _recorded_inputs(run)
    run.start()
    for step, inputs in enumerate(seen):
        assert torch.equal(inputs, NoisySquares().batch(step, tuple(range(BATCH_SIZE)))[0])


def test_with_pairs_copies_are_the_originals_turned_and_all_else_is_the_plain_batch() -> None:
    run = Run()
    seen = _recorded_inputs(run)
    run.start()
    turns_seen = set()
    for step, inputs in enumerate(seen):
        plain = NoisySquares().batch(step, tuple(range(BATCH_SIZE)))[0]
        assert len(inputs) == BATCH_SIZE
        assert torch.equal(inputs[:NUM_PAIRS], plain[:NUM_PAIRS])
        assert torch.equal(inputs[2 * NUM_PAIRS :], plain[list(SINGLES)])
        transformed = inputs[NUM_PAIRS : 2 * NUM_PAIRS]
        turns_seen |= {
            n for n in range(4) if torch.equal(transformed, torch.rot90(plain[:NUM_PAIRS], n, dims=(-2, -1)))
        }
    assert turns_seen == {1, 2, 3}


@pytest.mark.parametrize("penalty", ["regular", "rotation", "channel"])
def test_a_run_with_a_penalty_sees_the_batches_of_the_control_byte_for_byte(penalty: str) -> None:
    control, penalised = Run(weight=0.0), Run(weight=0.5, penalty=penalty)
    seen = [_recorded_inputs(run) for run in (control, penalised)]
    control.start()
    penalised.start()
    assert len(seen[0]) == len(seen[1]) == 12
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True))
    assert control.losses()[0] == penalised.losses()[0]
    assert control.losses()[1] != penalised.losses()[1]


def test_the_penalty_adds_its_weighted_gradient_to_the_controls_and_nothing_else() -> None:
    one_step = settings(steps=1, gradient_clip=1e9)
    control, penalised = Run(one_step, weight=0.0).start(), Run(one_step, weight=0.5).start()
    # By hand: the penalty's own gradient, weighted 0.5 x 1/4 of the warm-up x the task loss.
    network = tiny_network()
    regularizer = EquivarianceRegularizer(network)
    generator = torch_generator(one_step.seed, Stream.TURN, 0)
    batch = regularizer.pair(*NoisySquares().batch(0, DRAWN), generator=generator, num_pairs=NUM_PAIRS)
    network(batch.inputs)
    weight = 0.5 / 4 * control.losses()[0]
    own = torch.autograd.grad(weight * regularizer.penalty(), list(network.parameters()), allow_unused=True)
    assert penalised.reports[0][1]["weight"] == pytest.approx(weight)
    for with_it, without, part in zip(_gradient(penalised), _gradient(control), own, strict=True):
        expected = without if part is None else without + part
        assert torch.allclose(with_it, expected, rtol=1e-4, atol=1e-6)
    assert _norm([part for part in own if part is not None]) > 1e-3  # or there would be nothing to see


def _gradients_at_layers(cap: float | None) -> tuple[list[Tensor], list[Tensor]]:
    """By hand, in the first step, at the outputs of the three layers: what arrives there, and what the penalty adds."""
    network, generator = tiny_network(), torch_generator(settings().seed, Stream.TURN, 0)
    batch = EquivarianceRegularizer(network).pair(
        *NoisySquares().batch(0, DRAWN), generator=generator, num_pairs=NUM_PAIRS
    )
    arriving, added = [], []

    def watched(output: Tensor, residual: Callable[[Tensor, Tensor, int], Tensor]) -> Tensor:
        leaf = output.detach().requires_grad_()
        originals, transformed = leaf[: 2 * NUM_PAIRS].chunk(2)
        value = relative_mse(
            residual(originals, transformed, batch.element), pair_scale(originals, transformed).detach()
        )
        (own,) = torch.autograd.grad(weight * value / 3, leaf)

        def enter(gradient: Tensor) -> Tensor:
            pairs, capped = gradient[: 2 * NUM_PAIRS], own.clone()
            for pair in range(NUM_PAIRS if cap is not None else 0):
                both = [pair, NUM_PAIRS + pair]
                capped[both] *= min(1.0, cap * float(pairs[both].norm() / own[both].norm()))
            arriving.append(pairs)
            added.append(capped)
            return gradient + capped

        output.register_hook(enter)
        return output

    with torch.no_grad():
        weight = 0.5 / 4 * float((network(batch.inputs) - batch.targets).square().mean())  # a quarter of the warm-up
    maps = batch.inputs
    for module in network:
        maps = module(maps)
        if isinstance(module, nn.Conv2d):
            maps = watched(maps, rotation_residual if module is network[4] else regular_residual)
    (maps - batch.targets).square().mean().backward()
    return arriving, added


@pytest.mark.parametrize("cap", [None, 0.05])
def test_the_gradient_ratio_is_that_of_what_the_penalty_adds_and_what_arrives_at_the_layers(cap: float | None) -> None:
    run = Run(settings(steps=1), weight=0.5, options={"max_gradient_ratio": cap}).start()
    arriving, added = _gradients_at_layers(cap)
    assert len(arriving) == 3
    ratio = _norm(added) / _norm(arriving)
    assert run.reports[0][1]["gradient_ratio"] == pytest.approx(ratio, rel=1e-4)
    assert ratio > 1e-3
    assert (cap is None) == (ratio > 0.05 * (1 + 1e-6))  # float32


@pytest.mark.parametrize(
    ("changes", "ratios"),
    [({"weight": 0.0}, [0.0, 0.0]), ({"penalty": "channel"}, [None, None]), ({"penalty": "projection"}, [None, None])],
)
def test_there_is_no_gradient_ratio_where_nothing_enters_at_the_outputs_of_layers(
    changes: dict[str, Any], ratios: list[float | None]
) -> None:
    run = Run(settings(steps=2), **changes).start()
    assert [metrics.get("gradient_ratio") for _, metrics in run.reports] == ratios


@pytest.mark.parametrize("options", [{}, SAMPLED])
def test_a_report_takes_no_backward_pass_and_changes_no_weight(options: dict[str, Any]) -> None:
    states, passes = [], []
    for report_every in (1, 12):
        run = Run(settings(report_every=report_every), options=options)
        run.state.network[0].weight.register_hook(lambda gradient: passes.append(1))
        states.append(tensors(run.start()))
    assert len(passes) == 2 * 12
    assert _same(*states)


@pytest.mark.parametrize("counts_transformed", [True, False])
def test_the_task_loss_counts_the_copies_or_leaves_them_out(counts_transformed: bool) -> None:
    run = Run(settings(steps=1, task_loss_on_transformed=counts_transformed, loss=L1(), gradient_clip=1e9), weight=0.0)
    seen = _recorded_inputs(run)
    run.start()
    network, (degraded, clean) = tiny_network(), NoisySquares().batch(0, DRAWN)
    errors = [(network(image[None]) - truth).abs().mean() for image, truth in zip(degraded, clean, strict=True)]
    if counts_transformed:
        transformed = seen[0][NUM_PAIRS : 2 * NUM_PAIRS]
        turns = next(
            n for n in (1, 2, 3) if torch.equal(transformed, torch.rot90(degraded[:NUM_PAIRS], n, dims=(-2, -1)))
        )
        turned = torch.rot90(clean[:NUM_PAIRS], turns, dims=(-2, -1))
        errors += [(network(copy[None]) - truth).abs().mean() for copy, truth in zip(transformed, turned, strict=True)]
    loss = torch.stack(errors).mean()
    assert len(errors) == (8 if counts_transformed else 6)
    assert run.losses()[0] == pytest.approx(loss.item(), rel=1e-5)
    expected = torch.autograd.grad(loss, list(network.parameters()))
    for found, gradient in zip(_gradient(run), expected, strict=True):
        assert torch.allclose(found, gradient, rtol=1e-4, atol=1e-7)


def test_a_gradient_longer_than_the_limit_is_scaled_down_to_it() -> None:
    free = Run(settings(steps=1, gradient_clip=1e9)).start()
    clipped = Run(settings(steps=1, gradient_clip=0.01)).start()
    norm = _norm(_gradient(free))
    assert norm > 0.1
    assert free.reports[0][1]["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    assert clipped.reports[0][1]["gradient_norm"] == pytest.approx(norm, rel=1e-5)  # before clipping
    for short, long in zip(_gradient(clipped), _gradient(free), strict=True):
        assert torch.allclose(short, long * 0.01 / norm, rtol=1e-3, atol=1e-9)


def test_the_result_is_the_average_and_the_first_update_is_copied() -> None:
    run = Run(settings(steps=1)).start()
    averaged = run.state.averaged.module.state_dict()
    assert all(torch.equal(value, averaged[name]) for name, value in run.state.network.state_dict().items())
    two = Run(settings(steps=2)).start()
    keep = min(0.9, 2 / 11)
    # The schedule of two steps and of one is the same in the first: both still warm up.
    for name, value in two.state.network.state_dict().items():
        expected = keep * run.state.network.state_dict()[name] + (1 - keep) * value
        assert torch.allclose(two.state.averaged.module.state_dict()[name], expected, atol=1e-7)


def test_reports_validations_and_checkpoints_keep_their_rhythm_and_all_come_at_the_end() -> None:
    run = Run(settings(steps=10, report_every=3, validate_every=4, checkpoint_every=5)).start()
    assert [step for step, _ in run.reports] == [3, 4, 6, 8, 9, 10]
    assert [step for step, metrics in run.reports if "val_score" in metrics] == [4, 8, 10]
    assert [step for step, _ in run.checkpoints] == [5, 10]
    assert run.checkpoints[0][1] == {}  # step 5 reports nothing
    assert run.checkpoints[1][1] == run.reports[-1][1]
    assert all(network is run.state.averaged.module for network in run.validated)


def test_a_report_tells_rate_weight_and_every_layer() -> None:
    run = Run(settings(steps=6, warmup_steps=3, learning_rate=0.3)).start()
    metrics = run.reports[1][1]
    assert metrics["learning_rate"] == pytest.approx(0.2)
    assert {name for name in metrics if name.startswith("penalty/")} == {"penalty/0", "penalty/2", "penalty/4"}
    layers = [metrics["penalty/0"], metrics["penalty/2"], metrics["penalty/4"]]
    assert metrics["penalty"] == pytest.approx(sum(layers) / 3, rel=1e-5)
    assert metrics["images_per_second"] > 0
    without = Run(settings(steps=1), weight=None).start().reports[0][1]
    assert not {"penalty", "weight", "gradient_ratio"} & without.keys()


class _Supervised(nn.Module):
    """Gives two images to supervise in training, and the last one in evaluation."""

    def __init__(self, kind: type, weights: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.first, self.second = tiny_network(), tiny_network()
        self.kind, self.output_weights = kind, weights

    def forward(self, images: Tensor) -> Any:
        first = self.first(images)
        second = self.second(first)
        return self.kind((first, second)) if self.training else second


@pytest.mark.parametrize("counts_transformed", [True, False])
@pytest.mark.parametrize("micro_batch_size", [None, 4])
@pytest.mark.parametrize("kind", [tuple, list])
def test_several_supervised_outputs_are_each_compared_with_the_targets(
    kind: type, micro_batch_size: int | None, counts_transformed: bool
) -> None:
    one_step = settings(
        steps=1, gradient_clip=1e9, micro_batch_size=micro_batch_size, task_loss_on_transformed=counts_transformed
    )
    run = Run(one_step, weight=0.0)
    run.state = TrainingState(_Supervised(kind), PenaltyWeight(0.0), one_step, run.worker)
    run.start()
    network, generator = _Supervised(kind), torch_generator(one_step.seed, Stream.TURN, 0)
    batch = EquivarianceRegularizer(network).pair(
        *NoisySquares().batch(0, DRAWN), generator=generator, num_pairs=NUM_PAIRS
    )
    first, second = network(batch.inputs)
    counted = [i for i in range(len(batch.inputs)) if counts_transformed or not NUM_PAIRS <= i < 2 * NUM_PAIRS]
    errors = [(output - batch.targets)[counted].square().mean() for output in (first, second)]
    assert errors[0] != errors[1]
    assert run.losses()[0] == pytest.approx((errors[0] + errors[1]).item() / 2, rel=1e-5)
    expected = torch.autograd.grad((errors[0] + errors[1]) / 2, list(network.parameters()))
    for found, gradient in zip(_gradient(run), expected, strict=True):
        assert torch.allclose(found, gradient, rtol=1e-4, atol=1e-7)


def test_a_network_can_weight_its_supervised_outputs() -> None:
    def first_loss(weights: tuple[float, ...]) -> float:
        one_step = settings(steps=1, gradient_clip=1e9)
        run = Run(one_step, weight=None)
        run.state = TrainingState(_Supervised(tuple, weights), PenaltyWeight(0.0), one_step, run.worker)
        run.start()
        return run.losses()[0]

    of_first, of_second = first_loss((1.0, 0.0)), first_loss((0.0, 1.0))
    assert of_first != pytest.approx(of_second)
    assert first_loss((3.0, 1.0)) == pytest.approx((3 * of_first + of_second) / 4, rel=1e-6)
    assert first_loss((0.5, 0.5)) == pytest.approx(first_loss(()), rel=1e-6)


def test_another_number_of_weights_than_of_supervised_outputs_is_refused_with_both() -> None:
    one_step = settings(steps=1)
    run = Run(one_step, weight=None)
    run.state = TrainingState(_Supervised(tuple, (1.0, 0.5, 0.5)), PenaltyWeight(0.0), one_step, run.worker)
    with pytest.raises(ValueError, match="network: 3 output_weights for 2 supervised outputs: give one each"):
        run.start()


class _Announced:
    """Says when it has drawn the batch of a step."""

    def __init__(self) -> None:
        self.drawn = [Event() for _ in range(12)]

    def batch(self, step: int, indices: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        self.drawn[step].set()
        return NoisySquares().batch(step, indices)


def test_a_validation_does_not_stop_the_drawing_of_batches() -> None:
    sampler, found = _Announced(), []

    class Waiting(Run):
        def _validate(self, network: nn.Module) -> Metrics:
            found.append(all(event.wait(300) for event in sampler.drawn[:5]))  # of steps 2 to 5, while step 1 validates
            return {}

    Waiting(settings(validate_every=1, steps=5), sampler=sampler).start()
    assert found == [True] * 5


class _BadFrom:
    """Values that are not finite in one step (counted from 0)."""

    def __init__(self, step: int, value: float) -> None:
        self.step, self.value = step, value

    def batch(self, step: int, indices: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        degraded, clean = NoisySquares().batch(step, indices)
        return (
            (degraded.index_fill(0, torch.tensor([0]), self.value), clean) if step == self.step else (degraded, clean)
        )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(tmp_path: Path, value: float) -> None:
    run = Run(sampler=_BadFrom(7, value), folder=tmp_path)
    with pytest.raises(TrainingDivergedError, match=r"step 8 .*lower train\.learning_rate or equivariance\.weight"):
        run.start()
    assert [step for step, _ in run.reports] == list(range(1, 8))
    assert run.state.step == 7
    assert all(parameter.isfinite().all() for parameter in run.state.network.parameters())


def test_features_that_are_not_finite_end_the_run_and_name_the_layer() -> None:
    run = Run()
    with torch.no_grad():
        run.state.network[2].bias[3] = math.nan
    with pytest.raises(TrainingDivergedError, match=r"step 1 .*2: its features are NaN or infinite.*: lower train"):
        run.start()


class _InfiniteSlope(nn.Module):
    """Its loss is finite, its gradient is not."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)
        self.level = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.convolution(images)
        return maps + self.level.sqrt()


def test_a_gradient_that_is_not_finite_ends_the_run_before_it_spoils_the_weights() -> None:
    run = Run(weight=None)
    run.state = TrainingState(_InfiniteSlope(), PenaltyWeight(0.0), run.settings, run.worker)
    before = tensors(run)
    with pytest.raises(TrainingDivergedError, match="gradient is no longer finite in step 1"):
        run.start()
    assert all(torch.equal(value, before[name]) for name, value in tensors(run).items() if "." in name)


class _Breaking:
    """Fails in the third step."""

    def batch(self, step: int, indices: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        if step == 2:
            raise ValueError("train/images.safetensors: damaged")
        return NoisySquares().batch(step, indices)


def test_an_error_of_the_sampler_comes_through_in_the_step_that_needs_its_batch() -> None:
    run = Run(sampler=_Breaking())
    with pytest.raises(ValueError, match="damaged"):
        run.start()
    assert len(run.reports) == 2


# -------------------------------------------------------------------------------------------------- stochastic depth


DEPTH = {"depth_rate": 0.4}


def _depth_numbers(run: Run) -> list[Tensor]:
    """The numbers of the branches in each forward of a run in training mode, ``(B, branches)``, while it trains."""
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(torch.stack([branch.uniform for branch in stochastic_depths(module)], dim=1))  # type: ignore[misc]

    run.state.network.register_forward_pre_hook(note)
    return seen


def _expected_numbers(step: int, indices: tuple[int, ...]) -> Tensor:
    """By hand: one counter-based generator for each image."""
    rows = [generator(settings().seed, Stream.STOCHASTIC_DEPTH, step, index).random(2) for index in indices]
    return torch.tensor(np.stack(rows))


def test_stochastic_depth_is_a_function_of_step_and_image_and_the_same_for_a_pair() -> None:
    run = Run(**DEPTH)  # type: ignore[arg-type]
    seen = _depth_numbers(run)
    with torch.random.fork_rng(devices=[]):
        before = torch.random.get_rng_state()
        run.start()
        assert torch.equal(torch.random.get_rng_state(), before)  # nothing of torch's default generator
    originals = tuple(range(NUM_PAIRS))
    for step, found in enumerate(seen):
        assert torch.equal(found, _expected_numbers(step, (*originals, *originals, *SINGLES)))
    assert len(seen) == 12
    assert all(branch.uniform is None for branch in stochastic_depths(run.state.network))


def test_an_image_has_the_same_stochastic_depth_with_and_without_pairs() -> None:
    run = Run(weight=None, **DEPTH)  # type: ignore[arg-type]
    seen = _depth_numbers(run)
    run.start()
    for step, found in enumerate(seen):
        assert torch.equal(found, _expected_numbers(step, tuple(range(BATCH_SIZE))))


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_a_run_with_stochastic_depth_killed_and_resumed_ends_with_the_same_bytes(
    tmp_path: Path, micro_batch_size: int | None
) -> None:
    of_run = {"settings": settings(steps=4, checkpoint_every=2, micro_batch_size=micro_batch_size), **DEPTH}
    whole = Run(**of_run).start()  # type: ignore[arg-type]
    killed = Run(**of_run, folder=tmp_path, stop_after=3)  # type: ignore[arg-type]
    with pytest.raises(Interrupted):
        killed.start()
    torch.rand(7)  # what torch's default generator gave before does not matter
    resumed = Run(**of_run)  # type: ignore[arg-type]
    resumed.state.from_bytes((tmp_path / "checkpoint.pt").read_bytes())
    assert resumed.state.step == 2
    assert _same(tensors(resumed.start()), tensors(whole))
    plain = Run(settings=of_run["settings"], depth_rate=1e-12).start()  # type: ignore[arg-type]
    assert not _same(tensors(plain), tensors(whole))  # branches were left out


def test_micro_batches_have_the_stochastic_depth_of_the_whole_batch() -> None:
    states = []
    for micro_batch_size in (None, 3):
        one_step = settings(steps=1, micro_batch_size=micro_batch_size, gradient_clip=1e9)
        states.append(tensors(Run(one_step, weight=0.0, **DEPTH).start()))  # type: ignore[arg-type]
    for name, value in states[0].items():
        if name.startswith(("network", "optimizer")):
            assert torch.allclose(states[1][name], value, rtol=1e-4, atol=1e-7), name


def test_a_validation_leaves_out_nothing() -> None:
    run = Run(settings(steps=2, validate_every=1), **DEPTH)  # type: ignore[arg-type]
    outputs = []
    image = torch.rand(1, 3, 8, 8)

    def validate(network: nn.Module) -> Metrics:
        outputs.append([network.eval()(image) for _ in range(5)])
        network.train()
        return {"val_score": 0.0}

    run._validate = validate  # type: ignore[method-assign]
    run.start()
    assert len(outputs) == 2
    assert all(torch.equal(first, other) for first, *others in outputs for other in others)
