"""The table is the published physics, and the beam hardens as it must."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from components.degradations.ct.attenuation import COLUMNS, TABLE, attenuation, transmission, water_equivalent

pytestmark = pytest.mark.unit

PUBLISHED = {  # cm^2/g at 30, 40, 60, 80 and 100 keV: NISTIR 5632
    "water": (0.3756, 0.2683, 0.2059, 0.1837, 0.1707),
    "bone": (1.331, 0.6655, 0.3148, 0.2229, 0.1855),
    "titanium": (4.972, 2.214, 0.7661, 0.4052, 0.2721),
    "iron": (8.176, 3.629, 1.205, 0.5952, 0.3717),
    "copper": (10.92, 4.862, 1.593, 0.7630, 0.4584),
    "gold": (27.52, 12.98, 4.528, 2.185, 5.158),
}


@pytest.mark.parametrize("material", COLUMNS)
def test_coefficients_between_the_bins_are_the_published_ones(material: str) -> None:
    energies, values = np.log(TABLE[:, 0]), np.log(attenuation(material).double().numpy())
    for energy, published in zip((30, 40, 60, 80, 100), PUBLISHED[material], strict=True):
        side = TABLE[:, 0] < 80.72 if energy <= 80 else TABLE[:, 0] > 80.72  # the K edge of gold
        if energy == 80:  # beyond the last bin below the edge: along the line of the last two
            slope = (values[side][-1] - values[side][-2]) / (energies[side][-1] - energies[side][-2])
            found = np.exp(values[side][-1] + slope * (np.log(80) - energies[side][-1]))
        else:
            found = np.exp(np.interp(np.log(energy), energies[side], values[side]))
        assert found == pytest.approx(published, rel=0.02)


def test_the_spectrum_is_that_of_a_tube_of_120_kv() -> None:
    energies, photons = TABLE[:, 0], TABLE[:, 1]
    assert photons.sum() == pytest.approx(1, abs=1e-3)
    assert 16 < energies[0] < energies[-1] < 120
    assert (np.diff(energies) > 0).all()
    assert 40 < (energies * photons).sum() / photons.sum() < 60  # a third to a half of the largest energy, as a rule
    assert energies[photons.argmax()] == pytest.approx(59, abs=1)  # the K alpha lines of tungsten


def test_transmission_is_the_sum_over_the_spectrum() -> None:
    generator = np.random.default_rng(0)
    paths = {"water": generator.uniform(0, 40, (5, 7)), "bone": generator.uniform(0, 8, (5, 7))}
    paths["iron"] = generator.uniform(0, 4, (5, 7))
    expected = np.zeros((5, 7))
    for row in TABLE:
        signal = sum(row[2 + COLUMNS.index(name)] * values for name, values in paths.items())
        expected += row[1] / TABLE[:, 1].sum() * np.exp(-signal)
    found = transmission({name: torch.from_numpy(values).float() for name, values in paths.items()})
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5)


@pytest.mark.parametrize("material", COLUMNS)
def test_attenuation_a_centimetre_falls_with_depth(material: str) -> None:
    depths = torch.linspace(0.1, 20, 60).double()
    signals = -transmission({material: depths}).log()
    assert (signals.diff() > 0).all()
    assert ((signals / depths).diff() < 0).all()


def test_water_is_its_own_equivalent_at_any_depth() -> None:
    depths = torch.linspace(0, 90, 400).double()
    signals = -transmission({"water": depths}).log().numpy()
    np.testing.assert_allclose(water_equivalent(signals), depths.numpy(), atol=2e-3)


def test_signals_below_zero_of_noise_keep_the_slope_of_thin_water() -> None:
    slope = water_equivalent(np.array([1e-3]))[0] / 1e-3
    assert water_equivalent(np.array([-2e-3]))[0] == pytest.approx(-2e-3 * slope, rel=5e-3)


def test_an_unknown_material_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^material 'lead' is unknown: use one of water, bone, titanium"):
        attenuation("lead")
