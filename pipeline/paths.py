"""Where everything lies, relative to the project's root, and how files come to lie there: whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError

PARAMS = Path("params.yaml")
SPACES = Path("tune_spaces")
RAW = Path("data/raw")
PACKED = Path("data/packed")
TUNE = Path("results/tune")
TRAIN = Path("results/train")
EVALUATE = Path("results/evaluate")
REGISTER = Path("results/register")
SCRATCH = Path(".eqreg")

MANIFEST = RAW / "manifest.json"
BEST = TUNE / "best.yaml"
MODEL = TRAIN / "model.safetensors"


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside ``path`` that takes its place if the block succeeds; else ``path`` stays as it was.

    Raises:
        UserError: the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    new.chmod(0o755)
    try:
        yield new
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
        if path.exists():
            path.replace(old / path.name)
        new.replace(path)
        shutil.rmtree(old)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}: {error.filename})") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def existing(path: Path, stage: str) -> Path:
    """``path``, if it is there.

    Raises:
        UserError: it is not; ``stage`` is the command that makes it.
    """
    if not path.exists():
        raise UserError(f"{path}: not there yet; run 'eqreg {stage}' or 'dvc repro' first")
    return path
