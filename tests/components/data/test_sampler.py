"""A training pair is a function of (seed, step, index)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from components.data.packs import Entry, Pack, write_pack
from components.data.sampler import Degradation, LabelledSampler, PatchSampler
from components.degradations.noise import GaussianNoise
from components.degradations.rain import Rain

pytestmark = pytest.mark.unit

PATCH = 8
SIZES = [(9, 10), (16, 8), (12, 12)]


def _identity(clean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return clean


def _marking_top(clean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The first row is lit: a degradation with a direction."""
    degraded = clean.copy()
    degraded[:, 0] = 7
    return degraded


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    """Three images whose pixels tell image (channel 0), row (channel 1) and column (channel 2)."""
    images = []
    for number, size in enumerate(SIZES):
        rows, columns = np.mgrid[: size[0], : size[1]]
        images.append(np.stack([np.full(size, 10 * number), rows, columns]).astype(np.uint8))
    write_pack(tmp_path, [Entry(f"i{n}", f"s{n}", *size) for n, size in enumerate(SIZES)], images)
    return Pack(tmp_path)


def _sampler(pack: Pack, degradation: Degradation = _identity, rotations: bool = False, seed: int = 0) -> PatchSampler:
    return PatchSampler(pack, degradation, PATCH, rotations, seed)


NOISE = GaussianNoise((25.0, 25.0))
RAIN = Rain((-20, 20), (20, 60), (1, 2), (0.1, 0.2), (0.1, 0.4))


@pytest.mark.parametrize("degradation", [NOISE, RAIN])
def test_a_pair_does_not_depend_on_what_was_drawn_before(pack: Pack, degradation: Degradation) -> None:
    forward = {key: _sampler(pack, degradation, True).pair(*key) for key in np.ndindex(4, 5)}
    sampler = _sampler(pack, degradation, True)
    for key in reversed(list(forward)):
        for one, other in zip(sampler.pair(*key), forward[key], strict=True):
            assert np.array_equal(one, other)


def test_a_batch_is_its_pairs_in_the_order_of_the_indices(pack: Pack) -> None:
    sampler = _sampler(pack, NOISE, True)
    degraded, clean = sampler.batch(3, (4, 0, 2))
    assert degraded.shape == clean.shape == (3, 3, PATCH, PATCH)
    assert degraded.dtype == clean.dtype == torch.float32
    for place, index in enumerate((4, 0, 2)):
        expected = sampler.pair(3, index)
        assert np.array_equal(degraded[place].numpy(), expected[0])
        assert np.array_equal(clean[place].numpy(), expected[1])


def test_the_batch_of_two_workers_is_that_of_one(pack: Pack) -> None:
    sampler = _sampler(pack, NOISE, True)
    whole = sampler.batch(5, range(6))
    parts = [sampler.batch(5, (0, 1, 4)), sampler.batch(5, (2, 3, 5))]
    for place in (0, 1):
        together = torch.cat([part[place] for part in parts])[[0, 1, 3, 4, 2, 5]]
        assert torch.equal(together, whole[place])


def test_steps_indices_and_seeds_draw_different_noise(pack: Pack) -> None:
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (7, 0), (0, 7)]
    drawn = {_sampler(pack, NOISE).pair(*key)[0].tobytes() for key in keys}
    drawn |= {_sampler(pack, NOISE, seed=seed).pair(0, 0)[0].tobytes() for seed in (1, 2)}
    assert len(drawn) == len(keys) + 2


def test_the_degradation_is_fresh_for_the_same_crop(pack: Pack) -> None:
    sampler = _sampler(pack, NOISE)
    noises: dict[bytes, list[np.ndarray]] = {}
    for step in range(200):
        degraded, clean = sampler.pair(step, 0)
        noises.setdefault(clean.tobytes(), []).append(degraded - clean)
    most = max(noises.values(), key=len)
    assert len(most) > 5
    assert len({noise.tobytes() for noise in most}) == len(most)
    # Independent, so that the standard deviation of a mean of n falls with sqrt(n).
    assert np.std(most[0]) == pytest.approx(25 / 255, rel=0.2)
    assert np.mean(most, axis=0).std() == pytest.approx(25 / 255 / np.sqrt(len(most)), rel=0.3)


def test_every_image_and_every_position_comes_and_none_more_often_than_chance(pack: Pack) -> None:
    sampler = _sampler(pack)
    num_draws = 3000
    found: dict[tuple[int, int, int], int] = {}
    for step in range(num_draws):
        corner = sampler.pair(step, 3)[1][:, 0, 0] * 255
        number, top, left = (round(float(value)) for value in corner)
        found[number // 10, top, left] = found.get((number // 10, top, left), 0) + 1
    positions = [(h - PATCH + 1) * (w - PATCH + 1) for h, w in SIZES]
    assert len(found) == sum(positions)  # 2 x 3, 9 x 1 and 5 x 5
    for number, count in enumerate(positions):
        share = sum(times for (image, _, _), times in found.items() if image == number) / num_draws
        assert share == pytest.approx(1 / 3, abs=0.04)
        expected = num_draws / 3 / count
        for (image, _, _), times in found.items():
            if image == number:
                assert abs(times - expected) < 5 * np.sqrt(expected)


def test_crops_are_parts_of_the_stored_image(pack: Pack) -> None:
    degraded, clean = _sampler(pack).pair(0, 0)
    number, top, left = (round(float(value)) for value in clean[:, 0, 0] * 255)
    assert np.array_equal(clean, pack.clean(number // 10)[:, top : top + PATCH, left : left + PATCH])
    assert np.array_equal(degraded, clean)


def test_degraded_and_clean_turn_together_by_all_four_quarter_turns(pack: Pack) -> None:
    sampler = _sampler(pack, _marking_top, rotations=True)
    upright = _sampler(pack, _marking_top)
    turns_seen: list[int] = []
    for step in range(100):
        degraded, clean = sampler.pair(step, 0)
        straight_degraded, straight_clean = upright.pair(step, 0)
        fitting = [n for n in range(4) if np.array_equal(np.rot90(straight_clean, n, axes=(1, 2)), clean)]
        assert len(fitting) == 1
        assert np.array_equal(np.rot90(straight_degraded, fitting[0], axes=(1, 2)), degraded)
        turns_seen += fitting
    assert all(turns_seen.count(n) > 10 for n in range(4))


def test_without_rotations_nothing_turns(pack: Pack) -> None:
    sampler = _sampler(pack, _marking_top)
    for step in range(30):
        degraded, clean = sampler.pair(step, 0)
        assert (degraded[:, 0] == 7).all()
        assert (np.diff(clean[1, :, 0]) > 0).all()  # row numbers go down


def test_a_patch_larger_than_the_smallest_image_is_refused_by_name(pack: Pack) -> None:
    with pytest.raises(ValueError, match=r"train\.patch_size: 9 is larger than the smallest image, i1 \(8x16\): use 8"):
        PatchSampler(pack, _identity, 9, False, 0)


def test_a_patch_as_large_as_the_smallest_image_fits(pack: Pack) -> None:
    assert PatchSampler(pack, _identity, 8, False, 0).pair(0, 0)[1].shape == (3, 8, 8)


def test_an_empty_pack_is_refused_by_name(tmp_path: Path) -> None:
    write_pack(tmp_path, [], [])
    with pytest.raises(ValueError, match=f"{tmp_path.name}: no images to train on"):
        _sampler(Pack(tmp_path))


class _MeanOfNeighbours:
    """Each pixel becomes the mean of the five by five about it: looks two pixels beyond a crop."""

    margin = 2

    def __call__(self, clean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(clean, (5, 5), axis=(1, 2))
        return windows.mean(axis=(-2, -1), dtype=np.float32)


def test_a_crop_is_degraded_as_the_inside_of_its_image(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 30, 26), dtype=np.uint8)
    write_pack(tmp_path, [Entry("a", "a", 30, 26)], [image])
    pack = Pack(tmp_path)
    whole = _MeanOfNeighbours()(pack.clean(0), np.random.default_rng(0))  # (3, 26, 22): rows 2..27, columns 2..23
    sampler = PatchSampler(pack, _MeanOfNeighbours(), 12, False, 0)
    corners = set()
    for step in range(60):
        degraded, clean = sampler.pair(step, 0)
        places = [
            (top, left)
            for top in range(2, 17)
            for left in range(2, 13)
            if np.array_equal(pack.clean(0)[:, top : top + 12, left : left + 12], clean)
        ]
        (corner,) = places
        corners.add(corner)
        top, left = corner
        assert np.allclose(degraded, whole[:, top - 2 : top + 10, left - 2 : left + 10], atol=1e-6)
    assert len(corners) > 30


def test_a_margin_counts_where_an_image_is_too_small(pack: Pack) -> None:
    with pytest.raises(ValueError, match=r"smallest image, i1 \(8x16 less 2 on each side.*\): use 4 or less"):
        PatchSampler(pack, _MeanOfNeighbours(), 5, False, 0)


@pytest.fixture
def given_pairs(tmp_path: Path) -> Pack:
    """Two pairs, the degraded image a third of the clean one in size and with a mask: pixels tell where they are."""
    clean, degraded, sizes = [], [], [(24, 30), (21, 18)]
    for height, width in sizes:
        rows, columns = np.mgrid[:height, :width]
        clean.append(np.stack([rows, columns, np.zeros_like(rows)]).astype(np.uint8))
        rows, columns = np.mgrid[: height // 3, : width // 3]
        degraded.append(np.stack([rows, columns, rows, columns % 2]).astype(np.float32))
    write_pack(tmp_path, [Entry(f"p{n}", f"p{n}", *size) for n, size in enumerate(sizes)], clean, degraded)
    return Pack(tmp_path)


def test_given_pairs_of_another_size_are_cropped_at_one_place_and_turned_together(given_pairs: Pack) -> None:
    sampler = PatchSampler(given_pairs, None, 12, True, 0, scale=3)
    tops = set()
    for step in range(80):
        degraded, clean = sampler.pair(step, 0)
        assert clean.shape == (3, 12, 12)
        assert degraded.shape == (4, 4, 4)
        # Means of blocks of 3 x 3 rows and columns are those of the small pixels, 3 r + 1 each, however turned.
        small = (clean[:2] * 255).reshape(2, 4, 3, 4, 3).mean(axis=(2, 4))
        assert np.allclose(small, 3 * degraded[:2] + 1, atol=1e-3)
        tops.add(round(float(clean[0].min() * 255)))
    assert tops >= {0, 3, 6, 9}


def test_a_patch_that_does_not_divide_by_the_scale_is_refused(given_pairs: Pack) -> None:
    with pytest.raises(ValueError, match=r"patch_size: 13 does not divide by the scale 3: use 12"):
        PatchSampler(given_pairs, None, 13, False, 0, scale=3)


def test_pairs_that_are_not_there_are_missed(pack: Pack) -> None:
    with pytest.raises(ValueError, match="no degraded images here; run 'eqreg preprocess' again"):
        PatchSampler(pack, None, PATCH, False, 0)


@pytest.fixture
def labelled(tmp_path: Path) -> Pack:
    """Ten images of 12 x 12 whose label is ten times their grey."""
    images = [np.full((3, 12, 12), 20 * n, dtype=np.uint8) for n in range(10)]
    for image in images:
        image[:, 5, 3] = 255  # a landmark
    write_pack(tmp_path, [Entry(f"i{n}", f"i{n}", 12, 12, label=n) for n in range(10)], images)
    return Pack(tmp_path)


def test_a_labelled_image_keeps_its_class_and_is_shifted_mirrored_and_turned(labelled: Pack) -> None:
    sampler = LabelledSampler(labelled, _identity, True, 0)
    places, labels_seen = set(), set()
    for step in range(300):
        images, labels = sampler.batch(step, (0, 1))
        assert images.shape == (2, 3, 12, 12)
        assert labels.dtype == torch.int64
        for image, label in zip(images, labels, strict=True):
            assert round(float(image.flatten().median() * 255)) == 20 * int(label)
            places.add(tuple(np.argwhere(image[0].numpy() == 1)[0]) if (image == 1).any() else None)
            labels_seen.add(int(label))
    assert labels_seen == set(range(10))
    rows = {place[0] for place in places if place}
    columns = {place[1] for place in places if place}
    assert rows == columns == set(range(12))  # upright alone it would be rows 1 to 9


def test_a_labelled_sample_is_a_function_of_step_and_index(labelled: Pack) -> None:
    one, other = (LabelledSampler(labelled, NOISE, False, 3) for _ in range(2))
    other.batch(7, (5,))
    for first, second in zip(one.batch(2, (0, 4)), other.batch(2, (0, 4)), strict=True):
        assert torch.equal(first, second)


def test_images_without_a_label_or_of_two_sizes_are_refused(pack: Pack, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="i0 has no label"):
        LabelledSampler(pack, _identity, False, 0)
    (tmp_path / "sizes").mkdir()
    entries = [Entry("a", "a", 8, 8, 0), Entry("b", "b", 9, 8, 1)]
    write_pack(tmp_path / "sizes", entries, [np.zeros((3, 8, 8), np.uint8), np.zeros((3, 9, 8), np.uint8)])
    with pytest.raises(ValueError, match=r"images of 2 sizes \(8x8, 8x9"):
        LabelledSampler(Pack(tmp_path / "sizes"), _identity, False, 0)


def test_oblong_labelled_images_cannot_be_turned(tmp_path: Path) -> None:
    write_pack(tmp_path, [Entry("a", "a", 8, 12, 0)], [np.zeros((3, 8, 12), np.uint8)])
    assert LabelledSampler(Pack(tmp_path), _identity, False, 0).pair(0, 0)[0].shape == (3, 8, 12)
    with pytest.raises(ValueError, match=r"train\.rotations: images of 12x8 pixels cannot be turned"):
        LabelledSampler(Pack(tmp_path), _identity, True, 0)
