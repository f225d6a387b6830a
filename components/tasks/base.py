"""What a task is: how its images are degraded, what its network is given and gives, and how its results are measured.

Legend: C channels of an image (1 grey, 3 RGB), C' channels of what the network is given, H x W pixels of the clean
image, h x w of the degraded one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from components.data.packs import Entry, Pack
from components.data.sampler import Degradation
from components.evaluation.metrics import as_saved, psnr, quality

Settings = Mapping[str, Any]
Auxiliary = Sequence[np.ndarray]
"""What degradations are made of beside clean images: blur kernels, streak layers, masks."""


@dataclass(frozen=True)
class Metric:
    """A figure of one image: its key, its name for people, and decimals to show."""

    key: str
    title: str
    digits: int = 2


PSNR, SSIM = Metric("psnr", "PSNR, dB"), Metric("ssim", "SSIM", 3)
PSNR_Y, SSIM_Y = Metric("psnr_y", "PSNR of Y, dB"), Metric("ssim_y", "SSIM of Y", 3)


class Task(ABC):
    """One task with the settings of its degradation, ``tasks.NAME.degradation`` of params.yaml.

    Attributes:
        name: as ``task`` of params.yaml has it.
        metrics: what is reported; the first is the score by which validation chooses, as the task's literature does.
        reads: what its data are: image files, CT slices, or labelled images.
        network, loss: what ``auto`` stands for.
        is_simulated_ahead: too slow to be drawn in training: preprocess makes the training pairs.
        splits_auxiliary: training and the fixed pairs take different auxiliary data, so that none is tested on that was
            trained on.
        validation_batch: fixed pairs that are restored at a time.
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]] = (PSNR, SSIM)
    reads: ClassVar[Literal["images", "ct", "labelled"]] = "images"
    network: ClassVar[str] = "unet"
    loss: ClassVar[Literal["mse", "l1", "cross_entropy"]] = "mse"
    is_simulated_ahead: ClassVar[bool] = False
    splits_auxiliary: ClassVar[bool] = True
    validation_batch: ClassVar[int] = 1

    def __init__(self, settings: Settings) -> None:
        self.settings = dict(settings)

    @property
    def scale(self) -> int:
        """Size of the clean image / size of the degraded one."""
        return 1

    @property
    def is_random(self) -> bool:
        """Whether an image is degraded anew in each draw."""
        return True

    @property
    def grid(self) -> int:
        """What the sides of fixed clean images are cut to multiples of."""
        return self.scale

    @property
    def score(self) -> Metric:
        return self.metrics[0]

    def channels(self, colours: int) -> tuple[int, int]:
        """(C', C): of what the network is given, and of what it gives, for images of 1 or 3 channels."""
        return colours, colours

    def check(self) -> None:
        """Refuses impossible settings.

        Raises:
            ValueError: with the setting and what would be right.
        """
        self.degradation([np.ones((1, 1), dtype=np.uint8)])

    @abstractmethod
    def degradation(self, auxiliary: Auxiliary | None = None, *, is_training: bool = False) -> Degradation:
        """Clean ``(C, H + 2 margin, W + 2 margin)`` -> what the network is given, ``(C', h, w)``.

        Args:
            auxiliary: what the settings say lies in ``data/packed/auxiliary``.
            is_training: False for the fixed pairs of validation and test.

        Raises:
            ValueError: impossible settings, or nothing auxiliary where they want it.
        """

    def read_auxiliary(self, folder: Path, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """(name, array ``(C, h, w)``) of what can be made of these files of a folder, in order.

        Raises:
            ValueError: this task has no use for any, or a file is not what it should be.
        """
        raise ValueError(f"fetch.auxiliary: task {self.name} has no use for it with these settings: set it to null")

    def as_image(self, inputs: np.ndarray) -> np.ndarray:
        """What one would show and measure of the inputs ``(C', h, w)`` without a network: ``(C, H, W)``."""
        return inputs

    def finished(self, outputs: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """What one would keep of outputs ``(C, H, W)``."""
        return outputs

    def scores(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> Tensor:
        """The score alone, ``(B,)``: what validation computes often. Shapes as in `quality`."""
        return psnr(as_saved(outputs.double()), as_saved(references.double()))

    def quality(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> dict[str, Tensor]:
        """The figures of `metrics`, ``(B,)`` each: of outputs ``(B, C, H, W)`` for inputs ``(B, C', h, w)``."""
        return quality(outputs, references)

    def pairs(self, pack: Pack, indices: Sequence[int] | None = None) -> Iterator[tuple[Entry, np.ndarray, np.ndarray]]:
        """(entry, inputs, reference) of fixed pairs, in order."""
        for index in range(len(pack)) if indices is None else indices:
            yield pack.entries[index], pack.degraded(index), pack.clean(index)


def needed(auxiliary: Auxiliary | None, what: str, key: str) -> Auxiliary:
    """The auxiliary data, if there are any.

    Raises:
        ValueError: there are none.
    """
    if not auxiliary:
        raise ValueError(f"{key}: auxiliary: there are no {what}: name a folder or file of them in fetch.auxiliary")
    return auxiliary
