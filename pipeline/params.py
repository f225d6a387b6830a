"""params.yaml, typed and checked. Models hold no default values: params.yaml is the only place that does."""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pipeline.errors import UserError

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _as_range(value: object) -> object:
    return [value, value] if isinstance(value, int | float) and not isinstance(value, bool) else value


Range = Annotated[tuple[float, float], BeforeValidator(_as_range)]
Auto = Literal["auto"]
FieldType = Literal["regular", "trivial"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class Fetch(_Section):
    source: str


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
    scene_pattern: str
    splits: Splits
    remaining: Remaining
    crop: Annotated[int, Field(ge=16)]
    draws: Draws


class Denoise(_Section):
    sigma: Range


class Derain(_Section):
    angle: Range
    length: Range
    width: Range
    density: Range
    brightness: Range


class DenoiseTask(_Section):
    degradation: Denoise
    out_of_distribution: dict[str, Denoise]
    rotations: bool


class DerainTask(_Section):
    degradation: Derain
    out_of_distribution: dict[str, Derain]
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
    penalty: Literal["regular", "rotation", "channel", "rotation+channel"]
    layers: Auto | dict[str, FieldType]
    layer_weights: dict[str, str | float]
    normalise: Literal["relative", "none"]
    scale_gradient: bool
    pairing: Literal["replace", "append", "none"]
    pair_fraction: Annotated[float, Field(gt=0, le=1)]


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
    space: str
    steps: Positive
    grace_steps: Positive
    concurrent: Auto | Positive
    apply: bool


class Evaluate(_Section):
    tile: Annotated[int, Field(ge=64)]
    overlap: Annotated[int, Field(ge=0)]
    pictures: NotNegative


class Register(_Section):
    margin: Annotated[float, Field(ge=0)]


class Cluster(_Section):
    address: str
    max_failures: NotNegative


class Params(_Section):
    """The whole of params.yaml. ``load_params`` reads it."""

    task: Literal["denoise", "derain"]
    seed: NotNegative
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
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; run from the folder that holds params.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of sections, found {type(values).__name__}")
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
        messages = list(dict.fromkeys(_message(values, dict(item)) for item in error.errors()))
        more = f" (and {len(messages) - 2} more)" if len(messages) > 2 else ""
        raise UserError(f"{origin}: " + "\n".join(messages[:2]) + more) from None
    check_combinations(params, origin)
    return params


def check_combinations(params: Params, origin: str) -> None:
    """Refuses values that are each possible and together are not.

    Raises:
        UserError: with the keys, the values and what would be right.
    """
    equivariance, network, tune = params.equivariance, params.network, params.tune
    if equivariance.weight > 0 and equivariance.pairing == "none":
        raise UserError(
            f"{origin}: equivariance.weight: {equivariance.weight} needs pairs, and equivariance.pairing is "
            "'none': use replace or append, or weight 0"
        )
    needs_groups = equivariance.penalty != "rotation" and equivariance.pairing != "none"
    if needs_groups and network.width % 4:
        nearest = max(4, 4 * round(network.width / 4))
        raise UserError(
            f"{origin}: network.width: {network.width} channels do not divide by 4, which the regular field of "
            f"penalty '{equivariance.penalty}' needs: use {nearest}, or equivariance.penalty: rotation"
        )
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
            raise UserError(f"{key}: there is no section '{section}' in params.yaml{_nearest(section, list(values))}")
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


def _message(values: dict[str, Any], item: dict[str, Any]) -> str:
    """One line for one of pydantic's errors."""
    # Union members add parts to the location that no key has.
    location = [str(part) for part in item["loc"]]
    key = ".".join(_existing(values, location))
    if item["type"] == "extra_forbidden":
        section, last = ".".join(location[:-1]), location[-1]
        return f"{'.'.join(location)}: unknown{_nearest(last, _known_keys(section))}"
    if item["type"] == "missing":
        return f"{'.'.join(location)}: missing; add it"
    return f"{key}: {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"


def _existing(values: Any, location: list[str]) -> list[str]:
    """The leading parts of a location that are keys or positions of the values."""
    found: list[str] = []
    for part in location:
        if isinstance(values, dict) and part in values:
            values = values[part]
        elif isinstance(values, list) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]
        else:
            break
        found.append(part)
    return found


def _known_keys(section: str) -> list[str]:
    """The keys that a section may have."""
    model: Any = Params
    for part in filter(None, section.split(".")):
        fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
        model = fields.get(part)
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return []
    return [field.alias or name for name, field in model.model_fields.items()]


def _nearest(word: str, known: list[str]) -> str:
    match = difflib.get_close_matches(word, known, 1, 0.5)
    if match:
        return f"; did you mean {match[0]}?"
    return f"; known here: {', '.join(known)}" if known else ""
