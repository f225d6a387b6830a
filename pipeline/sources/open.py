"""Opens the source at an address; `pipeline.sources.download.download` then fetches its files."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from pipeline.errors import UserError
from pipeline.paths import find_input
from pipeline.sources.source import Source

_SECRET = re.compile(r"sig(nature)?$|token|secret|passw|credential|api_?key|access_?key|^auth", re.IGNORECASE)


def open_source(address: str, key: str = "fetch.source") -> Source:
    """Opens the source at an address of params.yaml.

    ======================================  ==========================================================================
    ``builtin``                             photographs that are included in installed packages
    a path                                  a folder with its subfolders, a zip or tar archive, or one file
    ``s3://BUCKET/PREFIX``                  objects below the prefix, or the archive or file that it names
    ``https://HOST/PATH[#sha256=HEX]``      an archive or a file; ``http://`` too
    ``dvc:[REPOSITORY#]PATH[@REVISION]``    files that DVC tracks, read from its remote
    ======================================  ==========================================================================

    Raises:
        UserError: the address is of an unknown kind, or contains credentials; the message does not repeat them.
    """
    _refuse_secrets(address, key)
    if address == "builtin":
        from pipeline.sources.kinds.builtin import BuiltinPhotographs

        return BuiltinPhotographs()
    if address.startswith("s3://"):
        from pipeline.sources.kinds.s3 import Bucket

        return Bucket(address, key)
    if address.startswith(("http://", "https://")):
        from pipeline.sources.kinds.http import Download

        return Download(address, key)
    if address.startswith("dvc:"):
        from pipeline.sources.kinds.dvc import Tracked

        return Tracked(address, key)
    if "://" in address:
        scheme = address.split("://")[0]
        raise UserError(
            f"{key}: {address}: '{scheme}' is not supported; use builtin, a path, s3://, https://, http:// or dvc:"
        )
    from pipeline.sources.kinds.folder import Folder

    return Folder(Path(find_input(address)).expanduser(), key)


def _refuse_secrets(address: str, key: str) -> None:
    """Refuses an address that contains credentials, because addresses are in params.yaml, dvc.lock and the manifest."""
    url = address.removeprefix("dvc:")
    if "://" not in url:
        return
    scheme, rest = url.split("://", 1)
    try:
        user = rest.split("/", 1)[0].rpartition("@")[0]
        names = [name for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True)]
    except ValueError:
        raise UserError(f"{key}: an address of {scheme} that cannot be read; look at it") from None
    # The user in ssh://git@host is a name and not a secret.
    if (user and not (scheme.endswith("ssh") and ":" not in user)) or any(_SECRET.search(name) for name in names):
        raise UserError(
            f"{key}: an address of {scheme} with a user, password, token or signature in it, which params.yaml is no "
            "place for: take it out, and use the usual one (s3: AWS_PROFILE or ~/.aws; https: ~/.netrc)"
        )
