"""The symmetry test sees what was put into synthetic scenes, rarely what was not, and is what slow sums give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import energy_distance as scipy_energy_distance

from components.evaluation.symmetry import (
    GROUPS,
    LEVEL,
    MIN_SCENES,
    SymmetryTest,
    Transform,
    draw_patches,
    energy_distance,
    patch_figures,
    scene_distances,
    symmetry_test,
    symmetry_tests,
    transformed,
)

pytestmark = pytest.mark.unit

QUARTER, HALF, MIRROR = GROUPS
D4 = [(turns, is_mirrored) for turns in range(4) for is_mirrored in (False, True)]


def _noise(generator: np.random.Generator) -> np.ndarray:
    """Isotropic: filtered by a round kernel, on a torus; standard deviation 0.06."""
    return 0.5 + 0.3 * gaussian_filter(generator.normal(size=(64, 64)), 1.5, mode="wrap")


def _stripes(generator: np.random.Generator) -> np.ndarray:
    """Vertical, of any period and phase: sines, so that half turns and mirroring change nothing."""
    period, phase = generator.uniform(5, 12), generator.uniform(0, 2 * math.pi)
    return _noise(generator) + 0.1 * np.sin(2 * math.pi * np.arange(64) / period + phase)


def _diagonal(generator: np.random.Generator) -> np.ndarray:
    """Stripes like a slash at 30 degrees from the vertical."""
    rows, columns = np.mgrid[:64, :64]
    period, phase = generator.uniform(5, 12), generator.uniform(0, 2 * math.pi)
    across = columns * math.cos(math.pi / 6) + rows * math.sin(math.pi / 6)
    return _noise(generator) + 0.1 * np.sin(2 * math.pi * across / period + phase)


def _lit(generator: np.random.Generator) -> np.ndarray:
    """Brighter towards the top."""
    return _noise(generator) + np.linspace(0.4, -0.4, 64)[:, None]


def _sawtooth(generator: np.random.Generator) -> np.ndarray:
    """Bands that brighten slowly and darken at once from top to bottom, without a slope on average."""
    phase = np.arange(64) / generator.uniform(5, 12) + generator.uniform(0, 1)
    return _noise(generator) + 0.4 * (phase % 1)[:, None]


def _tests(scene: object, num_scenes: int = 24, number: int = 12, seed: int = 0) -> dict[str, SymmetryTest]:
    generator = np.random.default_rng([seed, 1])
    images = [scene(generator) for _ in range(num_scenes)]  # type: ignore[operator]
    return symmetry_tests(np.stack([draw_patches(image, number, 16, generator) for image in images]), seed)


def _patches(num_scenes: int = 3, number: int = 4, size: int = 7, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_scenes, number, size, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(4))
def test_isotropic_noise_shows_no_difference(seed: int) -> None:
    for test in _tests(_noise, seed=seed).values():
        assert test.p > LEVEL
        assert abs(test.distance) < 0.005


@pytest.mark.parametrize(
    ("scene", "different"),
    [
        (_stripes, {QUARTER}),
        (_diagonal, {QUARTER, MIRROR}),
        (_lit, {QUARTER, HALF}),
        (_sawtooth, {QUARTER, HALF}),
    ],
)
def test_what_was_put_in_is_seen_and_nothing_else(scene: object, different: set[str]) -> None:
    tests = _tests(scene)
    assert {name for name, test in tests.items() if test.p <= LEVEL} == different
    assert all(tests[name].distance > tests[name].null_high for name in different)


def test_a_stronger_asymmetry_is_a_larger_distance() -> None:
    generator = np.random.default_rng(0)
    distances = []
    for strength in (0.0, 0.3, 0.6, 1.0):
        images = [strength * _stripes(generator) + (1 - strength) * _noise(generator) for _ in range(16)]
        patches = np.stack([draw_patches(image, 8, 16, generator) for image in images])
        distances.append(symmetry_tests(patches)[QUARTER].distance)
    assert distances == sorted(distances)
    assert distances[0] < 0.005
    assert distances[-1] > 0.1


def test_a_set_made_symmetric_by_turning_whole_scenes_shows_no_difference() -> None:
    """Every scene has a direction, the set has none: scenes are what is compared, not patches."""
    p = []
    for seed in range(8):
        generator = np.random.default_rng(seed)
        images = [np.rot90(_lit(generator), generator.integers(4)) for _ in range(16)]
        patches = np.stack([draw_patches(image, 8, 16, generator) for image in images])
        p += [symmetry_tests(patches, seed)[name].p for name in (QUARTER, HALF)]
    assert min(p) > LEVEL
    assert sum(value <= 0.25 for value in p) <= 9  # of 16, expected 4


@pytest.mark.parametrize("num_scenes", [4, 12])
def test_of_symmetric_sets_a_share_q_at_most_has_p_below_q(num_scenes: int) -> None:
    p: dict[str, list[float]] = {name: [] for name in GROUPS}
    for seed in range(100):
        generator = np.random.default_rng(seed)
        # Scenes that differ in strength and direction: patches of one are alike, so patches are not independent.
        slopes = generator.normal(size=(num_scenes, 2)) * 0.2
        ramps = np.einsum("sd,drc->src", slopes, np.mgrid[-1:1:6j, -1:1:6j])
        patches = 0.5 + 0.05 * generator.normal(size=(num_scenes, 3, 6, 6)) + ramps[:, None]
        for name, test in symmetry_tests(patches, seed).items():
            p[name].append(test.p)
    for values in p.values():
        for level in (0.05, 0.2, 0.5):
            allowed = 100 * level + 3 * math.sqrt(100 * level * (1 - level))
            assert sum(value <= level for value in values) <= allowed


@pytest.mark.parametrize("transform", D4)
def test_transforming_both_patches_leaves_their_distance(transform: Transform) -> None:
    patches = _patches(1, 10, 8)[0]
    before, after = patch_figures(patches), patch_figures(transformed(patches, transform))
    for name, figure in before.items():
        assert torch.allclose(torch.cdist(figure, figure), torch.cdist(after[name], after[name]), atol=1e-12)
        assert torch.allclose(figure.square().sum(1), after[name].square().sum(1))


@pytest.mark.parametrize("size", [7, 8])
def test_figures_are_what_slow_loops_give(size: int) -> None:
    patch = _patches(1, 1, size)[0, 0].numpy()
    figures = {name: figure[0].numpy() for name, figure in patch_figures(torch.from_numpy(patch)[None]).items()}
    down, right = [], []
    for r in range(size - 1):
        for c in range(size - 1):
            a, b, d, e = patch[r, c], patch[r, c + 1], patch[r + 1, c], patch[r + 1, c + 1]
            right.append((b - a + e - d) / 2)
            down.append((d - a + e - b) / 2)
    scale = math.sqrt(np.mean(np.square(down) + np.square(right)) + 1e-4)
    expected = sorted(abs(np.mean(part)) / scale for part in (down, right))
    assert sorted(np.abs(figures["slope"])) == pytest.approx(expected)
    expected = sorted(abs(np.mean(np.power(part, 3))) / scale**3 for part in (down, right))
    assert sorted(np.abs(figures["skew"])) == pytest.approx(expected)
    assert figures["pixels"] == pytest.approx(((patch - patch.mean()) / math.sqrt(patch.var() + 1e-4)).ravel())


def test_the_spectrum_is_in_the_bin_of_the_direction_and_band_of_a_wave() -> None:
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    for direction in range(8):
        for band, frequency in enumerate((0.15, 0.35)):
            angle = math.radians(22.5 * direction)
            wave = torch.cos(2 * math.pi * frequency * (columns * math.cos(angle) + rows * math.sin(angle)))
            shares = patch_figures(0.5 + 0.3 * wave[None].double())["spectrum"][0]
            own = shares[8 * band : 8 * band + 8]
            assert own.argmax() == direction
            assert 0.5 < own[direction] <= own.sum() <= 1


def test_distances_and_energy_distance_are_explicit_sums() -> None:
    patches, group = _patches(), GROUPS[QUARTER]
    distances = scene_distances(patches, group)
    figures = [[patch_figures(transformed(scene, h)) for scene in patches] for h in group]
    total = 0.0
    for f, name in enumerate(figures[0][0]):
        sums = np.zeros((4, 3, 3))
        for h in range(4):
            for i in range(3):
                for j in range(3):
                    for a in range(4):
                        for b in range(4):
                            difference = figures[0][i][name][a] - figures[h][j][name][b]
                            sums[h, i, j] += math.sqrt(float((difference**2).sum())) / 16
        assert distances[:, f] == pytest.approx(sums, abs=1e-6)
        pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
        across, within = (np.mean([sums[h, i, j] for i, j in pairs]) for h in (1, 0))
        total += (across - within) / np.mean([sums[h, i, j] for h in range(4) for i, j in pairs])
    assert energy_distance(distances) == pytest.approx(total / len(figures[0][0]))


def test_it_is_half_the_squared_energy_distance_of_scipy() -> None:
    """Of one figure with one entry that the transform negates, in sets so large that a scene less is no matter."""
    values = np.random.default_rng(0).normal(0.3, 1, size=2000)
    distances = np.stack([np.abs(values[:, None] - sign * values) for sign in (1, -1)])[:, None]  # (2, 1, S, S)
    mean = distances[:, 0][:, ~np.eye(2000, dtype=bool)].mean()
    expected = scipy_energy_distance(values, -values) ** 2 / 2 / mean
    assert energy_distance(distances) == pytest.approx(expected, abs=1e-3)
    assert expected > 0.02


@pytest.mark.parametrize("name", list(GROUPS))
def test_the_null_is_what_transforming_the_scenes_themselves_gives(name: str) -> None:
    """All draws, in their order, with the patches transformed and every distance taken anew."""
    patches, group = _patches(5, 2, 6), GROUPS[name]
    result = symmetry_test(scene_distances(patches, group), num_draws=99, seed=3)
    draws = []
    for powers in np.random.default_rng(3).integers(len(group), size=(99, 5)):
        turned = torch.stack([transformed(scene, group[power]) for scene, power in zip(patches, powers, strict=True)])
        draws.append(energy_distance(scene_distances(turned, group)))
    own = energy_distance(scene_distances(patches, group))
    assert result.distance == pytest.approx(own)
    assert result.null_median == pytest.approx(np.median(draws), abs=1e-9)
    assert result.null_high == pytest.approx(max(draws), abs=1e-9)
    assert result.p == pytest.approx((1 + sum(draw > own - 1e-9 for draw in draws)) / 100)


def test_one_and_three_quarter_turns_are_one_figure() -> None:
    patches = _patches(4, 3, 8)
    one, three = (scene_distances(patches, [(0, False), (n, False), (2, False), (-n, False)]) for n in (1, 3))
    assert energy_distance(one) == pytest.approx(energy_distance(three))
    assert energy_distance(one) != pytest.approx(energy_distance(scene_distances(patches, GROUPS[HALF])))


def test_the_null_has_its_high_end_where_p_is_the_level() -> None:
    for seed in range(20):
        distances = scene_distances(_patches(9, 2, 6, seed) + torch.linspace(0, 0.3, 6).double(), GROUPS[HALF])
        test = symmetry_test(distances, seed=seed)
        assert (test.p <= LEVEL) == (test.distance > test.null_high)


def test_below_the_least_number_of_scenes_no_difference_can_be_seen() -> None:
    def smallest(num_scenes: int) -> float:
        """The p value of scenes as different from their mirror images as can be: one vector and its opposite."""
        distances = np.zeros((2, 1, num_scenes, num_scenes))
        distances[1] = 1
        return symmetry_test(distances, num_draws=9999).p

    assert smallest(MIN_SCENES - 1) > LEVEL
    assert smallest(MIN_SCENES) <= LEVEL


def test_the_seed_decides_the_null_alone() -> None:
    distances = scene_distances(_patches(6), GROUPS[QUARTER])
    first, again, other = (symmetry_test(distances, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.distance == other.distance
    assert first.null_median != other.null_median


def test_patches_are_parts_of_the_image_from_all_of_it() -> None:
    image = np.arange(6 * 9).reshape(6, 9)
    patches = draw_patches(image, 400, 4, np.random.default_rng(0))
    corners = set()
    for patch in patches:
        top, left = divmod(int(patch[0, 0]), 9)
        assert np.array_equal(patch, image[top : top + 4, left : left + 4])
        corners.add((top, left))
    assert corners == {(top, left) for top in range(3) for left in range(6)}


def test_a_patch_of_the_size_of_the_image_is_the_image() -> None:
    image = np.arange(16.0).reshape(4, 4)
    assert np.array_equal(draw_patches(image, 2, 4, np.random.default_rng(0)), [image, image])


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="9x3 pixels, smaller than a patch of 4x4"):
        draw_patches(np.zeros((3, 9)), 1, 4, np.random.default_rng(0))
    with pytest.raises(ValueError, match="1 scene: scenes are compared with each other"):
        symmetry_tests(_patches(1).numpy())
    with pytest.raises(ValueError, match="every patch is of one grey"):
        symmetry_tests(np.full((3, 2, 8, 8), 0.4))
