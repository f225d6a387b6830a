"""``eqreg models promote`` and ``rollback``: move the alias champion by hand."""

from __future__ import annotations

from pipeline.console import console
from pipeline.errors import UserError
from pipeline.tracking.models.champions import ChampionChangedError, Moved, champion_before, history, move_champion
from pipeline.tracking.models.loading import FILES_TAG
from pipeline.tracking.models.registry import CHAMPION, Registry
from pipeline.tracking.models.versions import Address, Record, check_exists, check_files_exist, find_version, verify


def promote(registry: Registry, record: Record, reason: str) -> None:
    """Makes a version champion.

    Args:
        registry: of the model.
        record: of the version.
        reason: why, for the history.

    Raises:
        UserError: the reason is empty, or the version cannot be used: its files are gone or altered.
    """
    if CHAMPION in record.aliases:
        console.print(f"{registry.name}: version {record.number} is champion already: nothing to do", markup=False)
        return
    _check(registry, record, reason)
    _report(registry, move_champion(registry, record.number, "promote", reason))


def rollback(registry: Registry, reason: str) -> None:
    """Makes the champion before the present one champion again.

    Args:
        registry: of the model.
        reason: why, for the history.

    Raises:
        UserError: there is no such model, the reason is empty, no champion before is known, it cannot be used, or
            somebody has moved the alias meanwhile.
    """
    check_exists(registry)
    champion = registry.champion()
    now = champion.number if champion else None
    target = champion_before(history(registry))
    if target is None:
        raise UserError(
            f"{registry.name}: no champion before {f'version {now}' if now else 'now'} is recorded\n"
            f"choose one: eqreg models list {registry.name}, eqreg models promote models:/{registry.name}/NUMBER"
        )
    try:
        record = find_version(registry, Address(registry.name, None, target))
        _check(registry, record, reason)
    except UserError as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"the champion before was version {target}: {first}\nchoose one with eqreg models promote"
        ) from error
    try:
        moved = move_champion(registry, target, "rollback", reason, expected=now)
    except ChampionChangedError as error:
        raise UserError(
            f"{registry.name}: version {error} has become champion meanwhile; nothing was changed\n"
            f"see eqreg models history {registry.name}, then roll back again if you still want to"
        ) from error
    _report(registry, moved)


def _check(registry: Registry, record: Record, reason: str) -> None:
    """Checks that there is a reason, and that the files of a version are there and as they were registered."""
    if not reason.strip():
        raise UserError("--reason: say why, for the history")
    check_files_exist(registry, record)
    if FILES_TAG in record.tags:
        try:
            verify(registry, record)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{record.address}: {error}") from error


def _report(registry: Registry, moved: Moved) -> None:
    """Says who is champion now, also if somebody else has moved the alias at the same time."""
    move = moved.move
    before = f"version {move.before} was before" if move.before else "there was none before"
    console.print(f"{registry.name}: version {move.version} is champion; {before}", markup=False)
    for line in moved.conflicts():
        console.print(line, markup=False)


__all__ = ["promote", "rollback"]
