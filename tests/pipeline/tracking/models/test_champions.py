"""The history of champions: what it says after moves by eqreg, by others, at the same time, and back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.tracking.models import champions
from pipeline.tracking.models.champions import ChampionChangedError, champion_before, history, move_champion, moves
from pipeline.tracking.models.registry import CHAMPION, Registry
from pipeline.tracking.store import Store

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[4]


@pytest.fixture
def registry(store: Store) -> Registry:
    """With three versions without files, and no champion."""
    registry = Registry(store)
    store.client.create_registered_model(registry.name)
    for _ in range(3):
        store.client.create_model_version(registry.name, "/nowhere")
    return registry


def _shown(registry: Registry) -> list[tuple[str | None, str]]:
    """(version, command) of each entry of the history; "" for an entry without a move."""
    return [(entry.version, entry.move.command if entry.move else "") for entry in history(registry)]


def test_without_a_champion_the_history_is_empty(registry: Registry) -> None:
    assert history(registry) == []
    assert champion_before(history(registry)) is None


def test_a_move_is_recorded_with_user_time_reason_and_the_champion_before(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    move_champion(registry, "1", "register", "there was no champion")
    move_champion(registry, "2", "promote", "sharper\non  [/] our photos " + "é" * 3000)
    champion = registry.champion()
    assert champion is not None
    assert champion.number == "2"
    first, second = moves(registry)
    assert (first.number, first.version, first.before, first.by) == (1, "1", None, "ada")
    assert (second.number, second.version, second.before, second.command) == (2, "2", "1", "promote")
    assert second.reason.startswith("sharper on [/] our photos é")
    assert len(second.reason) == 1000
    assert first.at < second.at
    assert second.at.endswith("+00:00")


def test_only_the_expected_champion_is_replaced(registry: Registry) -> None:
    move_champion(registry, "1", "register", "first", expected=None)
    with pytest.raises(ChampionChangedError):
        move_champion(registry, "2", "register", "second", expected=None)
    with pytest.raises(ChampionChangedError):
        move_champion(registry, "2", "register", "second", expected="3")
    assert _shown(registry) == [("1", "register")]
    move_champion(registry, "2", "register", "second", expected="1")
    assert _shown(registry) == [("1", "register"), ("2", "register")]


def test_what_others_did_with_the_alias_is_said_to_be_theirs(registry: Registry) -> None:
    registry.point(CHAMPION, "1")  # as in MLflow's pages, or by an earlier eqreg
    assert _shown(registry) == [("1", "")]
    move_champion(registry, "2", "promote", "better")
    assert _shown(registry) == [("1", ""), ("2", "promote")]
    registry.point(CHAMPION, "3")
    assert _shown(registry) == [("1", ""), ("2", "promote"), ("3", "")]
    move_champion(registry, "2", "promote", "better again")
    assert _shown(registry) == [("1", ""), ("2", "promote"), ("3", ""), ("2", "promote")]
    registry.store.client.delete_registered_model_alias(registry.name, CHAMPION)
    assert _shown(registry) == [("1", ""), ("2", "promote"), ("3", ""), ("2", "promote"), (None, "")]
    assert champion_before(history(registry)) == "2"
    move_champion(registry, "2", "rollback", "it was deleted")
    assert _shown(registry)[-2:] == [(None, ""), ("2", "rollback")]


def test_a_champion_that_was_deleted_is_no_champion_any_more(registry: Registry) -> None:
    move_champion(registry, "1", "register", "first")
    move_champion(registry, "2", "promote", "better")
    registry.store.client.delete_model_version(registry.name, "2")
    assert _shown(registry) == [("1", "register"), ("2", "promote"), (None, "")]


MOVE = '{"number": "9", "version": "2", "before": "1", "at": "", "by": "", "command": "promote", "reason": ""}'


@pytest.mark.parametrize(
    "value",
    ["no record", "[]", "{}", '{"number": 1}', "null", MOVE, MOVE.replace('"9"', "9").replace('"2"', "2")],
)
def test_a_record_that_somebody_spoilt_is_left_out(registry: Registry, value: str) -> None:
    move_champion(registry, "1", "register", "first")
    registry.store.client.set_registered_model_tag(registry.name, "eqreg.champion.000009.aa", value)
    assert _shown(registry) == [("1", "register")]
    move_champion(registry, "2", "promote", "better")
    assert _shown(registry) == [("1", "register"), ("2", "promote")]


def test_each_rollback_goes_one_champion_further_back(registry: Registry) -> None:
    for version in ("1", "2", "3"):
        move_champion(registry, version, "promote", "better")
    assert champion_before(history(registry)) == "2"
    move_champion(registry, "2", "rollback", "worse")
    assert champion_before(history(registry)) == "1"
    move_champion(registry, "1", "rollback", "worse")
    assert champion_before(history(registry)) is None
    move_champion(registry, "3", "promote", "mended")
    assert champion_before(history(registry)) == "1"


def test_registering_and_promoting_the_champion_itself_adds_no_champion_before(registry: Registry) -> None:
    move_champion(registry, "1", "register", "first")
    move_champion(registry, "1", "promote", "once more")
    assert champion_before(history(registry)) is None


def test_no_model_has_no_history(store: Store) -> None:
    with pytest.raises(UserError, match="does not answer as it should"):
        moves(Registry(store))


MOVER = """
import sys, time
from pathlib import Path
from pipeline.tracking.models.champions import move_champion
from pipeline.tracking.models.registry import Registry
from pipeline.tracking.store import Store
uri, version, number = sys.argv[1:]
registry = Registry(Store("denoise", uri))
registry.champion()
Path(f"ready{version}").touch()
while not Path("go").exists():
    time.sleep(0.001)
for turn in range(int(number)):
    move_champion(registry, version, "promote", f"{version} for the time {turn}")
"""


def test_two_processes_that_promote_at_once_leave_one_champion_and_a_history_that_holds_all_moves_in_order(
    registry: Registry, project: Any
) -> None:
    number = 4
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", MOVER, registry.store.uri, version, str(number)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for version in ("2", "3")
    ]
    try:
        while not all(Path(f"ready{version}").exists() for version in ("2", "3")):
            assert all(process.poll() is None for process in started), started[0].communicate()
        Path("go").touch()
        for process in started:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in started:
            process.kill()
    recorded = moves(registry)
    assert [move.number for move in recorded] == list(range(1, 2 * number + 1))
    assert sorted(move.version for move in recorded) == ["2"] * number + ["3"] * number
    assert {move.reason for move in recorded} == {f"{v} for the time {turn}" for v in "23" for turn in range(number)}
    assert [move.before for move in recorded] == [None, *(move.version for move in recorded[:-1])]
    champion = registry.champion()
    assert champion is not None
    assert champion.number == recorded[-1].version
    assert [entry.move for entry in history(registry)] == recorded


@pytest.mark.parametrize("winner", ["2", "3"])
def test_without_a_lock_as_on_a_server_both_moves_are_recorded_and_the_winner_is_last(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, winner: str
) -> None:
    """Both have read the champion before either moves the alias; ``winner`` moves it later."""
    move_champion(registry, "1", "register", "first")
    both_have_read, loser_has_moved = Barrier(2), Barrier(2)
    point = Registry.point

    def point_in_order(self: Registry, alias: str, version: str) -> None:
        both_have_read.wait(300)
        if version == winner:
            loser_has_moved.wait(300)
        point(self, alias, version)
        if version != winner:
            loser_has_moved.wait(300)

    with monkeypatch.context() as patch:
        patch.setattr(champions, "_one_at_a_time", lambda registry: nullcontext())
        patch.setattr(Registry, "point", point_in_order)
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(move_champion, registry, version, "promote", "better") for version in "23"]:
                done.result(30)
    loser = {"2": "3", "3": "2"}[winner]
    # The winner has the same number, or the next one if the loser had recorded itself before the winner looked.
    assert [move.number for move in moves(registry)] in ([1, 2, 2], [1, 2, 3])
    assert _shown(registry) == [("1", "register"), (loser, "promote"), (winner, "promote")]
    move_champion(registry, "1", "promote", "neither")  # the order holds when the champion is another one
    assert _shown(registry)[1:] == [(loser, "promote"), (winner, "promote"), ("1", "promote")]


def test_the_record_of_a_move_is_json_of_the_model(registry: Registry) -> None:
    move_champion(registry, "1", "register", "first")
    ((key, value),) = registry.store.client.get_registered_model(registry.name).tags.items()
    assert key.startswith("eqreg.champion.000001.")
    assert json.loads(value)["version"] == "1"
