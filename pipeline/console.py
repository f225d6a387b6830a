"""What the user sees: one console, and progress bars that also work in a log file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

T = TypeVar("T")

console = Console(highlight=False, soft_wrap=True)


def progress() -> Progress:
    """A progress display with room for a note on the right of each bar."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


def track(items: Iterable[T], description: str) -> Iterator[T]:
    """The items, with a progress bar while they are worked on."""
    items = list(items)
    with progress() as bars:
        bar = bars.add_task(description, total=len(items), note="")
        for item in items:
            bars.update(bar, note=str(item)[:40])
            yield item
            bars.advance(bar)
        bars.update(bar, note="")
