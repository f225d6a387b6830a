"""Packs at a place: PACKS/HASH holds the files of data/packed by their names and, written last, a bill of them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from components.data.packs import Pack, file_sha256
from pipeline.errors import UserError
from pipeline.storage.names import unsafe
from pipeline.storage.places import Place

_BILL = "bill.json"
_THREADS = 4  # files at a time; a large one goes to S3 in parts by several more


@dataclass(frozen=True)
class Item:
    """A file of a delivery: relative POSIX name, size in bytes, SHA-256."""

    name: str
    size: int
    sha256: str


class DamagedError(Exception):
    """Files that are not what they should be; says which."""


def open_packs(packed: Path) -> dict[str, Pack]:
    """Relative folder -> pack."""
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
    return f"packs/{hash_}/{name}"


def is_whole(place: Place, hash_: str) -> bool:
    """Whether the bill is there and all that it lists."""
    try:
        items = read_bill(place, hash_)
    except DamagedError:
        return False
    return {object_name(hash_, item.name) for item in items} <= set(place.names(f"packs/{hash_}"))


def publish(packed: Path, packs: dict[str, Pack], place: Place, hash_: str) -> None:
    """Brings the files of all packs to the place, then the bill."""
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
        list(pool.map(lambda item: place.upload(packed / item.name, object_name(hash_, item.name)), items))
    bill = {item.name: [item.size, item.sha256] for item in items}
    place.write(object_name(hash_, _BILL), json.dumps(bill, indent=1).encode())


def read_bill(place: Place, hash_: str) -> list[Item]:
    name = object_name(hash_, _BILL)
    try:
        bill = json.loads(place.read(name))
        items = [Item(file, int(size), str(sha256)) for file, (size, sha256) in bill.items()]
    except FileNotFoundError:
        raise DamagedError(f"{name}: is not there") from None
    except (ValueError, AttributeError, TypeError):
        raise DamagedError(f"{name}: is damaged") from None
    if not items or any(unsafe(item.name) for item in items):
        raise DamagedError(f"{name}: is damaged")
    return items


def withdraw(place: Place, hash_: str) -> None:
    """Takes the bill away, so that the packs are brought anew."""
    place.delete(object_name(hash_, _BILL))
