"""The training loop, on one screen. It knows nothing of who listens: reports and checkpoints go to two functions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
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


REMEDY = "lower train.learning_rate or equivariance.weight"


class Sampler(Protocol):
    """Draws training samples, (inputs, targets); see ``components.data.sampler``."""

    def batch(self, step: int, indices: tuple[int, ...]) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Listeners:
    """What the caller wants to hear, on every worker.

    Attributes:
        report: (steps done, metrics); rank 0 alone need act.
        checkpoint: called when a checkpoint is due, to save ``state``, with the metrics of this step if it reports.
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
                images = (state.step - clock_step) * share.batch_images
                metrics["images_per_second"] = images / (time.perf_counter() - clock)
                if is_validating:
                    metrics |= listeners.validate(state.averaged.module)
                state.history.append({"step": state.step, **metrics})
                listeners.report(state.step, metrics)
            if settings.is_due(settings.checkpoint_every, step):
                listeners.checkpoint(state, metrics if is_reporting else {})
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
    state.optimizer.zero_grad(set_to_none=True)
    sums = _Sums(worker, is_reporting)
    parts = share.parts(settings.images_at_once)
    pieces = _pieces(batch, share, parts)
    weight = 0.0 if settings.images_at_once is None else _lagging_weight(state)
    for number, (part, piece) in enumerate(zip(parts, pieces, strict=True)):
        is_watched = regularizer is not None and (part.num_pairs > 0 or (share.num_pairs == 0 and number == 0))
        watching = regularizer if is_watched else None
        with worker.accumulating(network) if number + 1 < len(parts) else nullcontext():
            inputs, targets, counted = _paired(piece, part, watching, settings, state.step)
            with worker.autocast():
                outputs = network(inputs)
            task = part.task_factor(settings.task_on_copies) * settings.task_loss(outputs[counted], targets[counted])
            penalty = part.penalty_factor * sums.penalty_of(watching, task)
            if settings.images_at_once is None:
                task_loss = float(worker.mean(task))
                weight = state.penalty_weight.at(state.step, task_loss) if math.isfinite(task_loss) else 0.0
            total = task + weight * penalty if weight else task
            if is_reporting and weight and watching and number == 0:
                sums.gradient_ratio = _gradient_ratio(task, total, state.network)
            total.backward()
            sums.add(task, penalty, watching, part.penalty_factor)
    task_loss, penalty_value = sums.means(state.step)
    if regularizer:
        state.penalty_weight.observe(_mean_norms(sums.norms, worker))
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), settings.gradient_clip)
    if not torch.isfinite(norm):  # the same on every worker; the weights are still good
        raise TrainingDivergedError(f"the gradient is no longer finite in step {state.step + 1}: {REMEDY}")
    metrics: Metrics = {}
    if is_reporting:
        metrics = {"task_loss": task_loss, "learning_rate": learning_rate}
        if regularizer:
            # weight: lambda after warm-up, in the unit of the task loss
            metrics |= {"penalty": penalty_value, "lambda": state.penalty_weight.weight, "weight": weight}
            metrics |= {"gradient_ratio": sums.gradient_ratio} | sums.layer_means()
        metrics["gradient_norm"] = float(norm)
    state.optimizer.step()
    worker.share_statistics(state.network)
    state.averaged.update_parameters(state.network)
    state.step += 1
    state.last_task_loss = task_loss
    return metrics


def _lagging_weight(state: TrainingState) -> float:
    """The weight for accumulated gradients: of the losses before, as those of this step are not all known in time."""
    if math.isnan(state.last_task_loss):
        return 0.0
    return state.penalty_weight.at(state.step, state.last_task_loss)


def _pieces(batch: tuple[Tensor, Tensor], share: Share, parts: list[Share]) -> Iterator[tuple[Tensor, Tensor]]:
    """The worker's batch, cut as the parts of its share are."""
    if len(parts) == 1:
        yield batch
        return
    place_of = {index: place for place, index in enumerate(share.indices)}
    for part in parts:
        places = torch.tensor([place_of[index] for index in part.indices], device=batch[0].device)
        yield batch[0][places], batch[1][places]


class _Sums:
    """What the parts of a step add up to on this worker, and the means of it over all."""

    def __init__(self, worker: Worker, is_reporting: bool) -> None:
        self._worker, self._is_reporting = worker, is_reporting
        self._losses = torch.zeros(2, device=worker.device)  # task, penalty
        self._layers: dict[str, float] = {}
        self._complaint = ""
        self.norms: GradientNorms | None = None
        self.gradient_ratio = 0.0

    def penalty_of(self, regularizer: EquivarianceRegularizer | None, task: Tensor) -> Tensor:
        """NaN where features are: then every worker gives up in the same step, and none waits."""
        if not regularizer:
            return task.new_zeros(())
        try:
            return regularizer.penalty()
        except NonFiniteFeaturesError as error:
            self._complaint = f"; {error}"
            return torch.full_like(task, torch.nan)

    def add(self, task: Tensor, penalty: Tensor, regularizer: EquivarianceRegularizer | None, factor: float) -> None:
        """After the backward pass of a part."""
        self._losses += torch.stack((task.detach(), penalty.detach()))
        if not regularizer:
            return
        if self._is_reporting:
            for name, value in regularizer.layer_penalties().items():
                self._layers[name] = self._layers.get(name, 0.0) + factor * value
        if (norms := regularizer.gradient_norms()) and self.norms:
            norms = GradientNorms(self.norms.arriving + norms.arriving, self.norms.own + norms.own)
        self.norms = norms or self.norms

    def means(self, step: int) -> tuple[float, float]:
        """Task loss and penalty of the global batch.

        Raises:
            TrainingDivergedError: they are not finite; on every worker in the same step, the weights being still good.
        """
        task, penalty = self._worker.mean(self._losses).tolist()
        if not math.isfinite(task + penalty):
            complaint = next(filter(None, self._worker.from_all(self._complaint)), "")
            raise TrainingDivergedError(
                f"the loss is no longer finite in step {step + 1} (task {task:g}, penalty {penalty:g}{complaint}): "
                f"{REMEDY}"
            )
        return task, penalty

    def layer_means(self) -> Metrics:
        """The penalty of each layer that was watched, which are the same on every worker."""
        values = torch.tensor(list(self._layers.values()), device=self._worker.device)
        means = self._worker.mean(values).tolist()
        return {f"penalty/{name}": mean for name, mean in zip(self._layers, means, strict=True)}


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
    generator = torch_generator(settings.seed, Stream.TURN, step)  # of every part the same turns
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
