"""The types of the values of params.yaml, with the descriptions that validation messages use."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from components.registry import nearest
from pipeline.config.messages import LeftOverError


class Section(BaseModel):
    """A section of params.yaml. It is validated strictly: '16' and true are not accepted as numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


MOST = 1e30
"""The largest weight of a layer: larger numbers have no sum in single precision."""


def is_number(value: object) -> bool:
    """Returns whether a value is an int or a float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"'{pattern}' is no regular expression ({error})") from error
    return pattern


def _check_layer_weights(weights: dict[str, Any]) -> dict[str, Any]:
    profile = weights.get("profile")
    if "profile" not in weights:
        wrong = {name: weight for name, weight in weights.items() if not is_number(weight) or not 0 <= weight <= MOST}
        if wrong or not weights:
            found = ", ".join(f"{name}: {weight!r}" for name, weight in wrong.items()) or "nothing"
            raise ValueError(f"{found}: give a profile, or name patterns with a weight of at least 0 each")
        return weights
    keys = {"uniform": ["profile"], "geometric": ["profile", "decay"]}
    if not isinstance(profile, str) or profile not in keys:
        raise ValueError(f"profile: {profile!r}: use uniform or geometric")
    if unknown := [key for key in weights if key not in keys[profile]]:
        hint = nearest(unknown[0], keys[profile])
        kind = ValueError if "did you mean" in hint else LeftOverError
        raise kind(f"{unknown[0]}: unknown with profile {profile}{hint}")
    if profile == "geometric" and not (is_number(weights.get("decay")) and 0 < weights["decay"] <= 1):
        raise ValueError(f"decay: {weights.get('decay')!r}: use a number above 0 and of at most 1")
    return weights


_FOLDER_NAME = "a name of letters, digits, '_', '-' and '.'"


def _check_folder_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"{name!r}: use {_FOLDER_NAME}")
    return name


def _check_worker_range(numbers: tuple[int, int]) -> tuple[int, int]:
    least, most = numbers
    if not 1 <= least <= most:
        raise ValueError(f"{list(numbers)}: use [least, most] with 1 <= least <= most")
    return least, most


def _check_objectives(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError(f"{names}: name each objective once")
    if "score" not in names:
        raise ValueError(f"{names}: score, by which hopeless trials are stopped, must be among them")
    return names


def _check_study_storage(address: str) -> str:
    parts = urlsplit(address)
    if not re.fullmatch(r"(postgresql|sqlite)(\+\w+)?", parts.scheme):
        raise ValueError(f"{address!r}: use null, or postgresql://USER@HOST/DATABASE, or sqlite:///PATH")
    if parts.password:
        raise ValueError("a password does not belong here: give it in PGPASSWORD or ~/.pgpass")
    return address


def _check_place(address: str) -> str:
    parts = urlsplit(address)
    if "://" in address and (parts.scheme != "s3" or not parts.netloc):
        raise ValueError(f"{address!r}: use null, a folder that all nodes see, or s3://BUCKET/PREFIX")
    if parts.username or parts.password:
        raise ValueError("credentials do not belong here: give them by AWS_PROFILE or AWS_ACCESS_KEY_ID and its kin")
    return address


Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Pattern = Annotated[str, AfterValidator(_check_pattern)]
Auto = Literal["auto"]
WorkerRange = Annotated[
    tuple[int, int],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
    AfterValidator(_check_worker_range),
    Field(json_schema_extra={"expected": "a range [least, most]"}),
]
Objective = Literal["score", "equivariance_error", "step_time"]
Objectives = Annotated[list[Objective], Field(min_length=1), AfterValidator(_check_objectives)]
StudyStorage = Annotated[str, AfterValidator(_check_study_storage)]
Place = Annotated[str, Field(min_length=1), AfterValidator(_check_place)]
FieldType = Literal["regular", "trivial"]
LayerChoice = Annotated[str, Field(json_schema_extra={"expected": "auto"})]
"""auto, or a choice of layers that the network owns: a rule checks the name, because the network tells its choices."""
LayerWeights = Annotated[dict[str, Any], AfterValidator(_check_layer_weights)]
FolderName = Annotated[
    str,
    AfterValidator(_check_folder_name),
    Field(json_schema_extra={"expected": _FOLDER_NAME}),
]
"""Name of a folder in data/packed, or of a study."""
GroupName = Annotated[
    str,
    Field(
        pattern=r"^(C([2-9]|[1-9]\d+)|D4)$",
        json_schema_extra={"expected": "C2, C4, D4, C8 or another C<N> with N of at least 2"},
    ),
]
