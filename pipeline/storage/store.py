"""The artifact store: persistent storage of a cluster in a folder that all nodes see, or at ``s3://BUCKET/PREFIX``.

An artifact store holds named objects. Names are relative POSIX paths. Writes are atomic: an object is complete or does
not exist, even if a process is killed. A store is pickled and sent to the nodes. `open_store` is called only on the
driver, where it creates the folder. A node that does not see this folder must report that, and must not create another
one with the same name.
"""

from __future__ import annotations

import secrets
import socket
from pathlib import Path
from typing import Protocol

from pipeline.errors import UserError

KEY = "cluster.storage"


class ArtifactStore(Protocol):
    """Named objects that all nodes see.

    Every method raises UserError if the store refuses the operation or does not answer.

    Attributes:
        address: address as in params.yaml; the path of a folder is absolute.
    """

    address: str

    def names(self, prefix: str) -> list[str]:
        """Lists all names below ``prefix`` ("" for all), sorted and relative to the store."""
        ...

    def read(self, name: str) -> bytes:
        """Reads an object.

        Raises:
            FileNotFoundError: there is no such object.
        """
        ...

    def write(self, name: str, data: bytes) -> None:
        """Creates or replaces an object atomically; in a folder the object then survives a power failure."""
        ...

    def download(self, name: str, path: Path) -> None:
        """Copies an object of any size to a file.

        Raises:
            FileNotFoundError: there is no such object.
            OSError: ``path`` cannot be written.
        """
        ...

    def upload(self, path: Path, name: str) -> None:
        """Copies a file of any size to an object, atomically as `write` does.

        Raises:
            OSError: ``path`` cannot be read.
        """
        ...

    def delete(self, name: str) -> None:
        """Deletes an object; a missing object is no error."""
        ...

    def check(self) -> None:
        """Writes, reads back and deletes a small object.

        Raises:
            UserError: this host cannot do it; the message names the host and the reason.
        """
        ...


def probe(artifact_store: ArtifactStore) -> None:
    """Writes, reads back and deletes a small object.

    Raises:
        UserError: this host cannot do one of these operations.
    """
    host = socket.gethostname()
    name, data = f"check/{host}-{secrets.token_hex(8)}", secrets.token_bytes(64)
    artifact_store.write(name, data)
    try:
        found = artifact_store.read(name)
    except FileNotFoundError:
        found = b""
    artifact_store.delete(name)
    if found != data:
        raise UserError(
            f"{KEY}: {artifact_store.address}: {host} does not read there what it has written; look at the storage"
        )
