"""Stage 1: fetches ``fetch.source`` and ``fetch.auxiliary`` to data/raw and writes a manifest of SHA-256 sums."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.brief import short_digest
from pipeline.config.schema import Params
from pipeline.console import console
from pipeline.errors import UserError
from pipeline.paths import MANIFEST, RAW, SCRATCH, existing, replaced_folder
from pipeline.sources.archives import DamagedError, Limits, archive_kind, unpack
from pipeline.sources.download import Fetched, download, put
from pipeline.sources.names import KINDS, is_taken, skipped_text
from pipeline.sources.open import open_source
from pipeline.sources.source import InterruptedTransferError, Listing, RemoteObject, Source

CACHE = SCRATCH / "fetch"


@dataclass(frozen=True)
class SourceAddress:
    """One of the two addresses that files are fetched from.

    Attributes:
        key: key of params.yaml.
        address: value of that key.
        kind: name of the folder in data/raw and of the list in the manifest, "images" or "auxiliary".
    """

    key: str
    address: str
    kind: str

    @property
    def where(self) -> str:
        """Returns "KEY: ADDRESS", the beginning of every message about this address."""
        return f"{self.key}: {self.address}"


def fetch(params: Params) -> None:
    """Fetches every file of the sources and records its name, size, SHA-256 and ETag in ``manifest.json``.

    Files go to data/raw/images and data/raw/auxiliary, and the manifest lists them under ``images`` and ``auxiliary``.
    If the address names an archive, the files are its members, and ``images_archive`` (or ``auxiliary_archive``)
    records the archive itself. An interrupted fetch resumes where it stopped. A file that is already in data/raw and
    has not changed at the source is not fetched again.
    """
    max_bytes = int(params.fetch.max_gib * 2**30)
    manifest: dict[str, Any] = {"source": params.fetch.source}
    before = _manifest()
    caches = []
    addresses = _addresses(params)
    arrived = []
    for address in addresses:
        source = open_source(address.address, address.key)
        listing = source.listing()
        cache = CACHE / short_digest(address.address, digits=16)
        caches.append(cache)
        _tell_changes(address, _differences(source, listing, _recorded(before, address)) if not source.is_local else {})
        _reuse(address, listing, before, cache)
        arrived.append((address, listing, download(source, listing, cache, address.where, max_bytes)))
    with replaced_folder(RAW) as folder:
        for address, listing, files in arrived:
            target = folder / address.kind
            target.mkdir()
            if address.kind == "auxiliary":
                manifest["auxiliary_source"] = address.address
            manifest |= _lay_down(address, listing, files, target, Limits(max_bytes))
        (folder / MANIFEST.name).write_text(json.dumps(manifest, indent=1) + "\n")
    for address in addresses:
        records = manifest[address.kind]
        size = sum(record["bytes"] for record in records) / 1e6
        console.print(
            f"{len(records)} files ({size:.1f} MB) of '{address.address}' in {RAW / address.kind}", markup=False
        )
    for cache in caches:
        shutil.rmtree(cache, ignore_errors=True)


def changes_at_source(params: Params) -> list[str]:
    """Lists the differences between the present state of the sources and data/raw.

    Sizes and ETags are compared. The contents are compared, too, if the source is local.

    Returns:
        One line for each difference: "changed: NAME", "new: NAME", "gone: NAME" or "never fetched: KEY: ADDRESS".

    Raises:
        UserError: nothing was fetched yet, or a source cannot be listed.
    """
    existing(MANIFEST, "fetch")
    manifest = _manifest()
    lines = []
    for address in _addresses(params):
        if (recorded := _recorded(manifest, address)) is None:
            lines.append(f"never fetched: {address.where}")
            continue
        source = open_source(address.address, address.key)
        found = _differences(source, source.listing(), recorded)
        lines += [f"{what}: {name}" for what, names in found.items() for name in names]
    return lines


def check(params: Params) -> None:
    """Checks that the sources have not changed since they were fetched, and prints that.

    Raises:
        UserError: the sources have changed. The message names the files that differ.
    """
    if lines := changes_at_source(params):
        more = f" and {len(lines) - 20} more" if len(lines) > 20 else ""
        raise UserError(
            f"{RAW} is not what its sources hold now: {', '.join(lines[:20])}{more}\n"
            "run 'dvc repro --force --single-item fetch' to take it"
        )
    console.print(f"{RAW} is what its sources hold")


def _addresses(params: Params) -> list[SourceAddress]:
    auxiliary = params.fetch.auxiliary
    addresses = [SourceAddress("fetch.source", params.fetch.source, "images")]
    return addresses + ([SourceAddress("fetch.auxiliary", auxiliary, "auxiliary")] if auxiliary else [])


def _lay_down(
    address: SourceAddress, listing: Listing, files: list[Fetched], target: Path, limits: Limits
) -> dict[str, Any]:
    """Puts the fetched files into ``target``; an archive is unpacked there.

    Returns:
        The entries of the manifest for this address.
    """
    skipped = listing.skipped
    lists: dict[str, Any] = {}
    kind = archive_kind(files[0].path, listing.objects[0].name) if listing.is_file else None
    if kind:
        try:
            members, skipped = unpack(files[0].path, kind, target, limits, address.where)
        except DamagedError:
            files[0].path.unlink()  # a plain web server reports no checksum, so the downloaded file may be damaged
            raise
        lists[address.kind] = [{"name": m.name, "bytes": m.size, "sha256": m.sha256} for m in members]
        lists[f"{address.kind}_archive"] = _record(files[0])
    else:
        if listing.is_file and not is_taken(listing.objects[0].name):
            raise UserError(f"{address.where}: neither an archive nor a file of a known kind ({KINDS})")
        for file in files:
            path = target / file.item.name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file.path, path)
            except OSError:
                shutil.copyfile(file.path, path)
        lists[address.kind] = [_record(file) for file in files]
    if skipped:
        console.print(f"not taken from '{address.address}': {skipped_text(skipped)}", markup=False)
    return lists


def _record(file: Fetched) -> dict[str, Any]:
    record = {"name": file.item.name, "bytes": file.size, "sha256": file.sha256}
    return record | ({"etag": file.item.etag} if file.item.etag else {})


def _manifest() -> dict[str, Any]:
    """Returns the manifest of data/raw, or an empty dictionary if it is missing or unreadable."""
    try:
        manifest = json.loads(MANIFEST.read_bytes())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _recorded(manifest: dict[str, Any], address: SourceAddress) -> dict[str, dict[str, Any]] | None:
    """Maps the name of each object that data/raw was made from to its record; None if the source was another one."""
    if manifest.get("source" if address.kind == "images" else "auxiliary_source") != address.address:
        return None
    archive = manifest.get(f"{address.kind}_archive")
    try:
        records = [archive] if archive else manifest[address.kind]
        return {record["name"]: {"etag": None, **record, "sha256": record["sha256"]} for record in records}
    except (KeyError, TypeError):
        return None


def _differences(source: Source, listing: Listing, recorded: dict[str, dict[str, Any]] | None) -> dict[str, list[str]]:
    """Returns the names of the objects that are changed, new and gone at the source."""
    if recorded is None:
        return {}
    items = {item.name: item for item in listing.objects}
    changed = [name for name, item in items.items() if name in recorded and not _is_same(source, item, recorded[name])]
    found = {
        "changed": changed,
        "new": [name for name in items if name not in recorded],
        "gone": [name for name in recorded if name not in items],
    }
    return {what: names for what, names in found.items() if names}


def _is_same(source: Source, item: RemoteObject, record: dict[str, Any]) -> bool:
    if item.size is not None and item.size != record["bytes"]:
        return False
    if item.sha256 and item.sha256 != record["sha256"]:
        return False
    if source.is_local:
        return _sha256(source, item) == record["sha256"]
    return item.etag == record["etag"]


def _sha256(source: Source, item: RemoteObject) -> str:
    digest = hashlib.sha256()
    try:
        reply = source.read(item, 0)
        assert reply.chunks is not None  # of a local source
        with closing(reply.chunks) as chunks:
            for chunk in chunks:
                digest.update(chunk)
    except InterruptedTransferError as error:
        raise UserError(f"{item.name}: {error}") from error
    return digest.hexdigest()


def _tell_changes(address: SourceAddress, found: dict[str, list[str]]) -> None:
    for what, names in found.items():
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        console.print(f"{address.where}: {what} since the last fetch: {', '.join(names[:5])}{more}", markup=False)


def _reuse(address: SourceAddress, listing: Listing, before: dict[str, Any], cache: Path) -> None:
    """Copies files from data/raw to the cache if their ETag and size at the source have not changed."""
    recorded = _recorded(before, address) or {}
    if listing.is_file and f"{address.kind}_archive" in before:
        return
    cache.mkdir(parents=True, exist_ok=True)
    for item in _with_etags(listing):
        record = recorded.get(item.name)
        if record and record["etag"] == item.etag and record["bytes"] == item.size:
            put(cache, item, RAW / address.kind / item.name, record["sha256"])


def _with_etags(listing: Listing) -> Iterator[RemoteObject]:
    return (item for item in listing.objects if item.etag)
