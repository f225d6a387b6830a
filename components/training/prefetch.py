"""Drawing of training batches ahead of the steps that use them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""(inputs, targets)."""

PREFETCHED = 4
"""Largest number of batches in memory beside the one in use."""


class Sampler(Protocol):
    """Draws training samples, (inputs, targets); see ``components.data.sampler``."""

    def batch(self, step: int, indices: tuple[int, ...]) -> Batch:
        """Draw (inputs, targets) for these indices of the global batch."""
        ...


@contextmanager
def prefetched(sampler: Sampler, indices: tuple[int, ...], steps: range) -> Iterator[Iterator[Batch]]:
    """Draw the batches of consecutive steps in a thread, which goes on while a step, a report or a validation runs.

    A batch is a function of its step, so its time of drawing changes no result. The thread ends with the block: it
    finishes the batch that it is drawing and starts no other.

    Args:
        sampler: draws the batches.
        indices: the indices of this worker's images in the global batch.
        steps: the steps whose batches are needed, with step width 1.

    Returns:
        A context that gives an iterator over the batches. An error of the sampler is raised at the step whose batch it
        concerns.
    """
    thread = ThreadPoolExecutor(1, "prefetch")

    def draw(several: range) -> Iterator[Future[Batch]]:
        return (thread.submit(sampler.batch, step, indices) for step in several)

    def batches() -> Iterator[Batch]:
        ahead = deque(draw(steps[:PREFETCHED]))
        for number in range(len(steps)):
            ahead.extend(draw(steps[number + PREFETCHED : number + PREFETCHED + 1]))
            yield ahead.popleft().result()

    try:
        yield batches()
    finally:
        thread.shutdown(cancel_futures=True)
