"""Blur is convolution, its kernels look like camera shake and lenses, and a file of kernels is read or refused."""

from __future__ import annotations

import io
import math
import re
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import io as scipy_io
from scipy import ndimage, signal, sparse

from components.degradations.blur import (
    Blur,
    checked_kernel,
    convolve_circular,
    draw_trajectory,
    gaussian_kernel,
    motion_kernel,
    read_kernels,
)

pytestmark = pytest.mark.unit

SIZES = [(3, 3), (5, 9), (4, 6), (1, 8), (7, 2), (1, 1)]


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).uniform(size=shape).astype(np.float32)


def kernel(height: int, width: int) -> np.ndarray:
    values = np.random.default_rng(100 * height + width).uniform(size=(height, width)) ** 3
    return (values / values.sum()).astype(np.float32)


def centroid(values: np.ndarray) -> np.ndarray:
    return np.array(ndimage.center_of_mass(values)) - np.array(values.shape) // 2


def covariance(values: np.ndarray) -> np.ndarray:
    """Of (rows, columns), about the centre."""
    offsets = np.indices(values.shape).reshape(2, -1) - np.array(values.shape)[:, None] // 2
    return (offsets * values.ravel()) @ offsets.T


# Convolution


@pytest.mark.parametrize("size", SIZES)
def test_circular_blur_is_the_sum_of_rolled_images(size: tuple[int, int]) -> None:
    image, weights = picture(2, 11, 14), kernel(*size)
    expected = np.zeros(image.shape)
    for row, column in np.ndindex(*size):
        expected += weights[row, column] * np.roll(image, (row - size[0] // 2, column - size[1] // 2), axis=(1, 2))
    np.testing.assert_allclose(convolve_circular(image, weights), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(3, 3), (5, 9), (1, 7)])
def test_circular_blur_agrees_with_scipys_wrapping_convolution(size: tuple[int, int]) -> None:
    image, weights = picture(13, 17), kernel(*size)
    expected = ndimage.convolve(image.astype(np.float64), weights, mode="wrap")
    np.testing.assert_allclose(convolve_circular(image[None], weights)[0], expected, atol=1e-6)


def test_a_kernel_larger_than_the_image_wraps_more_than_once() -> None:
    image, weights = picture(1, 5, 4), kernel(17, 15)
    tiled = np.tile(image[0], (9, 9)).astype(np.float64)
    expected = ndimage.convolve(tiled, weights, mode="wrap")[20:25, 16:20]
    np.testing.assert_allclose(convolve_circular(image, weights)[0], expected, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_the_valid_blur_of_a_crop_is_the_inside_of_the_blurred_large_image(size: tuple[int, int]) -> None:
    whole, weights = picture(3, 60, 70), kernel(*size)
    blur = Blur((0, 0), kernels=[weights, kernel(9, 11)[:, ::-1]])
    margin = blur.margin
    assert margin == 5
    top, left = 20, 31
    crop = whole[:, top - margin : top + 12 + margin, left - margin : left + 15 + margin]
    expected = [
        np.stack([signal.convolve2d(channel, each, mode="full") for channel in whole])[
            :, top + each.shape[0] // 2 :, left + each.shape[1] // 2 :
        ][:, :12, :15]
        for each in blur.kernels
    ]
    matches = [0, 0]
    for seed in range(20):
        degraded = blur(crop, np.random.default_rng(seed))
        assert degraded.shape == (3, 12, 15)
        assert degraded.dtype == np.float32
        for number in (0, 1):
            matches[number] += np.allclose(degraded, expected[number], atol=1e-6)
    assert sum(matches) == 20
    assert min(matches) > 2


def test_the_kernel_is_the_picture_of_a_point_of_light() -> None:
    weights = kernel(5, 7)
    point = np.zeros((1, 21, 21), dtype=np.float32)
    point[0, 10, 10] = 1
    degraded = Blur((0, 0), kernels=[weights], boundary="circular")(point, np.random.default_rng(0))
    np.testing.assert_allclose(degraded[0, 8:13, 7:14], weights, atol=1e-6)


def test_circular_has_no_margin_and_keeps_the_mean() -> None:
    blur = Blur((0, 0), motion=(9, 9), gaussian=(2, 2), boundary="circular")
    clean = picture(3, 24, 30)
    degraded = blur(clean, np.random.default_rng(1))
    assert blur.margin == 0
    np.testing.assert_allclose(degraded.mean(axis=(1, 2)), clean.mean(axis=(1, 2)), atol=1e-6)
    assert degraded.std() < 0.5 * clean.std()


def test_the_noise_has_the_asked_standard_deviation_and_is_not_clipped() -> None:
    blur = Blur((10, 10), gaussian=(1, 1), boundary="circular")
    degraded = blur(np.zeros((3, 100, 100), dtype=np.float32), np.random.default_rng(0))
    assert degraded.std() * 255 == pytest.approx(10, rel=0.02)
    assert degraded.min() < 0


@pytest.mark.parametrize(
    ("kinds", "margin"),
    [
        ({"motion": (3, 25)}, 12),
        ({"motion": (3, 25.5)}, 13),
        ({"gaussian": (0.5, 2)}, 6),
        ({"elliptic": (0.5, 2.1)}, 7),
        ({"motion": (3, 5), "gaussian": (1, 1)}, 3),
        ({"kernels": [np.ones((4, 3))]}, 2),
        ({"kernels": [np.ones((1, 9))], "motion": (3, 5)}, 4),
    ],
)
def test_the_margin_is_the_reach_of_the_largest_kernel_that_can_be_drawn(kinds: dict[str, Any], margin: int) -> None:
    blur = Blur((0, 0), **kinds)
    assert blur.margin == margin
    sides = [max(blur.draw(np.random.default_rng(seed)).shape) for seed in range(100)]
    assert max(sides) // 2 <= margin
    assert blur(picture(1, 8 + 2 * margin, 10 + 2 * margin), np.random.default_rng(0)).shape == (1, 8, 10)


# Drawn kernels


@pytest.mark.parametrize("kinds", [{"motion": (5, 25)}, {"gaussian": (0.5, 3)}, {"elliptic": (0.5, 3)}])
def test_drawn_kernels_are_light_that_neither_gets_lost_nor_moves(kinds: dict[str, tuple[float, float]]) -> None:
    blur = Blur((0, 0), **kinds)  # type: ignore[arg-type]
    for seed in range(60):
        drawn = blur.draw(np.random.default_rng(seed))
        assert drawn.dtype == np.float32
        assert drawn.min() >= 0
        assert drawn.sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(centroid(drawn), 0, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 5, 9.5, 25, 101])
def test_camera_shake_touches_its_square_in_one_piece(size: float) -> None:
    for seed in range(20):
        drawn = motion_kernel(draw_trajectory(np.random.default_rng(seed)), size)
        reach = (size - 1) / 2
        offsets = np.abs(np.argwhere(drawn > 0) - drawn.shape[0] // 2).max()
        assert drawn.shape == (2 * math.ceil(reach) + 1,) * 2
        assert offsets == math.ceil(reach)
        assert ndimage.label(drawn, np.ones((3, 3)))[1] == 1


def test_a_straight_even_way_is_an_even_line() -> None:
    way = np.stack([np.zeros(4000), np.linspace(-7, 7, 4000)], axis=1) + 100
    drawn = motion_kernel(way, 5)
    np.testing.assert_allclose(drawn[2], [1 / 8, 1 / 4, 1 / 4, 1 / 4, 1 / 8], atol=1e-3)
    assert drawn[[0, 1, 3, 4]].max() < 1e-6


def test_camera_shake_is_smooth_but_for_jerks_and_goes_in_all_directions() -> None:
    turns, ends = [], []
    for seed in range(300):
        way = draw_trajectory(np.random.default_rng(seed))
        steps = np.diff(way, axis=0) @ np.array([1, 1j])
        turns.append(np.abs(np.angle(steps[1:] / steps[:-1])))
        ends.append(np.angle((way[-1] - way[0]) @ np.array([1, 1j])))
    sudden = np.array([(turn > 0.5).sum() for turn in turns])
    assert np.median(turns) < 0.02
    assert sudden.mean() == pytest.approx(0.8, abs=0.2)
    assert np.histogram(ends, bins=4, range=(-np.pi, np.pi))[0].min() > 45


def test_camera_shake_is_curved_and_uneven() -> None:
    """Its way is longer than its size, and it dwells at places."""
    lengths, speeds = [], []
    for seed in range(100):
        way = draw_trajectory(np.random.default_rng(seed))
        steps = np.linalg.norm(np.diff(way, axis=0), axis=1)
        lengths.append(steps.sum() / np.linalg.norm(np.ptp(way, axis=0)))
        speeds.append(steps.max() / steps.min())
    assert np.median(lengths) > 1.1
    assert np.median(speeds) > 2


@pytest.mark.parametrize("deviation", [0.3, 1.0, 2.4])
def test_a_round_gaussian_agrees_with_scipys_filter(deviation: float) -> None:
    drawn = gaussian_kernel(deviation, deviation, 0)
    point = np.zeros((31, 31))
    point[15, 15] = 1
    reach = drawn.shape[0] // 2
    expected = ndimage.gaussian_filter(point, deviation, radius=reach)[15 - reach : 16 + reach, 15 - reach : 16 + reach]
    np.testing.assert_allclose(drawn, expected, atol=1e-6)


@pytest.mark.parametrize("angle", [0, 30, 90, 140])
def test_an_elliptic_gaussian_lies_along_its_angle_like_a_backslash(angle: float) -> None:
    along, across = np.array([math.cos(math.radians(angle)), math.sin(math.radians(angle))]), np.zeros(2)
    across[:] = -along[1], along[0]
    spread = covariance(gaussian_kernel(3, 1.2, angle))
    assert along @ spread @ along == pytest.approx(9, rel=0.05)  # cut off at three standard deviations
    assert across @ spread @ across == pytest.approx(1.44, rel=0.05)
    assert along @ spread @ across == pytest.approx(0, abs=0.05)


def test_elliptic_gaussians_have_all_widths_and_directions_and_round_ones_are_round() -> None:
    elliptic = Blur((0, 0), elliptic=(1, 3))
    spreads = [covariance(elliptic.draw(np.random.default_rng(seed))) for seed in range(100)]
    deviations = np.sqrt([np.linalg.eigvalsh(spread) for spread in spreads])
    assert deviations.min() < 1.1
    assert deviations.max() > 2.75
    assert sum(spread[0, 1] > 0 for spread in spreads) == pytest.approx(50, abs=20)
    for seed in range(20):
        spread = covariance(Blur((0, 0), gaussian=(1, 3)).draw(np.random.default_rng(seed)))
        np.testing.assert_allclose(spread, np.eye(2) * spread[0, 0], atol=1e-4)


def test_all_kinds_and_given_kernels_are_drawn_alike() -> None:
    blur = Blur((0, 0), motion=(5, 5), gaussian=(0.9, 0.9), kernels=[kernel(2, 3), kernel(2, 4)])
    shapes = [blur.draw(np.random.default_rng(seed)).shape for seed in range(600)]
    assert shapes.count((5, 5)) == pytest.approx(200, abs=50)
    assert shapes.count((7, 7)) == pytest.approx(200, abs=50)
    assert shapes.count((2, 3)) == pytest.approx(100, abs=40)
    assert shapes.count((2, 4)) == pytest.approx(100, abs=40)


def test_equal_generators_give_equal_bytes_and_others_other_blur() -> None:
    blur, clean = Blur((1, 5), motion=(5, 15), elliptic=(1, 3)), picture(3, 40, 40)
    first, again, other = (blur(clean, np.random.default_rng(seed)) for seed in (4, 4, 5))
    assert first.tobytes() == again.tobytes() != other.tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"motion": None}, "the blur has no kind: give motion, gaussian, elliptic or kernels"),
        ({"motion": (9, 5)}, "motion 9..5: use 1 <= low <= high <= 101, in pixels"),
        ({"motion": (0, 5)}, "motion 0..5"),
        ({"motion": (5, 103)}, "motion 5..103"),
        ({"gaussian": (0, 2)}, "gaussian 0..2: use 0.1 <= low"),
        ({"elliptic": (1, 40)}, "elliptic 1..40"),
        ({"sigma": (5, 2)}, "sigma 5..2"),
        ({"boundary": "zero"}, "boundary 'zero' is unknown: use valid or circular"),
        ({"kernels": [np.ones((3, 3)), -np.ones((3, 3))]}, "kernel 1 has no value above 0"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(Blur((0, 5), motion=(5, 15)), **change)


# Files of kernels

KERNELS = [kernel(3, 5), kernel(8, 7), kernel(101, 1)]


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert [each.shape for each in found] == [each.shape for each in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, atol=1e-7)


def cells(*arrays: Any) -> np.ndarray:
    array = np.empty((1, len(arrays)), dtype=object)
    array[0, :] = arrays
    return array


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_cell_arrays_of_a_mat_file_are_read_in_order(tmp_path: Path, packed: bool, dtype: type) -> None:
    path = tmp_path / "kernels.mat"
    scipy_io.savemat(path, {"k": cells(*(3 * each.astype(dtype) for each in KERNELS))}, do_compression=packed)
    assert_same(read_kernels(path), KERNELS)


@pytest.mark.parametrize("packed", [True, False])
def test_numeric_variables_of_a_mat_file_are_kernels_and_a_third_axis_numbers_them(
    tmp_path: Path, packed: bool
) -> None:
    path, stack = tmp_path / "kernels.MAT", np.stack([kernel(4, 3), kernel(4, 3)[::-1]], axis=2)
    grey = np.array([[0, 255], [1, 0], [7, 3]], dtype=np.uint8)
    scipy_io.savemat(path, {"first": KERNELS[0], "many": stack, "grey": grey}, do_compression=packed)
    assert_same(read_kernels(path), [KERNELS[0], stack[..., 0], stack[..., 1], grey / grey.sum()])


def test_a_mat_file_of_another_byte_order_is_read(tmp_path: Path) -> None:
    values = np.arange(1.0, 7.0).reshape(2, 3).astype(">f8")
    path = tmp_path / "kernels.mat"
    path.write_bytes(mat_file(mat_array(6, (2, 3), mat_element(9, values.tobytes("F"), ">"), ">"), ">"))
    assert_same(read_kernels(path), [values / 21])


def test_npy_and_npz_files_are_read_and_a_first_axis_numbers_kernels(tmp_path: Path) -> None:
    stack = np.stack([kernel(4, 3), kernel(4, 3)[::-1]])
    np.save(tmp_path / "one.npy", np.asfortranarray(KERNELS[1].astype(np.float64)))
    np.save(tmp_path / "many.npy", stack)
    np.savez(tmp_path / "plain.npz", KERNELS[0], stack)
    np.savez_compressed(tmp_path / "packed.npz", a=KERNELS[2], b=5 * KERNELS[1])
    assert_same(read_kernels(tmp_path / "one.npy"), [KERNELS[1]])
    assert_same(read_kernels(tmp_path / "many.npy"), list(stack))
    assert_same(read_kernels(tmp_path / "plain.npz"), [KERNELS[0], *stack])
    assert_same(read_kernels(tmp_path / "packed.npz"), [KERNELS[2], KERNELS[1]])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_grey_png_is_one_kernel(tmp_path: Path, dtype: type) -> None:
    values: np.ndarray = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (9, 13)).astype(dtype)
    Image.fromarray(values).save(tmp_path / "kernel.png")
    assert_same(read_kernels(tmp_path / "kernel.png"), [values / values.sum(dtype=np.float64)])


def test_kernels_that_were_read_can_be_given_to_the_blur(tmp_path: Path) -> None:
    np.savez(tmp_path / "kernels.npz", *KERNELS[:2])
    assert Blur((0, 0), kernels=read_kernels(tmp_path / "kernels.npz")).margin == 4


def test_a_tiny_negative_value_is_rounding_and_becomes_zero() -> None:
    values = np.array([[1.0, -1e-9], [2.0, 1.0]])
    np.testing.assert_allclose(checked_kernel(values, "k"), [[0.25, 0], [0.5, 0.25]])
    np.testing.assert_allclose(checked_kernel(np.array([[1e308, 1e308]]), "k"), [[0.5, 0.5]])


BAD_ARRAYS = {
    "nan": (np.array([[1.0, math.nan]]), "kernel 0 has values that are not finite"),
    "infinite": (np.array([[1.0, math.inf]]), "not finite"),
    "negative": (np.array([[1.0, -0.1]]), "has the value -0.1: use values of 0 or more"),
    "zero": (np.zeros((3, 3)), "no value above 0"),
    "large": (np.ones((102, 3)), r"is \(102, 3\): use \(h, w\) of 1 to 101 pixels each"),
    "empty": (np.ones((0, 3)), r"is \(0, 3\)"),
    "complex": (np.ones((3, 3)) + 1j, "use real numbers"),
    "four axes": (np.ones((2, 2, 2, 2)), "kernel|real numbers"),
    "many": (np.ones((3, 3, 1001)).T, "kernels: use 1 to 1000"),
}


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".mat"])
@pytest.mark.parametrize("bad", BAD_ARRAYS)
def test_arrays_that_are_no_kernels_are_refused_by_the_name_of_the_file(tmp_path: Path, suffix: str, bad: str) -> None:
    array, message = BAD_ARRAYS[bad]
    path = tmp_path / f"bad{suffix}"
    if suffix == ".npy":
        np.save(path, array)
    elif suffix == ".npz":
        np.savez(path, array)
    else:
        scipy_io.savemat(path, {"k": np.moveaxis(array, 0, -1) if bad == "many" else array})
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: no readable blur kernels .*({message})"):
        read_kernels(path)


@pytest.mark.parametrize(
    "content",
    [
        {"k": "a text"},
        {"k": {"field": np.ones((3, 3))}},
        {"k": sparse.csc_array(np.eye(3))},
        {"k": cells(np.ones((3, 3)), "a text")},
        {"k": cells(cells(np.ones((3, 3))))},
        {"good": np.ones((3, 3)), "z": cells()},
        {},
    ],
)
def test_a_mat_file_with_anything_else_in_it_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "bad.mat"
    scipy_io.savemat(path, content)
    if content.keys() == {"good", "z"}:  # an empty cell array holds no kernel and hides none
        assert len(read_kernels(path)) == 1
        return
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: no readable blur kernels"):
        read_kernels(path)


def mat_element(kind: int, content: bytes, order: str = "<") -> bytes:
    return struct.pack(f"{order}II", kind, len(content)) + content + bytes(-len(content) % 8)


def mat_array(array_class: int, shape: tuple[int, ...], content: bytes, order: str = "<") -> bytes:
    flags = mat_element(6, struct.pack(f"{order}II", array_class, 0), order)
    sizes = mat_element(5, struct.pack(f"{order}{len(shape)}i", *shape), order)
    return mat_element(14, flags + sizes + mat_element(1, b"k", order) + content, order)


def mat_file(content: bytes, order: str = "<") -> bytes:
    return (
        b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}H", 0x0100) + {"<": b"IM", ">": b"MI"}[order] + content
    )


def packed(content: bytes) -> bytes:
    squeezed = zlib.compress(content)
    return struct.pack("<II", 15, len(squeezed)) + squeezed


def npy_header(shape: str, dtype: str = "<f8") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def pickled() -> bytes:
    """An array of objects; not of `print`, which Ray replaces in a process that has imported it."""
    file = io.BytesIO()
    np.save(file, np.array([[round]], dtype=object), allow_pickle=True)
    return file.getvalue()


def lying_zip() -> bytes:
    """Says 100 bytes and unpacks to 100 MB."""
    content = bytearray(zipped("a.npy", npy_header("(5000, 5000)") + bytes(100_000_000)))
    for signature, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = content.index(signature) + place
        content[at : at + 4] = struct.pack("<I", 100)
    return bytes(content)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty.mat": lambda: b"",
    "empty.npy": lambda: b"",
    "empty.npz": lambda: b"",
    "empty.png": lambda: b"",
    "text.mat": lambda: b"kernels" * 100,
    "zip bomb.mat": lambda: mat_file(packed(mat_array(6, (5000, 5000), mat_element(9, bytes(100_000_000))))),
    "many bombs.mat": lambda: mat_file(9 * packed(mat_array(6, (1000, 1000), mat_element(9, bytes(8_000_000))))),
    "claims much.mat": lambda: mat_file(mat_array(6, (2**31 - 1, 2**31 - 1), mat_element(9, bytes(80)))),
    "claims a long text.mat": lambda: mat_file(mat_array(1, (1, 1), mat_array(4, (1, 2**30), mat_element(4, b"")))),
    "claims many cells.mat": lambda: mat_file(mat_array(1, (2**31 - 1, 2**31 - 1), mat_array(1, (2**31 - 1, 1), b""))),
    "empty cells.mat": lambda: mat_file(packed(mat_array(1, (1, 1), bytes(16_000_000)))),
    "ones.mat": lambda: mat_file(packed(mat_array(1, (1, 1), mat_array(9, (1, 1), mat_element(2, b"\x01")) * 200_000))),
    "below zero.mat": lambda: mat_file(mat_array(6, (-1, -10), mat_element(9, bytes(80)))),
    "function.mat": lambda: mat_file(mat_array(16, (1, 1), b"")),
    "object.mat": lambda: mat_file(mat_array(3, (1, 1), b"")),
    "strange numbers.mat": lambda: mat_file(mat_array(6, (3, 3), mat_element(18, bytes(72)))),
    "pickle.npy": pickled,
    "pickle.npz": lambda: zipped("a.npy", pickled()),
    "claims much.npy": lambda: npy_header("(1000000, 1000000)") + bytes(800),
    "nothing much.npy": lambda: npy_header("(1000000, 1000000, 1000000)", "|V0"),
    "zip bomb.npz": lambda: zipped("a.npy", npy_header("(5000, 5000)") + bytes(100_000_000)),
    "lying zip.npz": lying_zip,
    "claims much.npz": lambda: zipped("a.npy", npy_header("(1000000, 1000000)") + bytes(800)),
    "text inside.npz": lambda: zipped("a.txt", b"text"),
    "too long.npy": lambda: npy_header("(2, 2)") + bytes(2**24),
    "jpeg.png": lambda: image_file("JPEG", (9, 9), "L"),
    "colour.png": lambda: image_file("PNG", (9, 9), "RGB"),
    "large.png": lambda: image_file("PNG", (9000, 9000), "L"),
    "black.png": lambda: image_file("PNG", (9, 9), "L"),
}


def image_file(kind: str, size: tuple[int, int], mode: str) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_by_its_name_and_takes_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(HOSTILE[name]())
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: no readable blur kernels"):
            read_kernels(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**24
    finally:
        tracemalloc.stop()


def test_matlabs_hdf5_format_is_refused_with_the_remedy(tmp_path: Path) -> None:
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    (tmp_path / "new.mat").write_bytes(header.ljust(512, b"\x00") + b"\x89HDF\r\n\x1a\n" + bytes(2000))
    with pytest.raises(ValueError, match="save it with -v7"):
        read_kernels(tmp_path / "new.mat")


@pytest.mark.parametrize("suffix", [".mat", ".npy", ".npz", ".png"])
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    """Cut at any place, or with a few bytes changed."""
    path, generator = tmp_path / f"kernels{suffix}", np.random.default_rng(0)
    if suffix == ".mat":
        scipy_io.savemat(path, {"k": cells(kernel(3, 4), kernel(2, 2)), "m": kernel(5, 5)})
    elif suffix == ".npy":
        np.save(path, kernel(5, 6))
    elif suffix == ".npz":
        np.savez_compressed(path, kernel(5, 6), kernel(2, 3))
    else:
        Image.fromarray(np.rint(kernel(9, 9) * 5000).astype(np.uint8)).save(path)
    whole, refusals = path.read_bytes(), []
    for attempt in range(600):
        damaged = bytearray(whole[: len(whole) * attempt // 300] if attempt < 300 else whole)
        if attempt >= 300:
            for place in generator.integers(len(whole), size=3):
                damaged[place] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            assert all(each.sum() == pytest.approx(1, abs=1e-5) for each in read_kernels(path))
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > 200
    assert all(each.startswith(f"{path}: ") and "\n" not in each for each in refusals)


def test_a_missing_file_and_an_unknown_suffix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.npy: there is no such file"):
        read_kernels(tmp_path / "nowhere.npy")
    with pytest.raises(ValueError, match=r"kernels\.txt: not a file of kernels; use \.mat, \.npy, \.npz, \.png"):
        read_kernels(tmp_path / "kernels.txt")
    (tmp_path / "folder.mat").mkdir()
    with pytest.raises(ValueError, match=r"folder\.mat: no readable blur kernels"):
        read_kernels(tmp_path / "folder.mat")
