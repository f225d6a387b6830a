"""The ``tasks`` section of params.yaml: what each task's degradation is made of, here and out of distribution."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar

from pydantic import Discriminator, Tag, model_validator

from components.tasks import TASKS
from pipeline.param_types import FolderName, Positive, Range, Section, WholeRange

AUXILIARY = "auxiliary"


class Degradation(Section):
    """Settings of one degradation, which the task itself checks."""

    task_name: ClassVar[str]

    @property
    def needs_auxiliary(self) -> bool:
        """Whether it is made of what ``fetch.auxiliary`` names."""
        return AUXILIARY in self.model_dump().values()

    @model_validator(mode="after")
    def _check(self) -> Self:
        TASKS[self.task_name](self.model_dump(exclude_none=True)).check()
        return self


class Denoise(Degradation):
    task_name = "denoise"
    sigma: Range
    gain: Range | None = None  # absent: no Poisson part


class DrawnRain(Degradation):
    task_name = "derain"
    angle: Range
    length: Range
    width: Range
    density: Range
    brightness: Range


class GivenRain(Degradation):
    task_name = "derain"
    streaks: Literal["auxiliary"]


def _kind_of_rain(values: object) -> str:
    names = values if isinstance(values, dict) else type(values).model_fields if isinstance(values, Section) else {}
    return "given" if "streaks" in names else "drawn"


Rain = Annotated[Annotated[DrawnRain, Tag("drawn")] | Annotated[GivenRain, Tag("given")], Discriminator(_kind_of_rain)]


class Deblur(Degradation):
    task_name = "deblur"
    kernels: Literal["motion", "gaussian", "auxiliary"]
    size: Range
    sigma: Range
    boundary: Literal["valid", "circular"]


class SuperResolution(Degradation):
    task_name = "super_resolution"
    scale: Literal[2, 3, 4]
    sigma: Range


class Inpaint(Degradation):
    task_name = "inpaint"
    holes: Literal["boxes", "strokes", "text", "auxiliary"]
    share: Range


class Jpeg(Degradation):
    task_name = "jpeg"
    quality: WholeRange


class MetalArtifacts(Degradation):
    task_name = "ct_mar"
    size: Positive
    photons: float
    area: Range
    materials: dict[str, float]


class Classify(Degradation):
    task_name = "classify"
    sigma: Range


D = TypeVar("D", bound=Any)


class TaskSection(Section, Generic[D]):
    """Attributes: the degradation that is trained on, others to test on by name, and whether turning training images is
    right for the task (``train.rotations: auto``).
    """

    degradation: D
    out_of_distribution: dict[FolderName, D]
    rotations: bool


class Tasks(Section):
    denoise: TaskSection[Denoise]
    derain: TaskSection[Rain]
    deblur: TaskSection[Deblur]
    super_resolution: TaskSection[SuperResolution]
    inpaint: TaskSection[Inpaint]
    jpeg: TaskSection[Jpeg]
    ct_mar: TaskSection[MetalArtifacts]
    classify: TaskSection[Classify]
