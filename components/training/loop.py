"""The training loop. The caller provides callbacks for reports, checkpoints and validation.

A report holds metrics of the global batch:

    task_loss           the loss on the targets, before the update
    learning_rate       of the step
    gradient_norm       norm of the whole gradient, before clipping
    images_per_second   since the previous report, without the time of validations and checkpoints
    penalty             the penalty, without unit
    penalty/LAYER       of each recorded layer
    lambda              the weight of the penalty after this step, before warm-up and unit
    weight              the factor of the penalty in the loss: lambda with warm-up, in the unit of the task loss
    gradient_ratio      norm of the gradient that the penalty adds, as weighted and capped / norm of the gradient that
                        arrives from everything after the layer, at the outputs of the penalised layers, over all pairs
                        (``GradientNorms``); at most ``equivariance.max_gradient_ratio``. 0 if the weight is 0; absent
                        for penalties that compare no outputs (channel, projection)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from components.data.randomness import Stream, generator, torch_generator
from components.equivariance import EquivarianceRegularizer
from components.equivariance.pairing import EntryField
from components.networks.stochastic_depth import StochasticDepth, given_depths, stochastic_depths
from components.training.global_batch import WorkerBatch
from components.training.micro_batches import MicroBatch, micro_batches
from components.training.prefetch import Batch, Sampler, prefetched
from components.training.settings import TrainingSettings
from components.training.state import TrainingState
from components.training.step_totals import HINT, Metrics, StepTotals, TrainingDivergedError
from components.training.worker import Worker


@dataclass(frozen=True)
class TrainingCallbacks:
    """Functions that the loop calls on every worker.

    Attributes:
        report: receives (number of finished steps, metrics). Only rank 0 needs to act.
        checkpoint: receives (state, metrics) when a checkpoint is due and saves the state. The metrics are empty if the
            step does not report.
        validate: (averaged network) -> metrics; the metrics must be the same on every worker.
    """

    report: Callable[[int, Metrics], None]
    checkpoint: Callable[[TrainingState, Metrics], None]
    validate: Callable[[nn.Module], Metrics]


@dataclass(frozen=True)
class _Run:
    """What the steps of a run share.

    ``network`` is ``state.network``, wrapped for several workers, and ``branches`` are those that it leaves out for
    some images.
    """

    network: nn.Module
    state: TrainingState
    own_batch: WorkerBatch
    regularizer: EquivarianceRegularizer | None
    settings: TrainingSettings
    worker: Worker
    branches: list[StochasticDepth]


def train(
    state: TrainingState,
    sampler: Sampler,
    own_batch: WorkerBatch,
    regularizer: EquivarianceRegularizer | None,
    settings: TrainingSettings,
    worker: Worker,
    callbacks: TrainingCallbacks,
) -> None:
    """Train from ``state.step`` to ``settings.steps``.

    In training mode the network may return several supervised outputs, a tuple or a list. The task loss is then the
    mean of their losses, each with the same targets, weighted with the network's ``output_weights`` if it has some.

    Args:
        state: the state of the run; it is updated in place.
        sampler: draws the training samples.
        own_batch: the images of this worker in each step.
        regularizer: makes the pairs and computes the penalty; None if there are no pairs.
        settings: the settings of the run.
        worker: this process.
        callbacks: functions for reports, checkpoints and validation.

    Raises:
        TrainingDivergedError: the loss or its gradient is no longer finite.
        ValueError: the network gives another number of supervised outputs than it has weights for.
    """
    branches = stochastic_depths(state.network)
    run = _Run(worker.parallel(state.network).train(), state, own_batch, regularizer, settings, worker, branches)
    clock, clock_step = time.perf_counter(), state.step
    with prefetched(sampler, own_batch.indices, range(state.step, settings.steps)) as batches:
        for step, batch in enumerate(batches, state.step):
            is_validating = settings.is_due(settings.validate_every, step)
            is_reporting = is_validating or settings.is_due(settings.report_every, step)
            metrics = _update(run, _on_device(batch, worker), is_reporting)
            if is_reporting:
                images = (state.step - clock_step) * own_batch.batch_images
                metrics["images_per_second"] = images / (time.perf_counter() - clock)
                if is_validating:
                    metrics |= callbacks.validate(state.averaged.module)
                state.history.append({"step": state.step, **metrics})
                callbacks.report(state.step, metrics)
            if settings.is_due(settings.checkpoint_every, step):
                callbacks.checkpoint(state, metrics)
            if is_reporting:
                clock, clock_step = time.perf_counter(), state.step


def _update(run: _Run, batch: Batch, is_reporting: bool) -> Metrics:
    """Run one step: forward, penalty, backward, clipped update and weight average; return the metrics of a report."""
    state, settings, worker = run.state, run.settings, run.worker
    for group in state.optimizer.param_groups:
        group["lr"] = settings.learning_rate_at(state.step)
    state.optimizer.zero_grad(set_to_none=True)
    totals = StepTotals(worker, is_reporting)
    # The task loss of micro-batches is known only after the last one, so that of the previous step gives the weight.
    weight = None if settings.micro_batch_size is None else _penalty_weight(state, state.last_task_loss)
    for part in micro_batches(batch, run.own_batch, settings.micro_batch_size):
        regularizer = run.regularizer if part.is_penalised else None
        accumulating = nullcontext() if part.is_last else worker.accumulating(run.network)
        with accumulating, _depths(run, part, part.share.num_pairs if regularizer else 0):
            inputs, targets, counted = _paired(part, regularizer, settings, state.step, is_reporting)
            with worker.autocast():
                outputs = run.network(inputs)
            task_factor = part.share.task_factor(settings.task_loss_on_transformed)
            task = task_factor * _supervised_loss(run, outputs, targets, counted)
            penalty = part.share.penalty_factor * totals.penalty_of(regularizer, task)
            if weight is None:
                weight = _penalty_weight(state, float(worker.mean(task)))
            (task + weight * penalty if weight else task).backward()
            totals.add(task, penalty, regularizer, part.share.penalty_factor)
    totals.reduce(state.step)
    state.penalty_weight.observe(totals.norms)
    gradient_norm = nn.utils.clip_grad_norm_(state.network.parameters(), settings.gradient_clip)
    if not torch.isfinite(gradient_norm):  # the same on every worker; the weights are not updated yet
        raise TrainingDivergedError(f"the gradient is no longer finite in step {state.step + 1}: {HINT}")
    state.optimizer.step()
    worker.share_statistics(state.network)
    state.averaged.update_parameters(state.network)
    state.step, state.last_task_loss = state.step + 1, totals.task_loss
    return _metrics(run, totals, weight or 0.0, float(gradient_norm)) if is_reporting else {}


def _depths(run: _Run, part: MicroBatch, num_pairs: int) -> AbstractContextManager[None]:
    """Give each image its numbers of stochastic depth; a transformed copy passes the same function as its original.

    The numbers depend on the seed, the step and the index of the image in the global batch alone.
    """
    if not run.branches:
        return nullcontext()
    key, indices = (run.settings.seed, Stream.STOCHASTIC_DEPTH, run.state.step), part.share.indices
    drawn = torch.from_numpy(np.stack([generator(*key, index).random(len(run.branches)) for index in indices]))
    pairs = drawn[:num_pairs]
    uniform = torch.cat((pairs, pairs, drawn[num_pairs:]))  # in the order of the paired inputs
    return given_depths(run.branches, uniform.to(run.worker.device))


def _penalty_weight(state: TrainingState, task_loss: float) -> float:
    """Return the factor of the penalty for a task loss; 0 if the loss is not finite, as before the first step."""
    return state.penalty_weight.at(state.step, task_loss) if math.isfinite(task_loss) else 0.0


def _paired(
    part: MicroBatch,
    regularizer: EquivarianceRegularizer | None,
    settings: TrainingSettings,
    step: int,
    is_reporting: bool,
) -> tuple[Tensor, Tensor, Tensor | slice]:
    """Make the pairs and return (inputs, targets, selection of the samples that the task loss includes).

    The element and the shift are the same on every worker and for every micro-batch.
    """
    if not regularizer:
        return part.inputs, part.targets, slice(None)
    fields: dict[str, EntryField] = {"targets": "image" if part.targets.ndim == 4 else "invariant"}
    paired = regularizer.pair(
        part.inputs,
        part.targets,
        fields=fields,
        generator=torch_generator(settings.seed, Stream.TURN, step),
        num_pairs=part.share.num_pairs,
        measure_gradients=True if is_reporting else None,
    )
    if settings.task_loss_on_transformed:
        return paired.inputs, paired.targets, slice(None)
    counted = torch.ones(len(paired.inputs), dtype=torch.bool, device=paired.inputs.device)
    counted[paired.transformed] = False
    return paired.inputs, paired.targets, counted


def _supervised_loss(run: _Run, outputs: Tensor | Sequence[Tensor], targets: Tensor, counted: Tensor | slice) -> Tensor:
    """Compute the task loss of the counted samples, in the (weighted) mean over the supervised outputs."""
    supervised = [outputs] if isinstance(outputs, Tensor) else outputs
    losses = torch.stack([run.settings.task_loss(each[counted], targets[counted]) for each in supervised])
    weights: Sequence[float] = getattr(run.state.network, "output_weights", ())
    if len(supervised) == 1 or not weights:
        return losses.mean()
    if len(weights) != len(supervised):
        raise ValueError(
            f"network: {len(weights)} output_weights for {len(supervised)} supervised outputs: give one each"
        )
    return losses @ (losses.new_tensor(weights) / sum(weights))


def _metrics(run: _Run, totals: StepTotals, weight: float, gradient_norm: float) -> Metrics:
    """Return the metrics of a report on the step that has just ended."""
    learning_rate = run.state.optimizer.param_groups[0]["lr"]
    metrics = {"task_loss": totals.task_loss, "learning_rate": learning_rate, "gradient_norm": gradient_norm}
    if run.regularizer:
        metrics |= {"penalty": totals.penalty, "lambda": run.state.penalty_weight.weight, "weight": weight}
        metrics |= totals.layer_penalties()
    if run.regularizer and not weight:
        metrics["gradient_ratio"] = 0.0
    elif totals.norms is not None:
        metrics["gradient_ratio"] = float((totals.norms.added / totals.norms.arriving.clamp_min(1e-30)).sqrt())
    return metrics


def _on_device(batch: Batch, worker: Worker) -> Batch:
    inputs, targets = batch
    inputs = inputs.to(worker.device, non_blocking=True, memory_format=worker.memory_format)
    layout = worker.memory_format if targets.ndim == 4 else torch.preserve_format  # labels have no memory format
    return inputs, targets.to(worker.device, non_blocking=True, memory_format=layout)
