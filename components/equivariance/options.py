"""Validation of options, with messages that say what is allowed."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches


class NonFiniteFeaturesError(ValueError):
    """The features of a layer are NaN or infinite, and so is the penalty; `penalty` raises it with the layer's name.

    Example:
        >>> try:
        ...     raise NonFiniteFeaturesError("body.0: its features are NaN or infinite")  # as penalty() does
        ... except NonFiniteFeaturesError as error:
        ...     print(error)
        body.0: its features are NaN or infinite
    """


def nearest(value: str, allowed: Collection[str]) -> str:
    """The text ``; did you mean 'X'?`` for the allowed names most like `value`; empty if no name is like it."""
    matches = get_close_matches(value, allowed, n=3)
    return f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def check_choice(option: str, value: object, allowed: Collection[object]) -> None:
    """Raise a ValueError that names the option, its value and the allowed values, unless `value` is allowed.

    Args:
        option: the name of the option.
        value: the value to check.
        allowed: the values that are right.
    """
    if value not in allowed:
        names = [str(choice) for choice in allowed]
        raise ValueError(f"{option}: {value!r} is not one of {', '.join(names)}{nearest(str(value), names)}")


def check_names(options: Iterable[str], known: Collection[str]) -> None:
    """Raise a TypeError that names the first unknown option and the known ones that are like it.

    Args:
        options: names of options.
        known: the names that there are.
    """
    for name in options:
        if name not in known:
            hint = nearest(name, known) or "; known: " + ", ".join(known)
            raise TypeError(f"{name}: unknown option{hint}")
