"""The ``tasks`` section of params.yaml: the degradation of each task, in training and out of distribution.

The comments in params.yaml describe the keys. Each task owns the settings of its degradation.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Tag, create_model

from components.members import TASKS
from components.tasks import DegradationSettings, Task, task_class
from pipeline.config.value_types import FolderName, Section


class TaskSection(Section):
    """The section of one task.

    Attributes:
        degradation: degradation of the training images and of the ordinary test images.
        out_of_distribution: other degradations to test on, by name.
        rotations: whether training images are rotated if ``train.rotations`` is auto.
    """

    degradation: Any
    out_of_distribution: dict[FolderName, Any]
    rotations: bool


def _section_of(name: str) -> type[TaskSection]:
    """Returns the type of a task's section, with the settings of its degradation."""
    task = task_class(name)
    kinds: Any = task.degradations[0]
    if len(task.degradations) > 1:
        tagged = tuple(Annotated[kind, Tag(kind.__name__)] for kind in task.degradations)
        kinds = Annotated[_union(tagged), Discriminator(_tag_of(task))]
    degradation = Annotated[kinds, AfterValidator(_checked(task))]
    return create_model(
        f"{task.__name__}Section",
        __base__=TaskSection,
        degradation=(degradation, ...),
        out_of_distribution=(dict[FolderName, degradation], ...),
    )


def _union(kinds: tuple[Any, ...]) -> Any:
    union = kinds[0]
    for kind in kinds[1:]:
        union = union | kind
    return union


def _tag_of(task: type[Task]) -> Any:
    def tag(value: Any) -> str:
        if isinstance(value, DegradationSettings):
            return type(value).__name__
        return task.kind_of(value if isinstance(value, dict) else {}).__name__

    return tag


def _checked(task: type[Task]) -> Any:
    def check(settings: DegradationSettings) -> DegradationSettings:
        task(settings).check()
        return settings

    return check


_sections: dict[str, Any] = {name: (_section_of(name), ...) for name in TASKS}
Tasks: Any = create_model("Tasks", __base__=Section, **_sections)
"""The type of the section ``tasks``: one section for each registered task."""
