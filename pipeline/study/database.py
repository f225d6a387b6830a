"""The database of studies, SQLite or Postgres, with a lock that is released when the process that holds it dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import optuna
import sqlalchemy
from sqlalchemy.exc import SQLAlchemyError

from pipeline.errors import UserError
from pipeline.storage.databases import alone, database_hint, sqlite_file


class StudyStorage:
    """A database of studies; its tables are created if they are missing.

    Args:
        address: ``tune.study_storage``: sqlite:///PATH or postgresql://USER@HOST/DATABASE. libpq reads the password
            from PGPASSWORD or ~/.pgpass.

    Raises:
        UserError: the database does not answer; also raised from the blocks of ``answering`` and ``locked``.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        # psycopg is the driver that is installed for Postgres.
        self._url = sqlalchemy.make_url(address)
        if self._url.drivername == "postgresql":
            self._url = self._url.set(drivername="postgresql+psycopg")
        waits = {"connect_args": {"timeout": 60}} if sqlite_file(self._url) else {"pool_pre_ping": True}
        with self.locked():
            self.optuna = optuna.storages.RDBStorage(
                self._url.render_as_string(hide_password=False), engine_kwargs=waits
            )

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Raises a ``UserError`` of two lines for errors of the database in the block."""
        try:
            yield
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
            reason = " ".join(str(getattr(cause, "orig", cause)).split())[:200]
            hint = database_hint(self._url, reason) or "check the address"
            raise UserError(
                f"tune.study_storage: {self.address}: the database does not answer as it should ({reason})\n"
                f"{hint}; the sweep goes on when it is run again"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock of the database during the block.

        At most one block, in this process or another, holds the lock at a time. Blocks must not be nested.
        """
        with self.answering(), alone(self._url, "lock"):
            yield
