"""Packed images: one folder per split, with the pixels in shards and an index of the content of each shard.

A shard is a safetensors file. It is memory-mapped: a crop reads only its own rows, and pixels do not count as private
memory of the process. It contains nothing executable, and common tools that read torch tensors can read it. The index
holds the SHA-256 of each shard, so damage is detected and reported.

    PACK/NAME.safetensors    clean/IMAGE     (C, H, W) uint8, uint16 or float32
                             degraded/IMAGE  (C', h, w); absent in a training pack that is degraded during training
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

from components.data.readers.images import to_float
from components.formats import KEY, NewerFormatError, check_format

SHARD_BYTES = 1 << 27
"""128 MiB of pixels: a shard is closed when it holds this many bytes. A writer keeps at most one shard in memory. Files
of this size are large enough for any storage."""

_INDEX = "index.json"
FORMAT = 1
"""Version of the layout of a pack."""


@dataclass(frozen=True)
class Entry:
    """One image, or pair: its name, its scene and its size.

    Attributes:
        name: unique in its pack.
        scene: name of the scene. All images of one scene are on the same side of a split, and form one cluster in
            confidence intervals.
        height: height of the clean image in pixels.
        width: width of the clean image in pixels.
        label: the class, for classification.
        noise_level: standard deviation of the noise in a degraded image, in grey levels of 255; None if the task gives
            none. The index then has no such key.
    """

    name: str
    scene: str
    height: int
    width: int
    label: int | None = None
    noise_level: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the entry as the index holds it; an entry without a noise level is as in earlier releases."""
        values = asdict(self)
        return values if self.noise_level is not None else {key: values[key] for key in values if key != "noise_level"}


@dataclass(frozen=True)
class Shard:
    """A file of a pack.

    Attributes:
        file: name of the file.
        sha256: its SHA-256.
        entries: its entries, in order.
    """

    file: str
    sha256: str
    entries: tuple[Entry, ...]


def file_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class ShardWriter:
    """Writes entries into the shards of a folder one by one, with at most one shard in memory.

    Several writers may write to one folder if each has its own prefix. `write_index` then joins their shards.

    Attributes:
        folder: an existing folder.
        prefix: prefix of the names of this writer's files.
        shard_bytes: a shard is closed when it holds this many bytes of pixels.
        shards: the shards written so far.
    """

    folder: Path
    prefix: str = "images"
    shard_bytes: int = SHARD_BYTES
    shards: list[Shard] = field(default_factory=list, init=False)
    _tensors: dict[str, np.ndarray] = field(default_factory=dict, init=False)
    _entries: list[Entry] = field(default_factory=list, init=False)
    _bytes: int = field(default=0, init=False)

    def add(self, entry: Entry, clean: np.ndarray, degraded: np.ndarray | None = None) -> None:
        """Add one image or pair.

        Args:
            entry: its entry.
            clean: the clean image, ``(C, H, W)``.
            degraded: the degraded image of a pair, ``(C', h, w)``.

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
        """Write the last shard and return all shards."""
        if self._entries:
            self._write()
        return self.shards

    def _write(self) -> None:
        path = self.folder / f"{self.prefix}-{len(self.shards):05d}.safetensors"
        try:
            save_file(self._tensors, path)
        except SafetensorError as error:  # for example a full disk
            raise ValueError(f"{path}: cannot be written ({error})") from error
        self.shards.append(Shard(path.name, file_sha256(path), tuple(self._entries)))
        self._tensors, self._entries, self._bytes = {}, [], 0


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """Write the index that makes the shards of a folder a pack.

    Raises:
        ValueError: two entries have the same name, or the folder cannot be written.
    """
    names = [entry.name for shard in shards for entry in shard.entries]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{folder}: two images are called {twice}; rename one of them")
    listed = [{**vars(shard), "entries": [entry.as_dict() for entry in shard.entries]} for shard in shards]
    index = {KEY: FORMAT, "shards": listed}
    try:
        (folder / _INDEX).write_text(json.dumps(index, indent=1) + "\n")
    except OSError as error:
        raise ValueError(f"{folder / _INDEX}: cannot be written ({error.strerror})") from error


def write_pack(
    folder: Path, entries: Sequence[Entry], clean: Sequence[np.ndarray], degraded: Sequence[np.ndarray] = ()
) -> None:
    """Write a pack into an existing empty folder.

    Args:
        folder: the folder.
        entries: one entry per image, in order.
        clean: ``(C, H, W)`` uint8, uint16 or float32 each.
        degraded: ``(C', h, w)`` each; empty if images are degraded during training.

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
    """A pack opened for reading; images are read on access.

    Attributes:
        folder: folder of the pack.
        shards: its shards, in order.
        entries: entries of all shards, in order.

    Raises:
        ValueError: the folder holds no pack, or a file of the pack is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}
        try:
            index: dict[str, Any] = json.loads((folder / _INDEX).read_text())
            shards = index["shards"]
            check_format(index, FORMAT, str(folder))
            self.shards = [
                Shard(shard["file"], shard["sha256"], tuple(Entry(**entry) for entry in shard["entries"]))
                for shard in shards
            ]
            missing = [shard.file for shard in self.shards if not (folder / Path(shard.file).name).is_file()]
        except FileNotFoundError:
            raise ValueError(f"{folder}: no packed images here; run 'eqreg preprocess' first") from None
        except NewerFormatError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder}: damaged pack ({error}); run 'eqreg preprocess' again") from error
        if missing:
            raise ValueError(f"{folder / missing[0]}: this shard is missing; run 'eqreg preprocess' again")
        self.entries = [entry for shard in self.shards for entry in shard.entries]
        self._shard_of = [shard for shard in self.shards for _ in shard.entries]

    def verify(self) -> None:
        """Compare the SHA-256 of every shard with the recorded one.

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
        """Whether the pack also holds degraded images."""
        return bool(self.entries) and f"degraded/{self.entries[0].name}" in self._open(0).keys()  # noqa: SIM118

    def clean(self, index: int) -> np.ndarray:
        """Return the clean image as ``(C, H, W)`` float32 in [0, 1]."""
        return to_float(self._open(index).get_tensor(f"clean/{self.entries[index].name}"))

    def degraded(self, index: int) -> np.ndarray:
        """Return the degraded image as ``(C', h, w)`` float32."""
        return to_float(self._open(index).get_tensor(f"degraded/{self.entries[index].name}"))

    def clean_crop(self, index: int, top: int, left: int, size: int) -> np.ndarray:
        """Read a crop of the clean image, ``(C, size, size)`` float32 in [0, 1], without the rest of the image.

        Args:
            index: index of the entry.
            top: first row of the crop.
            left: first column of the crop.
            size: side of the crop.
        """
        return self._crop("clean", index, top, left, size)

    def degraded_crop(self, index: int, top: int, left: int, size: int) -> np.ndarray:
        """Read a crop of the degraded image, ``(C', size, size)`` float32; all arguments are in its own pixels.

        Args:
            index: index of the entry.
            top: first row of the crop.
            left: first column of the crop.
            size: side of the crop.
        """
        return self._crop("degraded", index, top, left, size)

    def stored(self, index: int) -> np.ndarray:
        """Return the clean image in the dtype in which it is stored."""
        image: np.ndarray = self._open(index).get_tensor(f"clean/{self.entries[index].name}")
        return image

    def pairs(self) -> Iterator[tuple[Entry, np.ndarray, np.ndarray]]:
        """Yield (entry, degraded, clean) of every pair, in order."""
        for index, entry in enumerate(self.entries):
            yield entry, self.degraded(index), self.clean(index)

    def _crop(self, kind: str, index: int, top: int, left: int, size: int) -> np.ndarray:
        pixels = self._open(index).get_slice(f"{kind}/{self.entries[index].name}")
        return to_float(pixels[:, top : top + size, left : left + size])

    def _open(self, index: int) -> Any:
        """Return the shard of an entry; the shard is memory-mapped at its first use."""
        name = self._shard_of[index].file
        if name not in self._files:
            try:
                self._files[name] = safe_open(self.folder / name, framework="numpy")
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"{self.folder / name}: damaged shard ({error}); run 'eqreg preprocess' again"
                ) from error
        return self._files[name]


def read_auxiliary(packed: Path, part: str) -> PackedArrays | None:
    """Read the auxiliary data of degradations, for "train" or for the "fixed" pairs; None if there are none."""
    folder = packed / "auxiliary" / part
    return PackedArrays(Pack(folder)) if folder.is_dir() else None


class PackedArrays(Sequence[np.ndarray]):
    """The arrays ``(h, w)`` of a pack in the dtype in which they are stored; they are read on access."""

    def __init__(self, pack: Pack) -> None:
        self._pack = pack

    def __len__(self) -> int:
        return len(self._pack)

    def __getitem__(self, index: Any) -> Any:
        return self._pack.stored(int(index))[0]
