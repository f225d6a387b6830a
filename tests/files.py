"""What is in files, in a form that a failing comparison can print."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digests(folder: Path) -> dict[str, str]:
    """A hash of each file below a folder, by its path from there.

    Compare these, not the bytes: pytest needs minutes to word the difference of large ones.
    """
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
