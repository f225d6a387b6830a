"""Going through the combinations that a search space can give, and refusing it if params would refuse one of them."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.distributions import Chooser, stepped
from pipeline.errors import UserError
from pipeline.params import check_params, set_value

MOST_CHECKED = 2000
"""Combinations of ends that are checked one by one; of more, so many that are drawn (always the same ones)."""

MOST_IN_A_GRID = 10_000
MOST_WHOLE = 16
"""Whole numbers that are all checked; of more: both ends and the second."""

Choose = Callable[[Chooser], dict[str, Any]]


class _Walker:
    """Answers each question by one of the values to be tried, and remembers."""

    def __init__(self, pick: Callable[[int, str, int], int], all_: bool) -> None:
        self.answers: dict[str, Any] = {}
        self.taken: list[tuple[int, int]] = []  # (index taken, number of values) of each question
        self._pick, self._all = pick, all_

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        answer: float = self._answer(name, stepped(low, high, step) if self._all and step else [low, high])
        return answer

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        options: Sequence[int] = range(low, high + 1, step)
        if not self._all and len(options) > MOST_WHOLE:
            options = [low, low + step, high]
        answer: int = self._answer(name, options)
        return answer

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._answer(name, choices)

    def _answer(self, name: str, options: Sequence[Any]) -> Any:
        index = self._pick(len(self.taken), name, len(options))
        self.taken.append((index, len(options)))
        self.answers[name] = options[index]
        return options[index]


class Given:
    """A chooser that gives the answers that it was given."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self._answers = answers

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return float(self._answers[name])

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return int(self._answers[name])

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._answers[name]


def answers(choose: Choose, all_: bool, most: int | None = None) -> list[dict[str, Any]]:
    """{name asked by: answer} of every combination, or of the first `most`; not `all_`: of ends alone."""
    found = []
    for walker, _ in _every(choose, all_):
        found.append(walker.answers)
        if most is not None and len(found) >= most:
            break
    return found


def check_values(choose: Choose, values: dict[str, Any], origin: str, is_grid: bool) -> None:
    """Checks with params what a space may choose, in combination.

    Raises:
        UserError: params refuse it; names the keys and values that suffice to be refused.
    """
    for changes in _to_check(choose, origin, is_grid):
        if _refusal(values, changes, origin) is None:
            continue
        for key in list(changes):
            fewer = {other: value for other, value in changes.items() if other != key}
            if _refusal(values, fewer, origin) is not None:
                changes = fewer
        together = ", ".join(f"{key} {value}" for key, value in changes.items())
        raise UserError(_refusal(values, changes, f"{origin}: {together}" if len(changes) > 1 else origin))


def _to_check(choose: Choose, origin: str, is_grid: bool) -> Iterator[dict[str, Any]]:
    """All combinations if they are few, else as many as are drawn."""
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
    """Depth first: the last question that has another value left takes it, and those after it begin anew."""
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
    """Each question takes, of the values it took least often so far, one at random: so none is left out."""
    draws = random.Random(0)
    seen: Counter[tuple[str, int]] = Counter()

    def pick(depth: int, name: str, count: int) -> int:
        least = min(seen[name, index] for index in range(count))
        index = draws.choice([index for index in range(count) if seen[name, index] == least])
        seen[name, index] += 1
        return index

    for _ in range(MOST_CHECKED):
        yield choose(_Walker(pick, all_))


def _refusal(values: dict[str, Any], changes: Mapping[str, Any], origin: str) -> str | None:
    """What params say against the changes; None if nothing."""
    changed = copy.deepcopy(values)
    try:
        for key, value in changes.items():
            set_value(changed, key, value)
    except UserError as error:
        return f"{origin}: {error}"
    try:
        check_params(changed, origin)
    except UserError as error:
        return str(error)
    return None
