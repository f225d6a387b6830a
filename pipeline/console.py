"""The console for the user's output, and progress bars that also print to a log file."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 15.0

console = Console(highlight=False, soft_wrap=True)


class _Bars(Progress):
    """rich's progress bars; if the output is no terminal, a plain line every ``SECONDS_BETWEEN_LINES`` as well."""

    _last_line = time.monotonic()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        now = time.monotonic()
        if not self.console.is_terminal and now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            task = self._tasks[task_id]
            self.console.print(f"{task.description} {task.completed:.0f}/{task.total:.0f} {task.fields['note']}")


def progress() -> Progress:
    """Progress bars with a note on the right: ``add_task(description, total=..., note="")``."""
    return _Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


def track(items: Iterable[T], description: str) -> Iterator[T]:
    """Yields the items, and advances a progress bar after each."""
    items = list(items)
    with progress() as bars:
        bar = bars.add_task(description, total=len(items), note="")
        for item in items:
            yield item
            bars.update(bar, advance=1)
