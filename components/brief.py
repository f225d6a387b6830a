"""Brief forms for messages and names: the first line of a long message, the first digits of a hash."""

from __future__ import annotations

import hashlib

_MOST_CHARACTERS = 500


def first_line(message: object) -> str:
    r"""Return the first line of a message that is not blank, at most 500 characters of it.

    Args:
        message: an error or another object; its text is the message.

    Returns:
        The line; of a message without one, the name of the message's type.

    Example:
        >>> first_line(ValueError("it is damaged\nreplace it"))
        'it is damaged'
        >>> first_line(EOFError())
        'EOFError'
    """
    lines = (line.strip() for line in str(message).splitlines())
    return next(filter(None, lines), type(message).__name__)[:_MOST_CHARACTERS]


def short_digest(data: str | bytes, digits: int = 12) -> str:
    """Return the first hexadecimal digits of the SHA-256 of a text in UTF-8, or of bytes.

    Example:
        >>> short_digest("abc")
        'ba7816bf8f01'
    """
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:digits]
