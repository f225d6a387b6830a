"""SQLite's databases as SQLAlchemy, and with it MLflow and Optuna, address them."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote, unquote


def sqlite_address(file: Path) -> str:
    """``sqlite:///FILE``; where ``?`` or ``%`` in the path would be read otherwise, they are quoted.

    Then the driver is named too, as MLflow makes the folder of an address of ``sqlite:///`` without unquoting it.
    """
    path = str(file)
    if unquote(path) == path and "?" not in path:
        return f"sqlite:///{path}"
    return f"sqlite+pysqlite:///{quote(path)}"


def sqlite_file(address: str) -> Path | None:
    """The file of a database; None if it is none of SQLite's, or lies in memory."""
    found = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]*)(?:\?.*)?", address)
    path = unquote(found[1]) if found else ""
    return Path(path) if path not in ("", ":memory:") else None
