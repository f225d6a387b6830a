"""Who was champion when: moves of the alias "champion", and their record.

MLflow keeps no history of aliases. Each move is therefore recorded as a tag of the registered model, with a name of its
own, so that two moves at the same time are both recorded. The alias alone says which version is champion. Where the
record and the alias differ, because the alias was moved in MLflow's pages or a command was killed, `history` says so.

Moves in one database are made one after the other. A tracking server offers no lock. Of two moves at the same time the
later one wins there. So each move reads the alias and the records again after it has moved the alias, for its place in
the history, and once more after it has recorded itself: of two moves at the same time, the one that is recorded later
finds the record of the other. Where neither finds the other before its own record, both have the same number, and
`history` lists the winner last.
"""

from __future__ import annotations

import getpass
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


@dataclass(frozen=True)
class Moved:
    """What a move of the alias came to.

    Attributes:
        move: as it is recorded.
        others: moves that others recorded since this one read who is champion. Empty in a database.
        champion: the champion now; None if there is none any more.
    """

    move: Move
    others: tuple[Move, ...]
    champion: str | None

    def conflicts(self) -> list[str]:
        """Says in lines who has moved the alias at the same time; empty if nobody has."""
        lines = [
            f"at the same time {other.by} has made version {other.version} champion ({other.command}: {other.reason})"
            for other in self.others
        ]
        if self.champion != self.move.version:
            now = f"version {self.champion} is champion" if self.champion else "there is no champion"
            return [*lines, f"somebody else has moved the alias at the same time: now {now}"]
        return [*lines, f"version {self.champion} was the last and is champion now"] if lines else []


class ChampionChangedError(Exception):
    """Another version has become champion meanwhile."""


def move_champion(registry: Registry, version: str, command: Command, reason: str, expected: str | None = ANY) -> Moved:
    """Moves the alias "champion" to a version, and records it.

    Args:
        registry: of the model.
        version: the new champion.
        command: that moves it.
        reason: why.
        expected: the version that must be champion before; None if there must be none.

    Returns:
        The move, and those of others at the same time.

    Raises:
        ChampionChangedError: another version than the expected one is champion. The alias is not moved.
    """
    with _one_at_a_time(registry), interrupts_ignored():
        before, known = _champion(registry), _recorded(registry)
        if expected not in (ANY, before):
            raise ChampionChangedError(before)
        registry.point(CHAMPION, version)
        number, before = _place(version, before, known, _recorded(registry), _champion(registry))
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
            own = f"{_TAG}{number:06d}.{secrets.token_hex(4)}"
            text = json.dumps(asdict(move), ensure_ascii=False)
            registry.store.client.set_registered_model_tag(registry.name, own, text)
        recorded = _recorded(registry)
        others = _in_order(other for key, other in recorded.items() if key not in known and key != own)
        return Moved(move, tuple(others), _champion(registry))


def _place(
    version: str, before: str | None, known: Mapping[str, Move], recorded: Mapping[str, Move], now: str | None
) -> tuple[int, str | None]:
    """Returns the number of a move, and the champion before it, when it has moved the alias.

    Others may have moved the alias and recorded it since the champion was read. If the alias is still as this move
    left it, this move came after theirs. If not, it was replaced, and its place is the one before theirs.

    Args:
        version: to which the move has moved the alias.
        before: the champion that was read before the move.
        known: records that were read before the move.
        recorded: records that were read after it.
        now: the champion that was read after it.
    """
    between = _in_order(move for key, move in recorded.items() if key not in known)
    if between and now == version:
        return 1 + max(move.number for move in recorded.values()), between[-1].version
    return 1 + max((move.number for move in known.values()), default=0), before


def moves(registry: Registry) -> list[Move]:
    """The recorded moves, by number and then by time."""
    return _in_order(_recorded(registry).values())


def _recorded(registry: Registry) -> dict[str, Move]:
    """Name of the tag -> move."""
    with answering(registry.store.uri):
        tags = registry.store.client.get_registered_model(registry.name).tags
    found = {key: _read(value) for key, value in tags.items() if key.startswith(_TAG)}
    return {key: move for key, move in found.items() if move is not None}


def _in_order(recorded: Iterable[Move]) -> list[Move]:
    return sorted(recorded, key=lambda move: (move.number, move.at))


def _champion(registry: Registry) -> str | None:
    champion = registry.champion()
    return champion.number if champion else None


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
    return list(_entries(moves(registry), _champion(registry)))


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
