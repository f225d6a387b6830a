"""params.yaml, typed and checked. Models hold no default values: params.yaml is the only place that does."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML, YAMLError

from components.degradations import build_degradation
from components.training.global_batch import count_pairs, worker_share
from pipeline.errors import UserError
from pipeline.refusal import nearest, refusals

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


Text = Annotated[str, Field(min_length=1)]


def _as_range(value: object) -> object:
    return (value, value) if _is_number(value) else tuple(value) if isinstance(value, list) else value


Range = Annotated[
    tuple[float, float], BeforeValidator(_as_range), Field(description="a number or a range [lowest, highest]")
]
Auto = Literal["auto"]
FieldType = Literal["regular", "trivial"]


def _check_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"'{pattern}' is no regular expression ({error})") from error
    return pattern


def _check_layer_weights(weights: dict[str, Any]) -> dict[str, Any]:
    profile = weights.get("profile")
    if "profile" not in weights:
        wrong = {name: weight for name, weight in weights.items() if not _is_number(weight) or weight < 0}
        if wrong or not weights:
            found = ", ".join(f"{name}: {weight!r}" for name, weight in wrong.items()) or "nothing"
            raise ValueError(f"{found}: give a profile, or name patterns with a weight of at least 0 each")
        return weights
    keys = {"uniform": ["profile"], "geometric": ["profile", "decay"]}
    if profile not in keys:
        raise ValueError(f"profile: {profile!r}: use uniform or geometric")
    if unknown := [key for key in weights if key not in keys[profile]]:
        raise ValueError(f"{unknown[0]}: unknown with profile {profile}{nearest(unknown[0], keys[profile])}")
    if profile == "geometric" and not (_is_number(weights.get("decay")) and 0 < weights["decay"] <= 1):
        raise ValueError(f"decay: {weights.get('decay')!r}: use a number above 0 and of at most 1")
    return weights


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


LayerWeights = Annotated[dict[str, Any], AfterValidator(_check_layer_weights)]
# Names of folders in data/packed.
FolderName = Annotated[str, Field(pattern=r"^\w[\w.-]*$", description="a name of letters, digits, '_', '-' and '.'")]

GroupName = Annotated[
    str, Field(pattern=r"^(C([2-9]|[1-9]\d+)|D4)$", description="C2, C4, D4, C8 or another C<N> with N of at least 2")
]


class _Section(BaseModel):
    # strict: '16' and true are no numbers.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Fetch(_Section):
    source: Text


class Splits(_Section):
    train: list[str]
    val: list[str]
    test: list[str]


class Remaining(_Section):
    val: Share
    test: Share


class Draws(_Section):
    val: Positive
    test: Positive


class Preprocess(_Section):
    scene_pattern: Annotated[str, AfterValidator(_check_pattern)]
    splits: Splits
    remaining: Remaining
    crop: Annotated[int, Field(ge=16)]
    draws: Draws


class Denoise(_Section):
    sigma: Range

    @model_validator(mode="after")
    def _check(self) -> Self:
        build_degradation("denoise", self.model_dump())
        return self


class Derain(_Section):
    angle: Range
    length: Range
    width: Range
    density: Range
    brightness: Range

    @model_validator(mode="after")
    def _check(self) -> Self:
        build_degradation("derain", self.model_dump())
        return self


class DenoiseTask(_Section):
    degradation: Denoise
    out_of_distribution: dict[FolderName, Denoise]
    rotations: bool


class DerainTask(_Section):
    degradation: Derain
    out_of_distribution: dict[FolderName, Derain]
    rotations: bool


class Tasks(_Section):
    denoise: DenoiseTask
    derain: DerainTask


class Network(_Section):
    name: Literal["dncnn", "unet"]
    width: Positive
    depth: Annotated[int, Field(ge=2)]
    norm: Literal["none", "batch"]


class Equivariance(_Section):
    weight: Annotated[float, Field(ge=0)]
    weight_unit: Literal["task", "none"]
    warmup_steps: NotNegative
    balance: Annotated[float, Field(gt=0, lt=1)] | None
    penalty: Literal["regular", "rotation", "channel", "rotation+channel", "projection", "paper"]
    group: GroupName
    layers: Auto | dict[str, FieldType]
    layer_weights: LayerWeights
    sample_layers: Annotated[float, Field(gt=0)] | None
    sample_fields: Annotated[float, Field(gt=0, le=1)] | None
    max_gradient_ratio: Annotated[float, Field(gt=0)] | None
    normalise: Literal["relative", "none"]
    scale_gradient: bool
    pairing: Literal["replace", "append", "none"]
    pair_fraction: Annotated[float, Field(gt=0, le=1)]

    @property
    def group_order(self) -> int:
        """Channels of one regular field."""
        return int(self.group[1:]) * (2 if self.group.startswith("D") else 1)


class Train(_Section):
    steps: Positive
    batch_size: Positive
    patch_size: Annotated[int, Field(ge=8)]
    rotations: Auto | bool
    loss: Literal["l1", "mse"]
    task_on_copies: bool
    learning_rate: Annotated[float, Field(gt=0)]
    warmup_steps: NotNegative
    weight_decay: Annotated[float, Field(ge=0)]
    gradient_clip: Annotated[float, Field(gt=0)]
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    num_workers: Auto | Positive
    report_every: Positive
    validate_every: Positive
    checkpoint_every: Positive


class Tune(_Section):
    trials: NotNegative
    space: Text
    steps: Positive
    grace_steps: Positive
    concurrent: Auto | Positive
    apply: bool


class Evaluate(_Section):
    tile: Annotated[int, Field(ge=64, multiple_of=16)]
    overlap: Annotated[int, Field(ge=0, multiple_of=16)]
    pictures: NotNegative


class Register(_Section):
    margin: Annotated[float, Field(ge=0)]


class Cluster(_Section):
    address: Text
    max_failures: NotNegative


class Params(_Section):
    """The whole of params.yaml. ``load_params`` reads it."""

    task: Literal["denoise", "derain"]
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    fetch: Fetch
    preprocess: Preprocess
    tasks: Tasks
    network: Network
    equivariance: Equivariance
    train: Train
    tune: Tune
    evaluate: Evaluate
    register_: Register = Field(alias="register")
    cluster: Cluster

    @property
    def task_params(self) -> DenoiseTask | DerainTask:
        """The section of the task in hand."""
        return self.tasks.denoise if self.task == "denoise" else self.tasks.derain

    @property
    def rotations(self) -> bool:
        """Whether training images are turned: ``train.rotations``, or the task's own choice."""
        chosen = self.train.rotations
        return self.task_params.rotations if chosen == "auto" else chosen

    @property
    def hash(self) -> str:
        """12 hexadecimal digits that change with any value."""
        text = json.dumps(self.model_dump(by_alias=True, mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_values(path: Path) -> dict[str, Any]:
    """The plain values of a YAML file whose top level is a mapping.

    Raises:
        UserError: the file is missing or is not such a file.
    """
    try:
        return parse_values(path.read_text(), str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; run from the folder that holds params.yaml") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not readable as text ({error})") from error


def parse_values(text: str, origin: str) -> dict[str, Any]:
    """The plain values of YAML text, read as DVC reads it: YAML 1.2, where 1e-3 is a number and no key comes twice.

    Raises:
        UserError: it is no YAML, or its top level is no mapping.
    """
    try:
        values = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{origin}{where}: not readable as YAML ({' '.join(problem.split())})") from error
    if not isinstance(values, dict):
        raise UserError(f"{origin}: expected a mapping of sections, found {type(values).__name__}")
    return values


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Reads and checks params.yaml.

    Raises:
        UserError: with the key, the value and what would be right.
    """
    return check_params(read_values(path), str(path))


def check_params(values: dict[str, Any], origin: str) -> Params:
    """Plain values -> checked params.

    Raises:
        UserError: with the key, the value and what would be right; ``origin`` names where they came from.
    """
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        lines = refusals(Params, values, error)
        more = f" (and {len(lines) - 2} more)" if len(lines) > 2 else ""
        raise UserError(f"{origin}: " + "\n".join(lines[:2]) + more) from None
    check_combinations(params, origin)
    return params


def check_combinations(params: Params, origin: str) -> None:
    """Refuses values that are each possible and together are not.

    Raises:
        UserError: with the keys, the values and what would be right.
    """
    equivariance, network, tune = params.equivariance, params.network, params.tune
    if equivariance.weight > 0 and equivariance.pairing == "none" and equivariance.penalty != "projection":
        raise UserError(
            f"{origin}: equivariance.weight: {equivariance.weight} needs pairs, and equivariance.pairing is "
            "'none': use replace or append, or weight 0, or penalty projection"
        )
    is_penalised = equivariance.pairing != "none" or equivariance.weight > 0
    order = equivariance.group_order
    if is_penalised and equivariance.penalty != "rotation" and network.width % order:
        nearest = max(order, order * round(network.width / order))
        raise UserError(
            f"{origin}: network.width: {network.width} channels do not divide by {order}, which the regular field of "
            f"penalty '{equivariance.penalty}' in {equivariance.group} needs: use {nearest}, or "
            "equivariance.penalty: rotation"
        )
    if equivariance.balance is not None and equivariance.penalty in ("channel", "projection"):
        raise UserError(
            f"{origin}: equivariance.balance: {equivariance.balance} is a share of the gradient at the layers' "
            f"outputs, where penalty '{equivariance.penalty}' has none: use null, or penalty regular, rotation or paper"
        )
    if equivariance.balance is not None and equivariance.pairing == "none":
        raise UserError(
            f"{origin}: equivariance.balance: {equivariance.balance} needs pairs: use pairing replace or null"
        )
    cap = equivariance.max_gradient_ratio
    if equivariance.balance is not None and cap is not None and equivariance.balance / (1 - equivariance.balance) > cap:
        raise UserError(
            f"{origin}: equivariance.balance: {equivariance.balance} cannot be reached under "
            f"equivariance.max_gradient_ratio {cap}: use a balance of {cap / (1 + cap):.2g} or less, or another ratio"
        )
    if equivariance.balance is not None and tune.trials:
        raise UserError(
            f"{origin}: equivariance.balance: {equivariance.balance} replaces the weight that the sweep searches: use "
            "tune.trials: 0, or balance null"
        )
    if equivariance.sample_fields is not None and equivariance.penalty not in ("regular",):
        raise UserError(
            f"{origin}: equivariance.sample_fields: {equivariance.sample_fields} has no effect under penalty "
            f"'{equivariance.penalty}': use null, or penalty regular"
        )
    if equivariance.penalty == "projection" and equivariance.group not in ("C2", "C4", "D4"):
        raise UserError(
            f"{origin}: equivariance.group: {equivariance.group} cannot turn kernels exactly, which penalty "
            "'projection' needs: use C2, C4 or D4"
        )
    smallest = 2 ** (network.depth - 1)
    for key, side in (("train.patch_size", params.train.patch_size), ("preprocess.crop", params.preprocess.crop)):
        if network.name == "unet" and side < smallest:
            raise UserError(
                f"{origin}: network.depth: {network.depth} resolutions of a unet need images of {smallest} pixels or "
                f"more, and {key} is {side}: use a depth of {side.bit_length()} or less"
            )
    try:
        num_pairs = count_pairs(params.train.batch_size, equivariance.pairing, equivariance.pair_fraction)
        if params.train.num_workers != "auto":
            worker_share(params.train.batch_size, equivariance.pairing, num_pairs, 0, params.train.num_workers)
    except ValueError as error:
        raise UserError(f"{origin}: {error}") from None
    if tune.trials and tune.grace_steps >= tune.steps:
        raise UserError(
            f"{origin}: tune.grace_steps: {tune.grace_steps} leaves nothing to stop early of tune.steps "
            f"{tune.steps}: use less than {tune.steps}"
        )
    if params.evaluate.overlap >= params.evaluate.tile:
        raise UserError(
            f"{origin}: evaluate.overlap: {params.evaluate.overlap} must be less than evaluate.tile "
            f"{params.evaluate.tile}"
        )
    remaining = params.preprocess.remaining
    if remaining.val + remaining.test >= 1:
        raise UserError(
            f"{origin}: preprocess.remaining: val {remaining.val} + test {remaining.test} leaves nothing to "
            "train on: their sum must be below 1"
        )


def set_value(values: dict[str, Any], key: str, value: object) -> None:
    """Sets a dotted key in nested plain values; the sections on the way must exist.

    Raises:
        UserError: a section does not exist; the last part of the key is checked with all params later.
    """
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(values.get(section), dict):
            raise UserError(f"{key}: there is no section '{section}' in params.yaml{nearest(section, list(values))}")
        values = values[section]
    values[last] = value


def get_value(values: dict[str, Any], key: str) -> object:
    """The value of a dotted key in nested plain values; None where there is none."""
    node: Any = values
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return None
        node = node[part]
    return node
