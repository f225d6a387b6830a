"""Starts Ray so that it listens on 127.0.0.1 only and accepts only clients that have the token."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import UserError, path_of
from pipeline.process_state import changed_environment

# Ray's switch for systems on which it runs on one machine only. With "0", Ray binds every server to 127.0.0.1.
# Otherwise the servers listen on all interfaces, also if the node address is 127.0.0.1: ray.init replaces that address
# by the machine's own.
_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@contextmanager
def on_loopback() -> Iterator[None]:
    """Lets ``ray.init`` in the block start a Ray for this machine and user only; restores Ray's settings at the end."""
    with changed_environment({_SWITCH: "0"}):
        _make_token()
        from pipeline.compat import constants

        constant = constants.ENABLE_RAY_CLUSTER  # Ray may be imported already, with the old value
        constants.ENABLE_RAY_CLUSTER = False
        try:
            yield
        finally:
            constants.ENABLE_RAY_CLUSTER = constant


def _make_token() -> None:
    """Writes a token for Ray, if the user has none yet.

    Only the user can read the file. A token file that Ray writes itself can be read by all users.

    Raises:
        UserError: the token cannot be written.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    try:
        path = Path.home() / ".ray" / "auth_token"
        if not path.exists():
            _write_token(path)
    except (OSError, RuntimeError) as error:
        reason = f"{path_of(error)}: {error.strerror}" if isinstance(error, OSError) else error
        raise UserError(
            f"HOME: Ray's token cannot be written to ~/.ray ({reason}): set HOME to a folder that can be written, "
            "or RAY_AUTH_TOKEN to a secret of your own"
        ) from error


def _write_token(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file, name = tempfile.mkstemp(dir=path.parent)  # with mode 0600
    try:
        with os.fdopen(file, "w") as written:
            written.write(secrets.token_hex(32))
        with suppress(FileExistsError):  # another process has written a token meanwhile
            os.link(name, path)
    finally:
        Path(name).unlink()
