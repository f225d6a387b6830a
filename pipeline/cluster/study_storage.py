"""Where studies lie: SQLite or Postgres, with a lock that is let go when its holder dies."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import sqlalchemy
from sqlalchemy.exc import SQLAlchemyError

from pipeline.errors import UserError

_LOCK = int.from_bytes(b"eqreg", "big")
"""The number of Postgres' advisory lock, one a database."""


class StudyStorage:
    """A database of studies, whose tables are made if need be.

    Args:
        address: of ``tune.study_storage``: sqlite:///PATH or postgresql://USER@HOST/DATABASE, where libpq finds the
            password in PGPASSWORD or ~/.pgpass.

    Raises:
        UserError: also from the blocks of ``answering`` and ``locked``: the database does not answer.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        # Postgres is opened with the driver that is installed.
        self._url = sqlalchemy.make_url(address)
        if self._url.drivername == "postgresql":
            self._url = self._url.set(drivername="postgresql+psycopg")
        self._file: Path | None = None
        if self._url.drivername.startswith("sqlite"):
            self._file = Path(f"{self._url.database}.lock")
            self._file.parent.mkdir(parents=True, exist_ok=True)
        with self.locked():
            self.optuna = optuna.storages.RDBStorage(
                self._url.render_as_string(hide_password=False),
                engine_kwargs={"connect_args": {"timeout": 60}} if self._file else {"pool_pre_ping": True},
            )

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Turns the errors of a database that does not answer into two lines."""
        try:
            yield
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
            reason = " ".join(str(getattr(cause, "orig", cause)).split())[:200]
            raise UserError(
                f"tune.study_storage: {self.address}: the database does not answer as it should ({reason})\n"
                "check the address, and the password in PGPASSWORD or ~/.pgpass; the sweep goes on when it is run again"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone with the database among all that lock it, in this process and others; not to be nested."""
        with self.answering(), self._file_lock(self._file) if self._file else self._postgres_lock():
            yield

    @staticmethod
    @contextmanager
    def _file_lock(path: Path) -> Iterator[None]:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _postgres_lock(self) -> Iterator[None]:
        """A connection of its own, closed with the block or with the process."""
        engine = sqlalchemy.create_engine(self._url, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:number)"), {"number": _LOCK})
            yield
