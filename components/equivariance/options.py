"""Refusing a wrong option with the remedy."""

from collections.abc import Collection
from difflib import get_close_matches


class NonFiniteFeaturesError(ValueError):
    """A layer's features are NaN or infinite, so the penalty is too."""


def nearest(value: str, allowed: Collection[str]) -> str:
    """``; did you mean 'X'?`` for the allowed name most like `value`, or nothing if none is."""
    matches = get_close_matches(value, allowed, n=3)
    return f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def check_choice(option: str, value: object, allowed: Collection[object]) -> None:
    """Raise a ValueError naming option, value and what would be right, unless `value` is one of `allowed`."""
    if value not in allowed:
        names = [str(choice) for choice in allowed]
        raise ValueError(f"{option}: {value!r} is not one of {', '.join(names)}{nearest(str(value), names)}")
