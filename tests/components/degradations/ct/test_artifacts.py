"""The simulated scan shows what physics says: no artifact without metal, and dark bands, noise and streaks with it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from components.degradations.ct.artifacts import (
    WHITE,
    MetalArtifactCase,
    MetalArtifacts,
    resize,
    scan,
    tissue_densities,
)
from components.degradations.ct.attenuation import COLUMNS, TABLE, WATER
from components.degradations.ct.geometry import FanBeam
from components.degradations.ct.interpolation import linear_interpolation
from components.degradations.ct.projection import project
from components.degradations.ct.reconstruction import filtered_back_projection

pytestmark = pytest.mark.unit

SIZE = 96
GEOMETRY = FanBeam(size=SIZE, views=180, detectors=160, field_cm=30)
SILENT = 1e12  # photons: no noise to speak of


def discs(*shapes: tuple[float, float, float], size: int = SIZE) -> np.ndarray:
    """Coverage by discs of (row, column, radius): a half at the radius."""
    rows, columns = np.indices((size, size))
    coverage = np.zeros((size, size))
    for row, column, radius in shapes:
        coverage = np.maximum(coverage, np.clip(radius + 0.5 - np.hypot(rows - row, columns - column), 0, 1))
    return coverage.astype(np.float32)


WATER_BODY = (1000 * (discs((47.5, 47.5, 36)) - 1)).astype(np.float32)
NO_METAL = np.zeros((SIZE, SIZE), dtype=np.float32)
DEEP = discs((47.5, 47.5, 31)) == 1


def scanned(
    hu: np.ndarray = WATER_BODY, metal: np.ndarray = NO_METAL, material: str = "iron", photons: float = SILENT
) -> MetalArtifactCase:
    return scan(hu, metal, material, GEOMETRY, photons, np.random.default_rng(0))


def patient(size: int = 128) -> np.ndarray:
    """A body with two lungs and a spine, HU in int16, as from a file."""
    hu = np.full((size, size), -1000.0)
    rows, columns = (np.indices((size, size)) + 0.5) / size - 0.5
    hu[(rows / 0.33) ** 2 + (columns / 0.42) ** 2 < 1] = 40
    for side in (-0.2, 0.2):
        hu[((rows + 0.05) / 0.17) ** 2 + ((columns - side) / 0.1) ** 2 < 1] = -850
    hu[((rows - 0.2) / 0.06) ** 2 + (columns / 0.06) ** 2 < 1] = 700
    return hu.astype(np.int16)


def test_water_without_metal_is_reconstructed_flat() -> None:
    case = scanned()
    image = case.artifact[0] * WHITE
    assert not case.trace.any()
    assert case.mask.sum() == 0
    np.testing.assert_array_equal(case.artifact, case.linear_interpolation)
    centre, edge = image[discs((47.5, 47.5, 8)) == 1].mean(), image[DEEP & (discs((47.5, 47.5, 26)) == 0)].mean()
    assert centre == pytest.approx(WATER, rel=0.005)
    assert centre == pytest.approx(edge, rel=0.005)
    raw = image_without_correction(case)  # what the correction is for: a cup
    assert raw[discs((47.5, 47.5, 8)) == 1].mean() < 0.97 * raw[DEEP & (discs((47.5, 47.5, 26)) == 0)].mean()


def image_without_correction(case: MetalArtifactCase) -> np.ndarray:
    """The image of ``-log(T)`` itself, of paths of water of the case's sinogram."""
    photons = TABLE[:, 1] / TABLE[:, 1].sum()
    transmitted = np.exp(-case.sinogram[..., None] / WATER * TABLE[:, 2]) @ photons
    return filtered_back_projection(torch.from_numpy(-np.log(transmitted))[None], GEOMETRY)[0].numpy()


def test_the_clean_image_is_the_attenuation_in_units_of_half_a_centimetre() -> None:
    case = scanned()
    np.testing.assert_allclose(case.clean[0], np.clip(0.192 * (1 + WATER_BODY / 1000) / 0.5, 0, 1), atol=1e-6)


def test_a_ray_through_the_centre_measures_the_path_in_water() -> None:
    case = scanned()
    assert case.sinogram[:, 79:81].mean() == pytest.approx(WATER * 72 * 30 / 96, rel=0.005)  # the diameter in cm


def test_bone_hardens_the_beam_and_makes_a_dark_band_between_bones() -> None:
    bones = discs((47.5, 27.5, 7), (47.5, 67.5, 7))
    case = scanned(hu=WATER_BODY + 1500 * bones)
    error = ndimage.uniform_filter((case.artifact - case.clean)[0], 5)
    assert error[47, 47] < -0.01  # between the bones
    assert error[47, 47] < error[25, 47] - 0.01


@pytest.mark.parametrize("material", ["titanium", "iron", "copper", "gold"])
def test_between_two_metals_is_a_dark_band_and_li_removes_it(material: str) -> None:
    metal = discs((47.5, 30.5, 4), (47.5, 64.5, 4))
    case = scanned(metal=metal, material=material)
    error = ndimage.uniform_filter((case.artifact - case.clean)[0], 3)
    assert error[47, 47] < -0.06
    far = metal == 0
    artifact, corrected = (
        np.sqrt(((image - case.clean)[0][far] ** 2).mean()) for image in (case.artifact, case.linear_interpolation)
    )
    assert corrected < 0.7 * artifact


def test_denser_metals_make_stronger_artifacts() -> None:
    metal = discs((47.5, 30.5, 4), (47.5, 64.5, 4))
    errors = [
        float(((case.artifact - case.clean)[0][metal == 0] ** 2).mean())
        for case in (scanned(metal=metal, material=material) for material in ("titanium", "iron", "copper"))
    ]
    assert errors == sorted(errors)
    assert errors[2] > 2 * errors[0]


def test_larger_metals_make_stronger_artifacts() -> None:
    without, errors = scanned().artifact, []
    for radius in (1, 2, 4, 8):
        error = (scanned(metal=discs((40, 52, radius))).artifact - without)[0]
        errors.append(float((error[discs((40, 52, 9)) == 0] ** 2).mean()))
    assert errors == sorted(errors)
    assert errors[-1] > 3 * errors[0]


def test_the_sinogram_in_the_trace_is_the_spectrum_weakened_by_the_paths() -> None:
    """A ray through the centres of a disc of water and of iron in it: the paths are diameters, the rest is a sum."""
    case = scanned(metal=discs((47.5, 47.5, 6)))
    iron, water = 12 * 30 / 96, (72 - 12) * 30 / 96  # cm
    photons = TABLE[:, 1] / TABLE[:, 1].sum()
    coefficients = {name: TABLE[:, 2 + COLUMNS.index(name)] for name in ("water", "iron")}
    transmitted = photons @ np.exp(-water * coefficients["water"] - 7.874 * iron * coefficients["iron"])
    path = np.interp(
        -math.log(transmitted),
        -np.log(np.exp(-np.arange(0, 100, 0.01)[:, None] * coefficients["water"]) @ photons),
        np.arange(0, 100, 0.01),
    )
    assert case.sinogram[:, 79:81].mean() == pytest.approx(WATER * path, rel=0.01)


def test_the_noise_of_the_sinogram_is_that_of_counted_photons() -> None:
    """``var(-log(n / N)) = 1 / (N T)``, scaled by the slope of the water correction."""
    photons = 1e5
    loud, silent = scanned(photons=photons), scanned()
    paths = silent.sinogram[:, 60:100] / WATER
    table = np.linspace(0, 60, 6001)
    signals = -np.log(np.exp(-table[:, None] * TABLE[:, 2]) @ (TABLE[:, 1] / TABLE[:, 1].sum()))
    deviation = (
        WATER
        * np.interp(paths, table, 1 / np.gradient(signals, table))
        * np.exp(np.interp(paths, table, signals) / 2)
        / math.sqrt(photons)
    )
    normal = (loud.sinogram - silent.sinogram)[:, 60:100] / deviation
    assert abs(normal.mean()) < 0.06  # 7200 draws; the logarithm has a small bias
    assert normal.std() == pytest.approx(1, abs=0.04)
    assert np.corrcoef(normal[:, :-1].ravel(), normal[:, 1:].ravel())[0, 1] == pytest.approx(0, abs=0.05)


def test_a_bin_counts_the_mean_light_of_its_three_rays() -> None:
    """Partial volume; the whole formula once more, in numpy and double precision."""
    metal, hu = discs((40, 60, 3), (55, 30, 5)), WATER_BODY + 1500 * discs((47.5, 67.5, 7))
    case = scanned(hu=hu, metal=metal, material="gold")
    maps = torch.from_numpy(np.stack([*tissue_densities(hu)]) * (1 - metal))
    water, bone = (np.repeat(paths, 3, axis=-1) for paths in project(maps.double(), GEOMETRY).numpy())
    gold = 19.32 * project(torch.from_numpy(metal)[None].double(), replace(GEOMETRY, detectors=480))[0].numpy()
    light = np.zeros((180, 480))
    for row in TABLE:
        light += row[1] / TABLE[:, 1].sum() * np.exp(-row[2] * water - row[3] * bone - row[7] * gold)
    light = light.reshape(180, 160, 3).mean(axis=-1)
    depths = np.arange(0, 150, 0.02)
    signals = -np.log(np.exp(-depths[:, None] * TABLE[:, 2]) @ (TABLE[:, 1] / TABLE[:, 1].sum()))
    seen = light > 1e-6  # what Poisson noise leaves exact
    assert (~seen).mean() < 0.15
    np.testing.assert_allclose(case.sinogram[seen], WATER * np.interp(-np.log(light), signals, depths)[seen], atol=0.01)


def test_no_light_at_all_gives_a_finite_image() -> None:
    case = scanned(metal=discs((47.5, 47.5, 20)), material="gold", photons=10)
    assert np.isfinite(case.sinogram).all()
    assert 0 <= case.artifact.min() < case.artifact.max() <= 1


def test_the_trace_is_the_shadow_of_the_metal_and_li_changes_nothing_else() -> None:
    case = scanned(metal=discs((40, 60, 3)), photons=1e6)
    assert case.trace.shape == (180, 160)
    widths = case.trace.sum(axis=1) * GEOMETRY.pitch
    assert (widths > 6).all()  # the diameter of the disc, less what a grazing ray misses
    assert (widths < 11).all()  # the pixels it touches, and a bin
    np.testing.assert_array_equal(case.interpolated_sinogram[~case.trace], case.sinogram[~case.trace])
    again = linear_interpolation(torch.from_numpy(case.sinogram), torch.from_numpy(case.trace))
    np.testing.assert_array_equal(case.interpolated_sinogram, again.numpy())


def test_the_images_are_those_of_the_sinograms() -> None:
    case = scanned(metal=discs((40, 60, 3)), photons=1e6)
    for sinogram, image in (
        (case.sinogram, case.artifact),
        (case.interpolated_sinogram, case.linear_interpolation),
    ):
        expected = filtered_back_projection(torch.from_numpy(sinogram)[None], GEOMETRY)[0].numpy() / WHITE
        np.testing.assert_allclose(image[0], expected.clip(0, 1), atol=1e-5)


def test_water_and_bone_together_attenuate_as_the_hounsfield_unit_says() -> None:
    hu = np.array([-1000, -500, 0, 100, 450, 800, 1500, 2200], dtype=np.float32)
    water, bone = tissue_densities(hu)
    np.testing.assert_allclose(water * 0.1929 + bone * 0.2570, 0.1929 * (1 + hu / 1000), atol=1e-6)
    np.testing.assert_allclose(bone[:4], 0)
    np.testing.assert_allclose(water[-2:], 0)
    assert water[5] == pytest.approx(0.9)  # half of 1.8


def test_a_mask_says_where_metal_fills_half_of_a_pixel() -> None:
    metal = discs((40, 60, 3.2))
    np.testing.assert_array_equal(scanned(metal=metal).mask[0], (metal >= 0.5).astype(np.float32))
    thin = 0.2 * metal
    np.testing.assert_array_equal(scanned(metal=thin).mask[0], (metal >= 0.5).astype(np.float32))


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("spacing", [None, 2.5])
def test_a_simulated_slice_has_the_stated_shapes_and_range(size: int, spacing: float | None) -> None:
    geometry = FanBeam().scaled(size)
    case = MetalArtifacts(geometry=geometry).simulate(patient(), spacing, np.random.default_rng(0))
    for image in (case.clean, case.artifact, case.linear_interpolation, case.mask):
        assert image.shape == (1, size, size)
        assert image.dtype == np.float32
        assert image.min() == 0 < image.max() <= 1
    assert set(np.unique(case.mask)) == {0, 1}
    assert case.trace.shape == case.sinogram.shape == (geometry.views, geometry.detectors)
    assert case.trace.dtype == bool
    assert case.trace.any()
    np.testing.assert_array_equal(case.inputs, np.stack([case.linear_interpolation[0], case.artifact[0], case.mask[0]]))


def test_equal_generators_give_equal_bytes_and_others_another_implant() -> None:
    artifacts, hu = MetalArtifacts(geometry=FanBeam().scaled(32)), patient()
    first, again, other = (artifacts.simulate(hu, None, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert first.inputs.tobytes() == again.inputs.tobytes()
    assert first.sinogram.tobytes() == again.sinogram.tobytes()
    assert (first.mask != other.mask).any()
    np.testing.assert_array_equal(hu, patient())


def test_the_pixel_spacing_gives_the_body_its_true_size() -> None:
    artifacts = MetalArtifacts(geometry=FanBeam().scaled(32), photons=SILENT)
    small, large = (artifacts.simulate(patient(), mm, np.random.default_rng(0)) for mm in (1.2, 2.4))
    free = ~small.trace
    np.testing.assert_array_equal(small.trace, large.trace)
    assert large.sinogram[free].sum() == pytest.approx(2 * small.sinogram[free].sum(), rel=0.03)
    np.testing.assert_array_equal(small.clean, large.clean)


def test_materials_are_drawn_by_their_odds() -> None:
    artifacts = MetalArtifacts(
        geometry=FanBeam(size=16, views=8, detectors=16), materials={"iron": 3, "gold": 1, "copper": 0}
    )
    drawn = [artifacts.simulate(patient(32), None, np.random.default_rng(seed)).material for seed in range(200)]
    assert set(drawn) == {"iron", "gold"}
    assert drawn.count("iron") / 200 == pytest.approx(0.75, abs=0.1)


def test_a_slice_of_another_size_is_averaged_to_the_image() -> None:
    hu = np.random.default_rng(0).integers(-500, 500, (128, 128)).astype(np.int16)
    smaller = resize(hu, 64)
    assert smaller.shape == (64, 64)
    assert smaller.mean() == pytest.approx(hu.mean(), abs=3)
    assert smaller.std() < 0.6 * hu.std()
    np.testing.assert_array_equal(resize(hu, 128), hu)
    assert resize(np.full((20, 20), -2000, dtype=np.int16), 32).min() == pytest.approx(-1000)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"photons": 0}, r"^photons 0: use 1"),
        ({"photons": math.nan}, r"^photons nan: use 1"),
        ({"area": (4, 100)}, r"^area 4\.\.100: use 8 <= low <= high <= 4000"),
        ({"area": (300, 100)}, r"^area 300\.\.100: use"),
        ({"area": (300, 9000)}, r"^area 300\.\.9000: use"),
        ({"materials": {"lead": 1}}, r"^materials 'lead' is no metal of the table: use titanium, iron, copper, gold"),
        ({"materials": {}}, r"^materials \{\}: give a metal"),
        ({"materials": {"iron": 0}}, r"^materials \{'iron': 0\}: give a metal"),
        ({"materials": {"iron": 2, "gold": -1}}, r"^materials .+: give a metal with odds above 0, and none below"),
    ],
)
def test_an_impossible_setting_is_refused_by_its_name_and_value(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(MetalArtifacts(), **settings)


@pytest.mark.parametrize(
    ("hu", "spacing", "message"),
    [
        (np.zeros((20, 30)), None, r"^slice \(20, 30\): use a square one"),
        (np.zeros((1, 30, 30)), None, r"^slice \(1, 30, 30\): use a square one"),
        (np.full((30, 30), np.nan), None, r"^the slice has values that are not finite"),
        (np.zeros((30, 30)), 0.0, r"^pixel_spacing_mm 0\.0: use mm above 0"),
        (np.full((30, 30), -1000), None, r"^the slice has no body"),
    ],
)
def test_a_slice_that_cannot_be_scanned_is_refused(hu: np.ndarray, spacing: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetalArtifacts(geometry=FanBeam().scaled(16)).simulate(hu, spacing, np.random.default_rng(0))
