"""Images that show the same picture: re-encoded, of another size, or one a part cut out of the other.

Each image is a thumbnail with a shorter side of `SIDE` pixels. A perceptual hash, the signs of the 64 lowest
coefficients of the cosine transform, is computed of every square window of the thumbnail at six scales, from the
whole shorter side to half of it, and of the centre of the thumbnail. An image whose centre has nearly the hash of a
window of another one is laid on that window, moved and scaled a little, and compared by the correlation of local
contrast. Found by this: other formats, sizes, brightness, contrast, grey from colour, light noise, and a part whose
shorter side is at least about half of the whole's. Not found: smaller parts, two parts of one image of which neither
holds the other's centre, turned, mirrored or stretched images, images with few details (a clear sky), images with a
side under 32 pixels or over four times the other. Benchmark: ``benchmarks/near_duplicates.py``.

Legend: h rows, w columns of a thumbnail; a window is (left, top, side) in its pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from scipy import ndimage

SIDE = 64
LEAST = 32  # pixels of an image's shorter side
MOST = 20_000
"""Images among which is searched: all their hashes are in memory, 15 kB an image."""

_LONGEST = 4  # times the shorter side
_HASHED = 16  # pixels of a window's side when it is hashed
_STRIDE = 2  # pixels of _HASHED between windows
_SCALES = tuple(0.87**k for k in range(6))  # of windows, relative to the shorter side
_CENTRES = tuple(
    (side, x, y)
    for side in (1.0, 0.93)
    for x in (-1 / 32, 1 / 32)
    for y in (-1 / 32, 1 / 32)  # they lie between the windows, which are 1/8 apart
)
_CONTRAST = 6.0  # grey levels: least standard deviation of a window that is hashed
_BANDS, _BAND_BITS = 4, 16
_UNSURE = 4  # bits of a band, those with the smallest coefficients, that may be wrong
_DISTANCE = 12  # of 64 bits; of two photographs that have nothing in common 32, with a standard deviation of about 4
_COMPARED = 32  # pixels of a side of what is laid on each other
_LAID = 4  # the nearest windows of an image are laid
_PROMISING = 0.15  # correlation before anything is moved
_ALIKE = 0.7  # see the benchmark: above all pairs of different photographs, below nearly all of the same
_STEPS = (1 / 16, 1 / 32, 1 / 64)  # of moves, relative to the window


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of an image.

    Attributes:
        thumbnail: ``(h, w)`` uint8.
        windows: ``(K,)`` int, the numbers of the windows that are hashed; flat ones are not.
        hashes: ``(K,)`` uint64 of them.
        centres: ``(Q, 64)`` float32, the coefficients of the centre, with its variants.
        boxes: ``(Q, 3)`` float32, the windows that these are of.
    """

    thumbnail: np.ndarray
    windows: np.ndarray
    hashes: np.ndarray
    centres: np.ndarray
    boxes: np.ndarray


def fingerprint(image: np.ndarray) -> Fingerprint | None:
    """Of ``(C, H, W)`` uint8 or uint16; None where nothing can be compared: too small, too long or flat."""
    height, width = image.shape[-2:]
    if min(height, width) < LEAST or max(height, width) > _LONGEST * min(height, width):
        return None
    scale = SIDE / min(height, width)
    small = _grey(image).resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC, reducing_gap=3)
    windows, offset = [], 0
    hashes = []
    for shape in _grids(small.size):
        pixels = np.asarray(small.resize(shape, Image.Resampling.BICUBIC), dtype=np.float32)
        # (rows, columns, 16, 16) -> (windows of this scale, 256)
        views = sliding_window_view(pixels, (_HASHED, _HASHED))[::_STRIDE, ::_STRIDE].reshape(-1, _HASHED**2)
        kept = np.flatnonzero(views.std(axis=1) > _CONTRAST)
        windows.append(kept + offset)
        hashes.append(_bits(views[kept] @ _basis()))
        offset += len(views)
    boxes = np.array([_centre(small.size, *each) for each in _CENTRES], dtype=np.float32)
    squares = np.stack([_cut(small, box, _HASHED).ravel() for box in boxes])  # (Q, 256)
    contrasted = squares.std(axis=1) > _CONTRAST
    if not contrasted.any():
        return None
    numbers = np.concatenate(windows).astype(np.uint16)
    return Fingerprint(
        np.asarray(small), numbers, np.concatenate(hashes), squares[contrasted] @ _basis(), boxes[contrasted]
    )


def near_duplicates(fingerprints: Mapping[str, Fingerprint], groups: Mapping[str, str]) -> list[tuple[str, str]]:
    """Pairs of names whose images show the same, as many as connect all that do.

    Args:
        fingerprints: of at most `MOST` names.
        groups: name -> a group; images of one group are not compared, whatever they show.
    """
    names = sorted(fingerprints)
    if not names:
        return []
    index = _Index([fingerprints[name] for name in names])
    group = {each: number for number, each in enumerate(sorted({groups[name] for name in names}))}
    joined = np.array([group[groups[name]] for name in names])
    found = []
    for number, name in enumerate(names):
        own = fingerprints[name]
        thumbnail = Image.fromarray(own.thumbnail)
        for other, places in index.candidates(own, joined, number).items():
            if joined[other] == joined[number]:
                continue
            whole = fingerprints[names[other]]
            layout, onto = _layout(whole.thumbnail.shape[::-1]), Image.fromarray(whole.thumbnail)
            if any(
                _is_alike(thumbnail, own.boxes[centre], onto, layout[whole.windows[window]])
                for centre, window in places
            ):
                found.append((name, names[other]))
                joined[joined == joined[other]] = joined[number]
    return found


class _Index:
    """The hashes of all windows, found by any of their bands of 16 bits."""

    def __init__(self, fingerprints: list[Fingerprint]) -> None:
        sizes = [len(each.hashes) for each in fingerprints]
        self.first = np.concatenate([[0], np.cumsum(sizes)])  # of an image's windows
        self.owners = np.repeat(np.arange(len(fingerprints), dtype=np.int32), sizes)
        self.hashes = np.concatenate([each.hashes for each in fingerprints])
        self.order, self.starts = [], []
        for band in range(_BANDS):
            values = _band(self.hashes, band)
            order = np.argsort(values, kind="stable").astype(np.int32)
            self.order.append(order)
            self.starts.append(np.searchsorted(values[order], np.arange(2**_BAND_BITS + 1)))

    def candidates(self, own: Fingerprint, joined: np.ndarray, number: int) -> dict[int, list[tuple[int, int]]]:
        """The images of other groups with a window near the centre: their nearest (centre, window of the image)."""
        codes = _bits(own.centres)  # (Q,)
        flips = ((np.arange(2**_UNSURE)[:, None] >> np.arange(_UNSURE)) & 1).astype(np.uint64)  # (16, 4)
        near: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for band in range(_BANDS):
            sizes = np.abs(own.centres[:, _BAND_BITS * band : _BAND_BITS * (band + 1)])
            unsure = np.argsort(sizes, axis=1)[:, :_UNSURE].astype(np.uint64)  # (Q, 4)
            masks = (flips[None] << unsure[:, None]).sum(axis=2, dtype=np.uint64)  # (Q, 16)
            probes = (_band(codes, band)[:, None] ^ masks).astype(np.int64).ravel()
            starts, ends = self.starts[band][probes], self.starts[band][probes + 1]
            lengths = ends - starts
            # The positions start, start + 1, ..., end - 1 of each probe, one after the other.
            places = np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
            windows = self.order[band][places]
            centres = np.repeat(np.repeat(np.arange(len(codes)), 2**_UNSURE), lengths)
            distance = np.bitwise_count(self.hashes[windows] ^ codes[centres])
            is_near = (distance <= _DISTANCE) & (joined[self.owners[windows]] != joined[number])
            near.append((distance[is_near], centres[is_near], windows[is_near]))
        # The nearest first; a window may have been found by several bands.
        found = {
            (distance, centre, window)
            for each in near
            for distance, centre, window in zip(*(column.tolist() for column in each), strict=True)
        }
        nearest: dict[int, list[tuple[int, int]]] = {}
        for _, centre, window in sorted(found):
            owner = int(self.owners[window])
            pairs = nearest.setdefault(owner, [])
            if len(pairs) < _LAID:
                pairs.append((centre, window - int(self.first[owner])))
        return nearest


def _is_alike(small: Image.Image, centre: np.ndarray, large: Image.Image, window: np.ndarray) -> bool:
    """Whether the centre of one thumbnail, laid on the window of another, is the same, moved and scaled a little."""
    pattern = _local_contrast(_cut(small, centre, _COMPARED)[None])

    def correlations(boxes: list[np.ndarray]) -> np.ndarray:
        cuts = np.stack([_cut(large, box, _COMPARED) for box in boxes])
        return np.asarray((pattern * _local_contrast(cuts)).sum(axis=(1, 2)))

    box, best = window, float(correlations([window])[0])
    if best < _PROMISING:
        return False
    for step in _STEPS:
        left, top, side = box
        moves = itertools.product((-step, 0.0, step), repeat=3)
        boxes = [
            _inside(np.array([left + (x - z / 2) * side, top + (y - z / 2) * side, (1 + z) * side]), large.size)
            for x, y, z in moves
        ]
        values = correlations(boxes)
        if values.max() > best:
            box, best = boxes[int(values.argmax())], float(values.max())
        if best > _ALIKE:
            return True
    return False


def _local_contrast(pixels: np.ndarray) -> np.ndarray:
    """``(N, n, n)``: details by the strength of those around, so that no single edge decides; of norm 1 and mean 0.

    Details under about 4 grey levels count less: they may be noise.
    """
    fine, wide = _blur(2.0), _blur(3.0)
    details = pixels - fine @ pixels @ fine.T
    details = details / np.sqrt(wide @ details**2 @ wide.T + 4.0**2)
    details = details - details.mean(axis=(1, 2), keepdims=True)
    return np.asarray(details / (np.linalg.norm(details, axis=(1, 2), keepdims=True) + 1e-6))


@cache
def _blur(sigma: float) -> np.ndarray:
    """``(n, n)`` float32: the matrix of a Gaussian filter along an axis of what is compared, mirrored at its ends."""
    return np.asarray(ndimage.gaussian_filter1d(np.eye(_COMPARED), sigma, axis=0), dtype=np.float32)


def _grey(image: np.ndarray) -> Image.Image:
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.shape[0] == 1:
        return Image.fromarray(image[0])
    return Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).convert("L")


def _grids(size: tuple[int, int]) -> list[tuple[int, int]]:
    """(columns, rows) that a thumbnail (w, h) is scaled to, so that a window of each scale has `_HASHED` pixels."""
    shorter = min(size)
    return [
        (max(_HASHED, round(size[0] * factor)), max(_HASHED, round(size[1] * factor)))
        for factor in (_HASHED / (scale * shorter) for scale in _SCALES)
    ]


@cache
def _layout(size: tuple[int, int]) -> np.ndarray:
    """``(windows, 3)`` float32 of a thumbnail (w, h), in the order in which they are hashed."""
    boxes = []
    for columns, rows in _grids(size):
        x, y = size[0] / columns, size[1] / rows
        side = _HASHED * (x + y) / 2
        boxes += [
            (column * x, row * y, side)
            for row in range(0, rows - _HASHED + 1, _STRIDE)
            for column in range(0, columns - _HASHED + 1, _STRIDE)
        ]
    return np.array(boxes, dtype=np.float32)


def _centre(size: tuple[int, int], scale: float, x: float, y: float) -> np.ndarray:
    """The central square of a thumbnail (w, h), of a side relative to its shorter one, moved by parts of itself."""
    side = scale * min(size)
    return _inside(np.array([(size[0] - side) / 2 + x * side, (size[1] - side) / 2 + y * side, side]), size)


def _inside(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    side = min(float(box[2]), *size)
    return np.array([np.clip(box[0], 0, size[0] - side), np.clip(box[1], 0, size[1] - side), side])


def _cut(thumbnail: Image.Image, box: np.ndarray, pixels: int) -> np.ndarray:
    """A window of a thumbnail as ``(pixels, pixels)`` float32."""
    left, top, side = (float(value) for value in _inside(box, thumbnail.size))
    right, bottom = min(left + side, thumbnail.width), min(top + side, thumbnail.height)
    cut = thumbnail.resize((pixels, pixels), Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    return np.asarray(cut, dtype=np.float32)


@cache
def _basis() -> np.ndarray:
    """``(256, 64)`` float32: the cosines of the 64 lowest frequencies without the mean, by the sum of both axes."""
    place = np.arange(_HASHED)
    cosines = np.cos(np.pi * (2 * place[None] + 1) * place[:, None] / (2 * _HASHED))  # (frequency, place)
    pairs = sorted(((v, u) for v in range(_HASHED) for u in range(_HASHED)), key=lambda pair: (sum(pair), pair))
    return np.stack([np.outer(cosines[v], cosines[u]).ravel() for v, u in pairs[1:65]], axis=1).astype(np.float32)


def _bits(coefficients: np.ndarray) -> np.ndarray:
    """``(n, 64)`` -> ``(n,)`` uint64, bit k of which says whether coefficient k is above 0."""
    packed = np.packbits(coefficients > 0, axis=1, bitorder="little")
    return np.ascontiguousarray(packed).view("<u8")[:, 0].astype(np.uint64)


def _band(hashes: np.ndarray, band: int) -> np.ndarray:
    """``(n,)`` uint64: bits 16 band to 16 band + 15."""
    return hashes >> np.uint64(_BAND_BITS * band) & np.uint64(2**_BAND_BITS - 1)
