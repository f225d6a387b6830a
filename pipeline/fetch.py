"""Stage 1: the files of ``fetch.source`` and ``fetch.auxiliary`` -> data/raw, with a manifest of SHA-256 sums."""

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

from pipeline.console import console
from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.paths import MANIFEST, RAW, SCRATCH, existing, replaced_folder
from pipeline.storage import open_source
from pipeline.storage.archives import DamagedError, Limits, archive_kind, unpack
from pipeline.storage.names import KINDS, is_taken, skipped_text
from pipeline.storage.objects import InterruptedTransferError, Listing, RemoteObject, Source
from pipeline.storage.transfer import Fetched, download, put

CACHE = SCRATCH / "fetch"


@dataclass(frozen=True)
class Place:
    """One of the two addresses.

    Attributes:
        key: of params.yaml.
        address: its value.
        kind: the folder of data/raw, and the list in the manifest.
    """

    key: str
    address: str
    kind: str

    @property
    def where(self) -> str:
        return f"{self.key}: {self.address}"


def fetch(params: Params) -> None:
    """Brings every file of the sources and records name, size, SHA-256 and ETag in ``manifest.json``.

    Files go to data/raw/images and data/raw/auxiliary, and the manifest lists them as ``images`` and ``auxiliary``.
    Where the address names an archive, they are its members, and ``images_archive`` records the archive itself.
    An interrupted fetch goes on where it stopped; what data/raw holds already is not fetched again.
    """
    max_bytes = int(params.fetch.max_gib * 2**30)
    manifest: dict[str, Any] = {"source": params.fetch.source}
    before = _manifest()
    caches = []
    places = _places(params)
    arrived = []
    for place in places:
        source = open_source(place.address, place.key)
        listing = source.listing()
        cache = CACHE / hashlib.sha256(place.address.encode()).hexdigest()[:16]
        caches.append(cache)
        _tell_changes(place, _differences(source, listing, _recorded(before, place)) if not source.is_local else {})
        _reuse(place, listing, before, cache)
        arrived.append((place, listing, download(source, listing, cache, place.where, max_bytes)))
    with replaced_folder(RAW) as folder:
        for place, listing, files in arrived:
            target = folder / place.kind
            target.mkdir()
            if place.kind == "auxiliary":
                manifest["auxiliary_source"] = place.address
            manifest |= _lay_down(place, listing, files, target, Limits(max_bytes))
        (folder / MANIFEST.name).write_text(json.dumps(manifest, indent=1) + "\n")
    for place in places:
        records = manifest[place.kind]
        size = sum(record["bytes"] for record in records) / 1e6
        console.print(f"{len(records)} files ({size:.1f} MB) of '{place.address}' in {RAW / place.kind}", markup=False)
    for cache in caches:
        shutil.rmtree(cache, ignore_errors=True)


def changes_at_source(params: Params) -> list[str]:
    """What differs between the sources, as they are now, and data/raw: 'changed: a.png', 'new: ...', 'gone: ...'.

    Sizes and ETags are compared; contents too where the source is a folder.

    Raises:
        UserError: nothing was fetched yet, or a source cannot be listed.
    """
    existing(MANIFEST, "fetch")
    manifest = _manifest()
    lines = []
    for place in _places(params):
        if (recorded := _recorded(manifest, place)) is None:
            lines.append(f"never fetched: {place.where}")
            continue
        source = open_source(place.address, place.key)
        found = _differences(source, source.listing(), recorded)
        lines += [f"{what}: {name}" for what, names in found.items() for name in names]
    return lines


def check(params: Params) -> None:
    """Says that the sources are as they were when they were fetched.

    Raises:
        UserError: they are not, naming what differs.
    """
    if lines := changes_at_source(params):
        more = f" and {len(lines) - 20} more" if len(lines) > 20 else ""
        raise UserError(
            f"{RAW} is not what its sources hold now: {', '.join(lines[:20])}{more}\n"
            "run 'dvc repro --force --single-item fetch' to take it"
        )
    console.print(f"{RAW} is what its sources hold")


def _places(params: Params) -> list[Place]:
    auxiliary = params.fetch.auxiliary
    places = [Place("fetch.source", params.fetch.source, "images")]
    return places + ([Place("fetch.auxiliary", auxiliary, "auxiliary")] if auxiliary else [])


def _lay_down(place: Place, listing: Listing, files: list[Fetched], target: Path, limits: Limits) -> dict[str, Any]:
    """Puts fetched files, or the members of the one archive, into ``target``; gives their part of the manifest."""
    skipped = listing.skipped
    lists: dict[str, Any] = {}
    kind = archive_kind(files[0].path, listing.objects[0].name) if listing.is_file else None
    if kind:
        try:
            members, skipped = unpack(files[0].path, kind, target, limits, place.where)
        except DamagedError:
            files[0].path.unlink()  # a plain web server has no sum that tells
            raise
        lists[place.kind] = [{"name": m.name, "bytes": m.size, "sha256": m.sha256} for m in members]
        lists[f"{place.kind}_archive"] = _record(files[0])
    else:
        if listing.is_file and not is_taken(listing.objects[0].name):
            raise UserError(f"{place.where}: neither an archive nor a file of a known kind ({KINDS})")
        for file in files:
            path = target / file.item.name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file.path, path)
            except OSError:
                shutil.copyfile(file.path, path)
        lists[place.kind] = [_record(file) for file in files]
    if skipped:
        console.print(f"not taken from '{place.address}': {skipped_text(skipped)}", markup=False)
    return lists


def _record(file: Fetched) -> dict[str, Any]:
    record = {"name": file.item.name, "bytes": file.size, "sha256": file.sha256}
    return record | ({"etag": file.item.etag} if file.item.etag else {})


def _manifest() -> dict[str, Any]:
    """The manifest of data/raw; empty if there is none, or none that can be read."""
    try:
        manifest = json.loads(MANIFEST.read_bytes())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _recorded(manifest: dict[str, Any], place: Place) -> dict[str, dict[str, Any]] | None:
    """name -> record of the objects that data/raw was made of; None if it was made of another source."""
    if manifest.get("source" if place.kind == "images" else "auxiliary_source") != place.address:
        return None
    archive = manifest.get(f"{place.kind}_archive")
    try:
        records = [archive] if archive else manifest[place.kind]
        return {record["name"]: {"etag": None, **record, "sha256": record["sha256"]} for record in records}
    except (KeyError, TypeError):
        return None


def _differences(source: Source, listing: Listing, recorded: dict[str, dict[str, Any]] | None) -> dict[str, list[str]]:
    """What is changed, new and gone at the source."""
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
        with closing(source.read(item, 0, None).chunks) as chunks:
            for chunk in chunks:
                digest.update(chunk)
    except InterruptedTransferError as error:
        raise UserError(f"{item.name}: {error}") from error
    return digest.hexdigest()


def _tell_changes(place: Place, found: dict[str, list[str]]) -> None:
    for what, names in found.items():
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        console.print(f"{place.where}: {what} since the last fetch: {', '.join(names[:5])}{more}", markup=False)


def _reuse(place: Place, listing: Listing, before: dict[str, Any], cache: Path) -> None:
    """Takes from data/raw what was fetched before and is, by its ETag, the same at the source."""
    recorded = _recorded(before, place) or {}
    if listing.is_file and f"{place.kind}_archive" in before:
        return
    cache.mkdir(parents=True, exist_ok=True)
    for item in _with_etags(listing):
        record = recorded.get(item.name)
        if record and record["etag"] == item.etag and record["bytes"] == item.size:
            put(cache, item, RAW / place.kind / item.name, record["sha256"])


def _with_etags(listing: Listing) -> Iterator[RemoteObject]:
    return (item for item in listing.objects if item.etag)
