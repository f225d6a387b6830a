"""params.yaml, typed and checked. Models hold no default values: params.yaml is the only place that does."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError
from ruamel.yaml import YAML, YAMLError

from components.data.pair_names import NAMINGS
from components.tasks import Task, build_task
from components.training.global_batch import count_pairs, worker_share
from pipeline.errors import UserError
from pipeline.param_types import (
    Auto,
    FieldType,
    FolderName,
    GroupName,
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
from pipeline.refusal import nearest, refusals
from pipeline.task_params import Tasks, TaskSection


class Fetch(Section):
    source: Text
    auxiliary: Text | None
    max_gib: Annotated[float, Field(gt=0)]


class Splits(Section):
    train: list[str]
    val: list[str]
    test: list[str]


class Remaining(Section):
    val: Share
    test: Share


class Draws(Section):
    train: Positive
    val: Positive
    test: Positive


class PairPatterns(Section):
    degraded: Pattern
    clean: Pattern


ALL_CLEAN = ("none", "clean")
"""Values of ``preprocess.pairs`` by which every image is clean; none stops at names that look like pairs."""


def _check_naming(name: str) -> str:
    known = [*ALL_CLEAN, "auto", *NAMINGS]
    if name not in known:
        raise ValueError(f"{name!r}: unknown{nearest(name, known)}; or give patterns: {{degraded: ..., clean: ...}}")
    return name


NamingName = Annotated[str, AfterValidator(_check_naming)]


class Preprocess(Section):
    colour: Literal["rgb", "grey"]
    pairs: NamingName | PairPatterns
    unusable: Literal["refuse", "skip"]
    scene_pattern: Pattern
    splits: Splits
    remaining: Remaining
    crop: Annotated[int, Field(ge=16)]
    draws: Draws


class Network(Section):
    name: Literal["auto", "dncnn", "unet", "resnet"]
    width: Positive
    depth: Annotated[int, Field(ge=2)]
    norm: Literal["none", "batch"]


class Equivariance(Section):
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


class Train(Section):
    steps: Positive
    batch_size: Positive
    patch_size: Annotated[int, Field(ge=8)]
    rotations: Auto | bool
    loss: Literal["auto", "l1", "mse", "cross_entropy"]
    task_on_copies: bool
    learning_rate: Annotated[float, Field(gt=0)]
    warmup_steps: NotNegative
    weight_decay: Annotated[float, Field(ge=0)]
    gradient_clip: Annotated[float, Field(gt=0)]
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    num_workers: Auto | Positive | WorkerRange
    images_at_once: Positive | None
    report_every: Positive
    validate_every: Positive
    checkpoint_every: Positive
    keep_best: NotNegative


class Tune(Section):
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
    space: Text
    steps: Positive
    seeds: Positive


class Evaluate(Section):
    tile: Annotated[int, Field(ge=64, multiple_of=16)]
    overlap: Annotated[int, Field(ge=0, multiple_of=16)]
    pictures: NotNegative


class Register(Section):
    margin: Annotated[float, Field(ge=0)]


class Cluster(Section):
    address: Text
    placement: Literal["pack", "spread", "strict_spread"]
    cpus_per_worker: Auto | Annotated[float, Field(gt=0)]
    interface: Text
    storage: Place | None
    cache: Text
    max_failures: NotNegative
    wait_s: Positive
    resize_s: Annotated[int, Field(ge=10)]


class Params(Section):
    """The whole of params.yaml. ``load_params`` reads it."""

    task: Literal["denoise", "derain", "deblur", "super_resolution", "inpaint", "jpeg", "ct_mar", "classify"]
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    fetch: Fetch
    preprocess: Preprocess
    tasks: Tasks
    network: Network
    equivariance: Equivariance
    train: Train
    tune: Tune
    ablate: Ablate
    evaluate: Evaluate
    register_: Register = Field(alias="register")
    cluster: Cluster

    @property
    def task_params(self) -> TaskSection[Any]:
        """The section of the task in hand."""
        section: TaskSection[Any] = getattr(self.tasks, self.task)
        return section

    def build_task(self) -> Task:
        """The task in hand, with its own degradation."""
        return build_task(self.task, self.task_params.degradation.model_dump(exclude_none=True))

    @property
    def colours(self) -> int:
        """Channels of an image."""
        reads = self.build_task().reads
        return 1 if reads == "ct" or (reads == "images" and self.preprocess.colour == "grey") else 3

    @property
    def network_name(self) -> str:
        """``network.name``, or the task's own."""
        return self.build_task().network if self.network.name == "auto" else self.network.name

    @property
    def loss(self) -> Literal["l1", "mse", "cross_entropy"]:
        """``train.loss``, or the task's own."""
        return self.build_task().loss if self.train.loss == "auto" else self.train.loss

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
    _check_task(params, origin)
    try:
        num_pairs = count_pairs(params.train.batch_size, equivariance.pairing, equivariance.pair_fraction)
        chosen = params.train.num_workers
        for number in () if chosen == "auto" else (chosen,) if isinstance(chosen, int) else chosen:
            share = worker_share(params.train.batch_size, equivariance.pairing, num_pairs, 0, number)
            share.parts(params.train.images_at_once)
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


def unreached(params: Params) -> list[str]:
    """A line for each value that a run of ``train.steps`` does not reach, since its warm-up takes longer."""
    steps, equivariance = params.train.steps, params.equivariance
    warmed = [("train", params.train.warmup_steps, "learning_rate", params.train.learning_rate)]
    if equivariance.weight:
        key = "weight" if equivariance.balance is None else "balance"
        warmed.append(("equivariance", equivariance.warmup_steps, key, equivariance.balance or equivariance.weight))
    return [
        f"{section}.warmup_steps: {warmup} are more than train.steps {steps}: {section}.{key} reaches "
        f"{value * steps / warmup:.2g} of {value:g}; use {steps // 4}"
        for section, warmup, key, value in warmed
        if warmup > steps
    ]


def _check_task(params: Params, origin: str) -> None:
    """Refuses a network, loss, data or size that the task cannot have."""
    network, task, name = params.network, params.build_task(), params.network_name
    is_recognition = task.reads == "labelled"
    if (name == "resnet") != is_recognition:
        others = "resnet" if is_recognition else "dncnn, unet"
        raise UserError(f"{origin}: network.name: {name} does not fit task {params.task}: use auto or {others}")
    if (params.loss == "cross_entropy") != is_recognition:
        others = "cross_entropy" if is_recognition else "mse, l1"
        raise UserError(f"{origin}: train.loss: {params.loss} does not fit task {params.task}: use auto or {others}")
    if params.preprocess.pairs not in ALL_CLEAN and (task.reads != "images" or task.channels(3) != (3, 3)):
        raise UserError(f"{origin}: preprocess.pairs: task {params.task} reads no pairs of image files: use none")
    if params.preprocess.colour == "grey" and is_recognition:
        raise UserError(f"{origin}: preprocess.colour: grey: task {params.task} takes colour images: use rgb")
    sections = {"degradation": params.task_params.degradation}
    sections |= {f"out_of_distribution.{key}": other for key, other in params.task_params.out_of_distribution.items()}
    if reserved := sections.keys() & {f"out_of_distribution.{part}" for part in ("train", "val", "test")}:
        raise UserError(f"{origin}: tasks.{params.task}.{min(reserved)}: the name of a part: use another")
    for key, section in sections.items():
        place = f"{origin}: tasks.{params.task}.{key}"
        if section.needs_auxiliary and params.fetch.auxiliary is None:
            raise UserError(f"{place}: auxiliary needs something to take: name a folder or file in fetch.auxiliary")
        scale = build_task(params.task, section.model_dump(exclude_none=True)).scale
        if scale != task.scale:
            raise UserError(f"{place}: scale {scale}, but the network enlarges by {task.scale}: use {task.scale}")
    sides = (
        {}
        if is_recognition
        else {"preprocess.crop": params.preprocess.crop, "train.patch_size": params.train.patch_size}
    )
    if task.scale > 1 and params.preprocess.crop < 16 + 2 * task.scale:
        raise UserError(
            f"{origin}: preprocess.crop: {params.preprocess.crop} leaves too little to measure without the border: use "
            f"{task.scale * -(-(16 + 2 * task.scale) // task.scale)} or more"
        )
    if task.is_simulated_ahead and params.train.patch_size > task.settings["size"]:
        raise UserError(
            f"{origin}: train.patch_size: {params.train.patch_size} is larger than a slice, tasks.{params.task}."
            f"degradation.size {task.settings['size']}: use {task.settings['size']} or less"
        )
    smallest = 1 if name == "dncnn" else 2 ** (network.depth - 1)
    for key, side in sides.items():
        if side % task.scale:
            nearest_side = task.scale * -(-side // task.scale)
            raise UserError(f"{origin}: {key}: {side} does not divide by the scale {task.scale}: use {nearest_side}")
        if side // task.scale < smallest:
            raise UserError(
                f"{origin}: network.depth: {network.depth} resolutions of a {name} need images of {smallest} pixels or "
                f"more, and {key} is {side}{f' / {task.scale}' if task.scale > 1 else ''}: use a depth of "
                f"{(side // task.scale).bit_length()} or less"
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
