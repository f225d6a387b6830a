"""The databases of MLflow and Optuna: their addresses, a lock, and hints for their errors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from filelock import FileLock

if TYPE_CHECKING:
    import sqlalchemy

_HINTS = {
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
"""Pattern of the text of an error -> hint."""


def database_hint(url: sqlalchemy.URL, reason: str) -> str | None:
    """Returns a hint for an error of a database, in one line; None if its text is unknown."""
    file = sqlite_file(url)
    where = str(file.absolute()) if file else "the database"
    holder = f" ('fuser {where}' names it)" if file else ""
    for pattern, hint in _HINTS.items():
        if re.search(pattern, reason):
            return hint.format(where=where, holder=holder)
    return None


def alone(url: sqlalchemy.URL, purpose: str) -> AbstractContextManager[None]:
    """Returns an exclusive lock on a database among all users that lock it for the same purpose.

    The lock holds within this process and against other processes. It must not be nested. On PostgreSQL it is an
    advisory lock, on SQLite a lock on the file ``DATABASE.PURPOSE``. Other databases are not locked.

    Raises:
        OSError: on entering the block, if the database does not exist yet and its folder cannot be written.
    """
    if file := sqlite_file(url):
        return _file_lock(file, file.with_name(f"{file.name}.{purpose}"))
    return _postgres_lock(url, purpose) if url.drivername.startswith("postgresql") else nullcontext()


def sqlite_address(file: Path) -> str:
    """Returns ``sqlite:///FILE``; ``?`` and ``%`` are quoted if they would be misread.

    A quoted address also names the driver, because MLflow creates the folder of an address that begins with
    ``sqlite:///`` without unquoting it.
    """
    path = str(file)
    if unquote(path) == path and "?" not in path:
        return f"sqlite:///{path}"
    return f"sqlite+pysqlite:///{quote(path)}"


def sqlite_file(address: str | sqlalchemy.URL) -> Path | None:
    """Returns the file of an SQLite database; None for a database in memory and for other databases and servers."""
    if not str(address).startswith("sqlite"):
        return None
    import sqlalchemy

    url = sqlalchemy.make_url(address)
    name = url.database or ""
    if name in ("", ":memory:"):
        return None
    return Path(unquote(urlsplit(name).path)) if name.startswith("file:") else Path(name)


@contextmanager
def _file_lock(database: Path, path: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            # With a longer interval, a driver of a study that releases the lock and takes it again at once would keep
            # the other drivers waiting.
            stack.enter_context(FileLock(path, poll_interval=0.001))
        except OSError:
            if not database.exists():
                raise
            # A user who cannot write in this folder can only read, so no lock is needed.
        yield


@contextmanager
def _postgres_lock(url: sqlalchemy.URL, purpose: str) -> Iterator[None]:
    """Holds an advisory lock on its own connection, which is closed when the block or the process ends."""
    import sqlalchemy

    number = int.from_bytes(hashlib.sha256(f"eqreg {purpose}".encode()).digest()[:6])
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:number)"), {"number": number})
        yield
