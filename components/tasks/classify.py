"""Classification: an additional validation of the method, where the label is invariant under rotation of the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from components.data.packs import Entry, Pack
from components.data.sampler import Degradation
from components.degradations.noise import GaussianNoise
from components.evaluation.metrics import top1
from components.tasks.base import Auxiliary, DegradationSettings, Metric, Range, Task, as_range


@dataclass(frozen=True, kw_only=True)
class Noise(DegradationSettings):
    """Settings of the noise on the images."""

    sigma: Range
    """Standard deviation of the noise, in grey levels of 255; 0 for none."""


class Classify(Task):
    """Classification of labelled images. References are classes; outputs are scores ``(B, K)``."""

    name = "classify"
    degradations = (Noise,)
    baseline = "components.evaluation.baselines:of_classes"
    is_classification = True
    trains_on_patches = False
    takes_pairs = False
    takes_grey = False
    metrics = (Metric("top1", "top-1, %"),)
    input_kind = "labelled"
    network = {"name": "resnet", "width": 24, "depth": 3, "norm": "batch"}  # noqa: RUF012 - not changed
    loss = "cross_entropy"
    validation_batch = 64

    @property
    def is_random(self) -> bool:
        """Whether noise is added."""
        return max(as_range(self.settings.sigma)) > 0

    def colours(self, colour: str) -> int:
        """Return 3: labelled images have three channels."""
        return 3

    def network_shape(self, colours: int, train: Callable[[], Pack]) -> dict[str, int]:
        """Return the channels of an image, and the number of classes in the pack of the training images."""
        return {"in_channels": colours, "classes": max(entry.label or 0 for entry in train().entries) + 1}

    def model_metadata(self, train: Callable[[], Pack]) -> dict[str, Any]:
        """Return "classes", the names of the classes in order, and "image_size", [H, W] of the training images.

        The name of an entry is that of its class and a number (`components.data.items`). A class without training
        images has its number for a name.
        """
        entries = train().entries
        names = {entry.label or 0: entry.name.rpartition("-")[0] for entry in entries}
        size = [entries[0].height, entries[0].width]
        return {"classes": [names.get(label, str(label)) for label in range(max(names) + 1)], "image_size": size}

    def untouched(self, inputs: np.ndarray, num_classes: int | None) -> np.ndarray:
        """Return uninformative scores, which select the first class."""
        return np.zeros(num_classes or 1, dtype=np.float32)

    def degradation(self, auxiliary: Auxiliary | None = None, *, is_training: bool = False) -> Degradation:
        """Return Gaussian noise with the given settings."""
        return GaussianNoise(as_range(self.settings.sigma))

    def compute_score(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> Tensor:
        """Compute the top-1 accuracy of each image in percent, ``(B,)``.

        Args:
            outputs: scores, ``(B, K)``.
            inputs: not used.
            references: classes, ``(B,)``.
        """
        return 100 * top1(outputs, references).double()

    def compute_metrics(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> dict[str, Tensor]:
        """Compute the top-1 accuracy of each image in percent, ``{"top1": (B,)}``.

        Args:
            outputs: scores, ``(B, K)``.
            inputs: not used.
            references: classes, ``(B,)``.
        """
        return {"top1": self.compute_score(outputs, inputs, references)}

    def as_image(self, inputs: np.ndarray) -> np.ndarray:
        """Return uninformative scores, which select the first class."""
        return np.ones(1, dtype=np.float32)

    def pairs(self, pack: Pack, indices: Sequence[int] | None = None) -> Iterator[tuple[Entry, np.ndarray, np.ndarray]]:
        """Yield (entry, image, class) of fixed images, in order; ``indices`` None yields all images."""
        for index in range(len(pack)) if indices is None else indices:
            yield pack.entries[index], pack.degraded(index), np.asarray(pack.entries[index].label)
