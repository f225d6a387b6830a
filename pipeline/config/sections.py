"""The sections of params.yaml: the keys, their types and their bounds.

The comments in params.yaml describe the keys. The sections have no default values, because params.yaml is the only file
that holds them.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from components.data.pair_names import NAMINGS
from components.equivariance.config import PENALTIES, EquivarianceConfig, Penalty
from components.registry import nearest
from pipeline.config.members import Choice
from pipeline.config.rules import ALL_CLEAN
from pipeline.config.value_types import (
    Auto,
    FieldType,
    FolderName,
    GroupName,
    LayerChoice,
    LayerWeights,
    NotNegative,
    Objectives,
    Pattern,
    Place,
    Positive,
    Section,
    Share,
    StudyStorage,
    Text,
    WorkerRange,
)

SELF_ENSEMBLES = (1, 4, 8)
"""As `components.inference.tiles.ENSEMBLES`, which no other stage than evaluate depends on."""

if TYPE_CHECKING:
    PenaltyName = str
else:
    PenaltyName = Literal[tuple(PENALTIES)]


class Fetch(Section):
    """The section ``fetch``."""

    source: Text
    auxiliary: Text | None
    max_gib: Annotated[float, Field(gt=0)]


class Splits(Section):
    """The section ``preprocess.splits``: scenes, or patterns of them, that are assigned to each split."""

    train: list[str]
    val: list[str]
    test: list[str]


class Remaining(Section):
    """The section ``preprocess.remaining``: shares of the scenes that no list assigns to a split."""

    val: Share
    test: Share

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(f"val {self.val} + test {self.test} leaves nothing to train on: their sum must be below 1")
        return self


class Realizations(Section):
    """The section ``preprocess.realizations``: number of fixed degradations of each image."""

    train: Positive
    val: Positive
    test: Positive


class PairPatterns(Section):
    """Regular expressions in ``preprocess.pairs`` that match the names of degraded and clean images."""

    degraded: Pattern
    clean: Pattern


def _check_naming(name: str) -> str:
    known = [*ALL_CLEAN, "auto", *NAMINGS]
    if name not in known:
        raise ValueError(f"{name!r}: unknown{nearest(name, known)}; or give patterns: {{degraded: ..., clean: ...}}")
    return name


NamingName = Annotated[str, AfterValidator(_check_naming)]


class Preprocess(Section):
    """The section ``preprocess``."""

    colour: Literal["rgb", "grey"]
    pairs: NamingName | PairPatterns
    unusable: Literal["refuse", "skip"]
    scene_pattern: Pattern
    splits: Splits
    remaining: Remaining
    crop: Annotated[int, Field(ge=16)]
    realizations: Realizations


class Equivariance(Section):
    """The section ``equivariance``."""

    weight: Annotated[float, Field(ge=0)]
    weight_unit: Literal["task", "none"]
    warmup_steps: NotNegative
    balance: Annotated[float, Field(gt=0, lt=1)] | None
    penalty: PenaltyName
    group: GroupName
    layers: LayerChoice | dict[str, FieldType]
    layer_weights: LayerWeights
    sample_layers: Annotated[float, Field(gt=0)] | None
    sample_fields: Annotated[float, Field(gt=0, le=1)] | None
    max_gradient_ratio: Annotated[float, Field(gt=0)] | None
    normalise: Literal["relative", "none"]
    scale_gradient: bool
    pairing: Literal["replace", "append", "none"]
    pair_fraction: Annotated[float, Field(gt=0, le=1)]

    @property
    def rule(self) -> Penalty:
        """What the penalty compares and needs."""
        return PENALTIES[self.penalty]

    @property
    def config(self) -> EquivarianceConfig:
        """The options of the regulariser; the other keys are those of the weight."""
        options: dict[str, Any] = {
            field.name: getattr(self, field.name)
            for field in fields(EquivarianceConfig)
            if field.name in type(self).model_fields
        }
        return EquivarianceConfig(**options, measure_gradients=self.balance is not None)

    @property
    def group_order(self) -> int:
        """Order of the group, which is the number of channels of one regular field."""
        return int(self.group[1:]) * (2 if self.group.startswith("D") else 1)


class Train(Section):
    """The section ``train``."""

    steps: Positive
    batch_size: Positive
    patch_size: Annotated[int, Field(ge=8)]
    rotations: Auto | bool
    loss: Choice
    task_loss_on_transformed: bool
    optimizer: Choice
    schedule: Choice
    learning_rate: Annotated[float, Field(gt=0)]
    warmup_steps: NotNegative
    weight_decay: Annotated[float, Field(ge=0)]
    gradient_clip: Annotated[float, Field(gt=0)]
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    num_workers: Auto | Positive | WorkerRange
    micro_batch_size: Positive | None
    report_every: Positive
    validate_every: Positive
    checkpoint_every: Positive
    keep_best: NotNegative


class Tune(Section):
    """The section ``tune``."""

    trials: NotNegative
    space: Text
    steps: Positive
    grace_steps: Positive
    reduction_factor: Annotated[int, Field(ge=2)]
    objectives: Objectives
    num_workers: Positive
    gpu_share: Annotated[float, Field(gt=0, le=1)]
    concurrent: Auto | Positive
    study: Auto | FolderName
    study_storage: StudyStorage | None
    apply: bool


class Ablate(Section):
    """The section ``ablate``."""

    space: Text
    steps: Positive
    seeds: Positive


class Evaluate(Section):
    """The section ``evaluate``."""

    tile: Annotated[int, Field(ge=64, multiple_of=16)]
    overlap: Annotated[int, Field(ge=0, multiple_of=16)]
    self_ensemble: Positive
    comparison_images: NotNegative

    @field_validator("self_ensemble")
    @classmethod
    def _is_one_of(cls, number: int) -> int:
        if number not in SELF_ENSEMBLES:
            raise ValueError(f"{number}: use one of {', '.join(map(str, SELF_ENSEMBLES))}")
        return number

    @field_validator("overlap")
    @classmethod
    def _is_smaller(cls, overlap: int, info: ValidationInfo) -> int:
        tile = info.data.get("tile")  # missing if it is invalid itself
        if tile is not None and overlap >= tile:
            raise ValueError(f"{overlap} must be less than evaluate.tile {tile}")
        return overlap


class Register(Section):
    """The section ``register``."""

    margin: Annotated[float, Field(ge=0)]
    largest_equivariance_error: Annotated[float, Field(gt=0)] | None
    largest_multiply_adds_per_pixel: Annotated[float, Field(gt=0)] | None


class Cluster(Section):
    """The section ``cluster``."""

    address: Text
    placement: Literal["pack", "spread", "strict_spread"]
    cpus_per_worker: Auto | Annotated[float, Field(gt=0)]
    interface: Text
    storage: Place | None
    cache: Text
    max_failures: NotNegative
    wait_s: Positive
    resize_s: Annotated[int, Field(ge=10)]
