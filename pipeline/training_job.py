"""One training job: builds the network, the data and the losses of a run from its params, and trains.

A Ray Train worker, a trial of a sweep and a test run the same code. The module does not import Ray or MLflow: the
caller passes the functions that receive reports and checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from components.data.packs import Pack, read_auxiliary
from components.data.randomness import Stream, torch_generator
from components.data.sampler import LabelledSampler, PatchSampler
from components.equivariance import BalancedWeight, EquivarianceRegularizer, PenaltyWeight
from components.equivariance.layers.spec import Layers
from components.evaluation.crops import compared_crop
from components.networks import build_network, layer_choices, network_class, takes_named_inputs
from components.tasks import Task
from components.training.global_batch import WorkerBatch, count_pairs, worker_batch
from components.training.loop import HINT, Metrics, Sampler, TrainingCallbacks, TrainingDivergedError, train
from components.training.settings import TrainingSettings
from components.training.state import TrainingResult, TrainingState
from components.training.worker import Worker
from pipeline.config.members import plain_settings
from pipeline.config.schema import Params

Show = Callable[[int, list[np.ndarray]], None]
"""Receives (number of finished steps, images ``(H, W, 3)`` in uint8)."""

NUM_CROPS = 3
MOST_SHOWN = 100
"""Largest number of validations, spread over the run, that show images."""

CARRIED_OUT = ("checkpoint_every", "keep_best", "num_workers")
"""Keys of ``train`` that decide how a run is executed, and do not change its result."""


@dataclass(frozen=True)
class TrainingJob:
    """What to train, and on which packs.

    Attributes:
        params: checked params.
        packed: absolute path of the folder that holds the packs ``train`` and ``val``, and the folder ``auxiliary``.
    """

    params: Params
    packed: Path

    def check(self, num_workers: Iterable[int]) -> None:
        """Checks the job for each of these numbers of workers, before any process is started.

        Raises:
            ValueError: a pack is damaged; layers or layer weights match no layer; the batch cannot be divided.
        """
        self.check_worker_batches(num_workers)
        for part in ("train", "val"):
            Pack(self.packed / part).verify()
        self.sampler()
        if self.task.inputs != self.task.gives:  # refused if the pack lacks what the network needs
            next(self.task.pairs(Pack(self.packed / "val"), [0]))
        network = self.network()
        try:
            self.regularizer(network)
        except ValueError as error:
            raise ValueError(f"equivariance.{error}") from error

    def check_worker_batches(self, num_workers: Iterable[int]) -> None:
        """Checks that the batch can be divided among each of these numbers of workers, and into micro-batches.

        Raises:
            ValueError: the batch cannot be divided.
        """
        for number in num_workers:
            self.worker_batch(0, number).micro_batches(self.params.train.micro_batch_size)

    def deciding_params(self) -> dict[str, Any]:
        """The params that decide the weights, as plain values.

        The data, the code and the number of workers also decide the weights.
        """
        values = self.params.resolved
        task = values["tasks"][self.params.task]
        return {
            "task": values["task"],
            "seed": values["seed"],
            "preprocess": {"colour": values["preprocess"]["colour"]},
            "tasks": {self.params.task: {key: task[key] for key in ("degradation", "rotations")}},
            "network": values["network"],
            "equivariance": values["equivariance"],
            "train": {key: value for key, value in values["train"].items() if key not in CARRIED_OUT},
        }

    def settings(self) -> TrainingSettings:
        """The settings of the training loop, taken from the params."""
        params, by_name = self.params, ("loss", "optimizer", "schedule")
        names = TrainingSettings.__dataclass_fields__.keys() - {"seed", *by_name}
        chosen: dict[str, Any] = {name: getattr(params.train, name) for name in names}
        chosen |= {name: getattr(params, name) for name in by_name}
        return TrainingSettings(seed=params.seed, **chosen)

    @cached_property
    def task(self) -> Task:
        """The task that the network is trained for, with the inputs that the network takes."""
        return self.params.build_task().for_network(network_class(self.params.network_name))

    def network_settings(self) -> dict[str, Any]:
        """The arguments of ``build_network``: those of the params, and the channels, classes or scale of the task."""
        name = self.params.network_name
        shape: dict[str, Any] = self.task.network_shape(self.params.colours, lambda: Pack(self.packed / "train"))
        if takes_named_inputs(network_class(name)):
            shape["inputs"] = list(self.task.inputs)
        return {"name": name, **plain_settings(self.params.network_settings), **shape}

    def model_metadata(self) -> dict[str, Any]:
        """What the model file says of the task beside the weights: the names of the classes, for a classification."""
        return self.task.model_metadata(lambda: Pack(self.packed / "train"))

    def network(self) -> nn.Module:
        """The network with its initial weights, which are the same in every process."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(torch_generator(self.params.seed, Stream.INITIAL_WEIGHTS).get_state())
            return build_network(**self.network_settings())

    def regularizer(self, network: nn.Module) -> EquivarianceRegularizer | None:
        """The regulariser of the network; None if the run has no pairs and weight 0."""
        chosen = self.params.equivariance
        if chosen.pairing == "none" and not chosen.weight:
            return None
        return EquivarianceRegularizer(network, replace(chosen.config, layers=self.layers_of(network)))

    def layers_of(self, network: nn.Module) -> Layers:
        """``equivariance.layers`` as the regulariser takes it: the name patterns of a choice that the network owns."""
        chosen = self.params.equivariance.layers
        if isinstance(chosen, Mapping):
            return chosen
        return "auto" if chosen == "auto" else layer_choices(network)[chosen]

    def penalty_weight(self) -> PenaltyWeight | BalancedWeight:
        """The object that computes the factor of the penalty at each step.

        Weight 0 is the control; then ``balance`` has no effect.
        """
        chosen = self.params.equivariance
        if chosen.balance is not None and chosen.weight:
            return BalancedWeight(chosen.balance, chosen.weight, chosen.warmup_steps)
        return PenaltyWeight(chosen.weight, chosen.warmup_steps, unit=chosen.weight_unit)

    def run(
        self,
        report: Callable[[int, Metrics], None],
        checkpoint: Callable[[TrainingState, Metrics], None],
        resume: bytes | None = None,
        show: Show | None = None,
    ) -> TrainingState:
        """Trains until the last step, in this process, which may be one of several workers.

        Args:
            report: called with (steps done, metrics) when there are new metrics.
            checkpoint: called with (state, metrics); it has to save ``state.to_bytes()``.
            resume: bytes of the checkpoint to resume from, the same on every worker; None to start at step 0.
            show: called on rank 0 with images of a validation, before the report of that step.

        Returns:
            The state after the last step.

        Raises:
            TrainingDivergedError: the loss is no longer finite.
        """
        worker = Worker.current()
        state = self.state(worker)
        if resume is not None:
            state.from_bytes(resume)

        def validate(averaged: nn.Module) -> Metrics:
            metrics = self.validate(averaged, worker)
            if show and worker.rank == 0 and self.shows_at(state.step):
                show(state.step, self.crops(averaged))
            return metrics

        train(
            state,
            self.sampler(),
            self.worker_batch(worker.rank, worker.num_workers),
            self.regularizer(state.network),
            self.settings(),
            worker,
            TrainingCallbacks(report, checkpoint, validate),
        )
        return state

    def result(self, data: bytes) -> TrainingResult:
        """The training result in the bytes of a checkpoint.

        Raises:
            ValueError: the bytes are no checkpoint, or the checkpoint belongs to another network.
        """
        return TrainingResult.from_bytes(data, self.network())

    def state(self, worker: Worker) -> TrainingState:
        """The training state before the first step."""
        return TrainingState(self.network(), self.penalty_weight(), self.settings(), worker)

    def sampler(self) -> Sampler:
        """The sampler that draws the training samples."""
        pack, params = Pack(self.packed / "train"), self.params
        if not self.task.trains_on_patches:
            return LabelledSampler(pack, self.task.degradation(is_training=True), params.rotations, params.seed)
        degradation = None
        if not pack.holds_pairs:
            degradation = self.task.degradation(read_auxiliary(self.packed, "train"), is_training=True)
            degradation = self.task.stacked(degradation)
        return PatchSampler(
            pack, degradation, params.train.patch_size, params.rotations, params.seed, scale=self.task.scale
        )

    def validate(self, network: nn.Module, worker: Worker) -> Metrics:
        """The mean score over the validation pairs, which are divided among the workers.

        Raises:
            TrainingDivergedError: the output of the network is not finite; raised on every worker.
        """
        pack = Pack(self.packed / "val")
        was_training = network.training
        network.eval()
        scores, message = [], ""
        try:
            scores = validation_scores(network, self.task, pack, range(worker.rank, len(pack), worker.num_workers))
        except NonFiniteOutputError as error:
            message = str(error)
        network.train(was_training)
        # Every worker raises the error, so that none waits for the others.
        if message := next(filter(None, worker.from_all(message)), ""):
            raise TrainingDivergedError(f"validation: {message}: {HINT}")
        total = worker.mean(torch.tensor(sum(scores), dtype=torch.float64, device=worker.device))
        return {"val_score": float(total) * worker.num_workers / len(pack)}

    def shows_at(self, step: int) -> bool:
        """Whether the validation after so many steps shows images; of a long run, one of several does."""
        steps, every = self.params.train.steps, self.params.train.validate_every
        one_of = -(-steps // every // MOST_SHOWN) or 1
        return not self.task.is_classification and (step == steps or step // every % one_of == 0)

    @torch.inference_mode()
    def crops(self, network: nn.Module) -> list[np.ndarray]:
        """The centres of ``NUM_CROPS`` fixed validation pairs: degraded | restored | truth | error, uint8.

        They are of different scenes if there are so many. Nothing random is drawn, and the network stays as it is.
        """
        pack = Pack(self.packed / "val")
        first = {entry.scene: index for index, entry in reversed(list(enumerate(pack.entries)))}
        others = sorted(set(range(len(pack))) - set(first.values()))
        chosen = [*sorted(first.values()), *others][:NUM_CROPS]
        device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))

        def restore(inputs: np.ndarray) -> np.ndarray:
            outputs = network(torch.from_numpy(np.array(inputs, order="C"))[None].to(device))[0]
            return self.task.postprocess(outputs.float().cpu().numpy(), inputs)

        was_training = network.training
        network.eval()
        try:
            pairs = self.task.pairs(pack, chosen)
            return [compared_crop(restore, self.task.as_image, inputs, clean) for _, inputs, clean in pairs]
        finally:
            network.train(was_training)

    def worker_batch(self, rank: int, num_workers: int) -> WorkerBatch:
        """The images of each global batch that the worker of this rank trains on."""
        batch_size, chosen = self.params.train.batch_size, self.params.equivariance
        num_pairs = count_pairs(batch_size, chosen.pairing, chosen.pair_fraction)
        return worker_batch(batch_size, chosen.pairing, num_pairs, rank, num_workers)


class NonFiniteOutputError(ValueError):
    """The output of a network holds NaN or infinite values."""


@torch.inference_mode()
def validation_scores(network: nn.Module, task: Task, pack: Pack, indices: Sequence[int]) -> list[float]:
    """The task's score of each of these pairs of a pack.

    Args:
        network: in evaluation mode, on any device.
        task: computes the score.
        pack: holds the pairs.
        indices: of the pairs that are scored.

    Raises:
        NonFiniteOutputError: the output of the network is not finite.
    """
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    scores: list[float] = []
    for start in range(0, len(indices), task.validation_batch):
        entries, inputs, references = zip(
            *task.pairs(pack, indices[start : start + task.validation_batch]), strict=True
        )
        given, wanted = (torch.from_numpy(np.stack(arrays)).to(device) for arrays in (inputs, references))
        outputs = network(given)
        if not outputs.isfinite().all():
            raise NonFiniteOutputError(f"the network gives values that are not finite for {entries[0].name}")
        scores += task.compute_score(outputs, given, wanted).tolist()
    return scores


__all__ = ["TrainingJob", "validation_scores"]
