"""``python -m pipeline.cluster.jobs.entry_point FOLDER STAGE``: the command of a submitted job, on the cluster's head.

Ray unpacks the code of a job into a temporary folder of the job. FOLDER is permanent and holds the data and results of
earlier jobs. The project's files are copied from the temporary folder into FOLDER, and the stage runs in FOLDER.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import sys
from pathlib import Path

from filelock import lock_descriptor
from ruamel.yaml import YAML

from pipeline.errors import UserError, path_of
from pipeline.paths import PARAMS, SCRATCH

COMMITTED = ".committed"
"""Folder of the upload with the committed versions of files, for ``pipeline.provenance.lineage.committed_text``."""

_LISTING, _LOCK = SCRATCH / "submitted.txt", SCRATCH / "submitted.lock"
# Names that are not uploaded: they do not belong to the project's code, or each folder has its own. dvc.lock describes
# the files of one folder, so each folder has its own.
_STAY = {COMMITTED, ".eqreg", ".git", ".venv", "benchmarks", "dvc.lock", "tests"}
_RESULTS = {"data", "results"}


def travels(name: Path) -> bool:
    """Whether a file of the project is uploaded: a stage needs it, and it is neither data nor a result.

    Args:
        name: path relative to the project's root.
    """
    top = name.parts[0]
    return top not in _STAY and "__pycache__" not in name.parts and (top not in _RESULTS or name.suffix == ".dvc")


def prepare(folder: Path, source: Path) -> int:
    """Copies the project's files from ``source`` into ``folder``, and deletes those of an earlier job that are gone.

    ``cluster.address: local`` becomes ``auto``, so that the stage uses the cluster that runs the job.

    Returns:
        A file descriptor. The folder is locked for other jobs until the descriptor is closed.

    Raises:
        UserError: the folder holds other files, is in use by another job, or cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _LOCK).exists():
        raise UserError(
            f"{folder}: holds files, but not of submitted stages; name an empty or a new folder with --workdir"
        )
    try:
        (folder / SCRATCH).mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        if not lock_descriptor(lock, blocking=False):
            raise UserError(
                f"{folder}: another submitted stage runs there; wait for it, or name another folder with --workdir"
            )
        _copy_files(folder, source)
        _use_this_cluster(folder / PARAMS)
        # The folder is not in git; DVC then needs this setting.
        (folder / ".dvc").mkdir(exist_ok=True)
        (folder / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    except OSError as error:
        where = path_of(error) or folder
        what = "written" if where.is_relative_to(folder) else "read"
        raise UserError(f"{where}: cannot be {what} on the cluster's head ({error.strerror or error})") from error
    return lock


def _copy_files(folder: Path, source: Path) -> None:
    names = sorted(
        path.relative_to(source) for path in source.rglob("*") if path.is_file() and travels(path.relative_to(source))
    )
    listing = folder / _LISTING
    earlier = {Path(line) for line in listing.read_text().splitlines()} if listing.exists() else set()
    for name in sorted(earlier - set(names)):
        (folder / name).unlink(missing_ok=True)
    listing.write_text("".join(f"{name.as_posix()}\n" for name in sorted(earlier | set(names))))
    for name in names:
        target = folder / name
        if not (target.is_file() and filecmp.cmp(source / name, target, shallow=False)):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, target)
    listing.write_text("".join(f"{name.as_posix()}\n" for name in names))


def _use_this_cluster(params_file: Path) -> None:
    """Changes ``cluster.address: local`` to ``auto``, and keeps comments.

    A file that is not valid YAML stays unchanged; the stage reports the error.
    """
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096
    try:
        values = yaml.load(params_file)
        if values["cluster"]["address"] != "local":
            return
        values["cluster"]["address"] = "auto"
    except Exception:
        return
    yaml.dump(values, params_file)


def main() -> None:
    """Prepares the folder, and replaces this process by the stage."""
    folder, stage = Path(sys.argv[1]).expanduser().absolute(), sys.argv[2]
    source = Path(__file__).resolve().parents[3]
    try:
        lock = prepare(folder, source)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    os.set_inheritable(lock, True)  # held until the stage ends
    os.chdir(folder)
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    os.environ["EQREG_PYTHON"] = sys.executable  # pipeline/eqreg.sh reads it
    os.environ["DVC_NO_ANALYTICS"] = "1"
    os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"  # the stage passes on variables that the job also sets
    if (source / COMMITTED).is_dir():
        os.environ["EQREG_COMMITTED"] = str(source / COMMITTED)
    command = ["-m", "dvc", "repro"] if stage == "repro" else ["-m", "pipeline.cli", stage]
    print(f"{stage} in {folder}", flush=True)
    os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    main()
