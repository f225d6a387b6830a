"""Noise has the statistics that it says, is fresh for each key and repeats for the same one."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from components.degradations.noise import GaussianNoise, PoissonGaussianNoise

pytestmark = pytest.mark.unit


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


def camera(gain: float, sigma: float) -> PoissonGaussianNoise:
    return PoissonGaussianNoise((gain, gain), (sigma, sigma))


@pytest.mark.parametrize(("gain", "sigma"), [(0.01, 0), (0.002, 5), (0.1, 2)])
@pytest.mark.parametrize("level", [0.0, 0.25, 1.0])
def test_camera_noise_has_the_mean_variance_and_skewness_of_poisson_plus_gaussian(
    gain: float, sigma: float, level: float
) -> None:
    clean = np.full((3, 300, 300), level, dtype=np.float32)
    noise = (camera(gain, sigma)(clean, np.random.default_rng(0)) - clean).astype(np.float64)
    variance = gain * level + (sigma / 255) ** 2
    assert noise.mean() == pytest.approx(0, abs=5 * math.sqrt(variance / noise.size) + 1e-9)
    assert noise.var() == pytest.approx(variance, rel=0.02)
    assert (noise**3).mean() == pytest.approx(gain**2 * level, abs=0.05 * gain**2 + 0.02 * variance**1.5)


def test_camera_noise_is_independent_between_pixels_and_channels() -> None:
    clean = np.full((3, 300, 300), 0.5, dtype=np.float32)
    noise = camera(0.02, 3)(clean, np.random.default_rng(0)) - clean
    rows = np.stack([*noise.reshape(3, -1), np.roll(noise[0], 1, axis=0).ravel(), np.roll(noise[0], 1, axis=1).ravel()])
    assert np.abs(np.corrcoef(rows) - np.eye(5)).max() < 0.02


def test_without_read_out_noise_every_value_is_a_whole_number_of_photons() -> None:
    clean = np.random.default_rng(1).uniform(size=(3, 32, 32)).astype(np.float32)
    degraded = camera(0.05, 0)(clean, np.random.default_rng(0))
    photons = degraded / 0.05
    assert degraded.dtype == np.float32
    assert degraded.max() > 1  # not clipped
    np.testing.assert_allclose(photons, np.rint(photons), atol=1e-4)


def test_images_draw_their_gain_and_sigma_from_all_of_the_ranges() -> None:
    noise = PoissonGaussianNoise((0.01, 0.05), (2, 20))
    grey, black = np.full((1, 64, 64), 0.5, dtype=np.float32), np.zeros((1, 64, 64), dtype=np.float32)
    sigmas = [noise(black, np.random.default_rng(seed)).std() * 255 for seed in range(80)]
    variances = [noise(grey, np.random.default_rng(seed)).var() for seed in range(80)]
    gains = (np.array(variances) - (np.array(sigmas) / 255) ** 2) / 0.5
    assert 1.8 < min(sigmas) < 4
    assert 18 < max(sigmas) < 21
    assert 0.008 < min(gains) < 0.015
    assert 0.045 < max(gains) < 0.056


def test_equal_generators_give_equal_bytes_and_others_other_noise() -> None:
    clean = np.full((3, 24, 24), 0.5, dtype=np.float32)
    first, again, other = (camera(0.01, 5)(clean, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes() != other.tobytes()


@pytest.mark.parametrize(
    ("gain", "sigma", "message"),
    [
        ((0, 0.1), (0, 5), "gain 0..0.1: use 1e-06 <= low <= high <= 1,"),
        ((0.2, 0.1), (0, 5), "gain 0.2..0.1"),
        ((0.01, float("nan")), (0, 5), "gain 0.01..nan"),
        ((0.01, 0.1), (-1, 5), "sigma -1..5"),
    ],
)
def test_impossible_settings_of_camera_noise_are_refused(
    gain: tuple[float, float], sigma: tuple[float, float], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PoissonGaussianNoise(gain, sigma)


@pytest.mark.parametrize("value", [-0.01, float("nan")])
def test_a_clean_image_below_zero_has_no_photons(value: float) -> None:
    with pytest.raises(ValueError, match="values of 0 or more"):
        camera(0.01, 1)(np.full((1, 4, 4), value, dtype=np.float32), np.random.default_rng(0))


def test_the_level_that_is_returned_is_that_of_the_noise_that_a_call_gives() -> None:
    noise, clean = GaussianNoise((10, 50)), np.full((1, 200, 200), 0.5, dtype=np.float32)
    for seed in range(5):
        noisy, sigma = noise.with_level(clean, np.random.default_rng(seed))
        assert np.array_equal(noisy, noise(clean, np.random.default_rng(seed)))
        assert (noisy - clean).std() * 255 == pytest.approx(sigma, rel=0.02)
