"""Every error message that a test provokes is the one that it provoked when the fixed point was made.

``EQREG_GOLDEN=FOLDER`` keeps the messages of a run in FOLDER instead; ``benchmarks/golden.py messages FOLDER FOLDER``
makes ``tests/golden/messages.json`` of two runs, without what differs between them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from _pytest.raises import RaisesExc

_ROOT = Path(__file__).parents[1]
_CHANGING = {
    rf"{re.escape(str(_ROOT))}": "ROOT",
    r"/\S*/pytest-of-\w+/pytest-\d+(/popen-gw\d+)?": "TMP",
    r"0x[0-9a-f]+|\b[0-9a-f]{8,64}\b": "HEX",
    r"(127\.0\.0\.1|localhost):\d+": "HOST:PORT",
}
"""Pattern of what is another in each run -> what stands for it."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Looks at what ``pytest.raises`` has caught."""
    found: list[str] = []
    leave = RaisesExc.__exit__

    def leave_and_note(self: Any, *exception: Any) -> bool:
        is_expected = leave(self, *exception)
        if is_expected and isinstance(exception[1], ValueError):
            found.append(_lasting(f"{type(exception[1]).__name__}: {exception[1]}"))
        return is_expected

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RaisesExc, "__exit__", leave_and_note)
        outcome = yield
    if folder := os.environ.get("EQREG_GOLDEN"):
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        with (Path(folder) / f"{worker}.jsonl").open("a") as lines:
            lines.writelines(json.dumps([item.name, message]) + "\n" for message in found)
    elif item.name in (known := _golden()):
        for message in found:
            assert message in known[item.name], "another message than before: see benchmarks/golden.py"
    return outcome


def _lasting(message: str) -> str:
    for pattern, word in _CHANGING.items():
        message = re.sub(pattern, word, message)
    return message


@cache
def _golden() -> dict[str, list[str]]:
    from benchmarks.golden import FOLDER, golden

    return golden("messages") if (FOLDER / "messages.json").exists() else {}
