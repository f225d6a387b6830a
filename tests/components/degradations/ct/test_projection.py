"""The projector agrees with the closed-form projections of ellipses and with the stated conventions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from components.degradations.ct.geometry import FanBeam
from components.degradations.ct.projection import project
from tests.components.degradations.ct.phantoms import ellipses, image_of, sinogram_of

pytestmark = pytest.mark.unit

GEOMETRY = FanBeam().scaled(64)


@pytest.mark.parametrize(
    "geometry",
    [
        FanBeam().scaled(64),
        FanBeam().scaled(97),
        FanBeam(size=80, views=36, detectors=130, field_cm=30, distance=1.2),
        FanBeam(size=65, views=20, detectors=64, field_cm=5, distance=20),
    ],
)
def test_ellipses_are_projected_to_their_chords(geometry: FanBeam) -> None:
    shapes = ellipses(geometry.size)
    expected = sinogram_of(shapes, geometry)
    image = torch.from_numpy(image_of(shapes, geometry.size))[None]
    sinogram = project(image, geometry)[0].numpy()
    assert sinogram.dtype == np.float32
    assert np.sqrt(((sinogram - expected) ** 2).mean()) < 0.5 / geometry.size * expected.max()
    assert np.abs(sinogram - expected).max() < 0.1 * expected.max()  # only where a ray grazes a border
    assert sinogram.sum() == pytest.approx(expected.sum(), rel=1e-3)


def test_the_error_shrinks_with_the_pixels() -> None:
    errors = []
    for size in (32, 64, 128):
        geometry = FanBeam(size=size, views=40, detectors=50)
        difference = project(torch.from_numpy(image_of(ellipses(size), size))[None], geometry)[0].numpy() - sinogram_of(
            ellipses(size), geometry
        )
        errors.append(float(np.sqrt((difference**2).mean())))
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.6 * errors[1]


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_image_has_the_sinogram_a_quarter_of_the_views_on(turns: int) -> None:
    image = torch.from_numpy(np.random.default_rng(0).random((1, 64, 64)).astype(np.float32))
    turned = project(torch.rot90(image, turns, dims=(-2, -1)), GEOMETRY)
    expected = project(image, GEOMETRY).roll(turns * GEOMETRY.views // 4, dims=1)
    torch.testing.assert_close(turned, expected, rtol=1e-5, atol=1e-5)


def test_a_point_right_of_the_centre_is_seen_where_the_conventions_say() -> None:
    geometry = FanBeam(size=65, views=400, detectors=321, field_cm=65, distance=3)
    image = torch.zeros(1, 65, 65)
    image[0, 32, 52] = 1  # x = 20, y = 0
    sinogram = project(image, geometry)[0]
    middle, pitch = 160, 65 * 2**0.5 / 321
    for view, x_along, x_across in ((0, 20, 0), (100, 0, 20), (200, -20, 0), (300, 0, -20)):
        u = x_across / (1 + x_along / 195)  # the beam runs to the right in view 0, up in view 100
        seen = (sinogram[view] * torch.arange(321)).sum() / sinogram[view].sum()
        assert seen.item() == pytest.approx(middle + u / pitch, abs=1.2)  # half a view is 0.8 bins here


def test_a_batch_is_its_images_one_by_one_and_the_projection_is_linear() -> None:
    images = torch.from_numpy(np.random.default_rng(1).random((3, 64, 64)))
    together = project(images, GEOMETRY)
    assert together.shape == (3, GEOMETRY.views, GEOMETRY.detectors)
    assert together.dtype == torch.float64
    for image, sinogram in zip(images, together, strict=True):
        torch.testing.assert_close(project(image[None], GEOMETRY)[0], sinogram)
    combined = project((2 * images[0] - 3 * images[1])[None], GEOMETRY)[0]
    torch.testing.assert_close(combined, 2 * together[0] - 3 * together[1])


def test_a_field_twice_as_large_has_integrals_twice_as_large() -> None:
    image = torch.from_numpy(image_of(ellipses(64), 64))[None]
    larger = project(image, replace(GEOMETRY, field_cm=2 * GEOMETRY.field_cm))
    torch.testing.assert_close(larger, 2 * project(image, GEOMETRY))


def test_the_points_in_memory_at_a_time_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.from_numpy(image_of(ellipses(64), 64))[None]
    whole = project(image, GEOMETRY)
    monkeypatch.setattr("components.degradations.ct.projection.VALUES_AT_ONCE", 80_000)
    torch.testing.assert_close(project(image, GEOMETRY), whole, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(64, 64), (1, 63, 64), (1, 1, 64, 64)])
def test_images_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^images \(.+\): this geometry takes \(B, 64, 64\)"):
        project(torch.zeros(shape), GEOMETRY)
