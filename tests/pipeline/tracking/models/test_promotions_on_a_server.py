"""Promotions at the same time through a real tracking server, which has no lock: all are in the history, and told."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event, Thread

import pytest

from pipeline.tracking.models.champions import Moved, champion_before, history, move_champion, moves
from pipeline.tracking.models.registry import Registry
from pipeline.tracking.store import Store
from tests.pipeline.conftest import ROOT, Project
from tests.pipeline.mlflow_server import MlflowServer

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[str]:
    """The address of a server with two workers and a database of its own."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copyfile(empty_database, folder / "server.db")
    arguments = ["server", "--workers=2", "--backend-store-uri=sqlite:///server.db"]
    with MlflowServer([*arguments, "--artifacts-destination=./artifacts"], folder, os.environ) as server:
        yield server.address


@pytest.fixture
def registry(project: Project, server: str) -> Registry:
    """A new model of the server with four versions without files, and no champion."""
    registry = Registry(Store("denoise", server), f"eqreg-{secrets.token_hex(4)}")
    registry.store.client.create_registered_model(registry.name)
    for _ in range(4):
        registry.store.client.create_model_version(registry.name, "s3://nowhere/model")
    return registry


def _shown(registry: Registry) -> list[tuple[str | None, bool]]:
    """(version, whether the move is recorded) of each entry of the history."""
    return [(entry.version, entry.move is not None) for entry in history(registry)]


MOVER = """
import sys, time
from pathlib import Path
from pipeline.tracking.models.champions import move_champion
from pipeline.tracking.models.registry import Registry
from pipeline.tracking.store import Store
uri, name, version, number = sys.argv[1:]
registry = Registry(Store("denoise", uri), name)
registry.champion()
Path(f"ready{version}").touch()
while not Path("go").exists():
    time.sleep(0.001)
for turn in range(int(number)):
    moved = move_champion(registry, version, "promote", f"{version} for the time {turn}")
    print(turn, *moved.conflicts(), sep="|", flush=True)
"""


def _promote_at_once(registry: Registry, versions: Sequence[str], number: int) -> dict[str, list[str]]:
    """Promotes each version in a process of its own, ``number`` times; gives what each was told, by its version."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = {
        version: subprocess.Popen(
            [sys.executable, "-c", MOVER, registry.store.uri, registry.name, version, str(number)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for version in versions
    }
    try:
        while not all(Path(f"ready{version}").exists() for version in versions):
            assert all(process.poll() is None for process in started.values())
            time.sleep(0.01)
        Path("go").touch()
        told = {}
        for version, process in started.items():
            printed, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
            told[version] = printed.splitlines()
        return told
    finally:
        for process in started.values():
            process.kill()


def test_of_two_processes_that_promote_at_once_one_wins_and_the_history_has_both(registry: Registry) -> None:
    number = 4
    told = _promote_at_once(registry, ("2", "3"), number)
    recorded = moves(registry)
    assert {move.reason for move in recorded} == {f"{v} for the time {turn}" for v in "23" for turn in range(number)}
    champion = registry.champion()
    assert champion is not None
    entries = history(registry)
    assert entries[-1].version == champion.number
    assert [entry for entry in entries if entry.move is None] == []  # no move is taken for one of MLflow's pages
    assert sorted(entry.move.reason for entry in entries if entry.move) == sorted(move.reason for move in recorded)
    loser = {"2": "3", "3": "2"}[champion.number]
    assert champion_before(entries) == loser
    # Of each pair with one number, at least one process was told that there was another.
    for position in {move.number for move in recorded}:
        pair = [move for move in recorded if move.number == position]
        if len(pair) == 2:
            turns = [(move.version, int(move.reason.rpartition(" ")[2])) for move in pair]
            assert any("at the same time" in told[version][turn] for version, turn in turns)


def _between(registry: Registry, monkeypatch: pytest.MonkeyPatch, before: Sequence[str], after: Sequence[str]) -> Moved:
    """Promotes version 2; others promote ``before`` it has moved the alias but has read it, and ``after`` that."""
    reached, go_on, moved = Event(), Event(), []
    point = Registry.point
    slow = Registry(registry.store, registry.name)

    def point_slowly(self: Registry, alias: str, version: str) -> None:
        if self is not slow:
            point(self, alias, version)
            return
        for version_of_others in before:
            move_champion(registry, version_of_others, "promote", "theirs")
        point(self, alias, version)
        reached.set()
        assert go_on.wait(300)

    monkeypatch.setattr(Registry, "point", point_slowly)
    thread = Thread(target=lambda: moved.append(move_champion(slow, "2", "promote", "ours")))
    thread.start()
    assert reached.wait(300)
    for version in after:
        move_champion(registry, version, "promote", "theirs")
    go_on.set()
    thread.join(300)
    return moved[0]


def test_a_promotion_that_is_overtaken_replaces_the_others_and_says_so(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two promotions come between its reading of the champion and its own move."""
    move_champion(registry, "1", "register", "first")
    moved = _between(registry, monkeypatch, ["3", "4"], [])
    assert _shown(registry) == [("1", True), ("3", True), ("4", True), ("2", True)]
    assert (moved.champion, moved.move.before) == ("2", "4")
    user = moved.move.by
    assert moved.conflicts() == [
        f"at the same time {user} has made version 3 champion (promote: theirs)",
        f"at the same time {user} has made version 4 champion (promote: theirs)",
        "version 2 was the last and is champion now",
    ]
    assert champion_before(history(registry)) == "4"


def test_a_promotion_that_is_replaced_before_it_is_recorded_stands_before_the_winner(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    move_champion(registry, "1", "register", "first")
    moved = _between(registry, monkeypatch, [], ["3"])
    assert _shown(registry) == [("1", True), ("2", True), ("3", True)]
    assert moved.champion == "3"
    assert moved.conflicts()[-1] == "somebody else has moved the alias at the same time: now version 3 is champion"


def test_one_promotion_after_the_other_is_told_of_nobody(registry: Registry) -> None:
    for version in ("1", "2"):
        assert move_champion(registry, version, "promote", "better").conflicts() == []
    assert _shown(registry) == [("1", True), ("2", True)]
