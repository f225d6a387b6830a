"""The tasks, one file each, by the name that params.yaml calls them.

A task says how clean images are degraded, what the network is given and gives, by what figures its literature compares
results, and which of them decides. It knows nothing of networks, training or files.
"""

from __future__ import annotations

from components.tasks.base import Auxiliary, Metric, Settings, Task
from components.tasks.classify import Classify
from components.tasks.ct_mar import MetalArtifactReduction
from components.tasks.deblur import Deblur
from components.tasks.denoise import Denoise
from components.tasks.derain import Derain
from components.tasks.inpaint import Inpaint
from components.tasks.jpeg import JpegArtifacts
from components.tasks.super_resolution import SuperResolution

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Denoise,
        Derain,
        Deblur,
        SuperResolution,
        Inpaint,
        JpegArtifacts,
        MetalArtifactReduction,
        Classify,
    )
}


def build_task(name: str, settings: Settings) -> Task:
    """The task of a name, with the settings of its degradation.

    Raises:
        ValueError: no task has this name.
    """
    if name not in TASKS:
        raise ValueError(f"task '{name}' is unknown: use one of {', '.join(TASKS)}")
    return TASKS[name](settings)


__all__ = ["TASKS", "Auxiliary", "Metric", "Settings", "Task", "build_task"]
