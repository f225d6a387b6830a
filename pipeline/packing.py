"""The work of preprocess on some items of one part: read, check, degrade what must be fixed, write shards.

`pack_chunk` is a function of its arguments and runs in a process of its own, on whichever node, so it is given paths
and plain values. All that it draws is keyed by the names of images, so nothing depends on how they were chunked.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.data.images import to_float
from components.data.items import Item, Loaded, Problem, load
from components.data.packs import Entry, Shard, ShardWriter, file_sha256
from components.data.randomness import Stream, generator
from components.data.sampler import Degradation, margin_of
from components.evaluation.metrics import SSIM_WINDOW
from components.tasks import Task, build_task
from components.tasks.ct_mar import MetalArtifactReduction
from pipeline.auxiliary import read_auxiliary
from pipeline.errors import UserError
from pipeline.params import Params, check_params

SPLITS = ("train", "val", "test")
TEST_PACKS = "out_of_distribution"


@dataclass(frozen=True)
class Chunk:
    """Attributes: the number of the chunk, its part ("train", "val" or "test"), its items, the SHA-256 of their files,
    the folders of the raw files and of the packs, and plain params.
    """

    number: int
    part: str
    items: tuple[Item, ...]
    sums: dict[str, str]
    raw: Path
    packed: Path
    params: dict[str, Any]


@dataclass
class Packed:
    """Attributes: the part and number of items of the chunk, the shards written (pack, relative to data/packed ->
    shards), the item that each entry (pack, name) was made of, and what could not be used.
    """

    part: str
    num_items: int
    shards: dict[str, list[Shard]] = field(default_factory=dict)
    owners: dict[tuple[str, str], str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def pack_chunk(chunk: Chunk) -> Packed:
    """Packs the items of a chunk; what cannot be used is told by name, not raised."""
    torch.set_num_threads(1)  # chunks are worked on side by side
    params = check_params(chunk.params, "params")
    packed = Packed(chunk.part, len(chunk.items))
    altered = {
        file: f"{chunk.raw / file}: missing or altered since it was fetched; run 'eqreg fetch' again"
        for file in chunk.sums
        if not (chunk.raw / file).is_file() or file_sha256(chunk.raw / file) != chunk.sums[file]
    }
    if altered:
        raise UserError(min(altered.values()))
    packers = _packers(chunk, params)
    for loaded in load(chunk.items, chunk.raw, params.build_task().reads, params.preprocess.colour):
        if isinstance(loaded, Problem):
            packed.problems.append(loaded)
            continue
        try:
            for packer in packers:
                packer.add(loaded)
        except UnusableError as error:
            packed.problems.append(Problem(loaded.item.name, str(error)))
    try:
        packed.shards = {packer.name: packer.writer.close() for packer in packers}
    except ValueError as error:  # a full disk
        raise UserError(str(error)) from error
    packed.owners = {(packer.name, entry): item for packer in packers for entry, item in packer.owners.items()}
    return packed


class UnusableError(ValueError):
    """Why an image cannot be packed."""


@dataclass
class _Packer:
    """Writes one pack's shards of a chunk.

    Attributes:
        name: of the pack, relative to data/packed.
        key: of the fixed degradations' draws.
        draws: fixed degradations of an image; 0 for training images, which are packed whole.
    """

    name: str
    key: str
    draws: int
    task: Task
    degradation: Degradation | None
    params: Params
    writer: ShardWriter
    owners: dict[str, str] = field(default_factory=dict)

    def add(self, loaded: Loaded) -> None:
        """Packs an image.

        Raises:
            UnusableError: it is too small, or its pair does not fit.
        """
        item, clean = loaded.item, loaded.clean
        if loaded.degraded is not None and self.name in SPLITS:
            self._add_pair(loaded, loaded.degraded)
        elif loaded.degraded is not None and self.task.is_simulated_ahead:
            return  # a given scan cannot be scanned otherwise
        elif isinstance(self.task, MetalArtifactReduction):
            for draw in range(self.draws):
                try:
                    inputs, scanned = self.task.simulate(clean[0], loaded.pixel_spacing_mm, self._draw(item, draw))
                except ValueError as error:
                    raise UnusableError(str(error)) from error
                if self.name != "train":
                    inputs, scanned = (centre_crop(each, self.params.preprocess.crop) for each in (inputs, scanned))
                self._write(f"{item.name}-{draw}", loaded, scanned, inputs)
        elif not self.draws:
            self._check_size(clean, self.params.train.patch_size if loaded.label is None else 1)
            self._write(item.name, loaded, clean)
        else:
            self._add_degraded(loaded)

    def _add_pair(self, loaded: Loaded, degraded: np.ndarray) -> None:
        scale, clean = self.task.scale, loaded.clean
        height, width = (scale * side for side in degraded.shape[-2:])
        # A clean image that was not cut to a multiple of the scale before it was shrunk has a remainder.
        if not all(0 <= own - of < scale for own, of in zip(clean.shape[-2:], (height, width), strict=True)):
            shown = [f"{image.shape[-1]}x{image.shape[-2]}" for image in (degraded, clean)]
            times = f"{scale} times as large" if scale > 1 else "of one size"
            raise UnusableError(f"the degraded image is {shown[0]}, the clean one {shown[1]}: they must be {times}")
        clean = clean[:, :height, :width]
        if self.name != "train":
            rows, columns = (_central(side, self.params.preprocess.crop, self.task.grid) for side in clean.shape[-2:])
            clean = clean[:, rows, columns]
            rows, columns = (slice(each.start // scale, each.stop // scale) for each in (rows, columns))
            degraded = degraded[:, rows, columns]
        self._check_size(clean, self.params.train.patch_size if self.name == "train" else self._least, margin=0)
        self._write(loaded.item.name, loaded, clean, degraded)

    def _add_degraded(self, loaded: Loaded) -> None:
        assert self.degradation is not None  # of all but training images
        margin, grid, crop = margin_of(self.degradation), self.task.grid, self.params.preprocess.crop
        whole = loaded.clean if loaded.label is not None else centre_crop(loaded.clean, crop + 2 * margin)
        height, width = ((side - 2 * margin) // grid * grid for side in whole.shape[-2:])
        whole = whole[:, : max(height, 0) + 2 * margin, : max(width, 0) + 2 * margin]
        if loaded.label is None:
            self._check_size(whole, self._least, margin)
        clean = whole[:, margin : margin + height, margin : margin + width]
        for draw in range(self.draws):
            degraded = self.degradation(to_float(whole), self._draw(loaded.item, draw))
            self._write(f"{loaded.item.name}-{draw}", loaded, clean, degraded.astype(np.float32, copy=False))

    def _write(self, name: str, loaded: Loaded, clean: np.ndarray, degraded: np.ndarray | None = None) -> None:
        entry = Entry(name, loaded.item.scene, clean.shape[-2], clean.shape[-1], loaded.label)
        try:
            self.writer.add(entry, clean, degraded)
        except ValueError as error:
            raise UserError(str(error)) from error
        self.owners[name] = loaded.item.name

    @property
    def _least(self) -> int:
        """The side of the smallest image that can be measured."""
        return SSIM_WINDOW + 2 * (self.task.scale if self.task.scale > 1 else 0)

    def _check_size(self, image: np.ndarray, least: int, margin: int | None = None) -> None:
        beyond = 2 * (margin_of(self.degradation) if margin is None else margin)
        if min(image.shape[-2:]) < least + beyond:
            raise UnusableError(
                f"{image.shape[-1]}x{image.shape[-2]} pixels, and {least + beyond} are needed: use a smaller "
                f"{'train.patch_size' if self.name == 'train' else 'degradation'} or take it away"
            )

    def _draw(self, item: Item, draw: int) -> np.random.Generator:
        # Keyed by the name, so that a pair stays as it is when other images come or go.
        number = int.from_bytes(hashlib.sha256(f"{self.key}/{item.name}".encode()).digest()[:8])
        return generator(self.params.seed, Stream.FIXED_PAIR, number, draw)


def _packers(chunk: Chunk, params: Params) -> list[_Packer]:
    """One for the part itself, and for test images one for each other degradation."""
    section, draws = params.task_params, params.preprocess.draws
    settings = {chunk.part: (chunk.part, section.degradation)}
    if chunk.part == "test":
        settings |= {name: (f"{TEST_PACKS}/{name}", other) for name, other in section.out_of_distribution.items()}
    packers = []
    for key, (name, degradation_section) in settings.items():
        task = build_task(params.task, degradation_section.model_dump(exclude_none=True))
        is_training = name == "train"
        degradation = None
        if not task.is_simulated_ahead:
            auxiliary = read_auxiliary(chunk.packed, "train" if is_training else "fixed")
            degradation = task.degradation(auxiliary, is_training=is_training)
        number = 0 if is_training and not task.is_simulated_ahead else getattr(draws, chunk.part)
        number = min(number, 1) if not task.is_random else number
        folder = chunk.packed / name
        folder.mkdir(parents=True, exist_ok=True)
        writer = ShardWriter(folder, f"chunk-{chunk.number:05d}")
        packers.append(_Packer(name, key, number, task, degradation, params, writer))
    return packers


def centre_crop(image: np.ndarray, side: int) -> np.ndarray:
    """The central part of ``(C, H, W)`` of at most ``side`` x ``side``."""
    height, width = (min(size, side) for size in image.shape[-2:])
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return np.ascontiguousarray(image[:, top : top + height, left : left + width])


def _central(side: int, crop: int, grid: int) -> slice:
    """The central part of an axis, of at most ``crop`` pixels, that begins and ends at multiples of ``grid``."""
    length = min(side, crop) // grid * grid
    start = (side - length) // 2 // grid * grid
    return slice(start, start + length)


__all__ = ["TEST_PACKS", "Chunk", "Packed", "centre_crop", "pack_chunk"]
