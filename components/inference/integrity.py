"""The SHA-256 sums of a registered model's files: written at registration, checked before anything is loaded.

The list lies beside the files, in ``eqreg_files.json``. The SHA-256 of the list is kept where a writer of the files
cannot reach it, as a tag of the version. MLflow rewrites a few entries of a model's own description when the model is
registered or loaded; the list holds the sum of that description without these entries.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

LIST = "eqreg_files.json"
"""Name of the list: a JSON object, path relative to the model's folder -> SHA-256 in hexadecimal digits."""

_DESCRIPTION = "MLmodel"
_NOT_OURS = frozenset({"registered_model_meta"})
_REWRITTEN = ("artifact_path", "model_id", "model_uuid", "run_id", "utc_time_created", "prompts", "is_signature_from")
"""Top-level entries of the description that MLflow writes when it logs or downloads a model."""


def write_files(folder: Path) -> str:
    """Write the list of a model's files.

    Returns:
        The SHA-256 of the list, 64 hexadecimal digits.
    """
    content = json.dumps(_sums(folder), indent=1, sort_keys=True) + "\n"
    (folder / LIST).write_text(content, encoding="utf-8")
    return hashlib.sha256(content.encode()).hexdigest()


def check_files(folder: Path, wanted_sha256: str | None = None) -> str:
    """Check that a model's files are those of the list.

    Args:
        folder: of the model.
        wanted_sha256: of the list, from the version's tag; None where it is unknown. A list that was replaced together
            with the files is then not noticed.

    Returns:
        The SHA-256 of the list, 64 hexadecimal digits.

    Raises:
        ValueError: the list is missing or is another one, or a file is altered, missing or additional. The message
            names the first such file.
    """
    try:
        content = (folder / LIST).read_bytes()
    except OSError:
        raise ValueError(f"{LIST} is missing: the files of the model cannot be verified") from None
    digest = hashlib.sha256(content).hexdigest()
    if wanted_sha256 is not None and digest != wanted_sha256:
        raise ValueError(f"{LIST} is not the one that was written at registration: its SHA-256 differs")
    try:
        wanted = json.loads(content)
        assert isinstance(wanted, dict)
    except (ValueError, AssertionError):
        raise ValueError(f"{LIST} is damaged: the files of the model cannot be verified") from None
    found = _sums(folder)
    for name in sorted({*wanted, *found}):
        if name not in found:
            raise ValueError(f"{name} is missing: it was there at registration")
        if name not in wanted:
            raise ValueError(f"{name} was added after registration")
        if found[name] != wanted[name]:
            raise ValueError(f"{name} was altered after registration: its SHA-256 differs")
    return digest


def _sums(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and not _is_cache(path))
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: _sum(path) for name, path in sorted(names.items()) if name != LIST and name not in _NOT_OURS}


def _is_cache(path: Path) -> bool:
    """Return whether Python writes such a file when code is imported, and compares it with the code before it uses it.

    Python also uses caches that it compares with nothing, if a bit of their head says so. It writes none of them by
    itself, and such a file could be other code than its source.

    Source: PEP 552, *Deterministic pycs*.
    """
    if "__pycache__" not in path.parts:
        return False
    with path.open("rb") as file:
        return path.suffix != ".pyc" or not any(file.read(8)[4:])


def _sum(path: Path) -> str:
    if path.name == _DESCRIPTION:
        return hashlib.sha256(_without_rewritten(path.read_bytes())).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _without_rewritten(description: bytes) -> bytes:
    """Return the description (YAML) without the top-level entries that MLflow rewrites.

    An entry begins with its name at the start of a line and holds the indented lines (and list items) that follow.
    """
    kept, is_kept = [], True
    for line in description.splitlines(keepends=True):
        if line[:1] not in (b" ", b"-", b"\n", b"\r", b""):
            is_kept = line.split(b":")[0].decode(errors="replace") not in _REWRITTEN
        if is_kept:
            kept.append(line)
    return b"".join(kept)
