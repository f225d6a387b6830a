"""Gaussian noise has the standard deviation that it says, is fresh for each key and repeats for the same one."""

from __future__ import annotations

import numpy as np
import pytest

from components.degradations.noise import GaussianNoise


def test_the_noise_has_the_asked_standard_deviation_and_no_mean() -> None:
    clean = np.full((3, 300, 300), 0.5, dtype=np.float32)
    noise = GaussianNoise((25, 25))(clean, np.random.default_rng(0)) - clean
    assert noise.dtype == np.float32
    assert noise.std() * 255 == pytest.approx(25, rel=0.01)
    assert abs(noise.mean()) * 255 < 0.2
    channels = noise.reshape(3, -1)
    assert np.abs(np.corrcoef(channels) - np.eye(3)).max() < 0.02


def test_the_noise_is_not_clipped() -> None:
    degraded = GaussianNoise((25, 25))(np.zeros((1, 64, 64), dtype=np.float32), np.random.default_rng(0))
    assert (degraded < 0).mean() == pytest.approx(0.5, abs=0.05)


def test_a_range_draws_every_level_in_it() -> None:
    clean = np.zeros((1, 64, 64), dtype=np.float32)
    levels = [GaussianNoise((10, 50))(clean, np.random.default_rng(seed)).std() * 255 for seed in range(100)]
    assert 9 < min(levels) < 16
    assert 44 < max(levels) < 52


@pytest.mark.parametrize("sigma", [(-1, 25), (30, 20), (0, 256)])
def test_impossible_ranges_are_refused(sigma: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="0 <= low <= high <= 255"):
        GaussianNoise(sigma)
