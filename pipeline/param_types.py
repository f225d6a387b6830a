"""The types that values of params.yaml have, and what each would have been said to be right where it is refused."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from pipeline.refusal import LeftOverError, nearest


class Section(BaseModel):
    """A part of params.yaml. strict: '16' and true are no numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def is_number(value: object) -> bool:
    """Whether it is an int or float, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_range(value: object) -> object:
    return (value, value) if is_number(value) else tuple(value) if isinstance(value, list) else value


def _check_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"'{pattern}' is no regular expression ({error})") from error
    return pattern


def _check_layer_weights(weights: dict[str, Any]) -> dict[str, Any]:
    profile = weights.get("profile")
    if "profile" not in weights:
        wrong = {name: weight for name, weight in weights.items() if not is_number(weight) or weight < 0}
        if wrong or not weights:
            found = ", ".join(f"{name}: {weight!r}" for name, weight in wrong.items()) or "nothing"
            raise ValueError(f"{found}: give a profile, or name patterns with a weight of at least 0 each")
        return weights
    keys = {"uniform": ["profile"], "geometric": ["profile", "decay"]}
    if profile not in keys:
        raise ValueError(f"profile: {profile!r}: use uniform or geometric")
    if unknown := [key for key in weights if key not in keys[profile]]:
        hint = nearest(unknown[0], keys[profile])
        kind = ValueError if "did you mean" in hint else LeftOverError
        raise kind(f"{unknown[0]}: unknown with profile {profile}{hint}")
    if profile == "geometric" and not (is_number(weights.get("decay")) and 0 < weights["decay"] <= 1):
        raise ValueError(f"decay: {weights.get('decay')!r}: use a number above 0 and of at most 1")
    return weights


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
Range = Annotated[
    tuple[float, float], BeforeValidator(_as_range), Field(description="a number or a range [lowest, highest]")
]
WholeRange = Annotated[
    tuple[int, int],
    BeforeValidator(_as_range),
    Field(description="a whole number or a range of them [lowest, highest]"),
]
Auto = Literal["auto"]
WorkerRange = Annotated[
    tuple[int, int],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
    AfterValidator(_check_worker_range),
    Field(description="a range [least, most]"),
]
Objective = Literal["score", "equivariance_error", "step_time"]
Objectives = Annotated[list[Objective], Field(min_length=1), AfterValidator(_check_objectives)]
StudyStorage = Annotated[str, AfterValidator(_check_study_storage)]
Place = Annotated[str, Field(min_length=1), AfterValidator(_check_place)]
FieldType = Literal["regular", "trivial"]
LayerWeights = Annotated[dict[str, Any], AfterValidator(_check_layer_weights)]
# Names of folders in data/packed.
FolderName = Annotated[str, Field(pattern=r"^\w[\w.-]*$", description="a name of letters, digits, '_', '-' and '.'")]
GroupName = Annotated[
    str, Field(pattern=r"^(C([2-9]|[1-9]\d+)|D4)$", description="C2, C4, D4, C8 or another C<N> with N of at least 2")
]
