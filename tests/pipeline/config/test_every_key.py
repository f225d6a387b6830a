"""In every section and for every member of a registry, unknown keys and what only looks like a number are refused."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import pytest

from components.networks import NETWORKS, network_class
from components.registry import find
from pipeline.config.schema import check_params, load_params
from pipeline.config.values import CHOSEN_BY_NAME, read_values, set_value
from pipeline.errors import UserError
from tests.pipeline.workspace import ROOT

pytestmark = pytest.mark.unit

VALUES = read_values(ROOT / "params.yaml")
NAMED_BY_USERS = ("out_of_distribution", "materials", "layer_weights")
"""Mappings whose keys the user chooses."""
LOOK_LIKE_NUMBERS = ("12", True, math.nan)


def walk(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """All keys and their values, sections included."""
    for key, value in values.items():
        yield f"{path}{key}", value
        if isinstance(value, dict):
            yield from walk(value, f"{path}{key}.")


def refusal(changes: Mapping[str, Any]) -> str:
    values = read_values(ROOT / "params.yaml")
    for key, value in changes.items():
        set_value(values, key, value)
    with pytest.raises(UserError) as caught:
        check_params(values, "params.yaml")
    return str(caught.value).removeprefix("params.yaml: ")


SECTIONS = [key for key, value in walk(VALUES) if isinstance(value, dict) and key.split(".")[-1] not in NAMED_BY_USERS]
NUMBERS = [key for key, value in walk(VALUES) if isinstance(value, int | float) and not isinstance(value, bool)]
MEMBERS = [
    (key, name, field.name)
    for key, registry in CHOSEN_BY_NAME.items()
    if key != "task"  # its settings stand in params.yaml: see NUMBERS
    for name in registry
    for field in fields(network_class(name).Settings if registry is NETWORKS else find(registry, key, name))
    if isinstance(field.default, int | float) and not isinstance(field.default, bool)
]
SWITCHES = [
    (name, field.name)
    for name in NETWORKS
    for field in fields(network_class(name).Settings)
    if isinstance(field.default, bool)
]


OF_NETWORKS: dict[str, dict[str, Any]] = {
    **{name: {"task": "ct_mar", "equivariance.penalty": "rotation"} for name in ("acdnet", "dicdnet", "oscnet")},
    "rcdnet": {"equivariance.penalty": "rotation"},
}
"""Network -> the further changes under which it is allowed with its published settings."""


def of_member(key: str, name: str) -> dict[str, Any]:
    """The changes under which the member is allowed."""
    is_for_classes = name in ("resnet", "cross_entropy")
    return {"task": "classify" if is_for_classes else "denoise", key: {"name": name}} | OF_NETWORKS.get(name, {})


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_key_is_refused_in_every_section(section: str) -> None:
    assert refusal({f"{section}.zzz": 1}).startswith(f"{section}.zzz: unknown")


@pytest.mark.parametrize("value", LOOK_LIKE_NUMBERS)
@pytest.mark.parametrize("key", NUMBERS)
def test_what_only_looks_like_a_number_is_refused_by_every_key(key: str, value: object) -> None:
    assert refusal({key: value}).startswith(key if "layer_weights" not in key else "equivariance.layer_weights")


@pytest.mark.parametrize(("key", "name"), list(dict.fromkeys((key, name) for key, name, _ in MEMBERS)))
def test_an_unknown_setting_is_refused_with_those_of_the_member(key: str, name: str) -> None:
    known = [field for member, of, field in MEMBERS if (member, of) == (key, name)]
    message = refusal(of_member(key, name) | {f"{key}.zzz": 1})
    assert message.startswith(f"{key}.zzz: unknown; known here: ")
    assert all(field in message for field in known)


@pytest.mark.parametrize("value", LOOK_LIKE_NUMBERS)
@pytest.mark.parametrize(("key", "name", "field"), MEMBERS)
def test_what_only_looks_like_a_number_is_refused_by_every_setting(
    key: str, name: str, field: str, value: object
) -> None:
    assert refusal(of_member(key, name) | {f"{key}.{field}": value}).startswith(f"{key}.{field}: {value!r}: use a ")


@pytest.mark.parametrize("value", ["12", 12, "yes"])
@pytest.mark.parametrize(("name", "field"), SWITCHES)
def test_what_is_neither_true_nor_false_is_refused_by_every_switch(name: str, field: str, value: object) -> None:
    message = refusal(of_member("network", name) | {f"network.{field}": value})
    assert message == f"network.{field}: {value!r}: use true or false"


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_chosen_by_one_line_and_no_setting_of_another_is_left(name: str) -> None:
    """``dvc exp run -S network.name=NAME`` and an edited line come to the same."""
    task = {"task": "classify" if network_class(name).is_classifier else "denoise"} | OF_NETWORKS.get(name, {})
    shipped = load_params(ROOT / "params.yaml")
    by_option = shipped.patched({**task, "network.name": name})
    by_line = shipped.patched({**task, "network": {"name": name}})
    assert by_option == by_line
    assert by_option.network_settings == network_class(name).Settings()
    assert by_option.resolved["network"]["name"] == name
