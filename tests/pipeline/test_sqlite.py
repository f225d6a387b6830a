"""The address of a database names its file, whatever letters the path has: SQLAlchemy itself is the oracle."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy

from pipeline.sqlite import sqlite_address, sqlite_file

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
