"""Every error message that a test provokes is the one that it provoked when the fixed point was made.

The messages stand in ``tests/golden/messages.json``, by the name of the test. ``benchmarks/golden.py`` says how that
file is made: with ``EQREG_GOLDEN=FOLDER`` a run keeps its messages in FOLDER, and compares nothing.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from _pytest.raises import RaisesExc

ROOT = Path(__file__).parents[1]
_CHANGING = {
    rf"{re.escape(str(ROOT))}": "ROOT",
    rf"({re.escape(tempfile.gettempdir())}|/tmp)/[^\s'\":,;()]*": "TMP",
    r"\b\d+ bytes too long": "N bytes too long",  # the number of a process is in the path
    r"0x[0-9a-f]+|\b[0-9a-f]{8,64}\b": "HEX",
    r"\b\d+\.\d{3,}|\b\d(\.\d+)?e[+-]\d+": "FLOAT",  # rounded otherwise on another processor
    r"(127\.0\.0\.1|localhost|\[::1\]):\d+": "HOST:PORT",
}
"""Pattern of what differs between two runs or machines -> what stands for it."""

_found: list[str] = []


def note(message: str) -> None:
    """Adds a message to those of the test that runs."""
    _found.append(lasting(message))


def lasting(message: str) -> str:
    """A message without what differs between two runs."""
    for pattern, word in _CHANGING.items():
        message = re.sub(pattern, word, message)
    return message


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Notes what ``pytest.raises`` catches, then keeps or compares it."""
    leave = RaisesExc.__exit__

    def leave_and_note(self: Any, *exception: Any) -> bool:
        is_expected = leave(self, *exception)
        if is_expected and isinstance(exception[1], ValueError | RuntimeError):
            note(f"{type(exception[1]).__name__}: {exception[1]}")
        return is_expected

    _found.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RaisesExc, "__exit__", leave_and_note)
        outcome = yield
    if folder := os.environ.get("EQREG_GOLDEN"):
        keep(folder, item.name, _found)
    else:
        compare(item.name, _found)
    return outcome


def compare(test: str, messages: list[str]) -> None:
    """Fails for a message that the test did not provoke when the fixed point was made."""
    if test in (known := _golden()):
        for message in messages:
            assert message in known[test], "another message than in the fixed point: see benchmarks/golden.py"


def keep(folder: str, test: str, messages: list[str]) -> None:
    """Adds a test's messages to the file of this process."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    Path(folder).mkdir(parents=True, exist_ok=True)
    with (Path(folder) / f"{worker}.jsonl").open("a") as lines:
        lines.writelines(json.dumps([test, message]) + "\n" for message in messages)


@cache
def _golden() -> dict[str, list[str]]:
    from benchmarks.golden import golden

    return {test: [lasting(message) for message in several] for test, several in golden("messages").items()}
