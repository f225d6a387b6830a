"""JPEG artifacts: images really coded and decoded, at a quality or a range of it."""

from __future__ import annotations

from torch import Tensor

from components.data.sampler import Degradation
from components.degradations.jpeg import JPEG
from components.evaluation.metrics import jpeg_quality
from components.tasks.base import PSNR, SSIM, Auxiliary, Metric, Task


class JpegArtifacts(Task):
    """Settings: ``quality``. In training the grid of 8 x 8 blocks lies anywhere, as in a crop of a coded image."""

    name = "jpeg"
    metrics = (PSNR, SSIM, Metric("psnr_b", "PSNR-B of Y, dB"))

    @property
    def grid(self) -> int:
        """The blocks, whose borders PSNR-B looks at: they then lie alike in a turned image."""
        return 8

    def degradation(self, auxiliary: Auxiliary | None = None, *, is_training: bool = False) -> Degradation:
        return JPEG(self.settings["quality"], random_grid=is_training)

    def quality(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> dict[str, Tensor]:
        return jpeg_quality(outputs, references)
