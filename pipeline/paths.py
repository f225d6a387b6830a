"""Where everything lies, relative to the project's root, and how files come to lie there: whole or not at all."""

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
SCRATCH = Path(".eqreg")
REGISTER = SCRATCH / "register"  # what the registry said: no function of files, so not beside results

MANIFEST = RAW / "manifest.json"
BEST = TUNE / "best.yaml"
MODEL = TRAIN / "model.safetensors"


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside ``path`` that takes its place if the block succeeds; else ``path`` stays as it was.

    What the block raises comes through, unless it is about a file of the new folder.

    Raises:
        UserError: the place cannot be written.
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
    """``new`` takes the place of ``path``; if it cannot, ``path`` is as it was."""
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
    """Whether an error is about a file of a folder, or may be: writing to an open file, a full disk names none."""
    if named := path_of(error):
        return named.absolute().is_relative_to(folder.absolute())
    return error.errno in FULL


def _cannot_be_written(path: Path, error: OSError) -> UserError:
    remedy = "; make room there, or in TMPDIR" if error.errno in FULL else ""
    return UserError(f"{path}: cannot be written ({error.strerror or error}){remedy}")


def _remove(path: Path) -> None:
    """Removes a folder, or the file that lay where a folder belongs."""
    if path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def copied_from(folder: Path) -> Path | None:
    """The checkout that DVC copied ``folder``, or a folder above it, from for an experiment; None if it is no copy.

    DVC runs queued and ``--temp`` experiments in ``CHECKOUT/.dvc/tmp/exps/NAME``.
    """
    for parent in folder.resolve().parents:
        if parent.parts[-3:] == (".dvc", "tmp", "exps"):
            return parent.parents[2]
    return None


def find_input(path: str) -> str:
    """A path of params.yaml as it is; in DVC's copy for an experiment the checkout's, where the copy has no such file.

    The copy holds what git tracks, and the user's data are seldom among it.
    """
    checkout = copied_from(Path.cwd())
    if checkout is None or Path(path).exists() or not (checkout / path).exists():
        return path
    return str(checkout / path)


def existing(path: Path, stage: str) -> Path:
    """``path``, if it is there.

    Raises:
        UserError: it is not; ``stage`` is the command that makes it.
    """
    if not path.exists():
        raise UserError(f"{path}: not there yet; run 'eqreg {stage}' or 'dvc repro' first")
    return path
