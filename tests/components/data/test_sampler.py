"""A training pair is a function of (seed, step, index)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from components.data.packs import Entry, Pack, write_pack
from components.data.sampler import Degradation, PatchSampler
from components.degradations.noise import GaussianNoise
from components.degradations.rain import Rain

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
