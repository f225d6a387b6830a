"""Packed images: one folder a split, with its pixels in shards and an index that says which shard holds what.

A shard is a safetensors file: it is memory-mapped (a crop reads only its own rows, and pixels never count as the
process's own memory), holds nothing that can be executed and is read by everything that reads torch. The index carries
the SHA-256 of each shard, so damage is noticed and named.

    PACK/NAME.safetensors    clean/IMAGE     (C, H, W) uint8, uint16 or float32
                             degraded/IMAGE  (C', h, w); not in a training pack whose degradations are drawn afresh
    PACK/index.json          shards in order, each with its SHA-256 and its entries in order

Degraded images may leave [0, 1], and may have more channels (a mask) or another size (super-resolution).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from components.data.images import to_float

SHARD_BYTES = 1 << 27
"""128 MiB of pixels: a shard is full once it holds as much. What a writer keeps in memory, and a file large enough for
any storage."""

_INDEX = "index.json"


@dataclass(frozen=True)
class Entry:
    """One image, or pair: its name, the scene it shows, and its size.

    Attributes:
        name: unique in its pack.
        scene: images of one scene are never on both sides of a split, and are clustered in intervals.
        height, width: of the clean image, in pixels.
        label: the class, where images are to be recognised.
    """

    name: str
    scene: str
    height: int
    width: int
    label: int | None = None


@dataclass(frozen=True)
class Shard:
    """A file of a pack, its SHA-256, and what it holds, in order."""

    file: str
    sha256: str
    entries: tuple[Entry, ...]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class ShardWriter:
    """Writes entries into shards of a folder as they come, with at most one shard in memory.

    Several writers may fill one folder, each with a prefix of its own; `write_index` then joins what they wrote.

    Attributes:
        folder: exists.
        prefix: of the names of this writer's files.
        shard_bytes: a shard is closed once it holds as many bytes of pixels.
    """

    folder: Path
    prefix: str = "images"
    shard_bytes: int = SHARD_BYTES
    shards: list[Shard] = field(default_factory=list, init=False)
    _tensors: dict[str, np.ndarray] = field(default_factory=dict, init=False)
    _entries: list[Entry] = field(default_factory=list, init=False)
    _bytes: int = field(default=0, init=False)

    def add(self, entry: Entry, clean: np.ndarray, degraded: np.ndarray | None = None) -> None:
        """Takes one image ``(C, H, W)``, or a pair.

        Raises:
            ValueError: the folder cannot be written.
        """
        self._entries.append(entry)
        for kind, image in (("clean", clean), ("degraded", degraded)):
            if image is not None:
                self._tensors[f"{kind}/{entry.name}"] = np.ascontiguousarray(image)
                self._bytes += image.nbytes
        if self._bytes >= self.shard_bytes:
            self._write()

    def close(self) -> list[Shard]:
        """Writes what is left; gives all shards."""
        if self._entries:
            self._write()
        return self.shards

    def _write(self) -> None:
        path = self.folder / f"{self.prefix}-{len(self.shards):05d}.safetensors"
        try:
            save_file(self._tensors, path)
        except SafetensorError as error:  # a full disk, for instance
            raise ValueError(f"{path}: cannot be written ({error})") from error
        self.shards.append(Shard(path.name, file_sha256(path), tuple(self._entries)))
        self._tensors, self._entries, self._bytes = {}, [], 0


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """Makes a pack of the shards in a folder.

    Raises:
        ValueError: two entries have one name, or the folder cannot be written.
    """
    names = [entry.name for shard in shards for entry in shard.entries]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{folder}: two images are called {twice}; rename one of them")
    index = {"shards": [asdict(shard) for shard in shards]}
    try:
        (folder / _INDEX).write_text(json.dumps(index, indent=1) + "\n")
    except OSError as error:
        raise ValueError(f"{folder / _INDEX}: cannot be written ({error.strerror})") from error


def write_pack(
    folder: Path, entries: Sequence[Entry], clean: Sequence[np.ndarray], degraded: Sequence[np.ndarray] = ()
) -> None:
    """Writes a pack into an existing empty folder.

    Args:
        folder: where to.
        entries: one an image, in order.
        clean: ``(C, H, W)`` uint8, uint16 or float32 each.
        degraded: ``(C', h, w)`` each; none where degradations are drawn fresh.

    Raises:
        ValueError: the folder cannot be written.
    """
    writer = ShardWriter(folder)
    nothing: list[np.ndarray | None] = [None] * len(entries)
    pairs: Sequence[np.ndarray | None] = degraded or nothing
    for entry, image, other in zip(entries, clean, pairs, strict=True):
        writer.add(entry, image, other)
    write_index(folder, writer.close())


class Pack:
    """A pack opened for reading. Only what is asked for is read.

    Raises:
        ValueError: the folder holds no pack, or a file of it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}
        try:
            index: dict[str, Any] = json.loads((folder / _INDEX).read_text())
            self.shards = [
                Shard(shard["file"], shard["sha256"], tuple(Entry(**entry) for entry in shard["entries"]))
                for shard in index["shards"]
            ]
            missing = [shard.file for shard in self.shards if not (folder / Path(shard.file).name).is_file()]
        except FileNotFoundError:
            raise ValueError(f"{folder}: no packed images here; run 'eqreg preprocess' first") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder}: damaged pack ({error}); run 'eqreg preprocess' again") from error
        if missing:
            raise ValueError(f"{folder / missing[0]}: this shard is missing; run 'eqreg preprocess' again")
        self.entries = [entry for shard in self.shards for entry in shard.entries]
        self._shard_of = [shard for shard in self.shards for _ in shard.entries]

    def verify(self) -> None:
        """Compares every byte with the recorded SHA-256.

        Raises:
            ValueError: they differ.
        """
        for shard in self.shards:
            if file_sha256(self.folder / shard.file) != shard.sha256:
                raise ValueError(
                    f"{self.folder / shard.file}: damaged, its SHA-256 is not the recorded one; run 'eqreg preprocess' "
                    "again"
                )

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def holds_pairs(self) -> bool:
        """Whether degraded images lie beside the clean ones."""
        return bool(self.entries) and f"degraded/{self.entries[0].name}" in self._open(0).keys()  # noqa: SIM118

    def clean(self, index: int) -> np.ndarray:
        """The clean image as ``(C, H, W)`` float32 in [0, 1]."""
        return to_float(self._open(index).get_tensor(f"clean/{self.entries[index].name}"))

    def degraded(self, index: int) -> np.ndarray:
        """The degraded image as ``(C', h, w)`` float32."""
        return to_float(self._open(index).get_tensor(f"degraded/{self.entries[index].name}"))

    def clean_crop(self, index: int, top: int, left: int, size: int) -> np.ndarray:
        """``(C, size, size)`` float32 in [0, 1]: a part of the clean image, read without the rest of it."""
        return self._crop("clean", index, top, left, size)

    def degraded_crop(self, index: int, top: int, left: int, size: int) -> np.ndarray:
        """``(C', size, size)`` float32: a part of the degraded image, in its own pixels."""
        return self._crop("degraded", index, top, left, size)

    def stored(self, index: int) -> np.ndarray:
        """The clean image as it lies in its shard, in its own type."""
        image: np.ndarray = self._open(index).get_tensor(f"clean/{self.entries[index].name}")
        return image

    def pairs(self) -> Iterator[tuple[Entry, np.ndarray, np.ndarray]]:
        """(entry, degraded, clean) of every pair, in order."""
        for index, entry in enumerate(self.entries):
            yield entry, self.degraded(index), self.clean(index)

    def _crop(self, kind: str, index: int, top: int, left: int, size: int) -> np.ndarray:
        pixels = self._open(index).get_slice(f"{kind}/{self.entries[index].name}")
        return to_float(pixels[:, top : top + size, left : left + size])

    def _open(self, index: int) -> Any:
        """The shard of an entry, mapped into memory at its first use."""
        name = self._shard_of[index].file
        if name not in self._files:
            try:
                self._files[name] = safe_open(self.folder / name, framework="numpy")
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"{self.folder / name}: damaged shard ({error}); run 'eqreg preprocess' again"
                ) from error
        return self._files[name]
