"""Clean image -> degraded image, one kind a file, by the name of the task that undoes it.

A degradation is called with a ``(C, H, W)`` float32 numpy image in [0, 1] and a numpy generator, from which it takes
every draw, and gives an image of the same shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.degradations.noise import GaussianNoise
from components.degradations.rain import Rain

DEGRADATIONS = {"denoise": GaussianNoise, "derain": Rain}


def build_degradation(task: str, settings: Mapping[str, Any]) -> GaussianNoise | Rain:
    """The degradation that ``task`` undoes.

    Raises:
        ValueError: no task has this name, or the settings are impossible.
    """
    if task not in DEGRADATIONS:
        raise ValueError(f"task '{task}' is unknown: use one of {', '.join(sorted(DEGRADATIONS))}")
    return DEGRADATIONS[task](**settings)


__all__ = ["DEGRADATIONS", "GaussianNoise", "Rain", "build_degradation"]
