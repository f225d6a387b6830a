"""Small training runs: a tiny network, pairs drawn without files, and listeners that write down what they hear."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.equivariance import BalancedWeight, EquivarianceRegularizer, PenaltyWeight
from components.networks.stochastic_depth import StochasticDepth
from components.training.global_batch import worker_batch
from components.training.loop import Metrics, TrainingCallbacks, train
from components.training.losses import MeanSquaredError
from components.training.optimizers import AdamW
from components.training.schedules import Cosine
from components.training.settings import TrainingSettings
from components.training.state import TrainingState
from components.training.worker import Worker

BATCH_SIZE, NUM_PAIRS, SIDE = 8, 2, 8


def settings(**changes: Any) -> TrainingSettings:
    """Twelve steps that report each one."""
    defaults: dict[str, Any] = {
        "steps": 12,
        "seed": 3,
        "learning_rate": 0.01,
        "warmup_steps": 3,
        "weight_decay": 0.01,
        "gradient_clip": 1.0,
        "ema_decay": 0.9,
        "loss": MeanSquaredError(),
        "optimizer": AdamW(),
        "schedule": Cosine(),
        "task_loss_on_transformed": True,
        "micro_batch_size": None,
        "report_every": 1,
        "validate_every": 100,
        "checkpoint_every": 5,
    }
    return TrainingSettings(**(defaults | changes))


class Residual(nn.Module):
    """A convolution that is added to its input, and left out at this rate."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.depth = StochasticDepth(rate)

    def forward(self, maps: Tensor) -> Tensor:
        added: Tensor = self.depth(self.conv(maps))
        return maps + added


def tiny_network(norm: str = "none", depth_rate: float = 0.0) -> nn.Module:
    """Three convolutions, the same weights each time; with batch statistics where ``norm`` is "batch".

    With a rate of stochastic depth, two residual convolutions are in the middle.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            *([Residual(depth_rate), Residual(depth_rate)] if depth_rate else [nn.Conv2d(8, 8, 3, padding=1)]),
            nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()) if norm == "batch" else nn.ReLU(),
            nn.Conv2d(8, 3, 3, padding=1),
        )


def tensors(run: Run) -> dict[str, Tensor]:
    """A copy of every tensor and number of a run's state."""
    state = run.state
    found = {f"network.{name}": value.clone() for name, value in state.network.state_dict().items()}
    found |= {f"averaged.{name}": value.clone() for name, value in state.averaged.state_dict().items()}
    for number, values in state.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{number}.{name}": torch.as_tensor(value).clone() for name, value in values.items()}
    numbers = {"step": state.step, "rate": state.optimizer.param_groups[0]["lr"], **state.penalty_weight.state_dict()}
    return found | {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}


class NoisySquares:
    """(clean + noise, clean), each image a function of (step, index)."""

    def batch(self, step: int, indices: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        clean, noise = [], []
        for index in indices:
            generator = torch.Generator().manual_seed(1000 * step + index)
            clean.append(torch.rand(3, 1, 1, generator=generator).expand(3, SIDE, SIDE))
            noise.append(0.1 * torch.randn(3, SIDE, SIDE, generator=generator))
        return torch.stack(clean) + torch.stack(noise), torch.stack(clean)


class Interrupted(Exception):  # noqa: N818 - an event, no error
    """What kills a run in a test."""


@dataclass
class Run:
    """One training run.

    Attributes:
        settings: of the training.
        weight: of the penalty; None for a run without pairs.
        options: more of the regulariser.
        balance: the share of the gradient that the penalty is to have, instead of a fixed weight.
        depth_rate: of stochastic depth, for a network with residual sums.
        batch_size, num_pairs: of the global batch.
        folder: where checkpoints go.
        stop_after: raises Interrupted when this step has been reported.
        reports, validated, checkpoints: what the listeners heard, steps first.
    """

    settings: TrainingSettings = field(default_factory=settings)
    weight: float | None = 0.5
    penalty: str = "regular"
    options: dict[str, Any] = field(default_factory=dict)
    balance: float | None = None
    norm: str = "none"
    depth_rate: float = 0.0
    batch_size: int = BATCH_SIZE
    num_pairs: int = NUM_PAIRS
    folder: Path | None = None
    stop_after: int | None = None
    sampler: Any = field(default_factory=NoisySquares)
    reports: list[tuple[int, Metrics]] = field(default_factory=list)
    validated: list[nn.Module] = field(default_factory=list)
    checkpoints: list[tuple[int, Metrics]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.worker = Worker.current()
        weight: PenaltyWeight | BalancedWeight = PenaltyWeight(self.weight or 0.0, 4)
        if self.balance is not None and self.weight:
            weight = BalancedWeight(self.balance, self.weight, 4)
        self.state = TrainingState(tiny_network(self.norm, self.depth_rate), weight, self.settings, self.worker)

    def start(self) -> Run:
        """Trains from where the state is to the end."""
        pairing = "none" if self.weight is None else "replace"
        num_pairs = 0 if self.weight is None else self.num_pairs
        regularizer = None
        if self.weight is not None:
            options = {"penalty": self.penalty, "measure_gradients": self.balance is not None, **self.options}
            regularizer = EquivarianceRegularizer(self.state.network, **options)  # type: ignore[arg-type]
        train(
            self.state,
            self.sampler,
            worker_batch(self.batch_size, pairing, num_pairs, self.worker.rank, self.worker.num_workers),  # type: ignore[arg-type]
            regularizer,
            self.settings,
            self.worker,
            TrainingCallbacks(self._report, self._checkpoint, self._validate),
        )
        return self

    def losses(self) -> list[float]:
        """The task loss of every report."""
        return [metrics["task_loss"] for _, metrics in self.reports]

    def _report(self, step: int, metrics: Metrics) -> None:
        self.reports.append((step, dict(metrics)))
        if step == self.stop_after:
            raise Interrupted

    def _checkpoint(self, state: TrainingState, metrics: Metrics) -> None:
        self.checkpoints.append((state.step, dict(metrics)))
        if self.folder and self.worker.rank == 0:
            (self.folder / "checkpoint.pt").write_bytes(state.to_bytes())

    def _validate(self, network: nn.Module) -> Metrics:
        """What the averaged network makes of this worker's validation image, in the mean over the workers."""
        self.validated.append(network)
        image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(self.worker.rank))
        with torch.inference_mode():
            output = network.eval()(image).mean()
        network.train()
        return {"val_score": float(self.worker.mean(output))}
