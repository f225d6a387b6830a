"""What a run of ``eqreg restore`` asks for, the same for all of its images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from components.inference.restorer import Options


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for.

    Attributes:
        model: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or a model file.
        mask: file or folder of masks that was given, or None.
        options: of the tiles and the ensemble.
        device: of each network; "auto" is a GPU where there is one.
        workers: number of actors; 0: the process itself.
        address: Ray cluster of the actors: "local" for a Ray of this process, "auto" or HOST:PORT.
    """

    model: str
    mask: Path | None
    options: Options
    device: str
    workers: int
    address: str
