"""``aoti``: machine code of AOTInductor for one device and the instructions of this machine's CPU.

The machine code takes its input as contiguous and does not check that: turned or permuted views give wrong results.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from torch import Tensor

from pipeline import compat
from pipeline.commands.exporting.form import Form, Run, quiet
from pipeline.commands.exporting.program import describe, export_program, on_device
from pipeline.commands.exporting.source import Source
from pipeline.errors import UserError


def _check() -> None:
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        raise UserError(
            f"--format aoti: needs a C++ compiler, and there is no {compiler}: install one (Debian: g++), or set CXX"
        )


def _write(source: Source, path: Path, device: str) -> None:
    program, archive = export_program(source, device), BytesIO()  # as in `program`
    with quiet():
        compat.aoti_compile_and_package(program, package_path=archive)
    path.write_bytes(archive.getbuffer())


def _read(path: Path, source: Source, device: str) -> Run:
    compiled = on_device(compat.aoti_load_package(str(path)), device)

    def run(images: Tensor) -> Tensor:
        with _silent_stderr():  # its C++ part prints a stack for every error that it also raises
            return compiled(images.contiguous())

    return run


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drops what C++ code prints to stderr."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


AOTI = Form(suffix=".pt2", has_device=True, check=_check, write=_write, describe=describe, read=_read)
