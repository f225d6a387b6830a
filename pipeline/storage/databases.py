"""Databases of others' making, MLflow's and Optuna's: alone with one, and what its errors ask for."""

from __future__ import annotations

import fcntl
import hashlib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from urllib.parse import unquote, urlsplit

import sqlalchemy

_REMEDIES = {
    r"database is locked|lock timeout|deadlock": "another process writes to it: wait for that to end{holder}",
    r"database or disk is full|No space left|could not extend": "its disk is full: make room",
    r"readonly database|read-only": "it cannot be written: give yourself the right to, at {where}",
    r"unable to open database file": "{where} is not there and cannot be made, or is not yours to read",
    r"not a database|malformed|disk I/O error": "{where} is damaged, or no SQLite database: move it away",
    r"no such table|(table|index|column|relation) .*already exists|duplicate column|UndefinedTable|DuplicateTable": (
        "its tables are incomplete: if no other process is just making them, move {where} away"
    ),
    r"password|authentication|no pg_hba": "check the user, and the password in PGPASSWORD or ~/.pgpass",
    r"permission denied|must be owner": "its user may not do that: ask who runs the database",
    r"database .* does not exist": "there is no such database: make it, or correct the address",
    r"onnection|resolve|translate host|timed? ?out|unreachable": "nobody answers there: check the address",
}
"""Pattern of an error's text -> what to do about it."""


def database_remedy(url: sqlalchemy.URL, reason: str) -> str | None:
    """What to do about an error of a database, in one line; None where its text says nothing known."""
    file = sqlite_file(url)
    where = str(file.absolute()) if file else "the database"
    holder = f" ('fuser {where}' names it)" if file else ""
    for pattern, remedy in _REMEDIES.items():
        if re.search(pattern, reason):
            return remedy.format(where=where, holder=holder)
    return None


def alone(url: sqlalchemy.URL, purpose: str) -> AbstractContextManager[None]:
    """Alone with a database among all that lock it for the same purpose, in this process and others; not to be nested.

    Postgres has locks of its own. SQLite's is the file ``DATABASE.PURPOSE``. Other databases are not locked.

    Raises:
        OSError: from the block's beginning: the place of a database that is not there yet cannot be written.
    """
    if file := sqlite_file(url):
        return _file_lock(file, file.with_name(f"{file.name}.{purpose}"))
    return _postgres_lock(url, purpose) if url.drivername.startswith("postgresql") else nullcontext()


def sqlite_file(url: sqlalchemy.URL) -> Path | None:
    """The file of an SQLite database; None in memory, and of other databases."""
    name = url.database or ""
    if not url.drivername.startswith("sqlite") or name in ("", ":memory:"):
        return None
    return Path(unquote(urlsplit(name).path)) if name.startswith("file:") else Path(name)


@contextmanager
def _file_lock(database: Path, path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError:
        if not database.exists():
            raise
        yield  # who cannot write here only reads
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _postgres_lock(url: sqlalchemy.URL, purpose: str) -> Iterator[None]:
    """A connection of its own, closed with the block or with the process."""
    number = int.from_bytes(hashlib.sha256(f"eqreg {purpose}".encode()).digest()[:6])
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:number)"), {"number": number})
        yield
