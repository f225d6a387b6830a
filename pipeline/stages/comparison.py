"""Compares two networks on the validation images, image by image."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from components.data.packs import Pack
from components.evaluation.statistics import Interval, clustered_interval
from components.tasks import Task
from pipeline.config.schema import Params
from pipeline.measurement import equivariance_by_layer, first_draws
from pipeline.paths import PACKED
from pipeline.training_job import validation_scores

if TYPE_CHECKING:
    from torch import nn


class Validation:
    """The validation images of data/packed, on which networks are measured.

    Attributes:
        task: the task of the params.
    """

    def __init__(self, params: Params) -> None:
        self.task: Task = params.build_task()
        self._seed = params.seed

    @cached_property
    def pack(self) -> Pack:
        """The pack of the validation pairs."""
        return Pack(PACKED / "val")

    @property
    def scenes(self) -> list[str]:
        """The scene of each pair."""
        return [entry.scene for entry in self.pack.entries]

    def scores(self, network: nn.Module) -> list[float]:
        """The task's score of each pair, of a network in evaluation mode."""
        task = self.task.for_network(network)
        return validation_scores(network, task, self.pack, range(len(self.pack)))

    def equivariance_error(self, network: nn.Module) -> float:
        """Relative error of the output under quarter turns: the root mean square over the first pair of each scene."""
        return equivariance_by_layer(network, first_draws(self.pack, self.task.for_network(network)))["output"]

    def difference(self, first: list[float], second: list[float]) -> Interval:
        """The mean paired difference of two networks' scores, first minus second, with its interval over scenes."""
        differences = [one - other for one, other in zip(first, second, strict=True)]
        return clustered_interval(differences, self.scenes, seed=self._seed)

    def shown(self, difference: Interval) -> str:
        """The difference as text; the interval is left out if there is none, with one scene."""
        text = f"{difference.mean:+.3f} ({self.task.score.title}) on validation"
        return text if difference.low is None else f"{text} [{difference.low:+.3f}, {difference.high:+.3f}]"


__all__ = ["Validation"]
