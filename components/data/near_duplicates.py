"""Detection of near-duplicates: images that show the same picture, re-encoded, resized or cropped.

1. Each image is reduced to a thumbnail with a shorter side of `SIDE` pixels.
2. A perceptual hash is the signs of the 64 lowest coefficients of the cosine transform. It is computed for square
windows
   of the thumbnail at six scales, from the whole shorter side to half of it, and for the centre of the thumbnail.
3. If the centre of an image has nearly the hash of a window of another image, the centre is aligned with this window by
   small translations and changes of scale. The two are then compared by the correlation of local contrast.

This method finds other formats, sizes, brightness and contrast, grey from colour, weak noise, and crops whose shorter
side is at least about half of that of the whole image. It does not find smaller crops, two crops of one image of which
neither contains the other's centre, rotated, mirrored or stretched images, images with few details (a clear sky), and
images with a side below 32 pixels or more than four times the other side. Benchmark: ``benchmarks/near_duplicates.py``.

Legend: h rows, w columns of a thumbnail; a window is (left, top, side) in pixels of the thumbnail.
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
LEAST = 32  # pixels: smallest shorter side of an image
MOST = 20_000
"""Largest number of images in one search: all hashes are in memory, 15 kB per image."""

_LONGEST = 4  # largest ratio of the longer to the shorter side
_HASHED = 16  # pixels: side of a window when it is hashed
_STRIDE = 2  # distance between windows, in pixels of this resolution
_SCALES = tuple(0.87**k for k in range(6))  # sides of windows relative to the shorter side
_CENTRES = tuple(
    (side, x, y)
    for side in (1.0, 0.93)
    for x in (-1 / 32, 1 / 32)
    for y in (-1 / 32, 1 / 32)  # positions between those of the windows, which are 1/8 apart
)
_CONTRAST = 6.0  # grey levels: smallest standard deviation of a window that is hashed
_BANDS, _BAND_BITS = 4, 16
_UNSURE = 4  # number of bits of a band that may be wrong: those with the smallest coefficients
_DISTANCE = 12  # largest Hamming distance of 64 bits; unrelated photographs have 32, standard deviation about 4
_COMPARED = 32  # pixels: side of the windows that are aligned and compared
_LAID = 4  # number of nearest windows of an image that are aligned
_PROMISING = 0.15  # smallest correlation before the alignment
_ALIKE = 0.7  # above the correlation of all different photographs of the benchmark, below nearly all identical ones
_STEPS = (1 / 16, 1 / 32, 1 / 64)  # steps of the alignment, relative to the window


@dataclass(frozen=True)
class Fingerprint:
    """The data of an image that the search needs.

    Attributes:
        thumbnail: ``(h, w)`` uint8.
        windows: ``(K,)`` int, indices of the hashed windows; windows with low contrast are not hashed.
        hashes: ``(K,)`` uint64, hashes of these windows.
        centres: ``(Q, 64)`` float32, coefficients of the variants of the centre.
        boxes: ``(Q, 3)`` float32, windows of these variants.
    """

    thumbnail: np.ndarray
    windows: np.ndarray
    hashes: np.ndarray
    centres: np.ndarray
    boxes: np.ndarray


def fingerprint(image: np.ndarray) -> Fingerprint | None:
    """Compute the fingerprint of an image ``(C, H, W)``, uint8 or uint16.

    Returns None if the image is too small, too elongated, or has too little contrast to be compared.
    """
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
    """Find pairs of names whose images show the same picture; the pairs connect all such images (a spanning forest).

    Args:
        fingerprints: name -> fingerprint, for at most `MOST` names.
        groups: name -> group; images of one group are not compared with each other.
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
    """Index of the hashes of all windows by their bands of 16 bits."""

    def __init__(self, fingerprints: list[Fingerprint]) -> None:
        sizes = [len(each.hashes) for each in fingerprints]
        self.first = np.concatenate([[0], np.cumsum(sizes)])  # index of the first window of each image
        self.owners = np.repeat(np.arange(len(fingerprints), dtype=np.int32), sizes)
        self.hashes = np.concatenate([each.hashes for each in fingerprints])
        self.order, self.starts = [], []
        for band in range(_BANDS):
            values = _band(self.hashes, band)
            order = np.argsort(values, kind="stable").astype(np.int32)
            self.order.append(order)
            self.starts.append(np.searchsorted(values[order], np.arange(2**_BAND_BITS + 1)))

    def candidates(self, own: Fingerprint, joined: np.ndarray, number: int) -> dict[int, list[tuple[int, int]]]:
        """Find images of other groups with a window whose hash is near that of the centre.

        Returns:
            Index of the image -> its nearest pairs (variant of the centre, window of the image).
        """
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
            # The positions start, start + 1, ..., end - 1 of each probe, concatenated.
            places = np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
            windows = self.order[band][places]
            centres = np.repeat(np.repeat(np.arange(len(codes)), 2**_UNSURE), lengths)
            distance = np.bitwise_count(self.hashes[windows] ^ codes[centres])
            is_near = (distance <= _DISTANCE) & (joined[self.owners[windows]] != joined[number])
            near.append((distance[is_near], centres[is_near], windows[is_near]))
        # The nearest windows come first. A set, because several bands may find the same window.
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
    """Return whether the centre of one thumbnail matches the window of another after a small alignment.

    The alignment tries small translations and changes of scale of the window.
    """
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
    """Compute the local contrast of ``(N, n, n)`` pixels, with norm 1 and mean 0.

    Details are divided by the local strength of details, so that no single edge dominates the correlation. Details
    below about 4 grey levels have a lower weight, because they may be noise.
    """
    fine, wide = _blur(2.0), _blur(3.0)
    details = pixels - fine @ pixels @ fine.T
    details = details / np.sqrt(wide @ details**2 @ wide.T + 4.0**2)
    details = details - details.mean(axis=(1, 2), keepdims=True)
    return np.asarray(details / (np.linalg.norm(details, axis=(1, 2), keepdims=True) + 1e-6))


@cache
def _blur(sigma: float) -> np.ndarray:
    """Return the matrix ``(n, n)`` float32 of a Gaussian filter along an axis, mirrored at its ends."""
    return np.asarray(ndimage.gaussian_filter1d(np.eye(_COMPARED), sigma, axis=0), dtype=np.float32)


def _grey(image: np.ndarray) -> Image.Image:
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.shape[0] == 1:
        return Image.fromarray(image[0])
    return Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).convert("L")


def _grids(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return, for each scale, the size (columns, rows) of a thumbnail at which a window has `_HASHED` pixels."""
    shorter = min(size)
    return [
        (max(_HASHED, round(size[0] * factor)), max(_HASHED, round(size[1] * factor)))
        for factor in (_HASHED / (scale * shorter) for scale in _SCALES)
    ]


@cache
def _layout(size: tuple[int, int]) -> np.ndarray:
    """Return the windows ``(windows, 3)`` float32 of a thumbnail (w, h), in the order in which they are hashed."""
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
    """Return the central square of a thumbnail (w, h).

    Its side is ``scale`` times the shorter side. It is shifted by ``x`` and ``y``, relative to its own side.
    """
    side = scale * min(size)
    return _inside(np.array([(size[0] - side) / 2 + x * side, (size[1] - side) / 2 + y * side, side]), size)


def _inside(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    side = min(float(box[2]), *size)
    return np.array([np.clip(box[0], 0, size[0] - side), np.clip(box[1], 0, size[1] - side), side])


def _cut(thumbnail: Image.Image, box: np.ndarray, pixels: int) -> np.ndarray:
    """Cut a window out of a thumbnail and resize it to ``(pixels, pixels)`` float32."""
    left, top, side = (float(value) for value in _inside(box, thumbnail.size))
    right, bottom = min(left + side, thumbnail.width), min(top + side, thumbnail.height)
    cut = thumbnail.resize((pixels, pixels), Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    return np.asarray(cut, dtype=np.float32)


@cache
def _basis() -> np.ndarray:
    """Return the cosine basis ``(256, 64)`` float32 of the 64 lowest frequencies, without the mean.

    Frequencies are sorted by the sum over both axes.
    """
    place = np.arange(_HASHED)
    cosines = np.cos(np.pi * (2 * place[None] + 1) * place[:, None] / (2 * _HASHED))  # (frequency, place)
    pairs = sorted(((v, u) for v in range(_HASHED) for u in range(_HASHED)), key=lambda pair: (sum(pair), pair))
    return np.stack([np.outer(cosines[v], cosines[u]).ravel() for v, u in pairs[1:65]], axis=1).astype(np.float32)


def _bits(coefficients: np.ndarray) -> np.ndarray:
    """Convert coefficients ``(n, 64)`` to hashes ``(n,)`` uint64; bit k states whether coefficient k is above 0."""
    packed = np.packbits(coefficients > 0, axis=1, bitorder="little")
    return np.ascontiguousarray(packed).view("<u8")[:, 0].astype(np.uint64)


def _band(hashes: np.ndarray, band: int) -> np.ndarray:
    """Return bits 16 band to 16 band + 15 of the hashes, ``(n,)`` uint64."""
    return hashes >> np.uint64(_BAND_BITS * band) & np.uint64(2**_BAND_BITS - 1)
