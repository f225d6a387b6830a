"""LI agrees with numpy's interpolation, view by view."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from components.degradations.ct.interpolation import linear_interpolation

pytestmark = pytest.mark.unit


def interpolated_view_by_view(sinogram: np.ndarray, trace: np.ndarray) -> np.ndarray:
    corrected = sinogram.copy()
    for view in range(len(sinogram)):
        gap = trace[view]
        corrected[view, gap] = np.interp(np.flatnonzero(gap), np.flatnonzero(~gap), sinogram[view, ~gap])
    return corrected


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_trace_is_filled_as_by_numpy(share: float, dtype: type) -> None:
    generator = np.random.default_rng(int(100 * share))
    sinogram: np.ndarray = generator.random((40, 57)).astype(dtype)
    trace = generator.random((40, 57)) < share
    trace[:, 23] = False
    trace[3, :20] = trace[4, 30:] = True  # gaps at both ends of the detector
    trace[5] = np.arange(57) != 23  # one good bin
    corrected = linear_interpolation(torch.from_numpy(sinogram), torch.from_numpy(trace)).numpy()
    assert corrected.dtype == dtype
    np.testing.assert_allclose(corrected, interpolated_view_by_view(sinogram, trace), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(corrected[~trace], sinogram[~trace])


def test_a_batch_is_its_sinograms_one_by_one() -> None:
    generator = np.random.default_rng(1)
    sinograms, traces = (
        torch.from_numpy(generator.random((2, 9, 30))),
        torch.from_numpy(generator.random((2, 9, 30)) < 0.4),
    )
    together = linear_interpolation(sinograms, traces)
    for number in range(2):
        expected = interpolated_view_by_view(sinograms[number].numpy(), traces[number].numpy())
        np.testing.assert_allclose(together[number].numpy(), expected)


def test_a_trace_that_leaves_nothing_of_a_view_is_refused() -> None:
    trace = torch.zeros(4, 8, dtype=torch.bool)
    trace[2] = True
    with pytest.raises(ValueError, match="fills a whole view: use less metal"):
        linear_interpolation(torch.zeros(4, 8), trace)


@pytest.mark.parametrize("trace", [torch.zeros(4, 7, dtype=torch.bool), torch.zeros(4, 8)])
def test_a_trace_of_another_shape_or_type_is_refused(trace: torch.Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"^trace \(4, \d\) of torch\.\w+: use a boolean one of the sinogram's \(4, 8\)"
    ):
        linear_interpolation(torch.zeros(4, 8), trace)
