"""Who was champion when: moves of the alias "champion", and their record.

MLflow keeps no history of aliases. Each move is therefore recorded as a tag of the registered model, with a name of its
own, so that two moves at the same time are both recorded. The alias alone says which version is champion. Where the
record and the alias differ, because the alias was moved in MLflow's pages or a command was killed, `history` says so.

Moves in one database are made one after the other. A tracking server offers no lock. Of two moves at the same time the
later one wins there, both are recorded with the same number, and `history` lists the winner last.
"""

from __future__ import annotations

import getpass
import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal

from pipeline.process_state import interrupts_ignored
from pipeline.storage.databases import alone
from pipeline.tracking.models.registry import CHAMPION, Registry
from pipeline.tracking.store import answering

Command = Literal["register", "promote", "rollback"]
ANY = "any"
_TAG = "eqreg.champion."
_MOST_CHARACTERS = 1000  # of a reason; MLflow takes tags of a model of up to 5000


@dataclass(frozen=True, kw_only=True)
class Move:
    """A move of the alias, as it is recorded.

    Attributes:
        number: 1 for the first move. Moves at the same time can have the same number.
        version: the new champion.
        before: the champion before; None if there was none.
        at: when, in ISO 8601, UTC, by the clock of the machine that moved it.
        by: name of the user.
        command: that moved it.
        reason: why, in one line.
    """

    number: int
    version: str
    before: str | None
    at: str
    by: str
    command: Command
    reason: str


@dataclass(frozen=True)
class Champion:
    """An entry of the history.

    Attributes:
        version: that was champion; None if there was no champion any more.
        move: that made it champion; None if the alias was moved in another way, and it is not known when.
    """

    version: str | None
    move: Move | None


class ChampionChangedError(Exception):
    """Another version has become champion meanwhile."""


def move_champion(registry: Registry, version: str, command: Command, reason: str, expected: str | None = ANY) -> Move:
    """Moves the alias "champion" to a version, and records it.

    Args:
        registry: of the model.
        version: the new champion.
        command: that moves it.
        reason: why.
        expected: the version that must be champion before; None if there must be none.

    Returns:
        The move.

    Raises:
        ChampionChangedError: another version than the expected one is champion. The alias is not moved.
    """
    with _one_at_a_time(registry), interrupts_ignored():
        champion = registry.champion()
        before = champion.number if champion else None
        if expected not in (ANY, before):
            raise ChampionChangedError(before)
        number = 1 + max((move.number for move in moves(registry)), default=0)
        registry.point(CHAMPION, version)
        move = Move(
            number=number,
            version=version,
            before=before,
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            by=_user(),
            command=command,
            reason=" ".join(reason.split())[:_MOST_CHARACTERS],
        )
        with answering(registry.store.uri):
            key = f"{_TAG}{number:06d}.{secrets.token_hex(4)}"
            text = json.dumps(asdict(move), ensure_ascii=False)
            registry.store.client.set_registered_model_tag(registry.name, key, text)
    return move


def moves(registry: Registry) -> list[Move]:
    """The recorded moves, by number and then by time."""
    with answering(registry.store.uri):
        tags = registry.store.client.get_registered_model(registry.name).tags
    recorded = [_read(value) for key, value in tags.items() if key.startswith(_TAG)]
    return sorted(filter(None, recorded), key=lambda move: (move.number, move.at))


def _read(text: str) -> Move | None:
    """Reads the record of a move; None if somebody changed it so that it is none."""
    try:
        values = json.loads(text)
        move = Move(**{key: value for key, value in values.items() if key in Move.__dataclass_fields__})
    except (ValueError, TypeError, AttributeError):
        return None
    texts = (move.version, move.before or "", move.at, move.by, move.command, move.reason)
    return move if isinstance(move.number, int) and all(isinstance(text, str) for text in texts) else None


def history(registry: Registry) -> list[Champion]:
    """The champions in order; the last one is champion now.

    An entry without a move says that the alias was moved in another way than by eqreg.
    """
    champion = registry.champion()
    return list(_entries(moves(registry), champion.number if champion else None))


def _entries(recorded: Sequence[Move], now: str | None) -> Iterator[Champion]:
    """Puts moves at the same time in order, and adds an entry where a move does not follow from the one before."""
    version: str | None = None
    numbers = sorted({move.number for move in recorded})
    for number in numbers:
        together = [move for move in recorded if move.number == number]
        following = next((move.before for move in recorded if move.number > number), now)
        together.sort(key=lambda move: move.version == following)  # the winner is last
        if together[0].before != version:
            yield Champion(together[0].before, None)
        for move in together:
            yield Champion(move.version, move)
            version = move.version
    if version != now:
        yield Champion(now, None)


def champion_before(entries: Sequence[Champion]) -> str | None:
    """The version to which a rollback returns; None if no earlier champion is known.

    A rollback takes back the last move that was not taken back yet. Two rollbacks thus return to the champion two moves
    before.

    Args:
        entries: from `history`.
    """
    line: list[str] = []
    for entry in entries:
        if entry.version is None:
            continue
        if entry.move and entry.move.command == "rollback" and entry.version in line:
            while line[-1] != entry.version:
                line.pop()
        elif not line or line[-1] != entry.version:
            line.append(entry.version)
    ends_without = not entries or entries[-1].version is None
    return (line[-1] if line else None) if ends_without else (line[-2] if len(line) > 1 else None)


def _one_at_a_time(registry: Registry) -> AbstractContextManager[None]:
    """A lock against other moves in the same database; a server offers none."""
    import mlflow
    import sqlalchemy

    assert registry.store.client  # sets the address of the registry
    uri = mlflow.get_registry_uri()
    if uri.startswith(("http://", "https://")):
        return nullcontext()
    url = sqlalchemy.make_url(uri)
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    return alone(url, "champion.lock")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in a container
        return "unknown"
