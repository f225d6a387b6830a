"""The micro-batches of a worker's batch: what one forward and backward pass takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from components.training.global_batch import WorkerBatch


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Samples for one forward and backward pass.

    Attributes:
        inputs: ``(b, ...)``; originals of pairs come first. Transformed images are not yet among them.
        targets: ``(b, ...)``.
        share: their place in the global batch, with the factors of their losses.
        is_penalised: whether the penalty is computed from this pass.
        is_last: whether the step has no further pass.
    """

    inputs: Tensor
    targets: Tensor
    share: WorkerBatch
    is_penalised: bool
    is_last: bool


def micro_batches(
    batch: tuple[Tensor, Tensor], own_batch: WorkerBatch, micro_batch_size: int | None
) -> Iterator[MicroBatch]:
    """Split the samples of a worker into micro-batches; without a size, there is one with all samples.

    Args:
        batch: (inputs, targets) of the worker, in the order of ``own_batch.indices``.
        own_batch: the images of the worker.
        micro_batch_size: largest number of images of a micro-batch, including transformed images.
    """
    shares = own_batch.micro_batches(micro_batch_size)
    place_of = {index: place for place, index in enumerate(own_batch.indices)}
    for number, share in enumerate(shares):
        inputs, targets = batch
        if len(shares) > 1:
            places = torch.tensor([place_of[index] for index in share.indices], device=inputs.device)
            inputs, targets = inputs[places], targets[places]
        # A penalty without pairs is a function of the weights alone and enters once.
        is_penalised = share.num_pairs > 0 or (own_batch.num_pairs == 0 and number == 0)
        yield MicroBatch(inputs, targets, share, is_penalised, is_last=number + 1 == len(shares))
