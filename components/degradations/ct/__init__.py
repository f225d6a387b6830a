"""Simulation of CT metal artifacts: geometry, projection, physics, reconstruction and the usual corrections.

Example:
    >>> round(1000 * (WHITE / WATER - 1))  # Hounsfield units of the grey value 1
    1604
"""

from components.degradations.ct.artifacts import MetalArtifactCase, MetalArtifacts, scan
from components.degradations.ct.attenuation import WATER, WHITE
from components.degradations.ct.geometry import FanBeam
from components.degradations.ct.interpolation import linear_interpolation
from components.degradations.ct.projection import project
from components.degradations.ct.reconstruction import filtered_back_projection

__all__ = [
    "WATER",
    "WHITE",
    "FanBeam",
    "MetalArtifactCase",
    "MetalArtifacts",
    "filtered_back_projection",
    "linear_interpolation",
    "project",
    "scan",
]
