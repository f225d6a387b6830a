"""The weight of the penalty: warm-up, and the running mean of the task loss."""

import json

import pytest

from components.equivariance import PenaltyWeight

LOSSES = [4.0, 2.0, 8.0, 1.0, 0.5]


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
