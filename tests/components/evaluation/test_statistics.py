"""The clustered interval covers the truth as often as it says, and is what a slow loop over scenes gives."""

from __future__ import annotations

import numpy as np
import pytest

from components.evaluation.statistics import Interval, clustered_interval

pytestmark = pytest.mark.unit


def test_a_slow_loop_that_draws_scenes_gives_the_same_interval() -> None:
    generator = np.random.default_rng(3)
    scenes = {f"scene{i}": generator.normal(loc=generator.normal(), size=1 + 3 * (i % 4)) for i in range(8)}
    values = np.concatenate(list(scenes.values()))
    clusters = [name for name, figures in scenes.items() for _ in figures]
    means = []
    for _ in range(10_000):
        drawn = [scenes[name] for name in generator.choice(list(scenes), size=len(scenes))]
        means.append(np.concatenate(drawn).mean())
    expected = np.quantile(means, [0.05, 0.95])
    interval = clustered_interval(values, clusters, level=0.9)
    spread = expected[1] - expected[0]
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(expected[0], abs=0.04 * spread)
    assert interval.high == pytest.approx(expected[1], abs=0.04 * spread)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    clusters = np.repeat(np.arange(20), 5)
    covered = narrow = 0
    for _ in range(400):
        values = 1.5 + np.repeat(generator.normal(size=20), 5) + 0.3 * generator.normal(size=100)
        interval = clustered_interval(values, clusters, num_resamples=1000)
        covered += interval.low < 1.5 < interval.high
        # Were every image drawn for itself, the intervals would be about sqrt(5) too narrow.
        narrow += abs(values.mean() - 1.5) < 1.96 * values.std() / np.sqrt(100)
    assert 0.90 <= covered / 400 <= 0.97
    assert narrow / 400 < 0.75


def test_a_scene_weighs_as_much_as_it_has_images() -> None:
    """Two scenes: the resampled mean is one scene's, the other's (1/4 each), or that of all images."""
    interval = clustered_interval([1, 1, 1, 5], ["many", "many", "many", "one"], level=0.4)
    assert interval == Interval(mean=2.0, low=pytest.approx(2.0), high=pytest.approx(2.0))
    assert clustered_interval([1, 1, 1, 5], ["many", "many", "many", "one"]) == Interval(2.0, 1.0, 5.0)


def test_with_three_scenes_the_interval_is_the_range_of_their_means() -> None:
    interval = clustered_interval([0.1, 0.3, 0.9, 0.4, 0.6], ["a", "a", "b", "c", "c"])
    assert interval == Interval(pytest.approx(0.46), pytest.approx(0.2), pytest.approx(0.9))


def test_a_single_scene_has_a_mean_and_no_interval() -> None:
    assert clustered_interval([1.0, 2.0, 6.0], ["a", "a", "a"]) == Interval(3.0, None, None)


def test_constant_values_have_an_interval_of_no_width() -> None:
    assert clustered_interval([0.25] * 7, [0, 0, 1, 2, 2, 2, 3]) == Interval(0.25, 0.25, 0.25)


def test_the_order_of_images_and_scenes_has_no_say() -> None:
    generator = np.random.default_rng(1)
    values, clusters = generator.normal(size=30), generator.integers(6, size=30)
    order = generator.permutation(30)
    one, other = clustered_interval(values, clusters), clustered_interval(values[order], clusters[order])
    assert [one.low, one.high] == pytest.approx([other.low, other.high], rel=1e-9)


def test_the_seed_decides_the_draws() -> None:
    generator = np.random.default_rng(2)
    values, clusters = generator.normal(size=40), np.repeat(np.arange(10), 4)
    intervals = [clustered_interval(values, clusters, num_resamples=200, seed=seed) for seed in (0, 0, 1)]
    assert intervals[0] == intervals[1] != intervals[2]


def test_a_higher_level_gives_a_wider_interval() -> None:
    values, clusters = np.random.default_rng(4).normal(size=40), np.repeat(np.arange(10), 4)
    narrow, wide = (clustered_interval(values, clusters, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
    ("values", "clusters", "level", "message"),
    [
        ([], [], 0.95, "give one for each value"),
        ([1.0, 2.0], ["a"], 0.95, "give one for each value"),
        ([1.0, np.nan], ["a", "b"], 0.95, "1 that are not finite"),
        ([1.0, np.inf], ["a", "b"], 0.95, "1 that are not finite"),
        ([1.0, 2.0], ["a", "b"], 95, "fraction between 0 and 1"),
    ],
)
def test_impossible_inputs_are_refused(values: list[float], clusters: list[str], level: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clustered_interval(values, clusters, level=level)
