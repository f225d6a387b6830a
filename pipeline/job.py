"""One training job: params -> the parts of a run, put together. The same in a Ray Train worker, in a trial, in a test.

It knows nothing of Ray or MLflow: reports and checkpoints go to the functions that the caller gives.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from components.data.packs import Pack
from components.data.randomness import Stream, torch_generator
from components.data.sampler import PatchSampler
from components.degradations import build_degradation
from components.equivariance import BalancedWeight, EquivarianceRegularizer, PenaltyWeight
from components.evaluation.metrics import as_saved, psnr
from components.networks import build_network
from components.training.global_batch import count_pairs, worker_share
from components.training.loop import Listeners, Metrics, train
from components.training.settings import TrainingSettings
from components.training.state import TrainingState
from components.training.worker import Worker
from pipeline.params import Params


@dataclass(frozen=True)
class TrainingJob:
    """What to train, on which packs.

    Attributes:
        params: checked params.
        packed: absolute path of the folder with the packs ``train`` and ``val``.
    """

    params: Params
    packed: Path

    def check(self, num_workers: int) -> None:
        """Refuses what no worker could train on, before any process is started.

        Raises:
            ValueError: a damaged pack; layers or weights that fit no layer; a batch that cannot be shared out.
        """
        for part in ("train", "val"):
            Pack(self.packed / part).verify()
        self.sampler()
        network = self.network()
        try:
            self.regularizer(network)
        except ValueError as error:
            raise ValueError(f"equivariance.{error}") from error
        for rank in range(num_workers):
            worker_share(
                self.params.train.batch_size,
                self.params.equivariance.pairing,
                self._num_pairs(),
                rank,
                num_workers,
            )

    def settings(self) -> TrainingSettings:
        """The part of the params that the training loop wants."""
        train_params = self.params.train
        names = TrainingSettings.__dataclass_fields__.keys() - {"seed"}
        return TrainingSettings(seed=self.params.seed, **{name: getattr(train_params, name) for name in names})

    def network(self) -> nn.Module:
        """The network with its initial weights, the same in every process."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(torch_generator(self.params.seed, Stream.INITIAL_WEIGHTS).get_state())
            return build_network(channels=3, **self.params.network.model_dump())

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
        resume_from: Path | None = None,
    ) -> TrainingState:
        """Trains to the end in this process, which may be one of several.

        Raises:
            TrainingDivergedError: the loss is no longer finite.
        """
        worker = Worker.current()
        chosen, settings = self.params.equivariance, self.settings()
        network = self.network()
        state = TrainingState(network, self.penalty_weight(), settings, worker)
        if resume_from:
            state.load(resume_from)
        train(
            state,
            self.sampler(),
            worker_share(
                self.params.train.batch_size,
                chosen.pairing,
                self._num_pairs(),
                worker.rank,
                worker.num_workers,
            ),
            self.regularizer(state.network),
            settings,
            worker,
            Listeners(report, checkpoint, lambda averaged: self.validate(averaged, worker)),
        )
        return state

    def sampler(self) -> PatchSampler:
        """Draws the training pairs."""
        degradation = build_degradation(self.params.task, self.params.task_params.degradation.model_dump())
        train_params = self.params.train
        return PatchSampler(
            Pack(self.packed / "train"),
            degradation,
            train_params.patch_size,
            self.params.rotations,
            self.params.seed,
        )

    @torch.inference_mode()
    def validate(self, network: nn.Module, worker: Worker) -> Metrics:
        """Mean PSNR in dB over the validation pairs, shared out over the workers."""
        pack = Pack(self.packed / "val")
        total = torch.zeros((), device=worker.device)
        was_training = network.training
        network.eval()
        for index in range(worker.rank, len(pack), worker.num_workers):
            degraded, clean = (
                torch.from_numpy(image)[None].to(worker.device) for image in (pack.degraded(index), pack.clean(index))
            )
            total += psnr(as_saved(network(degraded)), as_saved(clean)).sum()
        network.train(was_training)
        return {"val_psnr": float(worker.mean(total)) * worker.num_workers / len(pack)}

    def _num_pairs(self) -> int:
        return count_pairs(
            self.params.train.batch_size,
            self.params.equivariance.pairing,
            self.params.equivariance.pair_fraction,
        )


def resolve_num_workers(chosen: int | str) -> int:
    """``train.num_workers``: as given, or one a GPU, or 2 where there are 2 cores, or 1."""
    if isinstance(chosen, int):
        return chosen
    return torch.cuda.device_count() or min(2, os.cpu_count() or 1)


def save_model(path: Path, network: nn.Module, metadata: dict[str, Any]) -> None:
    """Writes a network's weights with what is needed to build it again: ``metadata["network"]``, ``["task"]``."""
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
        network = build_network(channels=3, **metadata["network"])
        network.load_state_dict(weights)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not a model of eqreg ({reason}); run 'eqreg train'") from error
    return network.eval(), metadata


__all__ = ["TrainingJob", "load_model", "resolve_num_workers", "save_model"]
