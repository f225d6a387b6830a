"""The classical baselines restore what they should, and the best one is found whatever the order."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pytest
import skimage.data
from scipy.ndimage import convolve1d
from skimage.metrics import peak_signal_noise_ratio
from skimage.restoration import denoise_nl_means, estimate_sigma

from components.evaluation.classical import (
    CANDIDATES,
    METHODS,
    ClassicalBaseline,
    choose_classical,
    noise_levels,
    super_resolution_candidates,
)
from components.evaluation.classical.candidates import DEBLOCKING, DEBLURRING, INPAINTING, METAL

pytestmark = pytest.mark.unit

COFFEE = (skimage.data.coffee().transpose(2, 0, 1) / 255).astype(np.float32)
CLEAN = COFFEE[:, 60:188, 150:278]


def noisy(clean: np.ndarray, sigma: float = 25, seed: int = 0) -> np.ndarray:
    return clean + np.float32(sigma / 255) * np.random.default_rng(seed).standard_normal(clean.shape, np.float32)


def rainy(clean: np.ndarray) -> np.ndarray:
    """Sparse vertical streaks, 17 pixels long and one wide, over all channels."""
    generator = np.random.default_rng(0)
    drops = (generator.random(clean.shape[1:]) < 0.003) * generator.uniform(0.2, 0.5, clean.shape[1:])
    return np.clip(clean + convolve1d(drops, np.ones(17), axis=0, mode="constant"), 0, 1).astype(np.float32)


def decibels(image: np.ndarray, clean: np.ndarray) -> float:
    """Of the two as 8-bit files."""
    files = [np.round(255 * np.clip(x, 0, 1)).astype(np.uint8) for x in (clean, image)]
    return peak_signal_noise_ratio(*files, data_range=255)


def test_the_identity_returns_the_image_itself() -> None:
    image = noisy(CLEAN)
    assert np.array_equal(ClassicalBaseline("identity")(image), image)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_choice_beats_noise_of_25_levels_by_5_decibels_on_another_crop(channels: int) -> None:
    others = [COFFEE[:channels, 200:300, x : x + 90] for x in (100, 300)]
    baseline, _ = choose_classical([(noisy(image, seed=i), image) for i, image in enumerate(others)], num_workers=2)
    image = noisy(CLEAN[:channels], seed=9)
    restored = baseline(image)
    assert restored.shape == image.shape
    assert restored.dtype == np.float32
    assert decibels(restored, CLEAN[:channels]) > decibels(image, CLEAN[:channels]) + 5


def test_the_choice_takes_off_vertical_streaks() -> None:
    baseline, scores = choose_classical([(rainy(CLEAN), CLEAN)])
    untouched = next(score.psnr for score in scores if score.baseline.name == "identity")
    assert baseline.name == "median"
    assert scores[0].psnr > untouched + 3


def test_the_choice_for_clean_images_is_to_leave_them() -> None:
    flat = np.full_like(CLEAN, 0.5)  # which most methods leave as it is, too
    assert choose_classical([(CLEAN, CLEAN)])[0] == ClassicalBaseline("identity")
    assert choose_classical([(flat, flat)], candidates=CANDIDATES[::-1])[0] == ClassicalBaseline("identity")


def test_the_scores_are_mean_psnrs_over_the_pairs_best_first() -> None:
    pairs = [(noisy(CLEAN, sigma), CLEAN) for sigma in (15, 50)]
    chosen, scores = choose_classical(pairs)
    assert {(s.baseline.name, str(s.baseline.settings)) for s in scores} == {
        (c.name, str(c.settings)) for c in CANDIDATES
    }
    assert len(scores) == len(CANDIDATES)
    for score in scores:
        expected = np.mean([decibels(score.baseline(image), clean) for image, clean in pairs])
        assert score.psnr == pytest.approx(expected, abs=1e-3)
    assert [s.psnr for s in scores] == sorted((s.psnr for s in scores), reverse=True)
    assert chosen == scores[0].baseline


def test_the_order_of_the_grid_and_the_number_of_threads_have_no_say() -> None:
    pairs = [(noisy(CLEAN[:, :64, :64]), CLEAN[:, :64, :64])]
    shuffled = [CANDIDATES[i] for i in np.random.default_rng(0).permutation(len(CANDIDATES))]
    assert choose_classical(pairs) == choose_classical(pairs, candidates=shuffled, num_workers=2)


@pytest.mark.parametrize("name", sorted({candidate.name for candidate in CANDIDATES}))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_method_but_the_identity_lessens_noise(name: str, channels: int) -> None:
    clean = CLEAN[:channels, :, :100]
    image = noisy(clean)
    gains = [decibels(c(image), clean) - decibels(image, clean) for c in CANDIDATES if c.name == name]
    assert max(gains) == 0 if name == "identity" else max(gains) > 5


@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda c: f"{c.name}-{list(c.settings.values())}")
@pytest.mark.parametrize("shape", [(1, 33, 47), (3, 47, 33), (3, 16, 11)])
def test_every_candidate_is_deterministic_silent_and_leaves_its_input(
    candidate: ClassicalBaseline, shape: tuple[int, int, int]
) -> None:
    image = noisy(np.ascontiguousarray(CLEAN[: shape[0], : shape[1], : shape[2]]))
    before = image.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, other = candidate(image), candidate(image)
        black, flat = (candidate(np.full(shape, grey, dtype=np.float32)) for grey in (0, 0.25))
    assert np.array_equal(image, before)
    assert np.array_equal(one, other)
    assert (one.shape, one.dtype) == (shape, np.float32)
    assert not black.any()
    np.testing.assert_allclose(flat, 0.25, atol=1e-6)


@pytest.mark.parametrize("name", ["total_variation", "wavelet", "non_local_means"])
def test_a_greater_strength_smooths_more(name: str) -> None:
    image = noisy(CLEAN)
    families: dict[str, list[float]] = {}
    for candidate in CANDIDATES:
        if candidate.name == name:
            variation = float(np.abs(np.diff(candidate(image))).mean())
            families.setdefault(str(candidate.settings.get("method")), []).append(variation)
    for variations in families.values():
        assert len(variations) > 1
        assert all(more < 0.97 * less for less, more in pairwise(variations))


def test_non_local_means_of_grey_is_that_of_scikit_image_at_the_estimated_noise() -> None:
    image = noisy(CLEAN[:1, :50, :70])
    level = estimate_sigma(image[0])
    expected = denoise_nl_means(image[0], patch_size=5, patch_distance=6, h=0.6 * level, sigma=level)
    restored = ClassicalBaseline("non_local_means", {"strength": 0.6})(image)
    np.testing.assert_allclose(restored[0], expected, atol=1e-5)


def test_the_median_keeps_what_is_longer_than_half_its_window() -> None:
    image = np.zeros((1, 9, 9), dtype=np.float32)
    image[0, :, 4] = 1  # a vertical line
    assert not ClassicalBaseline("median", {"height": 1, "width": 5})(image).any()
    assert np.array_equal(ClassicalBaseline("median", {"height": 5, "width": 1})(image), image)


@pytest.mark.parametrize("sigma", [5, 15, 50])
def test_the_noise_is_estimated_as_scikit_image_does_and_is_about_right(sigma: float) -> None:
    image = noisy(CLEAN, sigma)
    assert noise_levels(image) == pytest.approx(estimate_sigma(image, channel_axis=0), rel=1e-5)
    assert np.mean(noise_levels(image)) * 255 == pytest.approx(sigma, rel=0.2)


def test_turned_and_read_only_images_serve_as_pairs() -> None:
    clean = np.rot90(CLEAN[:, :40, :48], axes=(1, 2))
    clean.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, scores = choose_classical([(clean, clean)], candidates=[ClassicalBaseline("identity")])
    assert scores[0].psnr > 50


@pytest.mark.parametrize(("pairs", "candidates"), [([], CANDIDATES), ([(CLEAN, CLEAN)], [])])
def test_nothing_to_choose_from_is_refused(pairs: list, candidates: list) -> None:
    with pytest.raises(ValueError, match="at least one of each"):
        choose_classical(pairs, candidates=candidates)


def test_the_choice_follows_the_score_it_is_given() -> None:
    pairs = [(noisy(CLEAN[:, :48, :48]), CLEAN[:, :48, :48])]

    def smoothness(restored: np.ndarray, inputs: np.ndarray, clean: np.ndarray) -> float:
        assert inputs is pairs[0][0]
        assert clean is pairs[0][1]
        return -float(np.abs(np.diff(restored)).mean())

    chosen, scores = choose_classical(pairs, score=smoothness, num_workers=2)
    expected = {str(c): smoothness(c(pairs[0][0]), *pairs[0]) for c in CANDIDATES}
    assert {str(s.baseline): s.score for s in scores} == pytest.approx(expected)
    assert str(chosen) == max(expected, key=expected.__getitem__)
    assert chosen != choose_classical(pairs)[0]
    assert all(s.psnr == s.score for s in scores)


def test_the_choice_takes_inputs_of_other_channels_and_another_size_than_the_truth() -> None:
    clean = CLEAN[:, :64, :64]
    mask = np.zeros((1, 64, 64), dtype=np.float32)
    mask[:, ::4, ::3] = 1
    inputs = np.concatenate([clean * (1 - mask), mask])
    assert choose_classical([(inputs, clean)], candidates=OF_TASK["inpaint"])[0].name == "biharmonic"
    small = clean.reshape(3, 32, 2, 32, 2).mean(axis=(2, 4))
    assert choose_classical([(small, clean)], candidates=super_resolution_candidates(2))[0].settings["scale"] == 2


def test_a_score_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"identity.* scores NaN"):
        choose_classical(
            [(CLEAN, CLEAN)], candidates=[ClassicalBaseline("identity")], score=lambda *images: float("nan")
        )


OF_TASK = {"denoise": CANDIDATES, "deblur": DEBLURRING, "inpaint": INPAINTING, "jpeg": DEBLOCKING, "ct_mar": METAL}


def test_every_method_is_a_candidate_and_none_is_there_twice() -> None:
    used = {candidate.name for candidates in OF_TASK.values() for candidate in candidates}
    assert used | {candidate.name for candidate in super_resolution_candidates(2)} == set(METHODS)
    for candidates in (*OF_TASK.values(), super_resolution_candidates(3)):
        assert len({str(candidate) for candidate in candidates}) == len(candidates)


NEW = [(task, candidate) for task in ("deblur", "inpaint", "jpeg", "ct_mar") for candidate in OF_TASK[task]] + [
    ("super_resolution", candidate) for candidate in super_resolution_candidates(3)
]


@pytest.mark.parametrize(("task", "candidate"), NEW, ids=lambda x: x if isinstance(x, str) else str(vars(x)))
@pytest.mark.parametrize("shape", [(1, 33, 47), (3, 17, 12)])
def test_every_candidate_of_the_other_tasks_is_deterministic_silent_and_leaves_its_input(
    task: str, candidate: ClassicalBaseline, shape: tuple[int, int, int]
) -> None:
    channels, height, width = shape
    image = np.clip(noisy(np.ascontiguousarray(CLEAN[:channels, :height, :width])), 0, 1)
    mask = np.zeros((1, height, width), dtype=np.float32)
    mask[:, 4:9, :7] = mask[:, ::5, ::3] = 1
    if task == "inpaint":
        image = np.concatenate([image * (1 - mask), mask])
    if task == "ct_mar":
        channels, image = 1, np.concatenate([image[:1], image[:1] + 0.1, mask])
    before = image.copy()
    flat, black = np.full_like(image, 0.25), np.zeros_like(image)
    for other in (flat, black):
        if task in ("inpaint", "ct_mar"):
            other[-1] = mask
        if task == "inpaint":
            other[:-1] *= 1 - mask
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, two, grey, nothing = (candidate(x) for x in (image, image, flat, black))
    scale = 3 if task == "super_resolution" else 1
    assert np.array_equal(image, before)
    assert np.array_equal(one, two)
    assert (one.shape, one.dtype) == ((channels, scale * height, scale * width), np.float32)
    assert np.isfinite(one).all()
    tolerance = 9 / 255 if candidate.name == "shifted_jpeg" else 1e-5  # half a step of the coarsest quality's means
    np.testing.assert_allclose(nothing, 0, atol=tolerance)
    np.testing.assert_allclose(grey, 0.25, atol=tolerance)
