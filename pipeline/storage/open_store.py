"""Opens the artifact store at an address."""

from __future__ import annotations

import socket
from pathlib import Path

from pipeline.errors import UserError
from pipeline.storage.folder_store import FolderStore, make_folder
from pipeline.storage.store import KEY, ArtifactStore


def open_store(address: str) -> ArtifactStore:
    """Opens the artifact store at ``cluster.storage``; a missing folder is created.

    A bucket is not contacted before it is used.

    Raises:
        UserError: the folder cannot be created, or boto3 refuses its settings.
    """
    if address.startswith("s3://"):
        from pipeline.storage.s3_store import S3Store  # boto3 is slow to import

        return S3Store(address)
    folder = Path(address).expanduser().absolute()
    try:
        make_folder(folder)
    except OSError as error:
        raise UserError(
            f"{KEY}: {folder}: cannot be made on {socket.gethostname()} ({error.strerror}); "
            "give a folder that all nodes see and may write, or s3://BUCKET/PREFIX"
        ) from error
    return FolderStore(str(folder))
