"""The noise level of an image travels with it: in training, in a pack, and in the stack of a network that needs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from components.data.noise_level import StackedNoise, with_noise_level
from components.data.packs import Entry, Pack, write_pack
from components.data.sampler import PatchSampler
from components.degradations.noise import GaussianNoise

pytestmark = pytest.mark.unit


def _pack(folder: Path, *entries: Entry) -> Pack:
    folder.mkdir()
    images = [np.full((1, 40, 40), 100, dtype=np.uint8) for _ in entries]
    write_pack(folder, entries, images)
    return Pack(folder)


def test_the_level_is_one_more_channel_in_the_units_of_the_image() -> None:
    image = np.random.default_rng(0).random((3, 4, 6), dtype=np.float32)
    stack = with_noise_level(image, 51)
    assert np.array_equal(stack[:3], image)
    assert np.array_equal(stack[3], np.full((4, 6), 0.2, dtype=np.float32))


def test_training_draws_the_same_images_with_the_level_as_without_it(tmp_path: Path) -> None:
    """Oracle of the level: the standard deviation of the noise, which 1024 pixels give to some percent."""
    pack, noise = _pack(tmp_path / "pack", Entry("a", "a", 40, 40)), GaussianNoise((5, 50))
    plain, stacked = (PatchSampler(pack, each, 32, True, seed=3) for each in (noise, StackedNoise(noise)))
    levels = []
    for index in range(20):
        (image, clean), (stack, same) = plain.pair(0, index), stacked.pair(0, index)
        assert np.array_equal(stack[:1], image)
        assert np.array_equal(clean, same)
        assert len(np.unique(stack[1])) == 1
        levels.append(float(stack[1, 0, 0]))
        assert (image - clean).std() == pytest.approx(levels[-1], rel=0.12)
    assert min(levels) < 15 / 255 < 40 / 255 < max(levels)


def test_a_pack_keeps_the_level_of_a_pair_and_is_as_before_without_one(tmp_path: Path) -> None:
    pack = _pack(tmp_path / "pack", Entry("a", "a", 40, 40, noise_level=12.5), Entry("b", "b", 40, 40))
    assert [entry.noise_level for entry in pack.entries] == [12.5, None]
    (shard,) = json.loads((pack.folder / "index.json").read_text())["shards"]
    keys = ["name", "scene", "height", "width", "label"]
    assert [list(entry) for entry in shard["entries"]] == [[*keys, "noise_level"], keys]
    assert list(shard) == ["file", "sha256", "entries"]
