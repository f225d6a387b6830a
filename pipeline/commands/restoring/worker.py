"""Restores one image file: read, restore, write; what goes wrong is a part of the result, so that the rest goes on."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from components.data.readers.images import decode_image
from components.inference.image_model import is_missing
from components.inference.restorer import ImageRestorer, Options
from components.inference.writing import encode_image, format_of, same_format
from pipeline.commands.restoring.memory import Memory, sha256
from pipeline.commands.restoring.places import read, write
from pipeline.commands.restoring.plan import Item


@dataclass(frozen=True)
class Outcome:
    """What became of one image.

    Attributes:
        item: the image.
        status: "restored", "done before", "failed", or "left out" if the model restores files of another kind.
        reason: why it failed or is left out; empty otherwise.
        dropped: what the input holds that the result does not, in words.
        notes: what else there is to say of the result, in words.
        megapixels: of the input.
        seconds: that the image took.
        fingerprint: of input, mask, model and options.
        sha256: of the result.
    """

    item: Item
    status: Literal["restored", "done before", "failed", "left out"]
    reason: str = ""
    dropped: tuple[str, ...] = field(default=())
    megapixels: float = 0.0
    seconds: float = 0.0
    fingerprint: str = ""
    sha256: str = ""
    notes: tuple[str, ...] = field(default=())


def restore_item(item: Item, restorer: ImageRestorer, options: Options, model_digest: str, memory: Memory) -> Outcome:
    """Restores an image, unless it is restored already.

    Args:
        item: what is read and written.
        restorer: the network.
        options: of the tiles and the ensemble.
        model_digest: that names the model in the fingerprint.
        memory: which results are there already.

    Raises:
        UserError: the result cannot be written, which holds for the other images, too.
    """
    start = time.monotonic()
    if item.is_scan != (restorer.contract.kind == "ct"):
        kind = "a CT slice, and the model restores images" if item.is_scan else "no DICOM file, and the model is for CT"
        return Outcome(item, "left out", f"{item.source}: {kind}")
    try:
        data = read(item.source)
        mask = read(item.mask) if item.mask else b""
    except ValueError as error:
        return _failed(item, str(error))
    fingerprint = sha256("\0".join([sha256(data), sha256(mask), model_digest, repr(options)]).encode())
    if memory.is_done(item.target, fingerprint):
        return Outcome(item, "done before", fingerprint=fingerprint)
    if item.is_scan:
        return _restore_scan(item, restorer, options, model_digest, data, mask, fingerprint, start)
    try:
        image = decode_image(data, item.source)
        holes = is_missing(decode_image(mask, item.mask).pixels) if mask else None
    except ValueError as error:
        return _failed(item, str(error))
    if holes is not None and holes.shape != image.pixels.shape[:2]:
        sizes = [f"{each.shape[1]}x{each.shape[0]}" for each in (holes, image.pixels)]
        return _failed(item, f"{item.mask}: {sizes[0]} pixels, its image has {sizes[1]}")
    try:
        restored = restorer.restore(image, options, holes)
    except ValueError as error:
        return _failed(item, f"{item.source}: {error}")
    name = Path(item.target)
    content, lost = encode_image(restored, format_of(name) if name.suffix else same_format(image.format))
    write(item.target, content)
    pixels = image.pixels.shape[0] * image.pixels.shape[1] / 1e6
    return Outcome(
        item, "restored", "", (*image.dropped, *lost), pixels, time.monotonic() - start, fingerprint, sha256(content)
    )


def _restore_scan(
    item: Item,
    restorer: ImageRestorer,
    options: Options,
    model_digest: str,
    data: bytes,
    mask: bytes,
    fingerprint: str,
    start: float,
) -> Outcome:
    """Restores a CT slice."""
    try:
        metal = is_missing(decode_image(mask, item.mask).pixels) if mask else None
    except ValueError as error:
        return _failed(item, str(error))
    try:
        restored = restorer.restore_scan(data, options, metal, model_digest)
    except ValueError as error:
        return _failed(item, f"{item.source}: {error}")
    write(item.target, restored.data)
    seconds = time.monotonic() - start
    return Outcome(
        item, "restored", "", (), restored.pixels / 1e6, seconds, fingerprint, sha256(restored.data), restored.summary
    )


def _failed(item: Item, reason: str) -> Outcome:
    return Outcome(item, "failed", reason)
