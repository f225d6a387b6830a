"""Collects the files that ``eqreg submit`` uploads: the project's files in their current state, no data, no results."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.cluster.jobs.entry_point import COMMITTED, travels
from pipeline.errors import UserError
from pipeline.paths import PARAMS
from pipeline.provenance.lineage import CODE, committed_text, project_files

# The files that a stage needs, for a project that is not in git.
_NEEDED = (*CODE, ".dvc/config", ".dvcignore")
LARGEST = 64 << 20


def pack(folder: Path) -> None:
    """Copies the files that git tracks, and new code files, from the working directory into ``folder``.

    Raises:
        UserError: the working directory is no project, or the files have more than ``LARGEST`` bytes.
    """
    if not PARAMS.exists():
        raise UserError(f"{PARAMS}: there is no such file; run from the folder that holds params.yaml")
    names = [name for name in project_files() or _walk() if travels(Path(name)) and Path(name).is_file()]
    size = sum(Path(name).stat().st_size for name in names)
    if size > LARGEST:
        largest = max(names, key=lambda name: Path(name).stat().st_size)
        raise UserError(
            f"the project's files have {size >> 20} MiB, more than {LARGEST >> 20}; the largest is {largest}\n"
            "keep data out of git: 'dvc add' them, or name their place in fetch.source"
        )
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, folder / name)
    committed = committed_text(PARAMS)
    if committed is not None:
        (folder / COMMITTED).mkdir()
        (folder / COMMITTED / PARAMS).write_text(committed)


def _walk() -> list[str]:
    return [
        path.as_posix()
        for name in _NEEDED
        for path in ([Path(name)] if Path(name).is_file() else sorted(Path(name).rglob("*")))
        if path.is_file()
    ]
