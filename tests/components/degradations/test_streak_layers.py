"""Streak layers come out of pairs as they went in, and come down on other images as crops of themselves."""

from __future__ import annotations

import re

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from components.degradations.streak_layers import StreakLayers, random_crop, streak_layer

pytestmark = pytest.mark.unit


def layer(height: int, width: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.where(
        generator.uniform(size=(height, width)) < 0.3, generator.integers(1, 200, (height, width)), 0
    ).astype(np.uint8)


def places(crop: np.ndarray, whole: np.ndarray) -> list[tuple[int, int]]:
    """Everywhere that the crop is found in the whole."""
    found = (sliding_window_view(whole, crop.shape) == crop).all(axis=(2, 3))
    return [(int(row), int(column)) for row, column in np.argwhere(found)]


def test_degraded_is_the_clipped_sum_of_clean_and_a_layer() -> None:
    clean = np.random.default_rng(0).uniform(0, 1, (3, 20, 30)).astype(np.float32)
    whole = layer(20, 30)
    degraded = StreakLayers([whole], flips=False)(clean, np.random.default_rng(1))
    total = clean + whole.astype(np.float32) / np.float32(255)
    assert (total > 1).any()
    assert degraded.dtype == np.float32
    np.testing.assert_array_equal(degraded, np.where(total > 1, np.float32(1), total))


def test_a_patch_gets_a_crop_of_one_of_the_layers_from_every_place() -> None:
    layers = [layer(14, 13, seed) for seed in (1, 2)]
    rain = StreakLayers(layers, flips=False)
    found: list[tuple[int, int, int]] = []
    for seed in range(300):
        crop = np.rint(rain.streaks(10, 10, np.random.default_rng(seed)) * 255)
        found.extend((number, *place) for number, whole in enumerate(layers) for place in places(crop, whole))
    assert len(found) == 300
    assert set(found) == {(number, row, column) for number in (0, 1) for row in range(5) for column in range(4)}


def test_half_of_the_crops_are_mirrored_left_to_right_and_none_upside_down() -> None:
    whole, seen = layer(16, 18), {"as it is": 0, "mirrored": 0}
    for seed in range(200):
        crop = np.rint(StreakLayers([whole]).streaks(12, 12, np.random.default_rng(seed)) * 255)
        seen["as it is"] += len(places(crop, whole))
        seen["mirrored"] += len(places(crop, whole[:, ::-1]))
    assert sum(seen.values()) == 200
    assert 70 < seen["mirrored"] < 130


@pytest.mark.parametrize(("height", "width"), [(9, 40), (30, 10), (50, 45)])
def test_on_a_larger_image_the_layer_goes_on_as_its_mirror_image(height: int, width: int) -> None:
    small = layer(12, 14)
    endless = np.pad(small, ((0, 65), (0, 65)), mode="symmetric")
    firsts = set()
    for seed in range(40):
        crop = random_crop(small, height, width, np.random.default_rng(seed))
        assert crop.shape == (height, width)
        found = places(crop, endless)
        assert found
        firsts.add(found[0])
    assert len(firsts) > 3


def test_a_grey_image_gets_the_streaks_of_a_colour_image() -> None:
    grey, rain = np.full((1, 12, 12), 0.25, dtype=np.float32), StreakLayers([layer(40, 40)])
    colour = rain(np.repeat(grey, 3, axis=0), np.random.default_rng(0))
    np.testing.assert_array_equal(np.repeat(rain(grey, np.random.default_rng(0)), 3, axis=0), colour)


def test_equal_generators_give_equal_bytes_and_others_other_rain() -> None:
    clean, rain = np.zeros((3, 24, 24), dtype=np.float32), StreakLayers([layer(60, 60)])
    first, again, other = (rain(clean, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_layers_may_be_anything_with_a_length_and_an_index() -> None:
    class Drawer:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, number: int) -> np.ndarray:
            return np.full((20, 20), 10 * number, dtype=np.uint8)

    rain = StreakLayers(Drawer())  # type: ignore[arg-type]
    values = {round(255 * float(rain.streaks(4, 4, np.random.default_rng(seed)).max())) for seed in range(40)}
    assert values == {0, 10, 20}


def rainy_pair(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """rainy, clean, layer: the sum, clipped at white."""
    clean = np.random.default_rng(seed).integers(0, 256, (3, 40, 50)).astype(np.uint8)
    streaks = layer(40, 50, seed)
    return np.minimum(clean.astype(int) + streaks, 255).astype(np.uint8), clean, streaks


def test_a_layer_is_recovered_from_a_pair_where_a_channel_is_not_white() -> None:
    rainy, clean, streaks = rainy_pair()
    recovered = streak_layer(rainy, clean)
    told = (rainy < 255).any(axis=0)
    assert recovered.dtype == np.uint8
    assert 0.8 < told.mean() < 1
    assert ((rainy == 255).any(axis=0) & told & (streaks > 0)).any()
    np.testing.assert_array_equal(recovered[told], streaks[told])
    assert (recovered[~told] <= streaks[~told]).all()


def test_a_recovered_layer_makes_the_rainy_image_again() -> None:
    rainy, clean, _ = rainy_pair(3)
    rain = StreakLayers([streak_layer(rainy, clean)], flips=False)
    degraded = rain(clean.astype(np.float32) / np.float32(255), np.random.default_rng(0))
    np.testing.assert_allclose(degraded * 255, rainy, atol=1e-3)


def test_a_little_noise_in_the_pair_leaves_the_layer() -> None:
    _, clean, streaks = rainy_pair(4)
    clean = clean // 4
    noise = np.random.default_rng(0).integers(-2, 3, clean.shape)
    rainy = np.clip(clean.astype(int) + streaks + noise, 0, 255).astype(np.uint8)
    assert np.abs(streak_layer(rainy, clean).astype(int) - streaks).max() <= 2


def test_a_grey_pair_has_a_layer_too() -> None:
    clean = np.full((1, 6, 6), 20, dtype=np.uint8)
    np.testing.assert_array_equal(streak_layer(clean + layer(6, 6), clean), layer(6, 6))


def test_what_is_no_rain_is_refused() -> None:
    rainy, clean, _ = rainy_pair()
    for wrong in ((clean, rainy), (np.roll(rainy, 7, axis=2), clean), (255 - clean, clean)):
        with pytest.raises(ValueError, match=r"darker than the clean one in \d+% of its pixels: rain only brightens"):
            streak_layer(*wrong)
    with pytest.raises(ValueError, match="nowhere brighter"):
        streak_layer(clean, clean)


def test_images_that_do_not_belong_together_are_refused_by_shape_and_dtype() -> None:
    rainy, clean, _ = rainy_pair()
    for wrong in (clean[:, :-1], clean[:1], clean.astype(np.float32), clean[0]):
        with pytest.raises(
            ValueError, match=re.escape(f"and clean {wrong.shape} {wrong.dtype}: give both in one shape")
        ):
            streak_layer(rainy, wrong)


def test_no_layers_and_layers_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="layers: there are none"):
        StreakLayers([])
    clean = np.zeros((3, 8, 8), dtype=np.float32)
    for wrong in (np.zeros((3, 20, 20), dtype=np.uint8), np.zeros((20, 20), dtype=np.float32)):
        with pytest.raises(ValueError, match=re.escape(f"layer 0 is {wrong.shape} of {wrong.dtype}")):
            StreakLayers([wrong])(clean, np.random.default_rng(0))
