"""Builds tasks by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.members import TASKS
from components.registry import build_settings, find
from components.tasks.base import Task


def task_class(name: str) -> type[Task]:
    """Import the class of the task called ``name``.

    Raises:
        ValueError: no task has this name.
    """
    found: type[Task] = find(TASKS, "task", name)
    return found


def build_task(name: str, settings: Mapping[str, Any]) -> Task:
    """Build the task called ``name`` with the settings of its degradation.

    Raises:
        ValueError: no task has this name, or a setting is unknown or impossible.
    """
    task = task_class(name)
    return task(build_settings(task.kind_of(settings), settings))
