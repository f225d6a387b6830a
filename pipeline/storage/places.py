"""Where a cluster keeps what outlives its processes: a folder that all nodes see, or ``s3://BUCKET/PREFIX``.

A place holds named objects. Names are relative POSIX paths; an object is there whole or not at all, whoever is killed
whenever. A place travels to the nodes pickled; `open_place` is for the driver, where it makes the folder: a node that
does not see it must say so, and not make another of the same name.
"""

from __future__ import annotations

import secrets
import socket
from pathlib import Path
from typing import Protocol

from pipeline.errors import UserError

KEY = "cluster.storage"


class Place(Protocol):
    """Named objects that all nodes see. Every method raises UserError where the place refuses or does not answer.

    Attributes:
        address: as in params.yaml; of a folder, absolute.
    """

    address: str

    def names(self, prefix: str) -> list[str]:
        """All names below ``prefix`` ("" for all), sorted, relative to the place."""
        ...

    def read(self, name: str) -> bytes:
        """An object; FileNotFoundError where it is not."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Makes or replaces an object, whole or not at all; in a folder it then outlives a loss of power."""
        ...

    def download(self, name: str, path: Path) -> None:
        """An object of any size -> a file; FileNotFoundError where it is not, OSError where ``path`` is not written."""
        ...

    def upload(self, path: Path, name: str) -> None:
        """A file of any size -> an object, as `write` does; OSError where ``path`` cannot be read."""
        ...

    def delete(self, name: str) -> None:
        """Takes an object away; no error where there is none."""
        ...

    def check(self) -> None:
        """Writes, reads back and deletes a small probe; UserError says which host cannot do it, and why."""
        ...


def open_place(address: str) -> Place:
    """The place at ``cluster.storage``; a folder is made if it is not there.

    Raises:
        UserError: it cannot be made, or boto3 refuses its settings. A bucket is asked only when it is used.
    """
    if address.startswith("s3://"):
        from pipeline.storage.s3_place import S3Place

        return S3Place(address)
    from pipeline.storage.folder_place import FolderPlace, make_folder

    folder = Path(address).expanduser().absolute()
    try:
        make_folder(folder)
    except OSError as error:
        raise UserError(
            f"{KEY}: {folder}: cannot be made on {socket.gethostname()} ({error.strerror}); "
            "give a folder that all nodes see and may write, or s3://BUCKET/PREFIX"
        ) from error
    return FolderPlace(str(folder))


def probe(place: Place) -> None:
    """Writes, reads back and deletes a small object.

    Raises:
        UserError: this host cannot do one of these.
    """
    host = socket.gethostname()
    name, data = f"check/{host}-{secrets.token_hex(8)}", secrets.token_bytes(64)
    place.write(name, data)
    try:
        found = place.read(name)
    except FileNotFoundError:
        found = b""
    place.delete(name)
    if found != data:
        raise UserError(f"{KEY}: {place.address}: {host} does not read there what it has written; look at the storage")
