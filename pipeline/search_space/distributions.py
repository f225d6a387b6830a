"""The distributions of the parameters in a search space, and the conditions under which a parameter is sampled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Suggester(Protocol):
    """The interface that samples values: an Optuna trial, also a fixed one, or an enumeration of all combinations."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Samples a number, as `optuna.Trial.suggest_float` does.

        Args:
            name: name of the parameter in the sample.
            low: smallest value.
            high: largest value.
            step: distance of the allowed values; None for all numbers.
            log: whether the logarithm is sampled uniformly.
        """
        ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Samples a whole number, as `optuna.Trial.suggest_int` does.

        Args:
            name: name of the parameter in the sample.
            low: smallest value.
            high: largest value.
            step: distance of the allowed values.
            log: whether the logarithm is sampled uniformly.
        """
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Samples one of several values, as `optuna.Trial.suggest_categorical` does."""
        ...


class Asked(BaseModel):
    """The base class of all distributions and variants.

    Attributes:
        when: other parameter -> the value or values of it under which this parameter is sampled.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    when: dict[str, Any] = Field(default_factory=dict)

    def applies(self, chosen: Mapping[str, Any]) -> bool:
        """Returns whether the values chosen so far satisfy ``when``.

        A condition on a parameter that was not sampled is not satisfied.
        """
        return all(other in chosen and chosen[other] in wanted_values(wanted) for other, wanted in self.when.items())

    def suggest(self, suggester: Suggester, name: str) -> Any:
        """Samples a value of the params; ``name`` is the name of the parameter in the sample."""
        raise NotImplementedError

    @property
    def options(self) -> Sequence[Any] | None:
        """All values; None if the values cannot be listed."""
        return None


class LogUniform(Asked):
    """A log-uniform distribution of numbers.

    Attributes:
        low: smallest value, above 0.
        high: largest value.
    """

    distribution: Literal["log_uniform"]
    low: Annotated[float, Field(gt=0)]
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> LogUniform:
        return _check_order(self)

    def suggest(self, suggester: Suggester, name: str) -> float:
        """Samples a number."""
        return suggester.suggest_float(name, self.low, self.high, log=True)


class Uniform(Asked):
    """A uniform distribution of numbers.

    Attributes:
        low: smallest value.
        high: largest value.
        step: if given, only low, low + step, ..., high are sampled.
    """

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

    def suggest(self, suggester: Suggester, name: str) -> float:
        """Samples a number."""
        return suggester.suggest_float(name, self.low, self.high, step=self.step)

    @property
    def options(self) -> Sequence[float] | None:
        """All values; None without a step."""
        return None if self.step is None else stepped(self.low, self.high, self.step)


class Integer(Asked):
    """A distribution of whole numbers.

    Attributes:
        low: smallest value.
        high: largest value.
        step: distance of the values low, low + step, ..., high.
        log: whether the logarithm is sampled uniformly instead of the number.
    """

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

    def suggest(self, suggester: Suggester, name: str) -> int:
        """Samples a whole number."""
        return suggester.suggest_int(name, self.low, self.high, step=self.step, log=self.log)

    @property
    def options(self) -> Sequence[int]:
        """All values."""
        return range(self.low, self.high + 1, self.step)


class Choice(Asked):
    """One of several values.

    Mappings and lists are sampled by their JSON text, because a study can store texts.

    Attributes:
        values: the values.
    """

    distribution: Literal["choice"]
    values: Annotated[list[Any], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> Choice:
        repeated = [value for index, value in enumerate(self.values) if value in self.values[:index]]
        if repeated:
            raise ValueError(f"values: {repeated[0]!r} is there twice")
        return self

    def suggest(self, suggester: Suggester, name: str) -> Any:
        """Samples one of the values."""
        if len(self.values) == 1:  # a single value is not sampled
            return self.values[0]
        asked = [_storable(value) for value in self.values]
        return self.values[asked.index(suggester.suggest_categorical(name, asked))]

    @property
    def options(self) -> Sequence[Any]:
        """All values."""
        return self.values


class WeightPerLayer(Asked):
    """A mapping of every layer, or of every name pattern, to a weight.

    Attributes:
        layers: name patterns of the layers, or "each" for every layer.
        low: smallest weight.
        high: largest weight.
    """

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

    def suggest(self, suggester: Suggester, name: str) -> dict[str, float]:
        """Samples one weight for each layer under the name ``NAME/LAYER``.

        "each" must have been replaced by the names of the layers before.
        """
        return {layer: suggester.suggest_float(f"{name}/{layer}", self.low, self.high) for layer in self.layers}


class Variants(Asked):
    """Named sets of changes, one of which is chosen.

    Attributes:
        variants: name -> {dotted key of params: value}.
    """

    variants: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]

    def suggest(self, suggester: Suggester, name: str) -> str:
        """Samples the name of a variant."""
        names = list(self.variants)
        return names[0] if len(names) == 1 else str(suggester.suggest_categorical(name, names))

    @property
    def options(self) -> Sequence[str]:
        """The names of all variants."""
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
    """Returns ``value`` or ``[value, ...]`` of a condition as a list."""
    return wanted if isinstance(wanted, list) else [wanted]


def stepped(low: float, high: float, step: float) -> list[float]:
    """Returns low, low + step, ..., high, rounded to 12 significant digits.

    Args:
        low: first value.
        high: last value.
        step: distance of the values.
    """
    return [float(f"{low + index * step:.12g}") for index in range(round((high - low) / step) + 1)]


def _storable(value: Any) -> Any:
    is_plain = value is None or isinstance(value, bool | int | float | str)
    return value if is_plain else json.dumps(value, sort_keys=True, default=str)


def _check_order(distribution: Any) -> Any:
    if distribution.low >= distribution.high:
        raise ValueError(f"low {distribution.low} is not below high {distribution.high}")
    return distribution
