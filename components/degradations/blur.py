"""Blur by camera shake, by a lens or by given kernels, followed by noise: ``degraded = kernel * clean + noise``.

`draw_trajectory` draws the trajectory of a camera at random. `motion_kernel` renders it.
Legend: C channels, H rows, W columns. A kernel is ``(h, w)``, >= 0, of sum 1; its centre is the pixel
``(h // 2, w // 2)``. Directions are defined as in rain.py: degrees from the vertical, positive like a backslash.
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

from components.brief import first_line
from components.degradations.noise import GaussianNoise, check_range

LARGEST_KERNEL = 101
MOST_KERNELS = 1000
MOST_BYTES = 2**24
"""Largest size of a file of kernels, packed and unpacked: 200 kernels of the largest size in float64."""

# Parameters of a random camera trajectory, chosen by inspecting measured camera shake.
STEPS = 512  # positions of the trajectory
WAVES = 4  # cosines in heading and in speed, of 1 to 4 half waves over the exposure
BEND = 1.5  # radians: scale of the first wave of the heading
SPEED = 0.6  # scale of the first wave of the logarithm of the speed
JERKS = 0.8  # mean number of sudden changes of the direction


@dataclass(frozen=True, eq=False)
class Blur:
    """``degraded = kernel * clean + sigma / 255 normal``, not clipped; ``*`` is convolution, the same in all channels.

    ``(kernel * x)[r, c] = sum_ij kernel[i, j] x[r - (i - h // 2), c - (j - w // 2)]``: the kernel is the point spread
    function. Each image first draws one of the given kinds; all kinds are equally likely. It then draws a kernel of
    this kind. Every range ``[low, high]`` is sampled uniformly.

    Attributes:
        sigma: standard deviation of the noise, in grey levels of 255.
        motion: camera shake. The value is the side, in pixels, of the square that the trajectory touches; the square is
            centred on the kernel's mass.
        gaussian: an isotropic Gaussian; its standard deviation, in pixels.
        elliptic: a Gaussian with two standard deviations, each drawn from this range, in a random direction.
        kernels: given kernels of at most 101 x 101 pixels, with odd or even sides; they are normalised to sum 1.
        boundary: "valid" blurs with the true neighbours, which are in the margin of the clean image. "circular" has no
            margin and uses periodic boundaries, as methods that invert the blur by FFT assume.

    Raises:
        ValueError: no kind is given, a range is reversed or impossible, or a kernel is invalid (`checked_kernel`).

    Source for camera shake: Boracchi, Foi, *Modeling the performance of image restoration from motion blur*, IEEE TIP
    2012. Their camera moves with inertia and has occasional jerks. Here direction and speed are sums of cosines.

    Example:
        >>> degrade = Blur(sigma=(2, 2), gaussian=(1, 2))
        >>> degrade.margin  # three standard deviations of the largest Gaussian
        6
        >>> degrade(np.zeros((3, 8 + 12, 8 + 12), dtype=np.float32), np.random.default_rng(0)).shape
        (3, 8, 8)
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
        """Margin in pixels of the clean image on each side: the radius of the largest possible kernel."""
        if self.boundary == "circular":
            return 0
        reaches = [side // 2 for kernel in self.kernels for side in kernel.shape]
        if self.motion is not None:
            reaches.append(_motion_reach(self.motion[1]))
        reaches.extend(_gaussian_reach(each[1]) for each in (self.gaussian, self.elliptic) if each is not None)
        return max(reaches)

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """Draw a random kernel, ``(h, w)`` float32."""
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
        blurred = convolve_circular(clean, self.draw(generator))  # differs from "valid" only within the margin
        margin = self.margin
        _, height, width = blurred.shape
        return GaussianNoise(self.sigma)(blurred[:, margin : height - margin, margin : width - margin], generator)


def convolve_circular(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Compute ``kernel * image`` with periodic boundaries by FFT: ``(C, H, W)`` float32 -> the same shape.

    The kernel may be larger than the image. At least ``h // 2`` rows and ``w // 2`` columns away from the border, the
    result is independent of the boundary condition.

    Example:
        >>> image = np.random.default_rng(0).random((1, 6, 6), dtype=np.float32)
        >>> kernel = np.zeros((3, 3), dtype=np.float32)
        >>> kernel[2, 1] = 1  # one row below the centre: the image moves down by one row
        >>> np.allclose(convolve_circular(image, kernel), np.roll(image, 1, axis=1), atol=1e-6)
        True
    """
    height, width = image.shape[-2:]
    rows, columns = ((np.arange(side) - side // 2) for side in kernel.shape)
    spread = np.zeros((height, width), dtype=np.float32)
    np.add.at(spread, np.ix_(rows % height, columns % width), kernel)
    spectrum = fft.rfft2(image) * fft.rfft2(spread)  # (C, H, W // 2 + 1)
    return fft.irfft2(spectrum, s=(height, width))


def draw_trajectory(generator: np.random.Generator) -> np.ndarray:
    """Draw the pointing direction of the camera over the exposure, ``(STEPS, 2)`` rows and columns in arbitrary units.

    Example:
        >>> draw_trajectory(np.random.default_rng(0)).shape
        (512, 2)
    """
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
    """Render the point spread function of a trajectory, ``(h, h)`` float32 of sum 1, h odd.

    The trajectory is ``(N, 2)``: rows and columns at N equally spaced times. It is shifted so that its mean is at the
    kernel's centre. It is then scaled so that it touches the sides of a centred square of `size` pixels, which includes
    its first and last pixel. The light of each time is distributed bilinearly over the four nearest pixels.

    Example:
        >>> line = np.array([[0.0, -1.0], [0.0, 0.0], [0.0, 1.0]])  # a horizontal movement
        >>> np.rint(3 * motion_kernel(line, size=3))
        array([[0., 0., 0.],
               [1., 1., 1.],
               [0., 0., 0.]], dtype=float32)
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
    """Return a Gaussian kernel, ``(h, h)`` float32 of sum 1, h odd.

    The Gaussian is sampled at the centres of the pixels, up to three times the larger standard deviation.

    Args:
        along: standard deviation along the direction, in pixels.
        across: standard deviation across the direction, in pixels.
        angle: the direction, in degrees from the vertical.

    Example:
        >>> kernel = gaussian_kernel(2, 1, 90)  # wider horizontally
        >>> kernel.shape, round(float(kernel.sum()), 5), bool(kernel[6, 8] > kernel[8, 6])
        ((13, 13), 1.0, True)
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
    """Check a kernel and normalise it to sum 1, float32.

    Negative values of at most a millionth of the largest value are set to 0.

    Raises:
        ValueError: the kernel does not have two axes of 1 to 101 pixels, or its values are not real, not finite,
            negative, or all 0. The message states which.

    Example:
        >>> checked_kernel(np.array([[1, 2, 1]]), "kernel 0")
        array([[0.25, 0.5 , 0.25]], dtype=float32)
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
    """Read the blur kernels of a file, in the order of the file: ``(h, w)`` float32 of sum 1 each.

    - ``.mat`` of MATLAB's versions 5 to 7 (save -v6, -v7): every variable is read. A variable is a cell array of
      kernels, one kernel, or ``(h, w, N)`` of N kernels. The reader is implemented here, because scipy trusts the sizes
      that a file declares and creates objects for non-numeric content.
    - ``.npy``, ``.npz``: ``(h, w)`` or ``(N, h, w)``. Pickled objects are never loaded.
    - ``.png``: one grey kernel.

    Raises:
        ValueError: the file is missing or damaged, has more than 16 MiB (packed or unpacked) or more than 1000 kernels,
            or holds anything else than kernels (`checked_kernel`). The message names the file.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     np.save(Path(folder) / "kernels.npy", np.ones((4, 5, 7)))
        ...     kernels = read_kernels(Path(folder) / "kernels.npy")
        >>> len(kernels), kernels[0].shape
        (4, (5, 7))
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
        raise ValueError(f"{path}: no readable blur kernels ({first_line(error)})") from error


_UNREADABLE = (
    *(ValueError, OSError, EOFError, SyntaxError, RuntimeError, NotImplementedError, OverflowError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, struct.error, UnidentifiedImageError, Image.DecompressionBombError),
    tokenize.TokenError,  # raised by numpy for a damaged header
)


def _unstacked(kernels: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the kernels of an array ``(h, w)`` or ``(N, h, w)``."""
    yield from kernels if kernels.ndim == 3 else [kernels]


def _png_kernels(data: bytes) -> Iterator[np.ndarray]:
    with Image.open(BytesIO(data), formats=["PNG"]) as image:
        if image.mode not in ("1", "L", "I", "I;16"):
            raise ValueError(f"pixels of mode {image.mode}: use a grey image")
        if max(image.size) > LARGEST_KERNEL:  # checked before anything is decoded
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
_MAT_NUMBERS = range(6, 16)  # MATLAB's numeric classes: double, single, int8 ... uint64
_MAT_COMPLEX = 0x800


def _mat_kernels(data: bytes) -> Iterator[np.ndarray]:
    """Read the kernels of a MAT-file. Source: *MAT-File Format*, The MathWorks: version 5."""
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
    """Yield (type, content) of consecutive elements."""
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        start, most = place + 8, len(data) - place - 8
        if kind >> 16:  # a small element: at most four bytes, stored in its tag
            kind, size, start, most = kind & 0xFFFF, kind >> 16, place + 4, 4
        if size > most:
            raise ValueError("cut short")
        yield kind, data[start : start + size]
        place = start + size if kind == _MAT_COMPRESSED else start + size + -(start + size) % 8


def _mat_arrays(kind: int, content: memoryview, order: str, cells: bool) -> Iterator[np.ndarray]:
    """Yield the numeric array of a variable, or the arrays of the cells of a cell array.

    An array is ``(h, w)`` or, with the third axis moved to the front, ``(N, h, w)``.
    """
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
