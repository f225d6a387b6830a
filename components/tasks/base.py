"""Base class of the tasks: degradation of the images, inputs and outputs of the network, and metrics of the results.

Code outside a task asks the task and never its name: what it reads, which network it needs, how it is measured.

Legend: C channels of an image (1 grey, 3 RGB), C' channels of the inputs of the network, H x W pixels of the clean
image, h x w pixels of the degraded image.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from torch import Tensor

from components.data.noise_level import NOISE_LEVEL, StackedNoise, with_noise_level
from components.data.packs import Entry, Pack
from components.data.sampler import Degradation
from components.evaluation.metrics import as_saved, psnr, quality
from components.registry import Settings

Auxiliary = Sequence[np.ndarray]
"""Auxiliary data of degradations, besides clean images: blur kernels, streak layers, masks."""

AUXILIARY = "auxiliary"
"""Value of a setting that requires auxiliary data."""

Range = float | tuple[float, float]
"""A number, or the lowest and the highest of a range."""

WholeRange = int | tuple[int, int]
"""A whole number, or the lowest and the highest of a range."""


@dataclass(frozen=True, kw_only=True)
class DegradationSettings(Settings):
    """Base class of the settings of a degradation, ``tasks.NAME.degradation`` of params.yaml."""

    @property
    def needs_auxiliary(self) -> bool:
        """Whether the degradation uses the data of ``fetch.auxiliary``."""
        return AUXILIARY in vars(self).values()


def as_range(value: Any) -> Any:
    """Return (lowest, highest) of a number or a range of the settings.

    Example:
        >>> as_range(25), as_range([5, 50])
        ((25, 25), (5, 50))
    """
    return (value, value) if isinstance(value, int | float) else tuple(value)


@dataclass(frozen=True)
class Metric:
    """A metric of one image.

    Attributes:
        key: key in the results.
        title: name with the unit, for tables and figures.
        digits: number of decimals to show.
    """

    key: str
    title: str
    digits: int = 2


PSNR, SSIM = Metric("psnr", "PSNR, dB"), Metric("ssim", "SSIM", 3)
PSNR_Y, SSIM_Y = Metric("psnr_y", "PSNR of Y, dB"), Metric("ssim_y", "SSIM of Y", 3)


class Task(ABC):
    """One task with the settings of its degradation, ``tasks.NAME.degradation`` of params.yaml.

    Attributes:
        name: value of ``task`` in params.yaml.
        degradations: the kinds of settings that the degradation can have.
        metrics: the reported metrics. The first one is the score by which validation chooses, as in the task's
            literature.
        input_kind: kind of the data: image files, CT slices, or labelled images.
        network: the network that ``network.name: auto`` selects, ``name`` and settings: a small one that trains in
            minutes on two cores.
        loss: the loss that ``auto`` selects.
        baseline: place of the function that chooses the classical baseline; see ``components.evaluation.baselines``.
        is_classification: whether the network gives class scores and not an image.
        trains_on_patches: whether training uses crops of the images, and not whole images.
        takes_pairs: whether the task can use pairs of image files that are degraded already.
        takes_grey: whether the task can use grey images.
        has_conventions: whether the PSNR and SSIM of other projects' scripts are computed beside the metrics
            (`components.evaluation.conventions`).
        gives: names of the images in the network's input stack, in order (`components.networks.form`).
        optional: names of further images, of one channel each, that the task can give. They follow those of `gives` in
            the stack of a network that needs them (`for_network`), and no other network sees them.
        auxiliary_title: what the auxiliary data are, for messages.
        restore_options: further options of ``eqreg restore``, for the example that is printed.
        is_simulated_ahead: whether preprocess creates the training pairs, because the degradation is too slow to be
            computed during training.
        splits_auxiliary: whether training and the fixed pairs use different auxiliary data, so that no auxiliary data
            of training is used in a test.
        validation_batch: number of fixed pairs that are restored at a time.
        settings: settings of the degradation.
        inputs: names of the images in the stack of the network that the task is for, in order.
    """

    name: ClassVar[str]
    degradations: ClassVar[tuple[type[DegradationSettings], ...]]
    metrics: ClassVar[tuple[Metric, ...]] = (PSNR, SSIM)
    input_kind: ClassVar[Literal["images", "ct", "labelled"]] = "images"
    network: ClassVar[Mapping[str, Any]] = {"name": "unet", "width": 24, "depth": 3, "norm": "batch"}
    loss: ClassVar[str] = "mse"
    baseline: ClassVar[str] = "components.evaluation.baselines:of_noise"
    is_classification: ClassVar[bool] = False
    trains_on_patches: ClassVar[bool] = True
    takes_pairs: ClassVar[bool] = True
    takes_grey: ClassVar[bool] = True
    has_conventions: ClassVar[bool] = False
    gives: ClassVar[tuple[str, ...]] = ("image",)
    optional: ClassVar[tuple[str, ...]] = ()
    auxiliary_title: ClassVar[str] = "data"
    restore_options: ClassVar[str] = ""
    is_simulated_ahead: ClassVar[bool] = False
    splits_auxiliary: ClassVar[bool] = True
    validation_batch: ClassVar[int] = 1

    def __init__(self, settings: DegradationSettings) -> None:
        self.settings: Any = settings
        self.inputs = self.gives

    def for_network(self, network: Any) -> Self:
        """Return the task with the inputs that a network takes, given the network or its class.

        The task as it is built gives the images of `gives` alone.
        """
        needs = getattr(network, "needs", None)
        task = copy.copy(self)
        task.inputs = inputs_of(self.gives, self.optional, needs)
        return task

    @classmethod
    def kind_of(cls, settings: Mapping[str, Any]) -> type[DegradationSettings]:
        """Return the kind of settings that plain values are: the smallest one that alone has one of their keys.

        If no kind has a key of its own there, it is the first of `degradations`.
        """
        names = {kind: {field.name for field in fields(kind)} for kind in cls.degradations}
        for kind in sorted(cls.degradations, key=lambda kind: len(names[kind])):
            others: set[str] = set().union(*(names[other] for other in cls.degradations if other is not kind))
            if settings.keys() & (names[kind] - others):
                return kind
        return cls.degradations[0]

    @property
    def scale(self) -> int:
        """Size of the clean image / size of the degraded image."""
        return 1

    @property
    def is_random(self) -> bool:
        """Whether the degradation of an image is random."""
        return True

    @property
    def grid(self) -> int:
        """The sides of fixed clean images are cut to multiples of this number of pixels."""
        return self.scale

    @property
    def score(self) -> Metric:
        """The deciding metric, which is the first of `metrics`."""
        return self.metrics[0]

    def colours(self, colour: str) -> int:
        """Return the number of channels of an image for ``preprocess.colour``, "rgb" or "grey"."""
        return 1 if colour == "grey" else 3

    def channels(self, colours: int) -> tuple[int, int]:
        """Return (C', C), the channels of the network's inputs and outputs, for images of 1 or 3 channels."""
        return colours, colours

    @property
    def noise_levels(self) -> tuple[float, float] | None:
        """The lowest and the highest noise level of the degradation, in grey levels of 255; None if it has none."""
        return None

    @property
    def can_give(self) -> tuple[str, ...]:
        """The names of all images that the task can give with these settings."""
        return self.gives + tuple(name for name in self.optional if name != NOISE_LEVEL or self.noise_levels)

    def network_shape(self, colours: int, train: Callable[[], Pack]) -> dict[str, int]:
        """Return the shape of the network: the arguments of ``build_network`` that are not its settings.

        Args:
            colours: channels of an image.
            train: gives the pack of the training images; only a task that needs it calls it.
        """
        inputs, outputs = self.channels(colours)
        return {"in_channels": inputs + self._num_optional, "out_channels": outputs, "scale": self.scale}

    def model_metadata(self, train: Callable[[], Pack]) -> dict[str, Any]:
        """Return what the user of a network needs to know and its weights do not say, as JSON's types.

        Args:
            train: gives the pack of the training images; only a task that needs it calls it.
        """
        return {NOISE_LEVEL: list(self.noise_levels or ())} if NOISE_LEVEL in self.inputs else {}

    @property
    def _num_optional(self) -> int:
        """The number of channels in the network's stack beside those of `gives`."""
        return len(self.inputs) - len(self.gives)

    @property
    def largest_patch(self) -> int | None:
        """Side of the largest crop that training can use, in pixels; None if only the images limit it."""
        return None

    def check(self) -> None:
        """Check the settings.

        Raises:
            ValueError: a setting is impossible; the message names it and states the allowed values.
        """
        self.degradation([np.ones((1, 1), dtype=np.uint8)])

    @abstractmethod
    def degradation(self, auxiliary: Auxiliary | None = None, *, is_training: bool = False) -> Degradation:
        """Return the degradation: clean ``(C, H + 2 margin, W + 2 margin)`` -> inputs of the network ``(C', h, w)``.

        Args:
            auxiliary: the auxiliary data in ``data/packed/auxiliary``, if the settings require them.
            is_training: False for the fixed pairs of validation and test.

        Raises:
            ValueError: the settings are impossible, or they require auxiliary data and there are none.
        """

    def degrade(
        self, degradation: Degradation, clean: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, float | None]:
        """Degrade a clean image for a fixed pair, which any network may restore.

        Args:
            degradation: of `degradation`.
            clean: ``(C, H + 2 margin, W + 2 margin)``.
            generator: source of everything random.

        Returns:
            The inputs of `gives`, ``(C', h, w)``, and the noise level in grey levels of 255, or None if there is none.
        """
        if self.noise_levels is None:
            return degradation(clean, generator), None
        noise: Any = degradation
        degraded, sigma = noise.with_level(clean, generator)
        return degraded, sigma

    def stacked(self, degradation: Degradation) -> Degradation:
        """Return the degradation that gives all of `inputs`, for training."""
        noise: Any = degradation
        return StackedNoise(noise) if NOISE_LEVEL in self.inputs else degradation

    def read_auxiliary(self, folder: Path, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Read the auxiliary data from files of a folder; yield (name, array ``(C, h, w)``) in order.

        Raises:
            ValueError: this task uses no auxiliary data, or a file has the wrong content.
        """
        raise ValueError(f"fetch.auxiliary: task {self.name} has no use for it with these settings: set it to null")

    def simulate(
        self, clean: np.ndarray, pixel_spacing_mm: float | None, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Simulate a pair ahead of training: inputs ``(C', h, w)`` and clean image ``(C, H, W)``.

        Only a task with `is_simulated_ahead` has this method.

        Args:
            clean: the clean image as it is read, ``(C, H, W)``.
            pixel_spacing_mm: pixel spacing of a CT slice; None if it is unknown.
            generator: source of everything random.

        Raises:
            ValueError: the image cannot be used.
        """
        raise NotImplementedError(f"task {self.name} simulates no pairs")

    def untouched(self, inputs: np.ndarray, num_classes: int | None) -> np.ndarray:
        """Return the output of the baseline that leaves the inputs unchanged."""
        return self.as_image(inputs)

    def without_optional(self, inputs: np.ndarray) -> np.ndarray:
        """Return the inputs of `gives` alone, which are those of the classical baselines, of ``(C', h, w)``."""
        return inputs[: inputs.shape[0] - self._num_optional]

    def as_image(self, inputs: np.ndarray) -> np.ndarray:
        """Convert the inputs ``(C', h, w)`` to the image that is shown and measured as "degraded", ``(C, H, W)``."""
        return self.without_optional(inputs)

    def postprocess(self, outputs: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Convert outputs ``(C, H, W)`` of the network to the image that is saved."""
        return outputs

    def compute_score(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> Tensor:
        """Compute only the score, ``(B,)``; validation computes it often.

        Args:
            outputs: ``(B, C, H, W)``.
            inputs: ``(B, C', h, w)``.
            references: ``(B, C, H, W)``.
        """
        return psnr(as_saved(outputs.double()), as_saved(references.double()))

    def compute_metrics(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> dict[str, Tensor]:
        """Compute all `metrics`, ``(B,)`` each.

        Args:
            outputs: ``(B, C, H, W)``.
            inputs: ``(B, C', h, w)``.
            references: ``(B, C, H, W)``.
        """
        return quality(outputs, references)

    def pairs(self, pack: Pack, indices: Sequence[int] | None = None) -> Iterator[tuple[Entry, np.ndarray, np.ndarray]]:
        """Yield (entry, inputs, reference) of fixed pairs, in order; ``indices`` None yields all pairs.

        Raises:
            ValueError: the network needs the noise level, and the pack does not say it.
        """
        for index in range(len(pack)) if indices is None else indices:
            entry, inputs = pack.entries[index], pack.degraded(index)
            if NOISE_LEVEL in self.inputs:
                if entry.noise_level is None:
                    raise ValueError(
                        f"{pack.folder}: {entry.name} has no noise level, which the network needs: run 'eqreg "
                        "preprocess' again"
                    )
                inputs = with_noise_level(inputs, entry.noise_level)
            yield entry, inputs, pack.clean(index)


def inputs_of(gives: Sequence[str], optional: Sequence[str], needs: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the images in a network's stack, in order.

    Args:
        gives: what a task gives to every network.
        optional: what it gives to the networks that need it.
        needs: what the network needs; None if it takes the whole of `gives`.

    Example:
        >>> inputs_of(("image",), ("noise_level",), ("image", "noise_level"))
        ('image', 'noise_level')
        >>> inputs_of(("image",), ("noise_level",), None)
        ('image',)
    """
    return (*gives, *(name for name in optional if name in (needs or ())))


def needed(auxiliary: Auxiliary | None, what: str, key: str) -> Auxiliary:
    """Return the auxiliary data after checking that there are any.

    Args:
        auxiliary: the auxiliary data.
        what: their name in the error message.
        key: the setting that requires them.

    Raises:
        ValueError: there are none.
    """
    if not auxiliary:
        raise ValueError(f"{key}: auxiliary: there are no {what}: name a folder or file of them in fetch.auxiliary")
    return auxiliary
