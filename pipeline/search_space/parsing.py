"""Parses a file of tune_spaces into parameters, and refuses what a sweep cannot do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from components.registry import nearest
from pipeline.config.messages import refusals
from pipeline.errors import UserError
from pipeline.search_space.distributions import KINDS, Distribution, Variants, WeightPerLayer, wanted_values

LAYER_WEIGHTS = "equivariance.layer_weights"
SEARCHED = ("equivariance", "network", "train", "tasks", "seed")
SET_BY_SWEEPS = ("steps", "report_every", "validate_every", "checkpoint_every", "keep_best", "num_workers")


@dataclass(frozen=True)
class Parameter:
    """A parameter of a search space.

    Attributes:
        key: key of params, or name of the variants.
        alternatives: (name in the sample, distribution) of each alternative.
    """

    key: str
    alternatives: tuple[tuple[str, Any], ...]

    @property
    def keys(self) -> list[str]:
        """The keys of params.yaml that it sets."""
        changed = [
            changes
            for _, distribution in self.alternatives
            if isinstance(distribution, Variants)
            for changes in distribution.variants.values()
        ]
        return list(dict.fromkeys(key for changes in changed for key in changes)) or [self.key]

    @property
    def needs(self) -> set[str]:
        """The keys of the parameters that its conditions refer to."""
        return {other for _, distribution in self.alternatives for other in distribution.when}


def parse(entries: dict[str, Any], origin: str) -> list[Parameter]:
    """Parses the entries of a space.

    A single alternative is sampled under its key, the n-th of several under KEY/n.

    Raises:
        UserError: an entry has no alternative or is not a valid distribution.
    """
    listed = {key: value if isinstance(value, list) else [value] for key, value in entries.items()}
    if empty := [key for key, alternatives in listed.items() if not alternatives]:
        raise UserError(f"{origin}: {empty[0]}: []: use a distribution, or a list of alternatives")
    named: dict[Any, Any] = {
        (f"{key}/{number}" if len(alternatives) > 1 else key): alternative
        for key, alternatives in listed.items()
        for number, alternative in enumerate(alternatives, start=1)
    }
    parsed: dict[str, Any] = {}
    for name, alternative in named.items():
        kind: Any = dict[str, _kind(alternative)]  # type: ignore[misc]
        try:
            parsed |= TypeAdapter(kind).validate_python({name: alternative})
        except ValidationError as error:
            raise UserError(f"{origin}: {refusals(kind, {name: alternative}, error)[0]}") from None
    parameters = []
    for key, alternatives in listed.items():
        names = [f"{key}/{number}" for number in range(1, len(alternatives) + 1)] if len(alternatives) > 1 else [key]
        parameters.append(Parameter(key, tuple((name, parsed[name]) for name in names)))
    return parameters


def _kind(alternative: Any) -> Any:
    """Returns the type that a mapping declares.

    If it declares none or an unknown one, the union of all distributions is returned, so that the validation message
    lists them.
    """
    if not isinstance(alternative, dict):
        return Distribution
    return Variants if "variants" in alternative else KINDS.get(str(alternative.get("distribution")), Distribution)


def with_layers(parameter: Parameter, layers: Callable[[], Sequence[str]] | None, origin: str) -> Parameter:
    """Replaces ``layers: each`` by the names of the layers.

    Args:
        parameter: parameter of the space.
        layers: returns the names of the layers; None if there is no network.
        origin: origin of the space, for messages.

    Raises:
        UserError: the parameter has ``layers: each`` and there is no network.
    """
    alternatives = []
    for name, distribution in parameter.alternatives:
        if isinstance(distribution, WeightPerLayer) and distribution.layers == "each":
            if layers is None:
                raise UserError(
                    f"{origin}: {name}: layers: each: no network is given here: use a list of name patterns"
                )
            alternatives.append((name, distribution.model_copy(update={"layers": list(layers())})))
        else:
            alternatives.append((name, distribution))
    return Parameter(parameter.key, tuple(alternatives))


def check_key(parameter: Parameter, sections: Collection[str], origin: str) -> None:
    """Refuses a parameter that a sweep cannot change.

    Args:
        parameter: parameter of the space.
        sections: names of the sections of params.yaml.
        origin: origin of the space, for messages.

    Raises:
        UserError: the parameter has a key that a sweep cannot change or sets itself, or a distribution that does not
            fit its key.
    """
    for name, distribution in parameter.alternatives:
        if isinstance(distribution, Variants):
            if "." in parameter.key:
                raise UserError(f"{origin}: {name}: variants go under a plain name, such as arm")
            keys = [key for changes in distribution.variants.values() for key in changes]
        else:
            keys = [parameter.key]
        for key in keys:
            section, *rest = key.split(".")
            if section in sections and section not in SEARCHED:
                raise UserError(f"{origin}: {key}: no trial can change it: use keys of {', '.join(SEARCHED)}")
            if section == "train" and rest and rest[0] in SET_BY_SWEEPS:
                raise UserError(f"{origin}: {key}: the same for all trials, and set by the sweep: take it out")
        if isinstance(distribution, WeightPerLayer) and parameter.key != LAYER_WEIGHTS:
            raise UserError(f"{origin}: {name}: weight_per_layer is of {LAYER_WEIGHTS} alone")


def check_finite(parameters: Sequence[Parameter], origin: str) -> None:
    """Refuses a distribution without a finite list of values, which a grid cannot enumerate.

    Raises:
        UserError: a parameter has such a distribution.
    """
    for name, distribution in (pair for parameter in parameters for pair in parameter.alternatives):
        if distribution.options is None:
            raise UserError(
                f"{origin}: {name}: {distribution.distribution} has no end of values, and search: grid takes every "
                "one: use choice, integer, or uniform with a step"
            )


def in_order(parameters: Sequence[Parameter], origin: str) -> list[Parameter]:
    """Sorts parameters so that a parameter comes after those that its conditions refer to, else as in the file.

    Raises:
        UserError: a condition refers to an unknown parameter or value, or conditions depend on each other in a cycle.
    """
    by_key = {parameter.key: parameter for parameter in parameters}
    for parameter in parameters:
        for name, distribution in parameter.alternatives:
            for other, wanted in distribution.when.items():
                if other not in by_key:
                    raise UserError(f"{origin}: {name}: when: {other}: not in this space{nearest(other, list(by_key))}")
                _check_condition(f"{origin}: {name}: when: {other}", by_key[other], wanted)
    ordered: list[Parameter] = []
    waiting = list(parameters)
    while waiting:
        known = {parameter.key for parameter in ordered}
        ready = next((parameter for parameter in waiting if parameter.needs <= known), None)
        if ready is None:
            circle = " and ".join(parameter.key for parameter in waiting)
            raise UserError(f"{origin}: {circle}: each waits for the other's value: take out one `when`")
        waiting.remove(ready)
        ordered.append(ready)
    return ordered


def _check_condition(place: str, other: Parameter, wanted: Any) -> None:
    """Refuses a condition with a value that the other parameter never has."""
    options = [distribution.options for _, distribution in other.alternatives]
    if any(each is None for each in options):
        raise UserError(f"{place}: a condition needs a choice, an integer or variants")
    known = [value for each in options if each is not None for value in each[:100]]
    for value in wanted_values(wanted):
        if not any(each is not None and value in each for each in options):
            raise UserError(f"{place}: {value!r}: never chosen{nearest(str(value), [str(each) for each in known])}")
