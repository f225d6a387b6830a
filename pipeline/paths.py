"""The paths of all files relative to the project's root, and the atomic replacement of a folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import FULL, UserError, path_of

PARAMS = Path("params.yaml")
SPACES = Path("tune_spaces")
RAW = Path("data/raw")
PACKED = Path("data/packed")
TUNE = Path("results/tune")
TRAIN = Path("results/train")
EVALUATE = Path("results/evaluate")
ABLATE = Path("results/ablate")
CROPS = "crops"
"""Subfolder of EVALUATE with crops of the test images."""
LIVE = Path("results/live")
"""The history of a training while it runs; no output of a stage."""
TEST_PACKS = "out_of_distribution"
"""Subfolder of PACKED with the out-of-distribution test packs, one for each other degradation."""

SCRATCH = Path(".eqreg")
REGISTER = SCRATCH / "register"  # depends on the registry, not only on files, so it is not in the results

MANIFEST = RAW / "manifest.json"
BEST = TUNE / "best.yaml"
MODEL = TRAIN / "model.safetensors"


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder that replaces ``path`` if the block succeeds; otherwise ``path`` stays unchanged.

    An error of the block is raised unchanged, unless it is an ``OSError`` about a file of the new folder.

    Raises:
        UserError: ``path`` or the new folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise _cannot_be_written(path, error) from error
    new.chmod(0o755)
    old = new.with_name(f"{new.name}.old")
    try:
        try:
            yield new
        except OSError as error:
            if not _is_within(error, new):
                raise
            raise _cannot_be_written(path, error) from error
        _swap(path, new, old)
    finally:
        for left in (new, old):
            _remove(left)


def _swap(path: Path, new: Path, old: Path) -> None:
    """Replaces ``path`` by ``new``, and restores ``path`` if this fails."""
    try:
        if path.exists():
            path.replace(old)
        try:
            new.replace(path)
        except BaseException:
            if old.exists():
                old.replace(path)
            raise
    except OSError as error:
        raise _cannot_be_written(path, error) from error


def _is_within(error: OSError, folder: Path) -> bool:
    """Whether an error is about a file of a folder, or may be.

    An error that names no file may be one if the disk is full: a write to an open file then names none.
    """
    if named := path_of(error):
        return named.absolute().is_relative_to(folder.absolute())
    return error.errno in FULL


def _cannot_be_written(path: Path, error: OSError) -> UserError:
    hint = "; make room there, or in TMPDIR" if error.errno in FULL else ""
    return UserError(f"{path}: cannot be written ({error.strerror or error}){hint}")


def _remove(path: Path) -> None:
    """Removes a folder, or a file at the path of a folder."""
    if path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def copied_from(folder: Path) -> Path | None:
    """The checkout from which DVC copied ``folder`` or a parent of it for an experiment; None if it is no such copy.

    DVC runs queued experiments and ``--temp`` experiments in ``CHECKOUT/.dvc/tmp/exps/NAME``.
    """
    for parent in folder.resolve().parents:
        if parent.parts[-3:] == (".dvc", "tmp", "exps"):
            return parent.parents[2]
    return None


def find_input(path: str) -> str:
    """A path of params.yaml, unchanged, or in the checkout if DVC's copy for an experiment lacks the file.

    DVC's copy holds the files that git tracks. The user's data are usually not tracked.
    """
    checkout = copied_from(Path.cwd())
    if checkout is None or Path(path).exists() or not (checkout / path).exists():
        return path
    return str(checkout / path)


def existing(path: Path, stage: str) -> Path:
    """Checks that ``path`` exists, and returns it.

    Raises:
        UserError: it does not exist; the message names ``stage``, the command that makes it.
    """
    if not path.exists():
        raise UserError(f"{path}: not there yet; run 'eqreg {stage}' or 'dvc repro' first")
    return path
