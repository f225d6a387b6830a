"""Reads SHA-256 sums that a source has beside its files: ``SHA256SUMS``, or a ``manifest.json`` as fetch writes it."""

from __future__ import annotations

import json
import re

from pipeline.errors import UserError

SUMS, MANIFEST = "SHA256SUMS", "manifest.json"
LARGEST = 64 << 20  # bytes; larger files of these names are not read

_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)")


def read_sums(name: str, data: bytes, where: str) -> dict[str, str]:
    """Reads the SHA-256 sums in a file called `SUMS` or `MANIFEST`.

    A ``manifest.json`` in another format than that of fetch yields no sums.

    Args:
        name: name of the file.
        data: bytes of the file.
        where: name of the source in messages.

    Returns:
        Relative name -> SHA-256.

    Raises:
        UserError: ``SHA256SUMS`` does not hold sums.
    """
    if name == MANIFEST:
        try:
            records = json.loads(data)["images"]
            sums = {record["name"]: record["sha256"].lower() for record in records}
        except (ValueError, KeyError, TypeError, AttributeError):
            return {}
        return sums | {f"images/{name}": value for name, value in sums.items()}
    sums = {}
    for number, line in enumerate(data.decode(errors="replace").splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match:
            sums[match[2]] = match[1].lower()
        elif line.strip() and not line.startswith("#"):
            raise UserError(f"{where}: {SUMS}, line {number}: expected a SHA-256 and a name; mend or remove the file")
    return sums
