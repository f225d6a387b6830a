"""All of params.yaml as one object, checked.

What is chosen by name (a network, a loss, ...) has settings of its own, with defaults in its class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError

from components.brief import short_digest
from components.members import LOSSES, NETWORKS, OPTIMIZERS, SCHEDULES, TASKS
from components.registry import module_of
from components.tasks import Task, task_class
from components.training.losses import Loss
from components.training.optimizers import Optimizer
from components.training.schedules import Schedule
from pipeline.config.members import Choice, RefusedError, SectionChoice, chosen_settings, plain, plain_settings
from pipeline.config.messages import refusals
from pipeline.config.rules import broken_rule
from pipeline.config.sections import (
    Ablate,
    Cluster,
    Equivariance,
    Evaluate,
    Fetch,
    Preprocess,
    Register,
    Train,
    Tune,
)
from pipeline.config.task_schema import Tasks, TaskSection
from pipeline.config.value_types import Section
from pipeline.config.values import CHOSEN_BY_NAME, get_value, read_values, set_value
from pipeline.errors import UserError

if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[tuple(TASKS)]


class Params(Section):
    """All sections of params.yaml; ``load_params`` reads them."""

    task: TaskName
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    fetch: Fetch
    preprocess: Preprocess
    tasks: Tasks
    network: SectionChoice
    equivariance: Equivariance
    train: Train
    tune: Tune
    ablate: Ablate
    evaluate: Evaluate
    register_: Register = Field(alias="register")
    cluster: Cluster

    @property
    def task_params(self) -> TaskSection:
        """The section of the selected task."""
        section: TaskSection = getattr(self.tasks, self.task)
        return section

    def build_task(self, degradation: Any = None) -> Task:
        """Builds the selected task.

        Args:
            degradation: settings of its degradation; None for those of training.
        """
        return task_class(self.task)(degradation or self.task_params.degradation)

    @property
    def colours(self) -> int:
        """Number of channels of an image."""
        return self.build_task().colours(self.preprocess.colour)

    @property
    def network_name(self) -> str:
        """``network.name``, or the name of the task's default network if it is auto."""
        return self._network.name

    @property
    def network_settings(self) -> Any:
        """The settings of the network: those of params.yaml, else of the task's default network or of its class."""
        return chosen_settings(
            NETWORKS, self._network, "network", has_auto=True, kind_of=lambda network: network.Settings
        )

    @property
    def _network(self) -> SectionChoice:
        """The selected network; "auto" is replaced by the task's default network."""
        if self.network.name != "auto":
            return self.network
        return SectionChoice.model_validate({**task_class(self.task).network, **self.network.settings})

    @property
    def loss(self) -> Loss:
        """The task loss: ``train.loss``, or the task's default loss if it is auto."""
        loss: Loss = chosen_settings(LOSSES, self._loss, "train.loss", has_auto=True)
        return loss

    @property
    def _loss(self) -> Choice:
        chosen = self.train.loss
        return chosen.model_copy(update={"name": task_class(self.task).loss}) if chosen.name == "auto" else chosen

    @property
    def optimizer(self) -> Optimizer:
        """The optimiser, ``train.optimizer``."""
        optimizer: Optimizer = chosen_settings(OPTIMIZERS, self.train.optimizer, "train.optimizer")
        return optimizer

    @property
    def schedule(self) -> Schedule:
        """The schedule of the learning rate, ``train.schedule``."""
        schedule: Schedule = chosen_settings(SCHEDULES, self.train.schedule, "train.schedule")
        return schedule

    @property
    def rotations(self) -> bool:
        """Whether training images are rotated: ``train.rotations``, or the task's default if it is auto."""
        chosen = self.train.rotations
        return self.task_params.rotations if chosen == "auto" else chosen

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the values, because the types of the tasks' sections are made at run time."""
        return Params.model_validate_json, (json.dumps(self.values),)

    @property
    def values(self) -> dict[str, Any]:
        """All values as plain values, as params.yaml holds them."""
        return self.model_dump(by_alias=True, mode="json")

    @property
    def resolved(self) -> dict[str, Any]:
        """All values as plain values, with the names and all settings of what is chosen by name."""
        values = self.values
        values["network"] = {"name": self.network_name, **plain_settings(self.network_settings)}
        values["train"] |= {
            "loss": plain(self._loss.name, self.loss),
            "optimizer": plain(self.train.optimizer.name, self.optimizer),
            "schedule": plain(self.train.schedule.name, self.schedule),
        }
        return values

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules of everything that is chosen by name; results depend on them."""
        train = self.train
        names = (self.task, self.network_name, self._loss.name, train.optimizer.name, train.schedule.name)
        return tuple(sorted({module_of(*member) for member in zip(CHOSEN_BY_NAME.values(), names, strict=True)}))

    def value(self, key: str) -> Any:
        """The resolved value of a dotted key; None if there is no such key."""
        return get_value(self.resolved, key)

    def patched(self, changes: Mapping[str, Any], origin: str = "params") -> Params:
        """Returns params with other values of some dotted keys; ``origin`` names them in messages.

        Raises:
            UserError: a section does not exist, or a value or combination is invalid.
        """
        values = self.values
        try:
            for key, value in changes.items():
                set_value(values, key, value)
        except UserError as error:
            raise UserError(f"{origin}: {error}") from None
        return check_params(values, origin)

    @property
    def hash(self) -> str:
        """A hash of all values, 12 hexadecimal digits."""
        return short_digest(json.dumps(self.values, sort_keys=True))


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Reads and checks params.yaml.

    Raises:
        UserError: a value is invalid; the message has the key, the value and the allowed values.
    """
    return check_params(read_values(path), str(path))


def check_params(values: dict[str, Any], origin: str) -> Params:
    """Checks plain values and returns them as params; ``origin`` names their origin in messages.

    Raises:
        UserError: a value is invalid; the message has the key, the value and the allowed values.
    """
    try:
        text = json.dumps(values, default=str)
    except (TypeError, ValueError) as error:  # a key that is no text, or an alias of YAML to itself
        raise UserError(f"{origin}: a key is not text, or a value contains itself ({error})") from None
    try:
        params = Params.model_validate_json(text)
    except ValidationError as error:
        raise _refusal(origin, refusals(Params, json.loads(text), error)) from None
    try:
        for name in ("network_settings", "loss", "optimizer", "schedule"):
            getattr(params, name)
    except RefusedError as error:
        raise _refusal(origin, error.lines) from None
    if broken := broken_rule(params):
        raise UserError(f"{origin}: {broken}")
    return params


def _refusal(origin: str, lines: list[str]) -> UserError:
    """Returns the error with the first two lines, and the number of the others."""
    more = f" (and {len(lines) - 2} more)" if len(lines) > 2 else ""
    return UserError(f"{origin}: " + "\n".join(lines[:2]) + more)


def unreached(params: Params) -> list[str]:
    """Returns a line for each value that is not reached in ``train.steps`` steps because its warm-up takes longer."""
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
