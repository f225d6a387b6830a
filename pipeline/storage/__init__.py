"""Where images come from. A source names its files and copies one of them; ``open_source`` picks it by its address."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pipeline.errors import UserError
from pipeline.storage.builtin import BuiltinPhotographs
from pipeline.storage.folder import Folder


class Source(Protocol):
    """A place that holds images."""

    def names(self) -> list[str]:
        """The relative POSIX path of every image, sorted.

        Raises:
            UserError: the source is missing or holds no image.
        """
        ...

    def copy(self, name: str, target: Path) -> None:
        """Copies one image to a path whose folder exists.

        Raises:
            UserError: it cannot be read.
        """
        ...


def open_source(address: str) -> Source:
    """The source at an address of params.yaml's ``fetch.source``.

    Raises:
        UserError: the address is of a kind that is not known.
    """
    if address == "builtin":
        return BuiltinPhotographs()
    if "://" in address:
        scheme = address.split("://")[0]
        raise UserError(f"fetch.source: {address}: '{scheme}' is not supported yet; use 'builtin' or a folder")
    return Folder(Path(address).expanduser())
