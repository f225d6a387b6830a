"""The part of the page of params.yaml about what is chosen by name: each member with its settings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any, cast

from pydantic import TypeAdapter

from components.equivariance.config import PENALTIES, EquivarianceConfig, Penalty
from components.members import LOSSES, NETWORKS, OPTIMIZERS, SCHEDULES
from components.registry import Registry, find
from docs.generate.markdown import code, docs_of_fields, first_paragraph, in_yaml, table, text
from pipeline.config.messages import Schema

SETTINGS = ("Setting", "Allowed", "Default", "Meaning")


def settings_table(kind: type, titles: tuple[str, ...] = SETTINGS, given: Mapping[str, Any] | None = None) -> str:
    """Returns a table of the settings in a dataclass.

    Args:
        kind: the dataclass.
        titles: titles of the columns.
        given: values to show; None shows the defaults.
    """
    schema = Schema(TypeAdapter(kind).json_schema())
    said = docs_of_fields(kind)
    rows = []
    for field in fields(cast(Any, kind)):
        node, _, _ = schema.walk([field.name], {field.name: None})
        default = field.default if field.default is not MISSING else None
        shown = given.get(field.name, default) if given is not None else default
        is_missing = field.default is MISSING and field.name not in (given or {})
        value = "" if is_missing else code(in_yaml(list(shown) if isinstance(shown, tuple) else shown))
        rows.append((code(field.name), text(schema.expected(node)), value, text(said[field.name])))
    return table(titles, rows) if rows else "It has no settings."


def networks() -> Iterator[str]:
    """Yields the networks with their settings."""
    yield "## Networks"
    yield (
        "`network: {name: NAME, SETTING: VALUE, ...}`. What is not given has the published value; with `name: auto` it "
        "has the value of the task."
    )
    for name in NETWORKS:
        network = find(NETWORKS, "network", name)
        kind = "for `classify`" if network.is_classifier else "for restoration"
        yield f"### {name}"
        yield f"{text(first_paragraph(sys.modules[network.__module__]))} ({kind})"
        yield settings_table(network.Settings)


def losses_schedules_optimizers() -> Iterator[str]:
    """Yields the losses, schedules and optimisers with their settings."""
    chosen: dict[str, tuple[str, Registry]] = {
        "Losses": ("train.loss", LOSSES),
        "Schedules of the learning rate": ("train.schedule", SCHEDULES),
        "Optimisers": ("train.optimizer", OPTIMIZERS),
    }
    for title, (key, registry) in chosen.items():
        yield f"## {title}"
        yield f"`{key}: NAME`, or `{key}: {{name: NAME, SETTING: VALUE, ...}}`."
        for name in registry:
            member = find(registry, key, name)
            formula = _formula(member)
            yield f"### {name}"
            yield text(first_paragraph(member)) + (f" It returns {text(formula)}." if formula else "")
            yield settings_table(member)


def _formula(member: type) -> str:
    """Returns the formula in the docstring of a member that is called, such as ``mean |a - b|``."""
    call: Callable[..., object] | None = vars(member).get("__call__")
    said = first_paragraph(call) if call else ""
    return said.removeprefix("Compute ").removeprefix("Return ").rstrip(".")


def penalties() -> Iterator[str]:
    """Yields the penalties, and the options of the regulariser."""
    yield "## Penalties"
    yield (
        "`equivariance.penalty: NAME`. [The method](../explanation/method.md#penalties) has their formulas. In a loop "
        "of your own, `EquivarianceRegularizer(network, penalty=Penalty(measure=FUNCTION))` takes any function."
    )
    plain = Penalty()
    columns = [field.name for field in fields(Penalty) if field.name != "measure"]
    rows = []
    for name, penalty in PENALTIES.items():
        values = {column: getattr(penalty, column) for column in columns}
        cells = [
            in_yaml(list(value) if isinstance(value, tuple) else value) if value != getattr(plain, column) else ""
            for column, value in values.items()
        ]
        rows.append((code(name), *(code(cell) if cell else "" for cell in cells)))
    yield table(["Penalty", *map(code, columns)], rows)
    yield "An empty cell is the default of `Penalty`:"
    yield _python_fields(Penalty)
    yield "## Options of the regulariser"
    yield (
        "`EquivarianceRegularizer(network, OPTION=VALUE, ...)` in a loop of your own. Those that are keys of "
        "`equivariance` have the same name there. Their defaults here are the published ones or those that change "
        "nothing; params.yaml ships others."
    )
    yield _python_fields(EquivarianceConfig)


def _python_fields(kind: type) -> str:
    said = docs_of_fields(kind)
    rows = [
        (code(field.name), code(str(field.type)), code(repr(field.default)), text(said[field.name]))
        for field in fields(cast(Any, kind))
    ]
    return table(("Option", "Type", "Default", "Meaning"), rows)
