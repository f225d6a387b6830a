"""Keeps pydicom from printing or logging the values of elements, which can name a patient."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from components.data.readers.quiet import no_warnings

_PYDICOM = threading.Lock()
"""Held while pydicom is silent: its settings and its logger are those of the whole process."""


@contextmanager
def silent_pydicom() -> Iterator[None]:
    """Silence pydicom's warnings and logger, and let it write values that break DICOM's rules as they were read.

    One thread at a time: of two that overlap, the first to end would let pydicom speak while the other one reads.
    """
    from pydicom import config

    logger = logging.getLogger("pydicom")
    with _PYDICOM:
        was_disabled, logger.disabled = logger.disabled, True
        try:
            with no_warnings, config.disable_value_validation():
                yield
        finally:
            logger.disabled = was_disabled
