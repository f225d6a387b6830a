"""What params.yaml chooses by name: a name alone, or a name with settings, ``{name: NAME, SETTING: VALUE, ...}``.

The names are those of a registry of ``components``. The settings are checked against the dataclass of the member.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError, model_serializer, model_validator

from components.registry import find, nearest, similar
from pipeline.config.messages import refusals
from pipeline.config.value_types import Section


class RefusedError(ValueError):
    """Settings are invalid.

    Attributes:
        lines: one line for each refused key.
    """

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class Choice(Section):
    """A member of a registry, and the settings that are given for it.

    Attributes:
        name: name in the registry, or "auto".
        is_section: whether it is written as a mapping also if no setting is given.
    """

    is_section: ClassVar[bool] = False

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"expected": "a name, or {name: NAME, SETTING: VALUE, ...}"}
    )

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The given settings as plain values."""
        return dict(self.__pydantic_extra__ or {})

    @model_validator(mode="before")
    @classmethod
    def _of_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_serializer
    def _plain(self) -> str | dict[str, Any]:
        return {"name": self.name, **self.settings} if self.settings or self.is_section else self.name


class SectionChoice(Choice):
    """A choice that is a section of params.yaml also if no setting is given."""

    is_section: ClassVar[bool] = True


def chosen_settings(
    registry: Mapping[str, str],
    choice: Choice,
    key: str,
    *,
    has_auto: bool = False,
    kind_of: Callable[[Any], type] = lambda member: member,
) -> Any:
    """Builds the settings of the chosen member.

    Args:
        registry: of the members of this kind.
        choice: name and given settings.
        key: dotted key of params.yaml, for messages.
        has_auto: whether the task has a choice of its own, "auto".
        kind_of: (member) -> dataclass of its settings; by default the member itself.

    Raises:
        RefusedError: no member has the name, or a setting is unknown or invalid.
    """
    if choice.name not in registry:
        *others, last = known = [*(["auto"] if has_auto else []), *registry]
        hint = nearest(choice.name, known) if similar(choice.name, known) else ""
        named = f"{key}.name" if choice.is_section else key
        raise RefusedError([f"{named}: {choice.name!r}: use {', '.join(others)} or {last}{hint}"])
    adapter = _adapter(kind_of(find(registry, key, choice.name)))
    try:
        return adapter.validate_json(json.dumps(choice.settings, default=str))
    except ValidationError as error:
        raise RefusedError(refusals(adapter, choice.settings, error, key)) from None


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def plain(name: str, settings: Any) -> str | dict[str, Any]:
    """Returns a member with all its settings as plain values; the name alone if it has no settings.

    Args:
        name: name in the registry.
        settings: dataclass of its settings.
    """
    values = plain_settings(settings)
    return {"name": name, **values} if values else name


def plain_settings(settings: Any) -> dict[str, Any]:
    """Returns all settings of a member as plain values: lists for tuples."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(settings).items()}
