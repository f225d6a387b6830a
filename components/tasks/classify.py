"""Recognition: the auxiliary validation of the method, where the answer itself does not turn with the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from components.data.packs import Entry, Pack
from components.data.sampler import Degradation
from components.degradations.noise import GaussianNoise
from components.evaluation.metrics import top1
from components.tasks.base import Auxiliary, Metric, Task


class Classify(Task):
    """Settings: ``sigma`` of noise on the images, 0 for none. References are classes, outputs scores ``(B, K)``."""

    name = "classify"
    metrics = (Metric("top1", "top-1, %"),)
    reads = "labelled"
    network = "resnet"
    loss = "cross_entropy"
    validation_batch = 64

    @property
    def is_random(self) -> bool:
        return max(self.settings["sigma"]) > 0

    def degradation(self, auxiliary: Auxiliary | None = None, *, is_training: bool = False) -> Degradation:
        return GaussianNoise(**self.settings)

    def scores(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> Tensor:
        return 100 * top1(outputs, references).double()

    def quality(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> dict[str, Tensor]:
        return {"top1": self.scores(outputs, inputs, references)}

    def as_image(self, inputs: np.ndarray) -> np.ndarray:
        """Scores without an opinion: the first class."""
        return np.ones(1, dtype=np.float32)

    def pairs(self, pack: Pack, indices: Sequence[int] | None = None) -> Iterator[tuple[Entry, np.ndarray, np.ndarray]]:
        """(entry, image, class)."""
        for index in range(len(pack)) if indices is None else indices:
            yield pack.entries[index], pack.degraded(index), np.asarray(pack.entries[index].label)
