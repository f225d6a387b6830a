"""What a metal artifact network is given is what it is compared with."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.restoration import denoise_tv_chambolle

from components.evaluation.classical import ClassicalBaseline, choose_classical
from components.evaluation.classical.candidates import METAL as CANDIDATES

pytestmark = pytest.mark.unit

GENERATOR = np.random.default_rng(0)
CLEAN = np.zeros((1, 48, 56), dtype=np.float32)
CLEAN[:, 10:40, 12:44] = 0.4
INTERPOLATED = CLEAN + 0.05 * GENERATOR.standard_normal(CLEAN.shape).astype(np.float32)
ARTIFACT = CLEAN + 0.2 * GENERATOR.standard_normal(CLEAN.shape).astype(np.float32)
METAL = np.zeros_like(CLEAN)
METAL[:, 20:24, 20:24] = 1
INPUTS = np.concatenate([INTERPOLATED, ARTIFACT, METAL])


def test_the_two_images_come_back_as_they_are_and_not_as_views() -> None:
    for name, image in {"linear_interpolation": INTERPOLATED, "artifact": ARTIFACT}.items():
        restored = ClassicalBaseline(name)(INPUTS)
        np.testing.assert_array_equal(restored, image)
        assert not np.shares_memory(restored, INPUTS)


@pytest.mark.parametrize("weight", [0.01, 0.05])
def test_the_smoothed_image_is_the_interpolated_one_with_less_variation(weight: float) -> None:
    restored = ClassicalBaseline("smoothed_interpolation", {"weight": weight})(INPUTS)
    np.testing.assert_allclose(restored[0], denoise_tv_chambolle(INTERPOLATED[0], weight=weight), atol=1e-6)
    assert np.abs(np.diff(restored)).sum() < 0.9 * np.abs(np.diff(INTERPOLATED)).sum()


def test_the_choice_takes_the_better_image_and_smooths_it_only_if_that_helps() -> None:
    chosen, scores = choose_classical([(INPUTS, CLEAN)], candidates=CANDIDATES)
    assert chosen.name == "smoothed_interpolation"
    assert scores[-1].baseline.name == "artifact"
    as_interpolated = choose_classical([(INPUTS, INTERPOLATED.clip(0, 1))], candidates=CANDIDATES)
    assert as_interpolated[0].name == "linear_interpolation"
