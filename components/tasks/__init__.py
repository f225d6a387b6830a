"""The tasks: one module for each, registered under the name that params.yaml uses.

A task defines the degradation of clean images, the inputs and outputs of the network, the metrics that its literature
reports, and the metric that decides. It does not depend on networks, training or files.

To add a task, write its module, one line in ``TASKS`` (``components/members.py``) and a section ``tasks.NAME`` of
params.yaml.
"""

from __future__ import annotations

from components.members import TASKS
from components.tasks.base import Auxiliary, DegradationSettings, Metric, Task, inputs_of
from components.tasks.build import build_task, task_class

__all__ = ["TASKS", "Auxiliary", "DegradationSettings", "Metric", "Task", "build_task", "inputs_of", "task_class"]
