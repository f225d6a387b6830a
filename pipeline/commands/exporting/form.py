"""What every format of ``eqreg export`` offers: small functions that write a file, describe it and run it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pipeline.commands.exporting.source import Source

Run = Callable[[Tensor], Tensor]
"""``(B, C, H, W)`` float32 on the CPU -> the output on the CPU."""

KEY = "eqreg.export"
"""Name of the description in a file's own metadata."""


@dataclass(frozen=True)
class Form:
    """A format.

    Attributes:
        suffix: which the name of its files must have.
        has_device: whether its files are for one device.
        check: raises a UserError if a library or a program is missing.
        write: writes a network to a file, for a device.
        describe: puts a text into the metadata of a file.
        read: loads a file as its users do, onto a device. It may use the source to build what the file fills.
    """

    suffix: str
    has_device: bool
    check: Callable[[], None]
    write: Callable[[Source, Path, str], None]
    describe: Callable[[Path, str], None]
    read: Callable[[Path, Source, str], Run]


def no_check() -> None:
    """For formats that need nothing besides what eqreg itself needs."""


@contextmanager
def quiet() -> Iterator[None]:
    """Hides what torch says about its own exporters: deprecations, and operators of libraries that are not there."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
