"""A long message is shown by its first line, long data by the first digits of their SHA-256, the same for ever."""

from __future__ import annotations

import hashlib

import pytest

from components.brief import first_line, short_digest

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (ValueError("a: is damaged\nreplace it"), "a: is damaged"),
        (RuntimeError("\n\n  no memory is left \r\nat 0x7f"), "no memory is left"),
        (EOFError(), "EOFError"),
        (OSError(" \n\t\n"), "OSError"),
        (KeyError("width"), "'width'"),
        ("two\nlines", "two"),
        (ValueError("x" * 5000), "x" * 500),
    ],
)
def test_the_first_line_that_says_something(message: object, line: str) -> None:
    assert first_line(message) == line


def test_a_digest_is_that_of_sha256_in_every_version() -> None:
    # FIPS 180-2 gives the digests of "abc" and of the empty text.
    assert short_digest("abc") == short_digest(b"abc") == "ba7816bf8f01"
    assert short_digest("", digits=32) == "e3b0c44298fc1c149afbf4c8996fb924"
    assert short_digest("Größe", digits=16) == hashlib.sha256("Größe".encode()).hexdigest()[:16]
