"""Registries: plain dicts from a name in params.yaml to the place of a class or function, ``"module:Name"``.

A place is imported when its name is used. A member that nobody names is therefore neither imported nor part of the code
that decides a result. A member owns its settings, a frozen dataclass that inherits from ``Settings``.

Example:
    >>> find({"mean": "statistics:fmean"}, "average", "mean")([1, 2])
    1.5
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from typing import Any, ClassVar, TypeVar

Registry = dict[str, str]
"""Name -> place, ``"module:Name"``."""


class Settings:
    """Base class of the settings of a member. A subclass is a frozen dataclass with keyword arguments only.

    ``__post_init__`` raises a ValueError if a value is impossible. Its text begins with the name of the field and says
    what is allowed, for example ``width: 0: use a whole number of at least 1``.
    """

    # The pipeline validates the types of the fields with pydantic, which reads its configuration here.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


S = TypeVar("S", bound=Settings)


def find(registry: Mapping[str, str], kind: str, name: str) -> Any:
    """Import the class or function that is registered under a name.

    Args:
        registry: of the members of this kind.
        kind: what the members are, for the error message.
        name: of the member.

    Raises:
        ValueError: no member has this name; the message says which names there are.
    """
    if name not in registry:
        raise ValueError(f"{kind} '{name}' is unknown: use one of {', '.join(registry)}")
    return import_place(registry[name])


def import_place(place: str) -> Any:
    """Import the class or function at a place, ``"module:Name"``."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


def module_of(registry: Mapping[str, str], name: str) -> str:
    """Return the dotted name of the module that holds a member."""
    return registry[name].partition(":")[0]


def build_settings(kind: type[S], given: Mapping[str, Any]) -> S:
    """Build the settings of a member; what is not given takes the member's default.

    Args:
        kind: the dataclass of the settings.
        given: field -> value.

    Raises:
        ValueError: a field is unknown or missing, or its value is impossible.
    """
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{name}: unknown{nearest(name, list(known))}")
        if isinstance(known[name].default, bool) and not isinstance(value, bool):  # any word would count as true
            raise ValueError(f"{name}: {value!r}: use true or false")
    try:
        return kind(**given)
    except TypeError as error:  # a field without a default is missing
        raise ValueError(str(error).partition("() ")[2] or str(error)) from error


def nearest(word: str, known: Sequence[str]) -> str:
    """Return ``; did you mean X?`` with the known name most similar to ``word``, else all known names, else "".

    Example:
        >>> nearest("widht", ["width", "depth"])
        '; did you mean width?'
        >>> nearest("colour", ["width", "depth"])
        '; known here: width, depth'
    """
    if match := similar(word, known):
        return f"; did you mean {match[0]}?"
    return f"; known here: {', '.join(known)}" if known else ""


def similar(word: str, known: Sequence[str]) -> list[str]:
    """Return the known name that is most similar to a word, as a list that may be empty."""
    return difflib.get_close_matches(word, known, 1, 0.5)


def check_one_of(settings: Settings, **choices: Sequence[str]) -> None:
    """Check words.

    Args:
        settings: holds the values.
        **choices: name of a field -> its possible values.

    Raises:
        ValueError: a value is another one.
    """
    for name, possible in choices.items():
        if (value := getattr(settings, name)) not in possible:
            raise ValueError(f"{name}: {value!r}: use one of {', '.join(possible)}")


def check_between(settings: Settings, **bounds: tuple[int, int]) -> None:
    """Check whole numbers.

    Args:
        settings: holds the values.
        **bounds: name of a field -> its lowest and its highest value. The highest one is only to keep the machine from
            building what no memory holds.

    Raises:
        ValueError: a value is no whole number, or is lower or higher.
    """
    for name, (lowest, highest) in bounds.items():
        value = getattr(settings, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            raise ValueError(f"{name}: {value!r}: use a whole number of at least {lowest}")
        if value > highest:
            raise ValueError(f"{name}: {value}: use a whole number of at most {highest}")


def check_numbers(settings: Settings, **bounds: tuple[int, int]) -> None:
    """Check lists of whole numbers, and keep them as tuples: files of params and of models hold lists.

    Args:
        settings: holds the values.
        **bounds: name of a field -> the lowest and the highest value of each number.

    Raises:
        ValueError: a value is no list, or one of its numbers is no whole number, or is lower or higher.
    """
    for name, (lowest, highest) in bounds.items():
        value = getattr(settings, name)
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name}: {value!r}: use a list of whole numbers")
        for number in value:
            if not isinstance(number, int) or isinstance(number, bool) or not lowest <= number <= highest:
                raise ValueError(f"{name}: {list(value)}: use whole numbers from {lowest} to {highest}")
        object.__setattr__(settings, name, tuple(value))
