"""Attenuation of the X-rays of a 120 kV tube by water, bone and metals.

Legend: E bins of photon energy. A mass path is density times length along a ray, in g/cm^2.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

# Bins of 5 keV, 16-20 to 116-120: mean energy in keV, share of the photons, and the mass attenuation coefficients with
# coherent scattering in cm^2/g. The coefficients are averages over the photons of the bin, from tables of 1 keV. The
# table reproduces -log(transmission) up to 16 of those tables, for a material alone or behind water, within 0.1 %
# (water), 0.4 % (bone, titanium, iron, copper) and 1.1 % (gold). Sources: the coefficients are from Hubbell and
# Seltzer, *Tables of X-Ray Mass Attenuation Coefficients*, NISTIR 5632 (NIST Standard Reference Database 126) and XCOM;
# bone is cortical bone of ICRU-44. The photons are from the 120 kV spectrum of a GE CT tube, which the usual metal
# artifact simulation uses (Zhang and Yu, IEEE TMI 2018).
COLUMNS = ("water", "bone", "titanium", "iron", "copper", "gold")
TABLE = np.array(
    [
        # keV   photons  water   bone    titanium iron  copper  gold
        [18.8, 0.0063, 0.9611, 4.899, 19.45, 31.37, 41.1, 94.41],
        [23.4, 0.0275, 0.5841, 2.625, 10.28, 16.77, 22.21, 53.06],
        [28.2, 0.0588, 0.416, 1.583, 6.012, 9.872, 13.15, 32.66],
        [33.1, 0.0821, 0.3303, 1.048, 3.802, 6.257, 8.365, 21.47],
        [38.0, 0.0936, 0.2822, 0.7506, 2.566, 4.215, 5.646, 14.9],
        [43.0, 0.0936, 0.2527, 0.5726, 1.827, 2.985, 3.998, 10.81],
        [48.0, 0.0893, 0.2332, 0.4595, 1.359, 2.202, 2.943, 8.114],
        [53.0, 0.0823, 0.2195, 0.3842, 1.049, 1.681, 2.239, 6.268],
        [58.4, 0.1271, 0.2086, 0.3285, 0.8212, 1.298, 1.719, 4.872],
        [62.6, 0.0788, 0.202, 0.2966, 0.6929, 1.081, 1.425, 4.065],
        [68.0, 0.0711, 0.1951, 0.2664, 0.573, 0.8787, 1.149, 3.294],
        [72.9, 0.0395, 0.19, 0.2457, 0.4922, 0.7421, 0.963, 2.765],
        [77.9, 0.0328, 0.1854, 0.2288, 0.4276, 0.6329, 0.8143, 2.335],
        [82.9, 0.0281, 0.1814, 0.2155, 0.378, 0.5493, 0.7004, 8.316],
        [87.9, 0.0244, 0.1779, 0.2048, 0.3389, 0.4836, 0.6108, 7.165],
        [92.9, 0.0193, 0.1747, 0.1959, 0.3072, 0.4305, 0.5385, 6.221],
        [97.9, 0.0165, 0.1719, 0.1884, 0.2816, 0.3876, 0.4801, 5.448],
        [102.9, 0.0127, 0.1692, 0.182, 0.2605, 0.3525, 0.4323, 4.806],
        [107.8, 0.0086, 0.1668, 0.1765, 0.2429, 0.3232, 0.3925, 4.264],
        [112.8, 0.0056, 0.1645, 0.1717, 0.2281, 0.2987, 0.3593, 3.806],
        [117.2, 0.0019, 0.1625, 0.1678, 0.2166, 0.2798, 0.3337, 3.451],
    ]
)
DENSITIES = {"titanium": 4.54, "iron": 7.874, "copper": 8.96, "gold": 19.32}  # g/cm^3, NISTIR 5632, table 1
WATER = 0.192  # 1/cm: attenuation of water in the reconstructed images, the scale of the SynDeepLesion data
WHITE = 0.5  # 1/cm: attenuation shown as 1, that is 1604 HU; the SynDeepLesion data use the same unit, 1/cm
# Ratio of the mass attenuations at 70 keV, from the sources above; at this energy water is near WATER.
BONE_PER_WATER = 0.2570 / 0.1929
LONGEST = 150.0  # cm of water: longer than the water equivalent of the darkest ray


def attenuation(material: str) -> Tensor:
    """Return the mass attenuation coefficients of a material at the energies, in cm^2/g, ``(E,)`` float32.

    Raises:
        ValueError: the table has no such material.
    """
    if material not in COLUMNS:
        raise ValueError(f"material '{material}' is unknown: use one of {', '.join(COLUMNS)}")
    return torch.from_numpy(TABLE[:, 2 + COLUMNS.index(material)]).float()


def transmission(mass_paths: Mapping[str, Tensor]) -> Tensor:
    """Compute the share T of the photons that reach the detector, for the mass path L of each material.

    ``T = sum_E N(E) exp(-sum_m mu_m(E) L_m)`` with the shares N of the photons, which sum to 1. T has the shape of the
    mass paths.
    """
    photons = torch.from_numpy(TABLE[:, 1] / TABLE[:, 1].sum()).float()
    coefficients = {material: attenuation(material) for material in mass_paths}
    total = torch.zeros_like(next(iter(mass_paths.values())))
    for number, share in enumerate(photons.tolist()):
        weakened = torch.zeros_like(total)
        for material, paths in mass_paths.items():
            weakened.add_(paths, alpha=-coefficients[material][number].item())
        total.add_(weakened.exp_(), alpha=share)
    return total


def water_equivalent(signals: np.ndarray) -> np.ndarray:
    """Return the length of water in cm with the attenuation ``signals = -log(transmission)``, of the same shape.

    This is the exact beam hardening correction for water, by a table with steps of 0.1 cm. Images of water therefore
    show no cupping artifact.
    """
    lengths = np.linspace(0, LONGEST, int(10 * LONGEST) + 1)
    photons, coefficients = TABLE[:, 1] / TABLE[:, 1].sum(), TABLE[:, 2]
    measured = -np.log(np.exp(-lengths[:, None] * coefficients) @ photons)
    return np.interp(signals, measured, lengths) + np.minimum(signals, 0) / (photons @ coefficients)
