"""Filtered back-projection gives the phantom back from its exact sinogram."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from components.degradations.ct.geometry import FanBeam
from components.degradations.ct.projection import project
from components.degradations.ct.reconstruction import filtered_back_projection, ramp
from tests.components.degradations.ct.phantoms import ellipses, image_of, sinogram_of

pytestmark = pytest.mark.unit


def away_from_borders(image: np.ndarray) -> np.ndarray:
    """Pixels with the same value as all pixels within 3 pixels."""
    return ndimage.maximum_filter(image, 7) - ndimage.minimum_filter(image, 7) < 1e-6


@pytest.mark.parametrize(
    "geometry",
    [
        FanBeam().scaled(96),
        FanBeam().scaled(129),
        FanBeam(size=96, views=240, detectors=260, field_cm=40, distance=1.5),
    ],
)
def test_the_exact_sinogram_of_ellipses_gives_the_ellipses(geometry: FanBeam) -> None:
    shapes = ellipses(geometry.size)
    truth = image_of(shapes, geometry.size)
    image = filtered_back_projection(torch.from_numpy(sinogram_of(shapes, geometry))[None], geometry)[0].numpy()
    flat = away_from_borders(truth)
    assert flat.mean() > 0.4
    assert np.sqrt(((image - truth)[flat] ** 2).mean()) < 0.02 * truth.max()
    for value in np.unique(truth[flat].round(4)):  # no cup and no scale error, in any part
        part = flat & (np.abs(truth - value) < 1e-4)
        assert image[part].mean() == pytest.approx(value, abs=0.004 * float(truth.max()))


def test_a_smooth_image_survives_projection_and_reconstruction() -> None:
    geometry = FanBeam().scaled(96)
    image = ndimage.gaussian_filter(image_of(ellipses(96), 96), 1.5)
    restored = filtered_back_projection(project(torch.from_numpy(image)[None], geometry), geometry)[0].numpy()
    assert np.sqrt(((restored - image) ** 2).mean()) < 0.005 * image.max()


@pytest.mark.parametrize("detectors", [9, 64, 65])
@pytest.mark.parametrize("pitch", [0.5, 1.3])
def test_the_ramp_passes_each_frequency_in_proportion_to_itself(detectors: int, pitch: float) -> None:
    """Its Fourier series is ``|f|`` up to 1 / (2 pitch), short of the terms beyond the detector."""
    kernel = ramp(detectors, pitch).numpy()
    frequencies = np.linspace(0, 0.5 / pitch, 50)
    offsets = np.arange(1 - detectors, detectors)
    response = pitch * (np.cos(2 * np.pi * frequencies[:, None] * offsets * pitch) * kernel).sum(axis=1)
    np.testing.assert_allclose(response, frequencies, atol=0.15 / (detectors * pitch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reconstruction_is_linear_and_keeps_the_batch_apart(dtype: torch.dtype) -> None:
    geometry = FanBeam().scaled(32)
    sinograms = torch.from_numpy(np.random.default_rng(0).random((3, geometry.views, geometry.detectors))).to(dtype)
    images = filtered_back_projection(sinograms, geometry)
    assert images.shape == (3, 32, 32)
    assert images.dtype == dtype
    combined = filtered_back_projection((2 * sinograms[2] - sinograms[0])[None], geometry)[0]
    torch.testing.assert_close(combined, 2 * images[2] - images[0], rtol=1e-4, atol=1e-4)


def test_sinograms_of_another_shape_are_refused() -> None:
    geometry = FanBeam().scaled(32)
    with pytest.raises(ValueError, match=r"^sinograms \(1, 49, 48\): this geometry takes \(B, 48, 49\)"):
        filtered_back_projection(torch.zeros(1, 49, 48), geometry)
