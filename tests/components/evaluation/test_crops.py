"""Crops are of the same place of a pair, and the error column is the error."""

from __future__ import annotations

import numpy as np
import pytest

from components.evaluation.crops import ERROR_GAIN, centre_crop, compared_crop, side_by_side

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(40, 61), (7, 50), (5, 6)])
def test_a_crop_of_a_pair_is_the_same_place_of_both(scale: int, height: int, width: int) -> None:
    inputs = np.arange(height * width, dtype=np.float32).reshape(1, height, width)
    clean = inputs.repeat(scale, axis=1).repeat(scale, axis=2)
    given, wanted = centre_crop(inputs, clean, side=24)
    np.testing.assert_array_equal(given.repeat(scale, axis=1).repeat(scale, axis=2), wanted)
    assert given.shape == (1, min(height, 24 // scale), min(width, 24 // scale))
    first, last = given.ravel()[0], given.ravel()[-1]
    assert abs(first - (height * width - 1 - last)) <= width + 1  # from the centre, to a pixel


@pytest.mark.parametrize("channels", [1, 3])
def test_the_columns_are_degraded_restored_truth_and_error(channels: int) -> None:
    clean = np.full((channels, 6, 5), 100 / 255, dtype=np.float32)
    restored, degraded = clean.copy(), clean + 2
    restored[:, 2, 3] += 7 / 255
    image = side_by_side(degraded, restored, clean)
    columns = [image[:, start : start + 5] for start in range(0, 36, 9)]
    assert (image.shape, image.dtype) == ((6, 4 * 5 + 3 * 4, 3), np.uint8)
    assert [np.unique(column).tolist() for column in columns] == [[255], [100, 107], [100], [0, 7 * ERROR_GAIN]]
    assert (columns[3][2, 3] == 7 * ERROR_GAIN).all()


def test_a_large_error_is_white_and_what_is_not_in_range_is_shown_as_saved() -> None:
    black = np.zeros((1, 3, 3), dtype=np.float32)
    image = side_by_side(black - 1, black + 3, black)
    assert [image[0, start].tolist() for start in (0, 7, 14, 21)] == [[0] * 3, [255] * 3, [0] * 3, [255] * 3]


def test_only_the_crop_is_restored() -> None:
    inputs = np.random.default_rng(0).random((3, 300, 200), dtype=np.float32)
    seen = []

    def restore(image: np.ndarray) -> np.ndarray:
        seen.append(image.shape)
        return image

    image = compared_crop(restore, lambda given: given, inputs, inputs)
    assert seen == [(3, 128, 128)]
    assert image.shape == (128, 4 * 128 + 12, 3)
    assert not image[:, 3 * 132 :].any()
