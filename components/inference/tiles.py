"""Restore an image of any size with bounded memory, in overlapping tiles.

Legend: C channels, H rows, W columns. Along one axis of N pixels, a tile covers ``start:stop``. Only
``keep_start:keep_stop`` of its result is kept. The kept intervals of all tiles cover the axis exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, product

import torch
from torch import Tensor, nn

ALIGNMENT = 16
"""Tiles begin at multiples of this number of pixels. Up to 4 poolings by 2 then use the same blocks in a tile as in the
image."""

_OF_TRAINING = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
"""Layers whose output differs in training mode."""

Restorer = Callable[[Tensor], Tensor]
"""``(B, C', h, w)`` -> ``(B, C, s h, s w)``; s is the scale, which is 1 except for super-resolution."""


@dataclass(frozen=True)
class TileSpan:
    """One tile along one axis, in pixels of the image.

    Attributes:
        start: first pixel of the tile.
        stop: end of the tile (exclusive).
        keep_start: first pixel that is kept.
        keep_stop: end of the kept interval (exclusive).
    """

    start: int
    stop: int
    keep_start: int
    keep_stop: int


ENSEMBLES = (1, 4, 8)
"""Sizes of a self-ensemble: the image alone, its quarter turns (C4), its quarter turns and mirror images (D4)."""


def restore(
    network: Restorer,
    image: Tensor,
    *,
    tile: int = 512,
    overlap: int = 64,
    self_ensemble: int = 1,
    device: torch.device | str | None = None,
    batch: int = 1,
) -> Tensor:
    """Restore an image in tiles; the memory depends on the size of the tile, not on the size of the image.

    Every pixel is taken from a tile in which it has a distance of at least ``overlap / 2`` from each edge inside the
    image. The result equals that of the whole image up to rounding under two conditions: an output pixel depends only
    on input pixels at most ``overlap / 2`` away, and it depends on their position only through the grid of 16 x 16
    blocks (up to 4 poolings, windows of a side that divides 16). A network with a larger receptive field gives a
    different image than in one pass. Examples are attention, instance normalisation, and resizing by a factor that
    depends on the size, as in a U-Net whose poolings do not divide the size.

    Args:
        network: in evaluation mode, on ``device``.
        image: ``(C', h, w)``, in [0, 1], of any size. An image that is not larger than a tile takes one pass.
        tile: largest height and width of the network's input, in pixels; a multiple of 16.
        overlap: smallest overlap of neighbouring tiles, in pixels; a multiple of 16.
        self_ensemble: number of transformed images that are averaged, one of `ENSEMBLES`. For 4 it is
            ``mean_n rot(f(rot(x, n)), -n)``; for 8 the mirror images are added. The result is equivariant up to
            rounding, at that many times the cost.
        device: of the network, to which each tile is copied; by default that of the image. Image and result stay where
            the image is.
        batch: number of tiles of equal size that the network gets at once.

    Returns:
        ``(C, s h, s w)``, with the dtype and on the device of the image, not clipped.

    Raises:
        ValueError: a shape, tile or overlap is invalid, the network is in training mode, or its output size is not a
            whole multiple of the input size.
    """
    _check(network, image)
    check_tiles(tile, overlap, self_ensemble)
    target = image.device if device is None else torch.device(device)
    total: Tensor | None = None
    for mirrored, turns in product((False, True)[: 1 + self_ensemble // 8], range(min(self_ensemble, 4))):
        moved = _turn(image.flip(-1) if mirrored else image, turns)
        result = _turn(_restore_tiles(network, moved, tile, overlap, target, batch), -turns)
        result = result.flip(-1) if mirrored else result
        total = result if total is None else total.add_(result)
    assert total is not None
    return total if self_ensemble == 1 else total.div_(self_ensemble)


def _turn(image: Tensor, quarter_turns: int) -> Tensor:
    """Rotate an image counter-clockwise."""
    return torch.rot90(image, quarter_turns, dims=(-2, -1)) if quarter_turns else image


def tile_spans(size: int, tile: int, overlap: int) -> list[TileSpan]:
    """Compute the tiles along one axis.

    A tile begins every ``tile - overlap`` pixels. The last tile begins at the first multiple of 16 from which it
    reaches the end. It may therefore be up to 15 pixels smaller; it is never padded. The kept intervals meet in the
    middle of each overlap.

    Args:
        size: number of pixels of the axis.
        tile: largest size of a tile in pixels; a multiple of 16.
        overlap: smallest overlap of neighbouring tiles in pixels; a multiple of 16.
    """
    last = -(-max(size - tile, 0) // ALIGNMENT) * ALIGNMENT
    starts = [*range(0, last, tile - overlap), last]
    stops = [min(start + tile, size) for start in starts]
    inner_cuts = [(start + stop) // 2 for start, stop in zip(starts[1:], stops[:-1], strict=True)]
    cuts = [0, *inner_cuts, size]
    return [TileSpan(*span) for span in zip(starts, stops, cuts[:-1], cuts[1:], strict=True)]


def _restore_tiles(
    network: Restorer, image: Tensor, tile: int, overlap: int, device: torch.device, batch: int
) -> Tensor:
    restored: Tensor | None = None
    scale = 1
    for spans, result in _results(network, image, tile, overlap, device, batch):
        if restored is None:
            # Allocated outside inference mode, so that the caller may change it in place.
            height, width = (span.stop - span.start for span in spans[0])
            scale = _scale(result, (len(spans), image.shape[0], height, width))
            restored = image.new_empty((result.shape[1], scale * image.shape[-2], scale * image.shape[-1]))
        for (rows, columns), values in zip(spans, result, strict=True):
            given = (image.shape[0], rows.stop - rows.start, columns.stop - columns.start)
            expected = (restored.shape[0], scale * given[1], scale * given[2])
            if tuple(values.shape) != expected:
                raise _wrong_size((1, *values.shape), (1, *given))
            restored[
                :,
                _scaled(rows.keep_start, rows.keep_stop, scale),
                _scaled(columns.keep_start, columns.keep_stop, scale),
            ] = values[
                :,
                _scaled(rows.keep_start - rows.start, rows.keep_stop - rows.start, scale),
                _scaled(columns.keep_start - columns.start, columns.keep_stop - columns.start, scale),
            ]
    assert restored is not None  # there is at least one tile
    return restored


Spans = list[tuple[TileSpan, TileSpan]]
"""(rows, columns) of tiles of one size."""


def _results(
    network: Restorer, image: Tensor, tile: int, overlap: int, device: torch.device, batch: int
) -> Iterator[tuple[Spans, Tensor]]:
    """Yield the network's results, ``(len(spans), C, s h, s w)``.

    On a GPU the next batch is started before the result of the last one is used, so that the GPU computes while the
    host copies.
    """
    waiting: tuple[Spans, Tensor] | None = None
    for spans in _batches(image, tile, overlap, batch):
        parts = [image[:, rows.start : rows.stop, columns.start : columns.stop] for rows, columns in spans]
        with torch.inference_mode():
            result = network(torch.stack(parts).contiguous().to(device))
        if waiting is not None:
            yield waiting
        waiting = (spans, result)
        if device.type == "cpu":
            yield waiting
            waiting = None
    if waiting is not None:
        yield waiting


def _batches(image: Tensor, tile: int, overlap: int, batch: int) -> Iterator[Spans]:
    """Yield neighbouring tiles of equal size, at most ``batch`` of them at a time."""
    spans = product(tile_spans(image.shape[-2], tile, overlap), tile_spans(image.shape[-1], tile, overlap))
    sizes = groupby(spans, key=lambda pair: tuple(span.stop - span.start for span in pair))
    for _, group in sizes:
        same_size = list(group)
        yield from (same_size[start : start + batch] for start in range(0, len(same_size), batch))


def _scale(result: Tensor, given: tuple[int, ...]) -> int:
    """Return the size of the output / size of the input.

    Raises:
        ValueError: the result is not one image for each input.
    """
    if result.ndim != 4:
        raise ValueError(
            f"network: gives {tuple(result.shape)} for {given}, but must give (B, C, h, w), one image for each: use a "
            "network that restores images"
        )
    return max(1, int(result.shape[-1]) // given[-1])


def _wrong_size(result: tuple[int, ...], given: tuple[int, ...]) -> ValueError:
    return ValueError(
        f"network: gives {result} for {given}, but must keep the shape or enlarge it by a whole number: run this "
        "network on whole images instead"
    )


def _scaled(start: int, stop: int, scale: int) -> slice:
    return slice(scale * start, scale * stop)


def check_tiles(tile: int, overlap: int, self_ensemble: int = 1) -> None:
    """Check the sizes of tiles and of a self-ensemble, as `restore` does.

    Raises:
        ValueError: one is impossible.
    """
    if tile % ALIGNMENT or overlap % ALIGNMENT or not 0 <= overlap < tile:
        raise ValueError(
            f"tile {tile} and overlap {overlap} must be multiples of {ALIGNMENT}, with 0 <= overlap < tile: "
            "use 512 and 64, or less of both where memory is short"
        )
    if self_ensemble not in ENSEMBLES:
        raise ValueError(f"self_ensemble {self_ensemble}: 1 (off), 4 (quarter turns) or 8 (and mirror images)")


def _check(network: Restorer, image: Tensor) -> None:
    if image.ndim != 3 or not image.numel() or not image.is_floating_point():
        raise ValueError(f"image {tuple(image.shape)} {image.dtype}: give one float image (C, H, W), not a batch")
    if isinstance(network, nn.Module):
        for name, module in network.named_modules():
            if module.training and isinstance(module, _OF_TRAINING):
                raise ValueError(f"network: '{name}' is in training mode: call network.eval() first")
