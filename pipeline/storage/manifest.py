"""Packs in an artifact store: packs/HASH holds the files of data/packed and a manifest, which is written last."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from components.data.packs import Pack, file_sha256
from pipeline.errors import UserError
from pipeline.sources.names import unsafe
from pipeline.storage.store import ArtifactStore

_BILL = "bill.json"
_THREADS = 4  # parallel uploads of files; a large file is uploaded to S3 in parts by further threads


@dataclass(frozen=True)
class Item:
    """A file in the manifest.

    Attributes:
        name: relative POSIX path.
        size: size in bytes.
        sha256: SHA-256 of the file.
    """

    name: str
    size: int
    sha256: str


class DamagedError(Exception):
    """Files are missing or damaged; the message names them."""


def open_packs(packed: Path) -> dict[str, Pack]:
    """Opens all packs below a folder.

    Returns:
        Relative folder -> pack.

    Raises:
        UserError: there are no packs, or an index is damaged.
    """
    try:
        packs = {
            index.parent.relative_to(packed).as_posix(): Pack(index.parent)
            for index in sorted(packed.rglob("index.json"))
        }
    except ValueError as error:
        raise UserError(str(error)) from error
    if not packs:
        raise UserError(f"{packed}: no packed images here; run 'eqreg preprocess' first")
    return packs


def object_name(hash_: str, name: str) -> str:
    """Returns the name of a file's object in the artifact store."""
    return f"packs/{hash_}/{name}"


def is_whole(artifact_store: ArtifactStore, hash_: str) -> bool:
    """Returns whether the artifact store holds the manifest and all files that it lists."""
    try:
        items = read_manifest_of(artifact_store, hash_)
    except DamagedError:
        return False
    return {object_name(hash_, item.name) for item in items} <= set(artifact_store.names(f"packs/{hash_}"))


def publish(packed: Path, packs: dict[str, Pack], artifact_store: ArtifactStore, hash_: str) -> None:
    """Uploads the files of all packs to the artifact store, and then the manifest.

    Args:
        packed: folder of the packs.
        packs: relative folder -> pack.
        artifact_store: store for the files.
        hash_: hash of the packs.

    Raises:
        UserError: a pack is damaged, or the artifact store refuses or does not answer.
    """
    items = []
    for folder, pack in packs.items():
        try:
            pack.verify()
        except ValueError as error:
            raise UserError(str(error)) from error
        sums = {shard.file: shard.sha256 for shard in pack.shards}
        sums["index.json"] = file_sha256(pack.folder / "index.json")
        items += [Item(f"{folder}/{file}", (pack.folder / file).stat().st_size, sha) for file, sha in sums.items()]
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda item: artifact_store.upload(packed / item.name, object_name(hash_, item.name)), items))
    manifest = {item.name: [item.size, item.sha256] for item in items}
    artifact_store.write(object_name(hash_, _BILL), json.dumps(manifest, indent=1).encode())


def read_manifest_of(artifact_store: ArtifactStore, hash_: str) -> list[Item]:
    """Reads the manifest of the packs with this hash.

    Raises:
        DamagedError: the manifest is missing or damaged.
    """
    name = object_name(hash_, _BILL)
    try:
        manifest = json.loads(artifact_store.read(name))
        items = [Item(file, int(size), str(sha256)) for file, (size, sha256) in manifest.items()]
    except FileNotFoundError:
        raise DamagedError(f"{name}: is not there") from None
    except (ValueError, AttributeError, TypeError):
        raise DamagedError(f"{name}: is damaged") from None
    if not items or any(unsafe(item.name) for item in items):
        raise DamagedError(f"{name}: is damaged")
    return items


def withdraw(artifact_store: ArtifactStore, hash_: str) -> None:
    """Deletes the manifest, so that the packs are uploaded again."""
    artifact_store.delete(object_name(hash_, _BILL))
