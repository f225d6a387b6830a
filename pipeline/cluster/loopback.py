"""A Ray of this machine alone: it listens on 127.0.0.1 only, and only who has the token can talk to it."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import UserError, path_of

# Ray's switch for systems on which it runs on one machine: it then binds every server to 127.0.0.1. Without it they
# listen on all interfaces, whatever node address is asked for: ray.init replaces 127.0.0.1 by the machine's own.
_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@contextmanager
def on_loopback() -> Iterator[None]:
    """What ``ray.init`` starts in the block is for this machine and its user; before and after, Ray is as it was."""
    before = os.environ.get(_SWITCH)
    os.environ[_SWITCH] = "0"
    _make_token()
    import ray._private.ray_constants as constants

    constant = constants.ENABLE_RAY_CLUSTER  # of an earlier import of Ray
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = constant
        if before is None:
            del os.environ[_SWITCH]
        else:
            os.environ[_SWITCH] = before


def _make_token() -> None:
    """Where the user has no token of Ray's yet, one that nobody else can read: Ray's own file is open to all users.

    Raises:
        UserError: it cannot be kept.
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
            f"HOME: Ray's token cannot be kept there ({reason}): set HOME to a folder that can be written, "
            "or RAY_AUTH_TOKEN to a secret of your own"
        ) from error


def _write_token(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file, name = tempfile.mkstemp(dir=path.parent)  # of mode 0600
    try:
        with os.fdopen(file, "w") as written:
            written.write(secrets.token_hex(32))
        with suppress(FileExistsError):  # of a Ray that was started at the same time
            os.link(name, path)
    finally:
        Path(name).unlink()
