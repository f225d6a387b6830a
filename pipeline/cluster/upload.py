"""What ``eqreg submit`` sends to a cluster: the project's files as they are here, without data and results."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.cluster.stage_folder import COMMITTED, travels
from pipeline.errors import UserError
from pipeline.lineage import CODE, committed_text, project_files
from pipeline.paths import PARAMS

# Outside git: what a stage needs.
_NEEDED = (*CODE, ".dvc/config", ".dvcignore")
LARGEST = 64 << 20


def pack(folder: Path) -> None:
    """Copies the files that git tracks, and new ones among the code, from the working directory into ``folder``.

    Raises:
        UserError: this is no project's folder, or the files are more than ``LARGEST`` bytes.
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
