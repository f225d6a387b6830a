"""Packed images: one folder a split, with its pixels in a safetensors file and an index that says what they are.

safetensors because it is memory-mapped (a crop reads only its own rows), holds nothing that can be executed and is
read by everything that reads torch. The index carries the file's SHA-256, so damage is noticed and named.

    train/images.safetensors    clean/NAME     (C, H, W) uint8
    val/, test/                 clean/NAME     (C, H, W) uint8      degraded/NAME  (C, H, W) float32, may leave [0, 1]
    */index.json                the entries in order, and the SHA-256 of images.safetensors
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from components.data.images import to_float

_PIXELS = "images.safetensors"
_INDEX = "index.json"


@dataclass(frozen=True)
class Entry:
    """One image, or pair: its name, the scene it shows, and its size.

    Attributes:
        name: unique in its pack.
        scene: images of one scene are never on both sides of a split, and are clustered in intervals.
        height, width: in pixels.
    """

    name: str
    scene: str
    height: int
    width: int


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_pack(
    folder: Path, entries: Sequence[Entry], clean: Sequence[np.ndarray], degraded: Sequence[np.ndarray] = ()
) -> None:
    """Writes a pack into an existing empty folder.

    Args:
        folder: where to.
        entries: one an image, in order.
        clean: ``(C, H, W)`` uint8 each.
        degraded: ``(C, H, W)`` float32 each; none for training, where degradations are drawn fresh.

    Raises:
        ValueError: the folder cannot be written.
    """
    tensors = {f"clean/{e.name}": image for e, image in zip(entries, clean, strict=True)}
    if degraded:
        tensors |= {f"degraded/{e.name}": image for e, image in zip(entries, degraded, strict=True)}
    try:
        save_file(tensors, folder / _PIXELS)
    except SafetensorError as error:  # a full disk, for instance
        raise ValueError(f"{folder / _PIXELS}: cannot be written ({error})") from error
    index = {"sha256": file_sha256(folder / _PIXELS), "entries": [asdict(entry) for entry in entries]}
    (folder / _INDEX).write_text(json.dumps(index, indent=1) + "\n")


class Pack:
    """A pack opened for reading. Only what is asked for is read.

    Raises:
        ValueError: the folder holds no pack, or a file of it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            index: dict[str, Any] = json.loads((folder / _INDEX).read_text())
            self.sha256: str = index["sha256"]
            self.entries = [Entry(**entry) for entry in index["entries"]]
            self._pixels = safe_open(folder / _PIXELS, framework="numpy")
        except FileNotFoundError:
            raise ValueError(f"{folder}: no packed images here; run 'eqreg preprocess' first") from None
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(f"{folder}: damaged pack ({error}); run 'eqreg preprocess' again") from error

    def verify(self) -> None:
        """Compares every byte with the recorded SHA-256.

        Raises:
            ValueError: they differ.
        """
        if file_sha256(self.folder / _PIXELS) != self.sha256:
            raise ValueError(
                f"{self.folder / _PIXELS}: damaged, its SHA-256 is not the recorded one; run 'eqreg preprocess' again"
            )

    def __len__(self) -> int:
        return len(self.entries)

    def clean(self, index: int) -> np.ndarray:
        """The clean image as ``(C, H, W)`` float32 in [0, 1]."""
        return to_float(self._pixels.get_tensor(f"clean/{self.entries[index].name}"))

    def degraded(self, index: int) -> np.ndarray:
        """The degraded image as ``(C, H, W)`` float32."""
        image: np.ndarray = self._pixels.get_tensor(f"degraded/{self.entries[index].name}")
        return image

    def clean_crop(self, index: int, top: int, left: int, size: int) -> np.ndarray:
        """``(C, size, size)`` float32 in [0, 1]: a part of the clean image, read without the rest of it."""
        pixels = self._pixels.get_slice(f"clean/{self.entries[index].name}")
        return to_float(pixels[:, top : top + size, left : left + size])

    def pairs(self) -> Iterator[tuple[Entry, np.ndarray, np.ndarray]]:
        """(entry, degraded, clean) of every pair, in order."""
        for index, entry in enumerate(self.entries):
            yield entry, self.degraded(index), self.clean(index)
