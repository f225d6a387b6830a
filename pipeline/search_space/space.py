"""Search spaces as data: tune_spaces/NAME.yaml has one entry for each searched key of params.yaml.

    search: optuna                      # proposals of a sampler (the default) | grid: every combination
    KEY: {distribution: ..., when: {OTHER: VALUE or [VALUES]}}
    KEY: [{..., when: ...}, {...}]      # alternatives: the first whose `when` holds; if none holds, KEY is unchanged
    NAME: {variants: {A: {KEY: VALUE, ...}, B: {...}}}     # named sets of changes

A study stores every sampled value under a name: a parameter under its key, the n-th alternative under KEY/n, and the
weight of a layer under KEY/LAYER.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.config.schema import Params
from pipeline.config.values import read_values
from pipeline.errors import UserError
from pipeline.paths import SPACES
from pipeline.search_space.distributions import Suggester, Variants
from pipeline.search_space.enumeration import MOST_IN_A_GRID, check_values, samples
from pipeline.search_space.parsing import Parameter, check_finite, check_key, in_order, parse, with_layers

WEIGHT = "equivariance.weight"


@dataclass(frozen=True)
class Space:
    """A checked search space.

    Attributes:
        name: name of its file.
        search: "optuna" for proposals of a sampler, "grid" for every combination or only those in `points`.
        parameters: parameters, in the order in which they are sampled.
        identity: text that is equal for spaces with the same search and parameters.
        points: selected combinations of a grid; None for all.
    """

    name: str
    search: Literal["optuna", "grid"]
    parameters: tuple[Parameter, ...]
    identity: str
    points: tuple[Mapping[str, Any], ...] | None = None

    def choose(self, suggester: Suggester) -> dict[str, Any]:
        """Samples the space.

        With the same sampled values, the suggester is called with the same parameters in the same order.

        Returns:
            Dotted key of params -> value.

        Raises:
            ValueError: two parameters set the same key.
        """
        chosen: dict[str, Any] = {}
        changes: dict[str, Any] = {}
        for parameter in self.parameters:
            for name, distribution in parameter.alternatives:
                if not distribution.applies(chosen):
                    continue
                value = chosen[parameter.key] = distribution.suggest(suggester, name)
                own = distribution.variants[value] if isinstance(distribution, Variants) else {parameter.key: value}
                if twice := changes.keys() & own.keys():
                    raise ValueError(f"{min(twice)}: {parameter.key} sets it once more: give one of them a `when`")
                changes |= own
                break
        return _folded(changes)

    def grid(self) -> list[dict[str, Any]]:
        """Returns every combination of a grid, or those in `points`, as samples {name of the parameter: value}."""
        return [dict(point) for point in (self.points if self.points is not None else samples(self.choose, all_=True))]

    def given(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the changes {dotted key: value} for a sample of `grid` or of a finished trial."""
        from optuna.trial import FixedTrial  # only an ablation needs it

        return self.choose(FixedTrial(dict(sample)))

    def only(self, points: Sequence[Mapping[str, Any]]) -> Space:
        """Returns the same grid with only these combinations; other combinations can be added to one study later."""
        return replace(self, points=tuple(points))


def load_space(
    name: str,
    params: Params,
    layers: Callable[[], Sequence[str]] | None = None,
    folder: Path = SPACES,
    key: str = "tune.space",
) -> Space:
    """Reads a space and checks it against the params that it changes.

    Args:
        name: name of the file, without its suffix.
        params: that the space changes.
        layers: returns the names of the layers that can be penalised, for ``layers: each``.
        folder: folder of the spaces.
        key: key of params.yaml that holds the name.

    Raises:
        UserError: there is no such space, or a key, a distribution, a bound or a condition is invalid.
    """
    path = folder / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
        raise UserError(f"{key}: {name}: there is no {path}; there are: {known}")
    return build_space(name, read_values(path), params, str(path), layers)


def build_space(
    name: str,
    plain: dict[str, Any],
    params: Params,
    origin: str,
    layers: Callable[[], Sequence[str]] | None = None,
    points: Sequence[Mapping[str, Any]] | None = None,
) -> Space:
    """Builds a space from plain values and checks it as `load_space` does.

    Args:
        name: name of the space.
        plain: plain values of the space.
        params: that the space changes.
        origin: origin of the space, for messages.
        layers: returns the names of the layers that can be penalised, for ``layers: each``.
        points: selected combinations of a grid; None for all.

    Raises:
        UserError: a key, a distribution, a bound or a condition is invalid.
    """
    entries = {key: value for key, value in plain.items() if key != "search"}
    search: Any = plain.get("search", "optuna")
    if search not in ("optuna", "grid"):
        raise UserError(f"{origin}: search: {search!r}: use optuna or grid")
    if not entries:
        raise UserError(f"{origin}: holds nothing to search")
    parameters = [with_layers(parameter, layers, origin) for parameter in parse(entries, origin)]
    for parameter in parameters:
        check_key(parameter, params.values, origin)
    if search == "grid":
        check_finite(parameters, origin)
    elif WEIGHT not in entries:
        raise UserError(f"{origin}: {WEIGHT} is missing: without it there is nothing to compare with weight 0")
    ordered = in_order(parameters, origin)
    space = Space(name, search, tuple(ordered), _identity(search, ordered), None if points is None else tuple(points))
    if search == "grid" and points is None and len(samples(space.choose, True, MOST_IN_A_GRID + 1)) > MOST_IN_A_GRID:
        raise UserError(f"{origin}: search: grid: more than {MOST_IN_A_GRID} combinations: use optuna, or fewer values")
    check_values(space.choose, params, origin, is_grid=search == "grid" and points is None)
    return space


def _identity(search: str, parameters: Sequence[Parameter]) -> str:
    plain = {
        parameter.key: [distribution.model_dump(exclude_defaults=True) for _, distribution in parameter.alternatives]
        for parameter in parameters
    }
    return json.dumps({"search": search, "parameters": plain}, sort_keys=True, default=str)


def _folded(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Puts the value of a key ``a.b`` into the mapping of ``a``, if both are chosen.

    The result then does not depend on the order in which the keys are set.
    """
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
    """Returns a copy of nested mappings with one value changed."""
    first, *rest = parts
    inner = mapping.get(first)
    return {**mapping, first: _put(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}
