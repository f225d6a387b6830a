"""Search spaces as data: tune_spaces/NAME.yaml, one entry for each dotted key of params.yaml.

    search: optuna                      # proposals of a sampler (the default) | grid: every combination
    KEY: {distribution: ..., when: {OTHER: VALUE or [VALUES]}}
    KEY: [{..., when: ...}, {...}]      # alternatives: the first whose `when` holds; if none does, KEY stays as it is
    NAME: {variants: {A: {KEY: VALUE, ...}, B: {...}}}     # named bundles of changes

Every answer to a question is a value of a study: a parameter is asked for under its key, the n-th alternative under
KEY/n, a layer's weight under KEY/LAYER.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.distributions import Chooser, Variants
from pipeline.errors import UserError
from pipeline.params import read_values
from pipeline.paths import SPACES
from pipeline.space_checks import MOST_IN_A_GRID, Given, answers, check_values
from pipeline.space_parsing import Parameter, check_finite, check_key, in_order, parse, with_layers

WEIGHT = "equivariance.weight"


@dataclass(frozen=True)
class Space:
    """A checked space.

    Attributes:
        name: of its file.
        search: "optuna", or "grid": every combination, or only `points`.
        parameters: in the order of asking.
        identity: text that is the same for spaces that ask the same.
        points: the combinations of a grid that are wanted; None for all.
    """

    name: str
    search: Literal["optuna", "grid"]
    parameters: tuple[Parameter, ...]
    identity: str
    points: tuple[Mapping[str, Any], ...] | None = None

    def choose(self, chooser: Chooser) -> dict[str, Any]:
        """Dotted key of params -> value. The same questions in the same order for the same answers."""
        chosen: dict[str, Any] = {}
        changes: dict[str, Any] = {}
        for parameter in self.parameters:
            for name, distribution in parameter.alternatives:
                if not distribution.applies(chosen):
                    continue
                value = chosen[parameter.key] = distribution.suggest(chooser, name)
                own = distribution.variants[value] if isinstance(distribution, Variants) else {parameter.key: value}
                if twice := changes.keys() & own.keys():
                    raise ValueError(f"{min(twice)}: {parameter.key} sets it once more: give one of them a `when`")
                changes |= own
                break
        return _folded(changes)

    def grid(self) -> list[dict[str, Any]]:
        """Of a grid every combination (or those of `points`), as {name asked by: answer}."""
        return [dict(point) for point in (self.points if self.points is not None else answers(self.choose, all_=True))]

    def given(self, answers: Mapping[str, Any]) -> dict[str, Any]:
        """What these answers choose, as one of `grid` or of a finished trial."""
        return self.choose(Given(answers))

    def only(self, points: Sequence[Mapping[str, Any]]) -> Space:
        """The same grid with these combinations alone: one study can take in others later."""
        return replace(self, points=tuple(points))


def load_space(
    name: str,
    values: dict[str, Any],
    layers: Callable[[], Sequence[str]] | None = None,
    folder: Path = SPACES,
    key: str = "tune.space",
) -> Space:
    """Reads and checks a space against the params that it would change.

    Args:
        name: of the file, without its ending.
        values: plain params.
        layers: gives the names of the layers that can be penalised, for ``layers: each``.
        folder: of the spaces.
        key: of params.yaml that holds the name.

    Raises:
        UserError: there is no such space; a key, a distribution, one of its ends or a condition does not fit.
    """
    path = folder / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
        raise UserError(f"{key}: {name}: there is no {path}; there are: {known}")
    return build_space(name, read_values(path), values, str(path), layers)


def build_space(
    name: str,
    plain: dict[str, Any],
    values: dict[str, Any],
    origin: str,
    layers: Callable[[], Sequence[str]] | None = None,
    points: Sequence[Mapping[str, Any]] | None = None,
) -> Space:
    """A space from plain values, checked as `load_space` does; `points` are those wanted of a grid."""
    entries = {key: value for key, value in plain.items() if key != "search"}
    search: Any = plain.get("search", "optuna")
    if search not in ("optuna", "grid"):
        raise UserError(f"{origin}: search: {search!r}: use optuna or grid")
    if not entries:
        raise UserError(f"{origin}: holds nothing to search")
    parameters = [with_layers(parameter, layers, origin) for parameter in parse(entries, origin)]
    for parameter in parameters:
        check_key(parameter, values, origin)
    if search == "grid":
        check_finite(parameters, origin)
    elif WEIGHT not in entries:
        raise UserError(f"{origin}: {WEIGHT} is missing: without it there is nothing to compare with weight 0")
    ordered = in_order(parameters, origin)
    space = Space(name, search, tuple(ordered), _identity(search, ordered), None if points is None else tuple(points))
    if search == "grid" and points is None and len(answers(space.choose, True, MOST_IN_A_GRID + 1)) > MOST_IN_A_GRID:
        raise UserError(f"{origin}: search: grid: more than {MOST_IN_A_GRID} combinations: use optuna, or fewer values")
    check_values(space.choose, values, origin, is_grid=search == "grid" and points is None)
    return space


def _identity(search: str, parameters: Sequence[Parameter]) -> str:
    plain = {
        parameter.key: [distribution.model_dump(exclude_defaults=True) for _, distribution in parameter.alternatives]
        for parameter in parameters
    }
    return json.dumps({"search": search, "parameters": plain}, sort_keys=True, default=str)


def _folded(changes: Mapping[str, Any]) -> dict[str, Any]:
    """``a.b`` chosen beside a mapping for ``a`` goes into that mapping: the order of setting does not matter."""
    folded: dict[str, Any] = {}
    for key in sorted(changes, key=lambda key: key.count(".")):
        parts = key.split(".")
        parent = next((head for n in range(len(parts) - 1, 0, -1) if (head := ".".join(parts[:n])) in folded), None)
        if parent is None or not isinstance(folded[parent], dict):
            folded[key] = changes[key]
        else:
            folded[parent] = _put(folded[parent], key[len(parent) + 1 :].split("."), changes[key])
    return {key: folded[key] for key in changes if key in folded}


def _put(mapping: Mapping[str, Any], parts: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy of nested mappings with one value changed."""
    first, *rest = parts
    inner = mapping.get(first)
    return {**mapping, first: _put(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}
