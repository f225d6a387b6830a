"""State of the whole process that a block sets: the handlers of Ctrl-C and SIGTERM, and environment variables."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def interrupts_first() -> Iterator[None]:
    """Ends the block with KeyboardInterrupt after Ctrl-C or SIGTERM, also if the interrupt causes another exception.

    Outside the main thread it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_interrupted = False

    def interrupt(number: int, frame: object) -> None:
        nonlocal is_interrupted
        is_interrupted = True
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Exception:
        if is_interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Ignores Ctrl-C during the block. Outside the main thread it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def changed_environment(changes: Mapping[str, str], also: Iterable[str] = ()) -> Iterator[None]:
    """Sets environment variables; at the end of the block they are as before, set or not.

    Args:
        changes: name -> value in the block.
        also: names of further variables to restore, which a library sets in the block.
    """
    before = {name: os.environ.get(name) for name in (*changes, *also)}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
