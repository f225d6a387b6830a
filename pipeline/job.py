"""One training job: params -> the parts of a run, put together. The same in a Ray Train worker, in a trial, in a test.

It knows nothing of Ray or MLflow: reports and checkpoints go to the functions that the caller gives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from components.data.packs import Pack
from components.data.randomness import Stream, torch_generator
from components.data.sampler import LabelledSampler, PatchSampler
from components.equivariance import BalancedWeight, EquivarianceRegularizer, PenaltyWeight
from components.networks import build_network
from components.tasks import Task
from components.training.global_batch import Share, count_pairs, worker_share
from components.training.loop import REMEDY, Listeners, Metrics, Sampler, TrainingDivergedError, train
from components.training.settings import TrainingSettings
from components.training.state import TrainingResult, TrainingState
from components.training.worker import Worker
from pipeline.auxiliary import read_auxiliary
from pipeline.params import Params

CARRIED_OUT = ("checkpoint_every", "keep_best", "num_workers")
"""Keys of ``train`` that say how a run is carried out, and not what comes of it."""


@dataclass(frozen=True)
class TrainingJob:
    """What to train, on which packs.

    Attributes:
        params: checked params.
        packed: absolute path of the folder with the packs ``train`` and ``val``, and what is ``auxiliary``.
    """

    params: Params
    packed: Path

    def check(self, num_workers: Iterable[int]) -> None:
        """Refuses what no worker could train on, before any process is started; of any of these numbers of workers.

        Raises:
            ValueError: a damaged pack; layers or weights that fit no layer; a batch that cannot be shared out.
        """
        self.check_shares(num_workers)
        for part in ("train", "val"):
            Pack(self.packed / part).verify()
        self.sampler()
        network = self.network()
        try:
            self.regularizer(network)
        except ValueError as error:
            raise ValueError(f"equivariance.{error}") from error

    def check_shares(self, num_workers: Iterable[int]) -> None:
        """Refuses any of these numbers of workers.

        Raises:
            ValueError: the batch cannot be shared out.
        """
        for number in num_workers:
            self.share(0, number).parts(self.params.train.images_at_once)

    def deciding_params(self) -> dict[str, Any]:
        """The params that decide the weights, as plain values. Data, code and the number of workers decide, too."""
        values = self.params.model_dump(by_alias=True, mode="json")
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
        """The part of the params that the training loop wants."""
        train_params = self.params.train
        names = TrainingSettings.__dataclass_fields__.keys() - {"seed", "loss"}
        chosen = {name: getattr(train_params, name) for name in names}
        return TrainingSettings(seed=self.params.seed, loss=self.params.loss, **chosen)

    @cached_property
    def task(self) -> Task:
        """What is trained for."""
        return self.params.build_task()

    def network_settings(self) -> dict[str, Any]:
        """What builds the network: the params, and what the task gives it and wants of it."""
        chosen = {**self.params.network.model_dump(), "name": self.params.network_name}
        inputs, outputs = self.task.channels(self.params.colours)
        if self.task.reads == "labelled":
            labels = [entry.label or 0 for entry in Pack(self.packed / "train").entries]
            return {**chosen, "in_channels": inputs, "classes": max(labels) + 1}
        return {**chosen, "in_channels": inputs, "out_channels": outputs, "scale": self.task.scale}

    def network(self) -> nn.Module:
        """The network with its initial weights, the same in every process."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(torch_generator(self.params.seed, Stream.INITIAL_WEIGHTS).get_state())
            return build_network(**self.network_settings())

    def regularizer(self, network: nn.Module) -> EquivarianceRegularizer | None:
        """The regulariser of the network; None where the run has no pairs."""
        chosen = self.params.equivariance
        if chosen.pairing == "none" and not chosen.weight:
            return None
        weights: Any = chosen.layer_weights
        return EquivarianceRegularizer(
            network,
            penalty=chosen.penalty,
            group=chosen.group,
            layers=chosen.layers,
            layer_weights="uniform" if weights.get("profile") == "uniform" else weights,
            sample_layers=chosen.sample_layers,
            sample_fields=chosen.sample_fields,
            max_gradient_ratio=chosen.max_gradient_ratio,
            measure_gradients=chosen.balance is not None,
            normalise=chosen.normalise,
            scale_gradient=chosen.scale_gradient,
            pairing=chosen.pairing,
            pair_fraction=chosen.pair_fraction,
        )

    def penalty_weight(self) -> PenaltyWeight | BalancedWeight:
        """What decides how much the penalty counts at a step; weight 0 is the control, balanced or not."""
        chosen = self.params.equivariance
        if chosen.balance is not None and chosen.weight:
            return BalancedWeight(chosen.balance, chosen.weight, chosen.warmup_steps)
        return PenaltyWeight(chosen.weight, chosen.warmup_steps, unit=chosen.weight_unit)

    def run(
        self,
        report: Callable[[int, Metrics], None],
        checkpoint: Callable[[TrainingState, Metrics], None],
        resume: bytes | None = None,
    ) -> TrainingState:
        """Trains to the end in this process, which may be one of several.

        Args:
            report: hears (steps done, metrics) of what is new.
            checkpoint: is to keep ``state.to_bytes()``.
            resume: what a checkpoint kept, the same on every worker.

        Raises:
            TrainingDivergedError: the loss is no longer finite.
        """
        worker = Worker.current()
        state = self.state(worker)
        if resume is not None:
            state.from_bytes(resume)
        train(
            state,
            self.sampler(),
            self.share(worker.rank, worker.num_workers),
            self.regularizer(state.network),
            self.settings(),
            worker,
            Listeners(report, checkpoint, lambda averaged: self.validate(averaged, worker)),
        )
        return state

    def result(self, data: bytes) -> TrainingResult:
        """The result that this checkpoint holds.

        Raises:
            ValueError: it is none, or one of another network.
        """
        return TrainingResult.from_bytes(data, self.network())

    def state(self, worker: Worker) -> TrainingState:
        """The state of a run before its first step."""
        return TrainingState(self.network(), self.penalty_weight(), self.settings(), worker)

    def sampler(self) -> Sampler:
        """Draws the training samples."""
        pack, params = Pack(self.packed / "train"), self.params
        if self.task.reads == "labelled":
            return LabelledSampler(pack, self.task.degradation(is_training=True), params.rotations, params.seed)
        degradation = None
        if not pack.holds_pairs:
            degradation = self.task.degradation(read_auxiliary(self.packed, "train"), is_training=True)
        return PatchSampler(
            pack, degradation, params.train.patch_size, params.rotations, params.seed, scale=self.task.scale
        )

    def validate(self, network: nn.Module, worker: Worker) -> Metrics:
        """The mean score over the validation pairs, shared out over the workers.

        Raises:
            TrainingDivergedError: on every worker, where the network gives values that are not finite.
        """
        pack = Pack(self.packed / "val")
        was_training = network.training
        network.eval()
        scores, complaint = [], ""
        try:
            scores = validation_scores(network, self.task, pack, range(worker.rank, len(pack), worker.num_workers))
        except NonFiniteOutputError as error:
            complaint = str(error)
        network.train(was_training)
        if complaint := next(filter(None, worker.from_all(complaint)), ""):  # all give up, and none waits
            raise TrainingDivergedError(f"validation: {complaint}: {REMEDY}")
        total = worker.mean(torch.tensor(sum(scores), dtype=torch.float64, device=worker.device))
        return {"val_score": float(total) * worker.num_workers / len(pack)}

    def share(self, rank: int, num_workers: int) -> Share:
        """What of each batch one of so many workers trains on."""
        batch_size, chosen = self.params.train.batch_size, self.params.equivariance
        num_pairs = count_pairs(batch_size, chosen.pairing, chosen.pair_fraction)
        return worker_share(batch_size, chosen.pairing, num_pairs, rank, num_workers)


class NonFiniteOutputError(ValueError):
    """A network gave NaN or infinite values."""


@torch.inference_mode()
def validation_scores(network: nn.Module, task: Task, pack: Pack, indices: Sequence[int]) -> list[float]:
    """The task's score of each of these pairs of a pack, by a network in evaluation mode.

    Raises:
        NonFiniteOutputError: the network gives values that are not finite.
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
        scores += task.scores(outputs, given, wanted).tolist()
    return scores


def save_model(path: Path, network: nn.Module, metadata: dict[str, Any]) -> None:
    """Writes a network's weights with what is needed to build it again: ``metadata["network"]``, ``["task"]``.

    The file is to be a function of what decides it: no commit, time or place belongs into the metadata.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, path, {"eqreg": json.dumps(metadata, sort_keys=True)})


def load_model(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """(network in eval mode, metadata) from a file that ``save_model`` wrote.

    Raises:
        ValueError: it is no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = json.loads(file.metadata()["eqreg"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        network = build_network(**metadata["network"])
        network.load_state_dict(weights)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not a model of eqreg ({reason}); run 'eqreg train'") from error
    return network.eval(), metadata


__all__ = ["TrainingJob", "load_model", "save_model", "validation_scores"]
