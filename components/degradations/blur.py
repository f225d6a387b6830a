"""Blur by camera shake, by a lens or by given kernels, then noise: ``degraded = kernel * clean + noise``.

Drawing a camera's way at random (`draw_trajectory`) is apart from rendering it (`motion_kernel`).
Legend: C channels, H rows, W columns; a kernel is ``(h, w)``, >= 0, of sum 1, and its centre the pixel
``(h // 2, w // 2)``. Directions are those of rain.py: degrees from the vertical, positive like a backslash.
"""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy import fft

from components.degradations.noise import GaussianNoise, check_range

LARGEST_KERNEL = 101
MOST_KERNELS = 1000
MOST_BYTES = 2**24
"""Of a file of kernels, packed and unpacked: 200 of the largest in float64."""

# What a random camera's way looks like; chosen by looking at measured camera shake.
STEPS = 512
WAVES = 4  # half waves over the exposure, in heading and speed
BEND = 1.5  # radians: scale of the first wave of the heading
SPEED = 0.6  # scale of the first wave of the logarithm of the speed
JERKS = 0.8  # mean number of sudden changes of the direction


@dataclass(frozen=True, eq=False)
class Blur:
    """``degraded = kernel * clean + sigma / 255 normal``, not clipped; ``*`` is convolution, the same in all channels.

    ``(kernel * x)[r, c] = sum_ij kernel[i, j] x[r - (i - h // 2), c - (j - w // 2)]``: the kernel is the picture of a
    point of light. Each image draws one of the kinds that are given, all equally likely, then its kernel; every range
    ``[low, high]`` is drawn uniformly.

    Attributes:
        sigma: standard deviation of the noise, in grey levels of 255.
        motion: camera shake; the side of the square, centred on the kernel's mass, that its way touches, in pixels.
        gaussian: a round Gaussian; its standard deviation, in pixels.
        elliptic: a Gaussian of two standard deviations, each drawn from this range, in any direction.
        kernels: given ones, of at most 101 x 101, odd or even; kept normalised to sum 1.
        boundary: "valid" blurs with the true neighbours, which are the clean image's margin; "circular" has no margin,
            the image is its own neighbour on all sides, as methods that invert the blur by FFT suppose.

    Raises:
        ValueError: no kind is given, a range is reversed or impossible, or a kernel is (`checked_kernel`).

    Source for camera shake: Boracchi, Foi, *Modeling the performance of image restoration from motion blur*, IEEE TIP
    2012, whose camera moves with inertia and is jerked at times; here its direction and speed are sums of cosines.
    """

    sigma: tuple[float, float]
    motion: tuple[float, float] | None = None
    gaussian: tuple[float, float] | None = None
    elliptic: tuple[float, float] | None = None
    kernels: Sequence[np.ndarray] = ()
    boundary: Literal["valid", "circular"] = "valid"

    def __post_init__(self) -> None:
        check_range("sigma", self.sigma, 0, 255, "grey levels of 255")
        if self.motion is not None:
            check_range("motion", self.motion, 1, LARGEST_KERNEL, "pixels")
        for name in ("gaussian", "elliptic"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 0.1, 16, "pixels of standard deviation")
        if self.boundary not in ("valid", "circular"):
            raise ValueError(f"boundary '{self.boundary}' is unknown: use valid or circular")
        kernels = tuple(checked_kernel(kernel, f"kernel {number}") for number, kernel in enumerate(self.kernels))
        object.__setattr__(self, "kernels", kernels)
        if not self._kinds():
            raise ValueError("the blur has no kind: give motion, gaussian, elliptic or kernels")

    def _kinds(self) -> list[str]:
        kinds = ("motion", "gaussian", "elliptic")
        return [kind for kind in kinds if getattr(self, kind) is not None] + ["kernels"] * bool(self.kernels)

    @property
    def margin(self) -> int:
        """Pixels of the clean image on each side: the reach of the largest possible kernel."""
        if self.boundary == "circular":
            return 0
        reaches = [side // 2 for kernel in self.kernels for side in kernel.shape]
        if self.motion is not None:
            reaches.append(_motion_reach(self.motion[1]))
        reaches.extend(_gaussian_reach(each[1]) for each in (self.gaussian, self.elliptic) if each is not None)
        return max(reaches)

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """A random kernel, ``(h, w)`` float32."""
        kinds = self._kinds()
        kind = kinds[int(generator.integers(len(kinds)))]
        if kind == "kernels":
            return self.kernels[int(generator.integers(len(self.kernels)))]
        if kind == "motion":
            assert self.motion is not None
            return motion_kernel(draw_trajectory(generator), generator.uniform(*self.motion))
        if kind == "gaussian":
            assert self.gaussian is not None
            deviation = generator.uniform(*self.gaussian)
            return gaussian_kernel(deviation, deviation, 0)
        assert self.elliptic is not None
        along, across = generator.uniform(*self.elliptic, size=2)
        return gaussian_kernel(along, across, generator.uniform(0, 180))

    def __call__(self, clean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """``(C, H + 2 margin, W + 2 margin)`` float32 -> ``(C, H, W)``, which may leave [0, 1]."""
        blurred = convolve_circular(clean, self.draw(generator))  # wrong beside the border only, within the margin
        margin = self.margin
        _, height, width = blurred.shape
        return GaussianNoise(self.sigma)(blurred[:, margin : height - margin, margin : width - margin], generator)


def convolve_circular(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """``kernel * image`` on the torus, by FFT: ``(C, H, W)`` float32 -> the same shape. The kernel may be larger.

    At least ``h // 2`` rows and ``w // 2`` columns away from the border this is the convolution without a boundary.
    """
    height, width = image.shape[-2:]
    rows, columns = ((np.arange(side) - side // 2) for side in kernel.shape)
    spread = np.zeros((height, width), dtype=np.float32)
    np.add.at(spread, np.ix_(rows % height, columns % width), kernel)
    spectrum = fft.rfft2(image) * fft.rfft2(spread)  # (C, H, W // 2 + 1)
    return fft.irfft2(spectrum, s=(height, width))


def draw_trajectory(generator: np.random.Generator) -> np.ndarray:
    """Where the camera points during the exposure, ``(STEPS, 2)`` rows and columns in no certain unit."""
    waves = np.arange(1, WAVES + 1)
    time = (np.arange(STEPS) + 0.5) / STEPS
    phases = np.pi * waves * time[:, None] + generator.uniform(0, 2 * np.pi, size=(2, 1, WAVES))
    scales = np.array([BEND, SPEED])[:, None] * generator.standard_normal((2, WAVES)) / waves
    bend, speed = (np.cos(phases) * scales[:, None]).sum(axis=2)  # (STEPS,) each
    jerks = generator.uniform(size=generator.poisson(JERKS))
    turns = generator.uniform(np.pi / 3, 5 * np.pi / 3, size=jerks.size)
    heading = generator.uniform(0, 2 * np.pi) + bend + (time[:, None] > jerks) @ turns
    steps = np.exp(speed)[:, None] * np.stack([np.cos(heading), np.sin(heading)], axis=1)
    return np.cumsum(steps, axis=0)


def motion_kernel(trajectory: np.ndarray, size: float) -> np.ndarray:
    """The picture of a point of light that goes this way, ``(h, h)`` float32 of sum 1, h odd.

    The way, ``(N, 2)`` rows and columns of equally long moments, is moved to have its mean at the kernel's centre and
    scaled to touch the sides of a centred square of `size` pixels, pixels counted from the first to the last. Each
    moment's light is shared by the four pixels about it (bilinearly).
    """
    reach = _motion_reach(size)
    side = 2 * reach + 1
    centred = trajectory - trajectory.mean(axis=0)
    places = centred * ((size - 1) / 2 / max(np.abs(centred).max(), 1e-12)) + reach  # (N, 2)
    corners = np.clip(np.floor(places).astype(np.int64), 0, max(side - 2, 0))
    (below, right), (rows, columns) = (places - corners).T, corners.T
    kernel = np.zeros(side * side)
    for down, row_share in ((0, 1 - below), (1, below)):
        for over, column_share in ((0, 1 - right), (1, right)):
            pixels = np.minimum((rows + down) * side + columns + over, side * side - 1)
            kernel += np.bincount(pixels, weights=row_share * column_share, minlength=side * side)
    return (kernel / kernel.sum()).reshape(side, side).astype(np.float32)


def gaussian_kernel(along: float, across: float, angle: float) -> np.ndarray:
    """A Gaussian of these standard deviations along and across a direction, ``(h, h)`` float32 of sum 1, h odd.

    Sampled at the pixels' centres, up to three of the larger standard deviation.
    """
    reach = _gaussian_reach(max(along, across))
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    squares = ((rows * cosine + columns * sine) / along) ** 2 + ((columns * cosine - rows * sine) / across) ** 2
    kernel = np.exp(-squares / 2)
    return (kernel / kernel.sum()).astype(np.float32)


def _motion_reach(size: float) -> int:
    return math.ceil((size - 1) / 2)


def _gaussian_reach(deviation: float) -> int:
    return math.ceil(3 * deviation)


def checked_kernel(kernel: np.ndarray, name: str) -> np.ndarray:
    """The kernel normalised to sum 1, float32; values below 0 by at most a millionth of the largest become 0.

    Raises:
        ValueError: not two axes of 1 to 101 pixels, not real numbers, not finite, below 0, or all 0; it says which.
    """
    if kernel.ndim != 2 or not all(1 <= side <= LARGEST_KERNEL for side in kernel.shape):
        raise ValueError(f"{name} is {kernel.shape}: use (h, w) of 1 to {LARGEST_KERNEL} pixels each")
    if kernel.dtype.kind not in "fiub":
        raise ValueError(f"{name} is of {kernel.dtype}: use real numbers")
    values = kernel.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has values that are not finite")
    if values.max() <= 0:
        raise ValueError(f"{name} has no value above 0")
    if values.min() < -1e-6 * values.max():
        raise ValueError(f"{name} has the value {values.min():.3g}: use values of 0 or more")
    values = values.clip(0) / values.max()
    return (values / values.sum()).astype(np.float32)


def read_kernels(path: Path) -> list[np.ndarray]:
    """The blur kernels of a file, in its order: ``(h, w)`` float32 of sum 1 each.

    - ``.mat`` of MATLAB's versions 5 to 7 (save -v6, -v7): every variable, a cell array of kernels, one kernel, or
      ``(h, w, N)`` of N kernels. Read here and not by scipy, which takes the sizes that a file claims at their word
      and has objects for things that are no numbers.
    - ``.npy``, ``.npz``: ``(h, w)`` or ``(N, h, w)``; never pickled objects.
    - ``.png``: one kernel, grey.

    Raises:
        ValueError: the file is missing, damaged, has more than 16 MiB, packed or unpacked, more than 1000 kernels, or
            anything else than kernels in it (`checked_kernel`); it names the file.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: not a file of kernels; use {', '.join(_READERS)}")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES} bytes")
        stacks = reader(path.read_bytes())
        found = list(islice((kernel for stack in stacks for kernel in _unstacked(stack)), MOST_KERNELS + 1))
        if not 1 <= len(found) <= MOST_KERNELS:
            raise ValueError(f"{len(found)} kernels: use 1 to {MOST_KERNELS}")
        return [checked_kernel(kernel, f"kernel {number}") for number, kernel in enumerate(found)]
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except _UNREADABLE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: no readable blur kernels ({reason})") from error


_UNREADABLE = (
    *(ValueError, OSError, EOFError, SyntaxError, RuntimeError, NotImplementedError, OverflowError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, struct.error, UnidentifiedImageError, Image.DecompressionBombError),
    tokenize.TokenError,  # numpy, of a damaged header
)


def _unstacked(kernels: np.ndarray) -> Iterator[np.ndarray]:
    """The kernels of ``(h, w)`` or ``(N, h, w)``."""
    yield from kernels if kernels.ndim == 3 else [kernels]


def _png_kernels(data: bytes) -> Iterator[np.ndarray]:
    with Image.open(BytesIO(data), formats=["PNG"]) as image:
        if image.mode not in ("1", "L", "I", "I;16"):
            raise ValueError(f"pixels of mode {image.mode}: use a grey image")
        if max(image.size) > LARGEST_KERNEL:  # before anything is decoded
            raise ValueError(f"{image.size[0]} x {image.size[1]} pixels: use at most {LARGEST_KERNEL}")
        yield np.asarray(image)


def _npy_kernels(data: bytes) -> Iterator[np.ndarray]:
    stream = BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"npy of version {version}: use numbers")
    shape, _, dtype = read_header(stream)
    if dtype.kind not in "fiub" or math.prod(shape) * dtype.itemsize > len(data):
        raise ValueError(f"{shape} of {dtype} in {len(data)} bytes: use real numbers, whole")
    stream.seek(0)
    yield np.load(stream, allow_pickle=False)


def _npz_kernels(archived: bytes) -> Iterator[np.ndarray]:
    with zipfile.ZipFile(BytesIO(archived)) as archive:
        left = MOST_BYTES
        for member in archive.infolist():
            with archive.open(member) as file:
                data = file.read(left)
            left -= len(data)
            if not left:
                raise ValueError(f"more than {MOST_BYTES} bytes unpacked")
            yield from _npy_kernels(data)


_MAT_MATRIX, _MAT_COMPRESSED, _MAT_CELL = 14, 15, 1
_MAT_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MAT_NUMBERS = range(6, 16)  # classes: double, single, int8 ... uint64
_MAT_COMPLEX = 0x800


def _mat_kernels(data: bytes) -> Iterator[np.ndarray]:
    """Source: *MAT-File Format*, The MathWorks: version 5."""
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None or data[124:126] not in (b"\x00\x01", b"\x01\x00"):
        raise ValueError("not a MAT-file of version 5 to 7: save it with -v7")
    left = MOST_BYTES
    for kind, content in _mat_elements(memoryview(data)[128:], order):
        if kind == _MAT_COMPRESSED:
            unpacker = zlib.decompressobj()
            unpacked = unpacker.decompress(content, left)
            left -= len(unpacked)
            if not left or not unpacker.eof:
                raise ValueError(f"cut short, or more than {MOST_BYTES} bytes unpacked")
            for inner, inner_content in _mat_elements(memoryview(unpacked), order):
                yield from _mat_arrays(inner, inner_content, order, cells=True)
        else:
            yield from _mat_arrays(kind, content, order, cells=True)


def _mat_elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """The (type, content) of elements that follow each other."""
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        start, most = place + 8, len(data) - place - 8
        if kind >> 16:  # a small element: at most four bytes, beside its type
            kind, size, start, most = kind & 0xFFFF, kind >> 16, place + 4, 4
        if size > most:
            raise ValueError("cut short")
        yield kind, data[start : start + size]
        place = start + size if kind == _MAT_COMPRESSED else start + size + -(start + size) % 8


def _mat_arrays(kind: int, content: memoryview, order: str, cells: bool) -> Iterator[np.ndarray]:
    """A variable's numeric arrays, ``(h, w)`` or, third axis first, ``(N, h, w)``; of a cell array, its cells."""
    parts = _mat_elements(content, order)
    try:
        if kind != _MAT_MATRIX:
            raise ValueError(f"an element of type {kind}: save nothing but numeric arrays and cell arrays of them")
        flags = struct.unpack_from(f"{order}I", next(parts)[1])[0]
        shape = np.frombuffer(next(parts)[1], dtype=f"{order}i4").tolist()
        next(parts)  # the name
        if flags & 0xFF == _MAT_CELL and cells:
            for inner, inner_content in parts:
                yield from _mat_arrays(inner, inner_content, order, cells=False)
            return
        if flags & 0xFF not in _MAT_NUMBERS or flags & _MAT_COMPLEX or len(shape) not in (2, 3):
            what = "complex numbers" if flags & _MAT_COMPLEX else f"{len(shape)} axes of class {flags & 0xFF}"
            raise ValueError(f"a variable of {what}: use real numbers (h, w) or (h, w, N), or cells of them")
        storage, numbers = next(parts)
    except StopIteration:
        raise ValueError("cut short") from None
    if storage not in _MAT_TYPES:
        raise ValueError(f"numbers of type {storage}: use real numbers")
    array = np.frombuffer(numbers, dtype=f"{order}{_MAT_TYPES[storage]}").reshape(shape, order="F")
    yield np.moveaxis(array, 2, 0) if array.ndim == 3 else array


_READERS = {".mat": _mat_kernels, ".npy": _npy_kernels, ".npz": _npz_kernels, ".png": _png_kernels}
