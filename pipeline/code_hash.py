"""Which code decides the outcome of a training: what goes on with what an earlier run left must be of the same."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_DECIDING = ("components/**/*.py", "components/**/*.c", "pipeline/job.py", "pipeline/auxiliary.py")


@cache
def code_hash() -> str:
    """12 hexadecimal digits of the source files of components, and of how a job is put together."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _DECIDING for path in _ROOT.glob(pattern)):
        digest.update(path.relative_to(_ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
