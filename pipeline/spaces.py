"""Search spaces: tune_spaces/NAME.yaml, one distribution for each dotted key of params.yaml."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from pipeline.errors import UserError
from pipeline.params import check_params, get_value, read_values, set_value
from pipeline.paths import SPACES
from pipeline.refusal import refusals

WEIGHT = "equivariance.weight"


class _Distribution(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class LogUniform(_Distribution):
    """Uniform in the logarithm, low > 0."""

    distribution: Literal["log_uniform"]
    low: Annotated[float, Field(gt=0)]
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> LogUniform:
        return _check_order(self)


class Uniform(_Distribution):
    """Uniform between low and high."""

    distribution: Literal["uniform"]
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        return _check_order(self)


class Choice(_Distribution):
    """One of several values."""

    distribution: Literal["choice"]
    values: Annotated[list[Any], Field(min_length=1)]


Distribution = Annotated[LogUniform | Uniform | Choice, Field(discriminator="distribution")]
Space = dict[str, LogUniform | Uniform | Choice]


def load_space(name: str, values: dict[str, Any], folder: Path = SPACES) -> Space:
    """Reads and checks a space against the params that it would change.

    Raises:
        UserError: there is no such space; a key, a distribution or one of its ends does not fit params.yaml.
    """
    path = folder / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
        raise UserError(f"tune.space: {name}: there is no {path}; there are: {known}")
    plain = read_values(path)
    try:
        space = TypeAdapter(dict[str, Distribution]).validate_python(plain)
    except ValidationError as error:
        raise UserError(f"{path}: {refusals(dict[str, Distribution], plain, error)[0]}") from None
    if WEIGHT not in space:
        raise UserError(f"{path}: {WEIGHT} is missing: without it there is nothing to compare with weight 0")
    for key, distribution in space.items():
        ends = distribution.values if isinstance(distribution, Choice) else [distribution.low, distribution.high]
        if get_value(values, key.rsplit(".", 1)[0]) is None:
            raise UserError(f"{path}: {key}: there is no such key in params.yaml")
        for end in ends:
            changed = copy.deepcopy(values)
            set_value(changed, key, end)
            check_params(changed, f"{path}: {key}")
    return space


def _check_order(distribution: Any) -> Any:
    if distribution.low >= distribution.high:
        raise ValueError(f"low {distribution.low} is not below high {distribution.high}")
    return distribution
