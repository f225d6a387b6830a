"""Enumerates the combinations of a search space, and refuses the space if the params refuse one of them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.config.schema import Params
from pipeline.errors import UserError
from pipeline.search_space.distributions import Suggester, stepped

MOST_CHECKED = 2000
"""Largest number of combinations that are all checked; of more, this many are sampled with a fixed seed."""

MOST_IN_A_GRID = 10_000
MOST_WHOLE = 16
"""Largest number of whole numbers that are all checked; of more, the first, the second and the last are checked."""

Choose = Callable[[Suggester], dict[str, Any]]


class _Walker:
    """A suggester that picks one of the values to try for each parameter, and records the choices."""

    def __init__(self, pick: Callable[[int, str, int], int], all_: bool) -> None:
        self.sample: dict[str, Any] = {}
        self.taken: list[tuple[int, int]] = []  # (chosen index, number of values) of each parameter
        self._pick, self._all = pick, all_

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        value: float = self._picked(name, stepped(low, high, step) if self._all and step else [low, high])
        return value

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        options: Sequence[int] = range(low, high + 1, step)
        if not self._all and len(options) > MOST_WHOLE:
            options = [low, low + step, high]
        value: int = self._picked(name, options)
        return value

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._picked(name, choices)

    def _picked(self, name: str, options: Sequence[Any]) -> Any:
        index = self._pick(len(self.taken), name, len(options))
        self.taken.append((index, len(options)))
        self.sample[name] = options[index]
        return options[index]


def samples(choose: Choose, all_: bool, most: int | None = None) -> list[dict[str, Any]]:
    """Returns the sample {name of the parameter: value} of every combination.

    Args:
        choose: function that samples a space with a suggester.
        all_: whether all values are enumerated; otherwise a range is reduced to its ends (see `MOST_WHOLE`).
        most: largest number of samples; None for all.
    """
    found = []
    for walker, _ in _every(choose, all_):
        found.append(walker.sample)
        if most is not None and len(found) >= most:
            break
    return found


def check_values(choose: Choose, params: Params, origin: str, is_grid: bool) -> None:
    """Checks the combinations of a space against the params.

    Args:
        choose: function that samples the space with a suggester.
        params: that a combination changes.
        origin: origin of the space, for messages.
        is_grid: whether all values are enumerated; otherwise a range is reduced to its ends (see `MOST_WHOLE`).

    Raises:
        UserError: the params refuse a combination; the message has a minimal set of keys and values that is refused.
    """
    for changes in _to_check(choose, origin, is_grid):
        if _validation_message(params, changes, origin) is None:
            continue
        for key in list(changes):
            fewer = {other: value for other, value in changes.items() if other != key}
            if _validation_message(params, fewer, origin) is not None:
                changes = fewer
        together = ", ".join(f"{key} {value}" for key, value in changes.items())
        raise UserError(_validation_message(params, changes, f"{origin}: {together}" if len(changes) > 1 else origin))


def _to_check(choose: Choose, origin: str, is_grid: bool) -> Iterator[dict[str, Any]]:
    """Yields all combinations if there are at most `MOST_CHECKED`, else a random sample of `MOST_CHECKED`."""
    try:
        every = []
        for _, changes in _every(choose, is_grid):
            every.append(changes)
            if len(every) > MOST_CHECKED:
                yield from _drawn(choose, is_grid)
                return
        yield from every
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{origin}: {error}") from None


def _every(choose: Choose, all_: bool) -> Iterator[tuple[_Walker, dict[str, Any]]]:
    """Enumerates all combinations depth first.

    In each step the last parameter that has a further value takes it, and the parameters after it restart with their
    first values.
    """
    path: list[int] = []
    while True:
        walker = _Walker(lambda depth, name, count, path=path: path[depth] if depth < len(path) else 0, all_)  # type: ignore[misc]
        yield walker, choose(walker)
        taken = walker.taken
        while taken and taken[-1][0] + 1 == taken[-1][1]:
            taken = taken[:-1]
        if not taken:
            return
        path = [index for index, _ in taken[:-1]] + [taken[-1][0] + 1]


def _drawn(choose: Choose, all_: bool) -> Iterator[dict[str, Any]]:
    """Samples combinations so that no value of a parameter is left out.

    Each parameter takes a random value among those that it took least often so far.
    """
    draws = random.Random(0)
    seen: Counter[tuple[str, int]] = Counter()

    def pick(depth: int, name: str, count: int) -> int:
        least = min(seen[name, index] for index in range(count))
        index = draws.choice([index for index in range(count) if seen[name, index] == least])
        seen[name, index] += 1
        return index

    for _ in range(MOST_CHECKED):
        yield choose(_Walker(pick, all_))


def _validation_message(params: Params, changes: Mapping[str, Any], origin: str) -> str | None:
    """Returns the message by which the params refuse the changes; None if they accept them."""
    try:
        params.patched(changes, origin)
    except UserError as error:
        return str(error)
    return None
