"""Progress is also visible where the output is no terminal."""

from __future__ import annotations

import pytest

from pipeline import console as module
from pipeline.console import console, progress, track

pytestmark = pytest.mark.unit


def test_a_log_file_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", -1.0)
    with console.capture() as captured, progress() as bars:
        bar = bars.add_task("training", total=10, note="")
        bars.update(bar, completed=4, note="loss 0.5")
    assert "training 4/10 loss 0.5" in captured.get()


def test_tracked_items_come_whole_and_in_order() -> None:
    assert list(track(iter("abc"), "reading")) == ["a", "b", "c"]
