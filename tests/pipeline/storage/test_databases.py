"""The address of a database names its file, as SQLAlchemy reads it; the lock of a database is one of the system."""

from __future__ import annotations

import fcntl
from pathlib import Path
from threading import Thread

import pytest
import sqlalchemy

from pipeline.storage.databases import alone, sqlite_address, sqlite_file

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "path",
    [
        "/home/me/mlflow.db", "/a b/Größe 形/x.db", "/50%/x.db", "/a#b/x.db", "/me@host:80/x.db", "/a?b/x.db",
        "/a%41b/x.db", "/a%3Fb?c&d=e/x.db", "relative.db",
    ],
)  # fmt: skip
def test_an_address_names_the_file_it_was_made_of(path: str) -> None:
    url = sqlalchemy.make_url(sqlite_address(Path(path)))
    assert (url.get_backend_name(), url.database, dict(url.query)) == ("sqlite", path, {})
    assert sqlite_file(sqlite_address(Path(path))) == Path(path)


@pytest.mark.parametrize("path", ["/home/me/mlflow.db", "/a b/Größe 形/x.db", "/50%/x.db", "/a#b/x.db"])
def test_an_address_is_as_it_is_known_where_nothing_in_it_would_be_read_otherwise(path: str) -> None:
    assert sqlite_address(Path(path)) == f"sqlite:///{path}"


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("sqlite:///other.db", "other.db"),
        ("sqlite:////a/x.db?timeout=5", "/a/x.db"),
        ("sqlite+pysqlite:////a/x.db", "/a/x.db"),
        ("sqlite:///:memory:", None),
        ("sqlite://", None),
        ("postgresql://host/x.db", None),
        ("http://127.0.0.1:5000", None),
    ],
)
def test_the_file_of_an_address_is_what_sqlalchemy_opens(address: str, file: str | None) -> None:
    assert sqlite_file(address) == (file and Path(file))


def test_the_lock_of_a_database_excludes_others_of_its_purpose_until_its_block_ends(tmp_path: Path) -> None:
    url = sqlalchemy.make_url(sqlite_address(tmp_path / "new/x.db"))
    order = []

    def wait() -> None:
        with alone(url, "lock"):
            order.append("second")

    with alone(url, "lock"), alone(url, "tables.lock"):
        waiting = Thread(target=wait)
        waiting.start()
        waiting.join(0.2)
        # The system itself refuses the lock to others, so it goes with the process.
        with (tmp_path / "new/x.db.lock").open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        order.append("first")
    waiting.join(300)
    assert order == ["first", "second"]
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"x.db.lock", "x.db.tables.lock"}


def test_a_database_that_is_there_is_read_without_a_lock_where_none_can_be_made(tmp_path: Path) -> None:
    url = sqlalchemy.make_url(sqlite_address(tmp_path / "x.db"))
    (tmp_path / "x.db.lock").mkdir()
    with pytest.raises(OSError, match="Is a directory"), alone(url, "lock"):
        pytest.fail("nothing is there to read")
    (tmp_path / "x.db").touch()
    entered = False
    with alone(url, "lock"):
        entered = True
    assert entered
    with pytest.raises(OSError, match="of the block"), alone(url, "lock"):
        raise OSError("of the block")
