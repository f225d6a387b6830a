"""Batches are drawn ahead, in their order, a few at a time, by a thread that ends with the block."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from components.training.prefetch import PREFETCHED, prefetched

pytestmark = pytest.mark.unit

INDICES = (0, 3)


class Counting:
    """Draws (step, indices), and writes down for which steps it has; fails at one step."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.steps: list[int] = []
        self.fails_at = fails_at

    def batch(self, step: int, indices: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        if step == self.fails_at:
            raise ValueError("train/images.safetensors: damaged")
        self.steps.append(step)
        return torch.tensor([step]), torch.tensor(indices)


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("steps", [range(0), range(1), range(5, 7), range(3, 3 + PREFETCHED), range(7, 30)])
def test_each_step_gets_its_batch_in_order(steps: range) -> None:
    sampler = Counting()
    with prefetched(sampler, INDICES, steps) as batches:
        found = [(int(inputs), tuple(targets.tolist())) for inputs, targets in batches]
    assert found == [(step, INDICES) for step in steps]
    assert sampler.steps == list(steps)


def test_while_one_batch_is_in_use_a_bounded_number_is_drawn() -> None:
    sampler = Counting()
    with prefetched(sampler, INDICES, range(100)) as batches:
        for step in range(3):
            next(batches)
            _until(lambda step=step: len(sampler.steps) == step + 1 + PREFETCHED)  # type: ignore[misc]
            time.sleep(0.02)
            assert len(sampler.steps) == step + 1 + PREFETCHED


def test_an_error_of_the_sampler_is_raised_at_its_step() -> None:
    sampler, found = Counting(fails_at=2), []

    def use_all() -> None:
        with prefetched(sampler, INDICES, range(9)) as batches:
            for inputs, _ in batches:
                found.append(int(inputs))

    with pytest.raises(ValueError, match="damaged"):
        use_all()
    assert found == [0, 1]
    assert not _threads()


def test_the_thread_ends_with_the_block_that_fails_and_draws_no_more() -> None:
    sampler = Counting()

    def fail() -> None:
        with prefetched(sampler, INDICES, range(10**6)) as batches:
            next(batches)
            assert len(_threads()) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not _threads()
    assert len(sampler.steps) <= 1 + PREFETCHED
