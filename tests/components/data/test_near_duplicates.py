"""Copies of photographs are recognised after what people do to files, and different photographs are not taken for one.

How often, over hundreds of photographs, is measured by benchmarks/near_duplicates.py.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy import fft

from components.data.near_duplicates import Fingerprint, _basis, _bits, fingerprint, near_duplicates
from components.data.readers.images import read_image
from pipeline.sources.kinds.builtin import BuiltinPhotographs

pytestmark = pytest.mark.unit

OTHERS = ["astronaut.png", "coffee.png", "rocket.jpg", "china.jpg", "flower.jpg", "grace_hopper.jpg"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """(3, H, W) uint8 each."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in (*OTHERS, "chelsea.png"):
        BuiltinPhotographs().copy(name, folder / name)
    return {name: read_image(folder / name) for name in (*OTHERS, "chelsea.png")}


@pytest.fixture(scope="module")
def originals(photographs: dict[str, np.ndarray]) -> dict[str, Fingerprint]:
    found = {name: fingerprint(image) for name, image in photographs.items()}
    return {name: each for name, each in found.items() if each is not None}


def _search(originals: dict[str, Fingerprint], changed: np.ndarray) -> list[tuple[str, str]]:
    """What a changed image is taken for."""
    own = fingerprint(changed)
    assert own is not None
    return near_duplicates({**originals, "changed": own}, {name: name for name in (*originals, "changed")})


def _coded(image: np.ndarray, format: str, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, format, quality=quality)
    return np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1)


def _sized(image: np.ndarray, factor: float) -> np.ndarray:
    height, width = (round(factor * side) for side in image.shape[1:])
    return np.asarray(Image.fromarray(image.transpose(1, 2, 0)).resize((width, height))).transpose(2, 0, 1)


def test_different_photographs_are_different(originals: dict[str, Fingerprint]) -> None:
    assert near_duplicates(originals, {name: name for name in originals}) == []


@pytest.mark.parametrize("change", ["jpeg", "webp", "half", "larger", "grey", "deep", "darker", "noise"])
def test_a_photograph_is_found_in_another_format_size_depth_or_brightness(
    change: str, photographs: dict[str, np.ndarray], originals: dict[str, Fingerprint]
) -> None:
    image = photographs["chelsea.png"]
    noise = np.random.default_rng(0).normal(0, 8, image.shape)
    changed = {
        "jpeg": lambda: _coded(image, "JPEG", 30),
        "webp": lambda: _coded(image, "WEBP", 50),
        "half": lambda: _sized(image, 0.5),
        "larger": lambda: _sized(image, 1.3),
        "grey": lambda: image.mean(axis=0, keepdims=True).astype(np.uint8),
        "deep": lambda: image.astype(np.uint16) * 257,
        "darker": lambda: (image * 0.6 + 30).astype(np.uint8),
        "noise": lambda: (image + noise).clip(0, 255).astype(np.uint8),
    }[change]()
    assert _search(originals, changed) in ([("changed", "chelsea.png")], [("chelsea.png", "changed")])


@pytest.mark.parametrize("share", [0.9, 0.75, 0.6, 0.5])
@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (0.3, 0.6)])
def test_a_part_is_found_in_the_whole_down_to_half_its_side(
    share: float, corner: tuple[float, float], photographs: dict[str, np.ndarray], originals: dict[str, Fingerprint]
) -> None:
    image = photographs["chelsea.png"]
    height, width = (round(share * side) for side in image.shape[1:])
    top, left = (
        round(place * (whole - part))
        for place, whole, part in zip(corner, image.shape[1:], (height, width), strict=True)
    )
    part = image[:, top : top + height, left : left + width]
    assert set().union(*_search(originals, part)) == {"changed", "chelsea.png"}
    if share == 0.75:  # of another format and size, too
        assert set().union(*_search(originals, _coded(_sized(part, 0.6), "JPEG", 50))) == {"changed", "chelsea.png"}


def test_what_is_said_not_to_be_found_is_not_found(
    photographs: dict[str, np.ndarray], originals: dict[str, Fingerprint]
) -> None:
    image = photographs["chelsea.png"]
    for changed in (image[:, :, ::-1], image.transpose(0, 2, 1), image[:, :100, :150]):
        assert _search(originals, np.ascontiguousarray(changed)) == []


def test_images_with_too_little_to_compare_have_no_fingerprint() -> None:
    random = np.random.default_rng(0)
    ramp = np.broadcast_to(np.linspace(100, 110, 80), (3, 60, 80)).astype(np.uint8)
    small, long = (random.integers(0, 256, shape, dtype=np.uint8) for shape in ((3, 31, 90), (3, 40, 161)))
    assert [fingerprint(image) for image in (ramp, small, long)] == [None, None, None]


def test_images_of_one_group_are_not_compared(originals: dict[str, Fingerprint]) -> None:
    twice = {**originals, "again": originals["china.jpg"]}
    assert near_duplicates(twice, {name: name for name in twice}) == [("again", "china.jpg")]
    assert near_duplicates(twice, {name: "china.jpg" if name == "again" else name for name in twice}) == []
    assert near_duplicates({}, {}) == []


def test_three_copies_are_connected_by_two_pairs(originals: dict[str, Fingerprint]) -> None:
    several = {**originals, "copy1": originals["china.jpg"], "copy2": originals["china.jpg"]}
    pairs = near_duplicates(several, {name: name for name in several})
    assert len(pairs) == 2
    assert set().union(*pairs) == {"china.jpg", "copy1", "copy2"}


def test_a_hash_is_the_signs_of_the_lowest_frequencies_of_the_cosine_transform() -> None:
    pixels = np.random.default_rng(0).normal(size=(5, 16, 16)).astype(np.float32)
    (codes,) = [_bits(pixels.reshape(5, 256) @ _basis())]
    lowest = sorted(((v, u) for v in range(16) for u in range(16)), key=lambda pair: (sum(pair), pair))[1:65]
    for code, image in zip(codes, pixels, strict=True):
        transform = fft.dctn(image.astype(np.float64))
        assert [bool(int(code) >> k & 1) for k in range(64)] == [transform[pair] > 0 for pair in lowest]
