"""Schedule, averaging and rhythm, against their formulas."""

import math
from itertools import pairwise

import pytest
import torch

from components.training.losses import L1, MeanSquaredError
from components.training.settings import ema_update
from tests.components.training.runs import settings

pytestmark = pytest.mark.unit


def test_the_learning_rate_rises_linearly_and_falls_along_half_a_cosine() -> None:
    chosen = settings(steps=14, warmup_steps=4, learning_rate=0.8)
    rates = [chosen.learning_rate_at(step) for step in range(14)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == pytest.approx(0.8)
    assert rates[9] == pytest.approx(0.4)  # half way down
    assert rates[7] == pytest.approx(0.4 * (1 + math.cos(0.3 * math.pi)))
    assert rates[13] == pytest.approx(0.4 * (1 - math.cos(0.1 * math.pi)))
    assert all(after < before for before, after in pairwise(rates[4:]))
    assert chosen.learning_rate_at(14) == pytest.approx(0)


def test_no_warm_up_begins_at_the_peak() -> None:
    assert settings(warmup_steps=0, learning_rate=0.3).learning_rate_at(0) == pytest.approx(0.3)


def test_a_warm_up_longer_than_the_run_rises_to_its_end() -> None:
    chosen = settings(steps=4, warmup_steps=8, learning_rate=0.8)
    assert [chosen.learning_rate_at(step) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_what_is_due_every_so_many_steps_is_due_after_the_last_step_too() -> None:
    chosen = settings(steps=10)
    assert [step + 1 for step in range(10) if chosen.is_due(3, step)] == [3, 6, 9, 10]
    assert [step + 1 for step in range(10) if chosen.is_due(100, step)] == [10]
    assert [step + 1 for step in range(10) if chosen.is_due(1, step)] == list(range(1, 11))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.995])
def test_averaged_weights_follow_the_formula(decay: float) -> None:
    values = torch.rand(30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    averaged, expected = values[0].clone(), values[0].tolist()
    update = ema_update(decay)
    for count, current in enumerate(values[1:], start=1):
        update([averaged], [current], torch.tensor(count))
        keep = min(decay, (1 + count) / (10 + count))
        expected = [keep * mean + (1 - keep) * float(value) for mean, value in zip(expected, current, strict=True)]
    assert averaged.tolist() == pytest.approx(expected, rel=1e-12)


def test_whole_numbers_such_as_counters_are_copied_not_averaged() -> None:
    counter = torch.tensor(3)
    ema_update(0.9)([counter], [torch.tensor(8)], 5)
    assert counter == 8


def test_losses_are_means_over_all_values_in_float32() -> None:
    outputs = torch.tensor([[0.5, 1.0], [0.0, 0.0]], dtype=torch.bfloat16)
    targets = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    for loss, expected in ((L1(), 2.5 / 4), (MeanSquaredError(), 2.25 / 4)):
        value = settings(loss=loss).task_loss(outputs, targets)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(expected)
