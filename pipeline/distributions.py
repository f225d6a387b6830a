"""What one parameter of a search space is drawn from, and when it is asked for at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Chooser(Protocol):
    """Who answers: a trial of Optuna, a fixed one, or whoever goes through all combinations."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


class Asked(BaseModel):
    """What all have in common: ``when``, the values of other parameters under which this one is asked for."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    when: dict[str, Any] = Field(default_factory=dict)

    def applies(self, chosen: Mapping[str, Any]) -> bool:
        """Whether the values chosen so far fulfil ``when``; a parameter that was not asked for fulfils nothing."""
        return all(other in chosen and chosen[other] in wanted_values(wanted) for other, wanted in self.when.items())

    def suggest(self, chooser: Chooser, name: str) -> Any:
        """The chooser's answer, as a value of params."""
        raise NotImplementedError

    @property
    def options(self) -> Sequence[Any] | None:
        """All values; None where they cannot be counted."""
        return None


class LogUniform(Asked):
    """Uniform in the logarithm, low > 0."""

    distribution: Literal["log_uniform"]
    low: Annotated[float, Field(gt=0)]
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> LogUniform:
        return _check_order(self)

    def suggest(self, chooser: Chooser, name: str) -> float:
        return chooser.suggest_float(name, self.low, self.high, log=True)


class Uniform(Asked):
    """Uniform between low and high; with a step only low, low + step, ..., high."""

    distribution: Literal["uniform"]
    low: float
    high: float
    step: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        _check_order(self)
        if self.step is not None:
            steps = (self.high - self.low) / self.step
            if round(steps) < 1 or abs(steps - round(steps)) > 1e-6:
                raise ValueError(f"step {self.step}: from low {self.low} it never comes to high {self.high}")
        return self

    def suggest(self, chooser: Chooser, name: str) -> float:
        return chooser.suggest_float(name, self.low, self.high, step=self.step)

    @property
    def options(self) -> Sequence[float] | None:
        return None if self.step is None else stepped(self.low, self.high, self.step)


class Integer(Asked):
    """A whole number: low, low + step, ..., high; log: small ones as likely as large ones of the same ratio."""

    distribution: Literal["integer"]
    low: int
    high: int
    step: Annotated[int, Field(ge=1)] = 1
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Integer:
        _check_order(self)
        if (self.high - self.low) % self.step:
            raise ValueError(f"step {self.step}: from low {self.low} it never comes to high {self.high}")
        if self.log and (self.low < 1 or self.step > 1):
            raise ValueError(f"log: needs low of at least 1 and no step, not low {self.low} and step {self.step}")
        return self

    def suggest(self, chooser: Chooser, name: str) -> int:
        return chooser.suggest_int(name, self.low, self.high, step=self.step, log=self.log)

    @property
    def options(self) -> Sequence[int]:
        return range(self.low, self.high + 1, self.step)


class Choice(Asked):
    """One of several values; mappings and lists are asked for by their text, which any study can store."""

    distribution: Literal["choice"]
    values: Annotated[list[Any], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> Choice:
        repeated = [value for index, value in enumerate(self.values) if value in self.values[:index]]
        if repeated:
            raise ValueError(f"values: {repeated[0]!r} is there twice")
        return self

    def suggest(self, chooser: Chooser, name: str) -> Any:
        if len(self.values) == 1:  # nothing to ask
            return self.values[0]
        asked = [_storable(value) for value in self.values]
        return self.values[asked.index(chooser.suggest_categorical(name, asked))]

    @property
    def options(self) -> Sequence[Any]:
        return self.values


class WeightPerLayer(Asked):
    """A mapping of every layer, or of every name pattern, to a weight between low and high."""

    distribution: Literal["weight_per_layer"]
    layers: Literal["each"] | Annotated[list[str], Field(min_length=1)]
    low: Annotated[float, Field(ge=0)]
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> WeightPerLayer:
        _check_order(self)
        if self.layers != "each" and len(set(self.layers)) < 2:
            raise ValueError(
                f"layers: {self.layers}: a single weight is none, as all are divided by their sum: use two"
            )
        return self

    def suggest(self, chooser: Chooser, name: str) -> dict[str, float]:
        """One question a layer, ``NAME/LAYER``; "each" has been replaced by the layers' names before."""
        return {layer: chooser.suggest_float(f"{name}/{layer}", self.low, self.high) for layer in self.layers}


class Variants(Asked):
    """Named bundles of changes, of which one is made: name -> {dotted key of params: value}."""

    variants: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]

    def suggest(self, chooser: Chooser, name: str) -> str:
        """The name of one."""
        names = list(self.variants)
        return names[0] if len(names) == 1 else str(chooser.suggest_categorical(name, names))

    @property
    def options(self) -> Sequence[str]:
        return list(self.variants)


Distribution = Annotated[LogUniform | Uniform | Integer | Choice | WeightPerLayer, Field(discriminator="distribution")]
KINDS: dict[str, type[Asked]] = {
    "log_uniform": LogUniform,
    "uniform": Uniform,
    "integer": Integer,
    "choice": Choice,
    "weight_per_layer": WeightPerLayer,
}


def wanted_values(wanted: Any) -> list[Any]:
    """``value`` or ``[value, ...]`` of a condition as a list."""
    return wanted if isinstance(wanted, list) else [wanted]


def stepped(low: float, high: float, step: float) -> list[float]:
    """low, low + step, ..., high, as few digits each as they are written with."""
    return [float(f"{low + index * step:.12g}") for index in range(round((high - low) / step) + 1)]


def _storable(value: Any) -> Any:
    is_plain = value is None or isinstance(value, bool | int | float | str)
    return value if is_plain else json.dumps(value, sort_keys=True, default=str)


def _check_order(distribution: Any) -> Any:
    if distribution.low >= distribution.high:
        raise ValueError(f"low {distribution.low} is not below high {distribution.high}")
    return distribution
