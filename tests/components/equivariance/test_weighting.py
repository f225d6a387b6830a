"""The weight of the penalty: warm-up, and the running mean of the task loss."""

import json

import pytest
import torch

from components.equivariance import (
    BalancedWeight,
    EquivarianceRegularizer,
    GradientNorms,
    PenaltyWeight,
    pair_scale,
    regular_residual,
    relative_mse,
)
from tests.components.equivariance.exact import plain_network, random_images

pytestmark = pytest.mark.unit

LOSSES = [4.0, 2.0, 8.0, 1.0, 0.5]


def _norms(arriving: float, own: float) -> GradientNorms:
    return GradientNorms(torch.tensor(arriving), torch.tensor(own), torch.tensor(own))


def test_the_weight_rises_linearly_to_its_full_value() -> None:
    weight = PenaltyWeight(0.8, warmup_steps=4, unit="none")
    assert [weight.at(step, 1.0) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_the_unit_is_a_weighted_mean_of_the_losses_given_so_far() -> None:
    weight = PenaltyWeight(0.1, unit="task", momentum=0.9)
    for step, loss in enumerate(LOSSES):
        shares = [0.9 ** (step - index) for index in range(step + 1)]
        mean = sum(s * x for s, x in zip(shares, LOSSES, strict=False)) / sum(shares)
        assert weight.at(step, loss) == pytest.approx(0.1 * mean, rel=1e-12)


def test_a_constant_loss_gives_that_loss_from_the_first_step() -> None:
    weight = PenaltyWeight(0.5, unit="task", momentum=0.99)
    assert [weight.at(step, 3.0) for step in range(3)] == pytest.approx([1.5, 1.5, 1.5])


def test_one_weight_serves_task_losses_of_any_unit() -> None:
    small, large = PenaltyWeight(0.1), PenaltyWeight(0.1)
    for step, loss in enumerate(LOSSES):
        assert large.at(step, 255.0 * loss) == pytest.approx(255.0 * small.at(step, loss))


def test_a_run_resumed_from_its_state_goes_on_with_the_same_numbers() -> None:
    whole, first, second = (PenaltyWeight(0.3, 3) for _ in range(3))
    expected = [whole.at(step, loss) for step, loss in enumerate(LOSSES)]
    before = [first.at(step, LOSSES[step]) for step in range(2)]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    after = [second.at(step, LOSSES[step]) for step in range(2, 5)]
    assert before + after == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight: -1.0"),
        ({"weight": float("nan")}, "weight: nan"),
        ({"weight": 1.0, "warmup_steps": -1}, "warmup_steps: -1"),
        ({"weight": 1.0, "unit": "tasc"}, "weight_unit: 'tasc'.*did you mean 'task'"),
        ({"weight": 1.0, "momentum": 1.0}, "momentum: 1.0"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PenaltyWeight(**options)  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_never_enters_the_mean() -> None:
    weight = PenaltyWeight(1.0)
    with pytest.raises(ValueError, match="task_loss: nan at step 0"):
        weight.at(0, float("nan"))
    assert weight.at(0, 2.0) == pytest.approx(2.0)


def _steps(weight: PenaltyWeight | BalancedWeight, loss: str, num_steps: int = 30) -> list[tuple[float, float]]:
    """(share of the gradient norm at the layers, factor) of each step of a small training run."""
    network, images = plain_network(), random_images(8, 3, 6, 6)
    regularizer = EquivarianceRegularizer(network, measure_gradients=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    seen = []
    for step in range(num_steps):
        batch = regularizer.pair(images, 0.5 * images, generator=generator)
        error = network(batch.inputs) - batch.targets
        task = error.abs().mean() if loss == "l1" else error.square().mean()
        factor = weight.at(step, task.item())
        (task + factor * regularizer.penalty()).backward()
        norms = regularizer.gradient_norms()
        assert norms is not None
        weight.observe(norms)
        arriving, own = float(norms.arriving) ** 0.5, float(norms.own) ** 0.5
        seen.append((own / (arriving + own), factor))
        optimizer.step()
        optimizer.zero_grad()
    return seen


@pytest.mark.parametrize("loss", ["l1", "mse"])
@pytest.mark.parametrize("share", [0.05, 0.3])
@pytest.mark.parametrize("initial", [1e-6, 10.0])
def test_a_balanced_weight_keeps_the_share_of_the_penalty_whatever_the_loss_and_the_beginning(
    share: float, initial: float, loss: str
) -> None:
    shares = [found for found, _ in _steps(BalancedWeight(share, initial, momentum=0.8), loss, 50)]
    assert abs(shares[0] - share) > 0.02  # else the next line would prove nothing
    assert sum(shares[30:]) / 20 == pytest.approx(share, rel=0.1)


def test_a_weight_in_the_unit_of_the_task_serves_l1_and_mse_alike() -> None:
    """Ten times the images' scale makes MSE a hundred and L1 ten times as large; the ratio to the task stays."""
    ratios = []
    for unit in ("task", "none"):
        factors = [_steps(PenaltyWeight(0.1, unit=unit), loss, 5)[-1][1] for loss in ("l1", "mse")]
        tasks = [_steps(PenaltyWeight(1.0, unit="task"), loss, 5)[-1][1] for loss in ("l1", "mse")]
        ratios.append([factor / task for factor, task in zip(factors, tasks, strict=True)])
    assert ratios[0] == pytest.approx([0.1, 0.1], rel=1e-2)
    assert abs(ratios[1][0] - ratios[1][1]) > 0.02


@pytest.mark.parametrize("options", [{"sample_layers": 1}, {"sample_fields": 0.5}])
def test_norms_of_sampled_steps_estimate_those_of_all_layers_and_fields(options: dict[str, float]) -> None:
    """Else a balanced weight would depend on how much is sampled for speed."""
    network, images = plain_network(16), random_images(4, 3, 8, 8)

    def mean_norms(num_steps: int, **chosen: float) -> tuple[float, float]:
        regularizer = EquivarianceRegularizer(network, measure_gradients=True, **chosen)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(0)
        sums = [0.0, 0.0]
        for _ in range(num_steps):
            batch = regularizer.pair(images, 0.5 * images, element=1, generator=generator)
            task = (network(batch.inputs) - batch.targets).square().mean()
            (task + 1e-6 * regularizer.penalty()).backward()
            norms = regularizer.gradient_norms()
            assert norms is not None
            sums = [sums[0] + float(norms.arriving) / num_steps, sums[1] + float(norms.own) / num_steps]
        return sums[0], sums[1]

    assert mean_norms(400, **options) == pytest.approx(mean_norms(1), rel=0.15)


@pytest.mark.parametrize("cap", [None, 1e-3, 1e3])
def test_the_norms_are_those_of_gradients_taken_by_hand(cap: float | None) -> None:
    network, images = plain_network(), random_images(4, 3, 6, 6)
    regularizer = EquivarianceRegularizer(network, layers=["2"], measure_gradients=True, max_gradient_ratio=cap)
    maps: list[torch.Tensor] = []
    network[2].register_forward_hook(lambda module, given, output: maps.append(output))
    batch = regularizer.pair(images, images, element=1)
    output = network(batch.inputs)
    task = (output - batch.targets).square().mean()
    value = regularizer.penalty()
    (of_task,) = torch.autograd.grad(task, maps[0], retain_graph=True)
    first, second = maps[0][:1].detach().requires_grad_(), maps[0][1:2].detach().requires_grad_()
    size = relative_mse(regular_residual(first, second, 1), pair_scale(first, second).detach())
    of_size = torch.cat(torch.autograd.grad(size, [first, second]))
    (task + 0.25 * value).backward()
    norms = regularizer.gradient_norms()
    assert norms is not None
    arriving, own = float(of_task[:2].square().sum()), float((0.25 * of_size).square().sum())
    assert 1e-3 < (own / arriving) ** 0.5 < 1e3  # one of the caps acts, the other does not
    assert float(norms.arriving) == pytest.approx(arriving, rel=1e-9)
    assert float(norms.own) == pytest.approx(own, rel=1e-9)
    assert float(norms.added) == pytest.approx(1e-6 * arriving if cap == 1e-3 else own, rel=1e-9)


@pytest.mark.parametrize("is_measured", [True, False])
def test_one_step_measures_or_not_whatever_the_others_do(is_measured: bool) -> None:
    network, images = plain_network(), random_images(4, 3, 6, 6)
    regularizer = EquivarianceRegularizer(network, measure_gradients=not is_measured)
    found = []
    for measure_gradients in (None, is_measured, None):
        batch = regularizer.pair(images, images, measure_gradients=measure_gradients)
        ((network(batch.inputs) - batch.targets).square().mean() + regularizer.penalty()).backward()
        found.append(regularizer.gradient_norms() is not None)
    assert found == [not is_measured, is_measured, not is_measured]


def test_a_balanced_weight_warms_up_and_what_it_measured_then_counts_as_it_was() -> None:
    warm, cold = BalancedWeight(0.1, 0.01, warmup_steps=4), BalancedWeight(0.1, 0.01)
    for step in range(6):
        factors = [weight.at(step, 1.0) for weight in (warm, cold)]
        assert factors[0] == pytest.approx(factors[1] * min(1.0, (step + 1) / 4))
        for weight, factor in zip((warm, cold), factors, strict=True):
            weight.observe(_norms(9.0, 4 * factor**2))  # A = 3, G = 2 lambda
    assert cold.weight == pytest.approx(0.1 / 0.9 * 3 / 2, rel=1e-6)
    assert warm.weight == pytest.approx(cold.weight, rel=1e-6)


@pytest.mark.parametrize("arriving", [0.0, float("nan"), float("inf")])
def test_a_step_without_a_gradient_to_compare_with_changes_nothing(arriving: float) -> None:
    weight = BalancedWeight(0.1, 0.01)
    weight.observe(None)
    weight.observe(_norms(arriving, 1.0))
    assert weight.at(5, 1.0) == 0.01


def test_a_balanced_weight_goes_on_from_its_state_with_the_same_numbers() -> None:
    first, second = BalancedWeight(0.2), BalancedWeight(0.2)
    norms = [_norms(2.0 + i, 1.0 + i * i) for i in range(6)]
    for step in range(3):
        first.at(step, 1.0)
        first.observe(norms[step])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step in range(3, 6):
        assert first.at(step, 1.0) == second.at(step, 1.0)
        first.observe(norms[step])
        second.observe(norms[step])
    assert first.weight == second.weight


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, "balance: 0.0 must be above 0 and below 1"),
        ({"share": 1.0}, "balance: 1.0"),
        ({"share": 0.1, "initial": 0.0}, "weight: 0.0 must be a number above 0"),
        ({"share": 0.1, "warmup_steps": -1}, "warmup_steps: -1"),
        ({"share": 0.1, "momentum": 1.0}, "momentum: 1.0"),
    ],
)
def test_a_balance_out_of_range_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BalancedWeight(**options)  # type: ignore[arg-type]
