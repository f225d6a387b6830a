"""Suppress warnings while a library reads a file, also if several threads read at once.

``warnings.catch_warnings`` alone is not made for threads: if two blocks overlap, the one that ends last puts back the
filters of the other one, and all warnings of the process stay suppressed.
"""

from __future__ import annotations

import threading
import warnings


class _NoWarnings:
    """Suppresses the warnings of the process from the first thread that enters to the last one that leaves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._num_inside:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
            self._num_inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if not self._num_inside:
                self._filters.__exit__(None, None, None)


no_warnings = _NoWarnings()
"""Use it as ``with no_warnings:``."""
