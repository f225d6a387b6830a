"""The training loop, on one screen. It knows nothing of who listens: reports and checkpoints go to two functions."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from components.data.randomness import Stream, torch_generator
from components.equivariance import EquivarianceRegularizer, GradientNorms, NonFiniteFeaturesError
from components.equivariance.pairing import EntryField
from components.training.global_batch import Share
from components.training.settings import TrainingSettings
from components.training.state import TrainingState
from components.training.worker import Worker

Metrics = dict[str, float]


class TrainingDivergedError(ValueError):
    """The loss or its gradient became NaN or infinite; raised on every worker in the same step."""


_REMEDY = "lower train.learning_rate or equivariance.weight"


class Sampler(Protocol):
    """Draws training samples, (inputs, targets); see ``components.data.sampler``."""

    def batch(self, step: int, indices: tuple[int, ...]) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Listeners:
    """What the caller wants to hear, on every worker.

    Attributes:
        report: (steps done, metrics); rank 0 alone need act.
        checkpoint: called with the metrics of the last report when a checkpoint is due, to save ``state``.
        validate: (averaged network) -> metrics, the same on every worker.
    """

    report: Callable[[int, Metrics], None]
    checkpoint: Callable[[TrainingState, Metrics], None]
    validate: Callable[[nn.Module], Metrics]


def train(
    state: TrainingState,
    sampler: Sampler,
    share: Share,
    regularizer: EquivarianceRegularizer | None,
    settings: TrainingSettings,
    worker: Worker,
    listeners: Listeners,
) -> None:
    """Trains from ``state.step`` to ``settings.steps``. ``regularizer`` is None where there are no pairs.

    Raises:
        TrainingDivergedError: the loss is no longer finite.
    """
    network = worker.parallel(state.network)
    network.train()
    metrics: Metrics = {}
    clock, clock_step = time.perf_counter(), state.step
    # The batch of the next step is drawn in a thread while this one trains.
    with ThreadPoolExecutor(1) as drawing:
        drawn = drawing.submit(sampler.batch, state.step, share.indices)
        while state.step < settings.steps:
            step, batch = state.step, _on_device(drawn.result(), worker)
            if step + 1 < settings.steps:
                drawn = drawing.submit(sampler.batch, step + 1, share.indices)
            is_validating = settings.is_due(settings.validate_every, step)
            is_reporting = is_validating or settings.is_due(settings.report_every, step)
            update = _update(network, state, batch, share, regularizer, settings, worker, is_reporting)
            if is_reporting:
                metrics = update
                images = (state.step - clock_step) * share.num_images * worker.num_workers
                metrics["images_per_second"] = images / (time.perf_counter() - clock)
                if is_validating:
                    metrics |= listeners.validate(state.averaged.module)
                listeners.report(state.step, metrics)
            if settings.is_due(settings.checkpoint_every, step):
                listeners.checkpoint(state, metrics)
            if is_reporting:
                clock, clock_step = time.perf_counter(), state.step


def _update(
    network: nn.Module,
    state: TrainingState,
    batch: tuple[Tensor, Tensor],
    share: Share,
    regularizer: EquivarianceRegularizer | None,
    settings: TrainingSettings,
    worker: Worker,
    is_reporting: bool,
) -> Metrics:
    """One step: forward, penalty, backward, clipped update, average. Metrics are those of the whole global batch."""
    learning_rate = settings.learning_rate_at(state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    inputs, targets, counted = _paired(batch, share, regularizer, settings, state.step)
    with worker.autocast():
        outputs = network(inputs)
    task = settings.task_loss(outputs[counted], targets[counted])
    task_mean = worker.mean(task)
    penalty, complaint = _penalty(regularizer, task)
    if not torch.isfinite(worker.mean(task + penalty)):
        raise TrainingDivergedError(
            f"the loss is no longer finite in step {state.step + 1} (task {task.item():g}, "
            f"penalty {penalty.item():g}{complaint}): {_REMEDY}"
        )
    weight = state.penalty_weight.at(state.step, float(task_mean))
    total = task + weight * penalty if weight else task
    metrics: Metrics = {}
    if is_reporting:
        metrics = {"task_loss": float(task_mean), "learning_rate": learning_rate}
        if regularizer:
            metrics |= {"penalty": float(worker.mean(penalty)), "lambda": state.penalty_weight.weight}
            metrics["weight"] = weight  # lambda after warm-up, in the unit of the task loss
            metrics["gradient_ratio"] = _gradient_ratio(task, total, state.network) if weight else 0.0
            layers = regularizer.layer_penalties()
            means = worker.mean(torch.tensor(list(layers.values()), device=worker.device))
            metrics |= {f"penalty/{name}": float(mean) for name, mean in zip(layers, means, strict=True)}
    state.optimizer.zero_grad(set_to_none=True)
    total.backward()
    if regularizer:
        state.penalty_weight.observe(_mean_norms(regularizer.gradient_norms(), worker))
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), settings.gradient_clip)
    if not torch.isfinite(norm):  # the same on every worker; the weights are still good
        raise TrainingDivergedError(f"the gradient is no longer finite in step {state.step + 1}: {_REMEDY}")
    state.optimizer.step()
    worker.share_statistics(state.network)
    state.averaged.update_parameters(state.network)
    state.step += 1
    return metrics | ({"gradient_norm": float(norm)} if is_reporting else {})


def _penalty(regularizer: EquivarianceRegularizer | None, task: Tensor) -> tuple[Tensor, str]:
    """(penalty, complaint): NaN where features are, so that every worker gives up in the same step and none waits."""
    if not regularizer:
        return task.new_zeros(()), ""
    try:
        return regularizer.penalty(), ""
    except NonFiniteFeaturesError as error:
        return torch.full_like(task, torch.nan), f"; {error}"


def _mean_norms(norms: GradientNorms | None, worker: Worker) -> GradientNorms | None:
    """The means over the workers, the same on each."""
    if norms is None:
        return None
    arriving, own = worker.mean(torch.stack((norms.arriving, norms.own)))
    return GradientNorms(arriving, own)


def _paired(
    batch: tuple[Tensor, Tensor],
    share: Share,
    regularizer: EquivarianceRegularizer | None,
    settings: TrainingSettings,
    step: int,
) -> tuple[Tensor, Tensor, Tensor | slice]:
    """(inputs, targets, which of them the task loss counts). Turns and shift are the same on every worker."""
    if not regularizer:
        return *batch, slice(None)
    generator = torch_generator(settings.seed, Stream.TURN, step)
    fields: dict[str, EntryField] = {"targets": "image" if batch[1].ndim == 4 else "invariant"}
    paired = regularizer.pair(*batch, fields=fields, generator=generator, num_pairs=share.num_pairs)
    if settings.task_on_copies:
        return paired.inputs, paired.targets, slice(None)
    counted = torch.ones(len(paired.inputs), dtype=torch.bool, device=paired.inputs.device)
    counted[paired.copies] = False
    return paired.inputs, paired.targets, counted


def _gradient_ratio(task: Tensor, total: Tensor, network: nn.Module) -> float:
    """Norm of what the penalty adds to the gradient / norm of the task's, over all parameters, on this worker's images.

    By difference, since a capped penalty has its gradient only beside the task's.
    """
    parameters = list(network.parameters())
    of_task, of_both = (
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        for loss in (task, total)
    )
    added = torch.stack([(both - own).square().sum() for both, own in zip(of_both, of_task, strict=True)]).sum()
    return float((added / torch.stack([own.square().sum() for own in of_task]).sum().clamp_min(1e-30)).sqrt())


def _on_device(batch: tuple[Tensor, Tensor], worker: Worker) -> tuple[Tensor, Tensor]:
    inputs, targets = batch
    inputs = inputs.to(worker.device, non_blocking=True, memory_format=worker.memory_format)
    layout = worker.memory_format if targets.ndim == 4 else torch.preserve_format  # labels have none
    return inputs, targets.to(worker.device, non_blocking=True, memory_format=layout)
