"""Versions of what is written to disk. A reader refuses a newer version by name and reads all older ones.

Each writer stores the number of its format under the key ``format``. What was written before there were numbers has
version 0; its layout is that of version 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEY = "format"


class NewerFormatError(ValueError):
    """Data were written by a newer version of this code."""


def check_format(found: Mapping[str, Any], known: int, what: str) -> None:
    """Check the version of data that were read.

    Args:
        found: the data, which may have the key ``format``.
        known: the newest version that this code reads.
        what: what the data are, for the message.

    Raises:
        NewerFormatError: the version is newer, or is not a number.

    Example:
        >>> check_format({"format": 1}, 1, "the pack")
        >>> try:
        ...     check_format({"format": 2}, 1, "the pack")
        ... except ValueError as error:
        ...     print(error)
        the pack has format 2, and this eqreg reads formats up to 1: use the eqreg that wrote it, or a newer one
    """
    version = found.get(KEY, 0)
    if not isinstance(version, int) or version > known:
        raise NewerFormatError(
            f"{what} has format {version!r}, and this eqreg reads formats up to {known}: use the eqreg that wrote it, "
            "or a newer one"
        )
