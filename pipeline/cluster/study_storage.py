"""Where studies lie: SQLite or Postgres, with a lock that is let go when its holder dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import optuna
import sqlalchemy
from sqlalchemy.exc import SQLAlchemyError

from pipeline.errors import UserError
from pipeline.storage.databases import alone, database_remedy, sqlite_file


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
        waits = {"connect_args": {"timeout": 60}} if sqlite_file(self._url) else {"pool_pre_ping": True}
        with self.locked():
            self.optuna = optuna.storages.RDBStorage(
                self._url.render_as_string(hide_password=False), engine_kwargs=waits
            )

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Turns the errors of a database that does not answer into two lines."""
        try:
            yield
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
            reason = " ".join(str(getattr(cause, "orig", cause)).split())[:200]
            remedy = database_remedy(self._url, reason) or "check the address"
            raise UserError(
                f"tune.study_storage: {self.address}: the database does not answer as it should ({reason})\n"
                f"{remedy}; the sweep goes on when it is run again"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone with the database among all that lock it, in this process and others; not to be nested."""
        with self.answering(), alone(self._url, "lock"):
            yield
