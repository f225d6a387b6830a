"""Packs a chunk of items of one split: reads and checks them, applies fixed degradations and writes shards.

`pack_chunk` depends only on its arguments and runs in its own process on any node, so its arguments are paths and plain
values. All its random numbers are keyed by the names of the images, so the result does not depend on the chunks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from components.data.items import Item, Loaded, Problem, load
from components.data.packs import Entry, Shard, ShardWriter, file_sha256, read_auxiliary
from components.data.randomness import Stream, generator
from components.data.readers.images import to_float
from components.data.sampler import Degradation, margin_of
from components.evaluation.metrics import SSIM_WINDOW
from components.tasks import Task
from pipeline.config.schema import Params
from pipeline.errors import UserError
from pipeline.paths import TEST_PACKS

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Chunk:
    """A chunk of items to pack.

    Attributes:
        number: number of the chunk.
        part: split of its items, "train", "val" or "test".
        items: items to pack.
        sums: SHA-256 of each file that the items are read from.
        raw: folder of the raw files.
        packed: folder of the packs.
        params: checked params.
    """

    number: int
    part: str
    items: tuple[Item, ...]
    sums: dict[str, str]
    raw: Path
    packed: Path
    params: Params


@dataclass
class Packed:
    """The result of packing a chunk.

    Attributes:
        part: split of the chunk.
        num_items: number of items of the chunk.
        shards: pack, as a path relative to data/packed -> shards that were written.
        owners: (pack, name of the entry) -> item that the entry was made from.
        problems: items that could not be used.
    """

    part: str
    num_items: int
    shards: dict[str, list[Shard]] = field(default_factory=dict)
    owners: dict[tuple[str, str], str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def pack_chunk(chunk: Chunk) -> Packed:
    """Packs the items of a chunk; items that cannot be used are reported in the result and raise no error.

    Raises:
        UserError: a file is missing or was altered since it was fetched, or a shard cannot be written.
    """
    torch.set_num_threads(1)  # several chunks are processed in parallel
    params = chunk.params
    packed = Packed(chunk.part, len(chunk.items))
    altered = {
        file: f"{chunk.raw / file}: missing or altered since it was fetched; run 'eqreg fetch' again"
        for file in chunk.sums
        if not (chunk.raw / file).is_file() or file_sha256(chunk.raw / file) != chunk.sums[file]
    }
    if altered:
        raise UserError(min(altered.values()))
    packers = _packers(chunk, params)
    for loaded in load(chunk.items, chunk.raw, params.build_task().input_kind, params.preprocess.colour):
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
    except ValueError as error:  # for example, the disk is full
        raise UserError(str(error)) from error
    packed.owners = {(packer.name, entry): item for packer in packers for entry, item in packer.owners.items()}
    return packed


class UnusableError(ValueError):
    """An image cannot be packed; the message is the reason."""


@dataclass
class _Packer:
    """Writes the shards of one pack for a chunk.

    Attributes:
        name: path of the pack, relative to data/packed.
        key: key of the random numbers of the fixed degradations.
        realizations: number of fixed degradations of each image; 0 for training images, which are packed whole.
        task: task with the degradation of this pack.
        degradation: degradation of the images; None if the task simulates its pairs ahead of training.
        params: checked params.
        writer: writer of the shards.
        owners: name of each entry -> item that it was made from.
    """

    name: str
    key: str
    realizations: int
    task: Task
    degradation: Degradation | None
    params: Params
    writer: ShardWriter
    owners: dict[str, str] = field(default_factory=dict)

    def add(self, loaded: Loaded) -> None:
        """Packs an image.

        Raises:
            UnusableError: the image is too small, or the sizes of its pair do not match.
        """
        item, clean = loaded.item, loaded.clean
        if loaded.degraded is not None and self.name in SPLITS:
            self._add_pair(loaded, loaded.degraded)
        elif loaded.degraded is not None and self.task.is_simulated_ahead:
            return  # a given scan cannot be simulated under other settings
        elif self.task.is_simulated_ahead:
            for draw in range(self.realizations):
                try:
                    inputs, scanned = self.task.simulate(clean, loaded.pixel_spacing_mm, self._draw(item, draw))
                except ValueError as error:
                    raise UnusableError(str(error)) from error
                if self.name != "train":
                    inputs, scanned = (centre_crop(each, self.params.preprocess.crop) for each in (inputs, scanned))
                self._write(f"{item.name}-{draw}", loaded, scanned, inputs)
        elif not self.realizations:
            self._check_size(clean, self.params.train.patch_size if loaded.label is None else 1)
            self._write(item.name, loaded, clean)
        else:
            self._add_degraded(loaded)

    def _add_pair(self, loaded: Loaded, degraded: np.ndarray) -> None:
        scale, clean = self.task.scale, loaded.clean
        height, width = (scale * side for side in degraded.shape[-2:])
        # A clean image may be up to scale - 1 pixels larger, if it was not cropped to a multiple of the scale before
        # it was downscaled.
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
        assert self.degradation is not None  # a task that simulates its pairs has none and does not come here
        margin, grid, crop = margin_of(self.degradation), self.task.grid, self.params.preprocess.crop
        whole = loaded.clean if loaded.label is not None else centre_crop(loaded.clean, crop + 2 * margin)
        height, width = ((side - 2 * margin) // grid * grid for side in whole.shape[-2:])
        whole = whole[:, : max(height, 0) + 2 * margin, : max(width, 0) + 2 * margin]
        if loaded.label is None:
            self._check_size(whole, self._least, margin)
        clean = whole[:, margin : margin + height, margin : margin + width]
        for draw in range(self.realizations):
            degraded, level = self.task.degrade(self.degradation, to_float(whole), self._draw(loaded.item, draw))
            self._write(f"{loaded.item.name}-{draw}", loaded, clean, degraded.astype(np.float32, copy=False), level)

    def _write(
        self,
        name: str,
        loaded: Loaded,
        clean: np.ndarray,
        degraded: np.ndarray | None = None,
        noise_level: float | None = None,
    ) -> None:
        entry = Entry(name, loaded.item.scene, clean.shape[-2], clean.shape[-1], loaded.label, noise_level)
        try:
            self.writer.add(entry, clean, degraded)
        except ValueError as error:
            raise UserError(str(error)) from error
        self.owners[name] = loaded.item.name

    @property
    def _least(self) -> int:
        """Side of the smallest image whose metrics can be computed, in pixels."""
        return SSIM_WINDOW + 2 * (self.task.scale if self.task.scale > 1 else 0)

    def _check_size(self, image: np.ndarray, least: int, margin: int | None = None) -> None:
        beyond = 2 * (margin_of(self.degradation) if margin is None else margin)
        if min(image.shape[-2:]) < least + beyond:
            raise UnusableError(
                f"{image.shape[-1]}x{image.shape[-2]} pixels, and {least + beyond} are needed: use a smaller "
                f"{'train.patch_size' if self.name == 'train' else 'degradation'} or take it away"
            )

    def _draw(self, item: Item, draw: int) -> np.random.Generator:
        # The random numbers are keyed by the name, so that a pair does not change when other images are added or
        # removed.
        number = int.from_bytes(hashlib.sha256(f"{self.key}/{item.name}".encode()).digest()[:8])
        return generator(self.params.seed, Stream.FIXED_PAIR, number, draw)


def _packers(chunk: Chunk, params: Params) -> list[_Packer]:
    """Returns a packer for the split itself and, for test images, one for each out-of-distribution degradation."""
    section, realizations = params.task_params, params.preprocess.realizations
    settings = {chunk.part: (chunk.part, section.degradation)}
    if chunk.part == "test":
        settings |= {name: (f"{TEST_PACKS}/{name}", other) for name, other in section.out_of_distribution.items()}
    packers = []
    for key, (name, degradation_section) in settings.items():
        task = params.build_task(degradation_section)
        is_training = name == "train"
        degradation = None
        if not task.is_simulated_ahead:
            auxiliary = read_auxiliary(chunk.packed, "train" if is_training else "fixed")
            degradation = task.degradation(auxiliary, is_training=is_training)
        number = 0 if is_training and not task.is_simulated_ahead else getattr(realizations, chunk.part)
        number = min(number, 1) if not task.is_random else number
        folder = chunk.packed / name
        folder.mkdir(parents=True, exist_ok=True)
        writer = ShardWriter(folder, f"chunk-{chunk.number:05d}")
        packers.append(_Packer(name, key, number, task, degradation, params, writer))
    return packers


def centre_crop(image: np.ndarray, side: int) -> np.ndarray:
    """Returns the central crop of ``(C, H, W)``, of at most ``side`` x ``side`` pixels."""
    height, width = (min(size, side) for size in image.shape[-2:])
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return np.ascontiguousarray(image[:, top : top + height, left : left + width])


def _central(side: int, crop: int, grid: int) -> slice:
    """Returns the central slice of an axis, of at most ``crop`` pixels, with both ends at multiples of ``grid``."""
    length = min(side, crop) // grid * grid
    start = (side - length) // 2 // grid * grid
    return slice(start, start + length)


__all__ = ["Chunk", "Packed", "centre_crop", "pack_chunk"]
