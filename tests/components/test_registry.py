"""Registries import what is named and nothing else; settings refuse what they do not know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from components.members import LOSSES, NETWORKS, OPTIMIZERS, SCHEDULES, TASKS
from components.networks import network_class
from components.registry import Settings, build_settings, check_between, check_numbers, find, import_place, module_of
from components.tasks import task_class

pytestmark = pytest.mark.unit


@dataclass(frozen=True, kw_only=True)
class Sizes(Settings):
    """Settings of these tests."""

    width: int
    depth: int = 3

    def __post_init__(self) -> None:
        check_between(self, width=(1, 64), depth=(2, 64))


@pytest.mark.parametrize("registry", [NETWORKS, TASKS, LOSSES, OPTIMIZERS, SCHEDULES])
def test_every_line_of_a_registry_leads_to_a_class(registry: dict[str, str]) -> None:
    for name in registry:
        assert isinstance(find(registry, "member", name), type)
        assert find(registry, "member", name).__module__ == module_of(registry, name)


def test_every_network_that_a_task_takes_by_itself_is_registered_with_valid_settings() -> None:
    for name in TASKS:
        given = dict(task_class(name).network)
        network = network_class(str(given.pop("name")))
        assert network.is_classifier == task_class(name).is_classification
        build_settings(network.Settings, given)
        assert callable(import_place(task_class(name).baseline))
        assert task_class(name).loss in LOSSES


def test_a_name_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match="loss 'l2' is unknown: use one of l1, mse, charbonnier, cross_entropy"):
        find(LOSSES, "loss", "l2")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 4, "dpeth": 2}, r"dpeth: unknown; did you mean depth\?"),
        ({"width": 4, "norm": 2}, "norm: unknown; known here: width, depth"),
        ({"depth": 4}, "missing 1 required keyword-only argument: 'width'"),
        ({"width": 0}, "width: 0: use a whole number of at least 1"),
        ({"width": "8"}, "width: '8': use a whole number of at least 1"),
        ({"width": 8.5}, "width: 8.5: use a whole number of at least 1"),
        ({"width": True}, "width: True: use a whole number of at least 1"),
        ({"width": 65}, "width: 65: use a whole number of at most 64"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(given: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_settings(Sizes, given)
    assert build_settings(Sizes, {"width": 4}) == Sizes(width=4, depth=3)


@dataclass(frozen=True, kw_only=True)
class Levels(Settings):
    """Settings with a list."""

    blocks: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        check_numbers(self, blocks=(1, 9))


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (3, "blocks: 3: use a list of whole numbers"),
        ("12", "blocks: '12': use a list of whole numbers"),
        ([1, 0], r"blocks: \[1, 0\]: use whole numbers from 1 to 9"),
        ((1, 10), r"blocks: \[1, 10\]: use whole numbers from 1 to 9"),
        ([1.5], r"blocks: \[1.5\]: use whole numbers from 1 to 9"),
        ([True], r"blocks: \[True\]: use whole numbers from 1 to 9"),
    ],
)
def test_a_list_of_numbers_is_checked_and_kept_as_a_tuple(blocks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_settings(Levels, {"blocks": blocks})
    assert build_settings(Levels, {"blocks": [3, 1]}) == Levels(blocks=(3, 1))
    assert build_settings(Levels, {"blocks": [3, 1]}).blocks == (3, 1)


@pytest.mark.parametrize("value", ["no", "maybe", 0, 1, None])
def test_what_is_neither_true_nor_false_switches_nothing(value: object) -> None:
    """Any word, "no" too, counts as true in Python."""
    kind = network_class("prenet").Settings
    with pytest.raises(ValueError, match=f"shared_blocks: {value!r}: use true or false"):
        build_settings(kind, {"shared_blocks": value})
    assert build_settings(kind, {"shared_blocks": True}).shared_blocks
