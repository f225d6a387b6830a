"""JPEG artifact reduction: images are encoded and decoded with a JPEG codec, at a quality or a range of qualities."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from components.data.sampler import Degradation
from components.degradations.jpeg import JPEG
from components.evaluation.metrics import jpeg_quality
from components.tasks.base import PSNR, SSIM, Auxiliary, DegradationSettings, Metric, Task, WholeRange, as_range


@dataclass(frozen=True, kw_only=True)
class Compression(DegradationSettings):
    """Settings of the compression."""

    quality: WholeRange
    """Quality of Pillow's encoder, 1 to 100."""


class JpegArtifacts(Task):
    """JPEG artifact reduction.

    In training the grid of 8 x 8 blocks has a random offset, as in a crop of a coded image.
    """

    name = "jpeg"
    has_conventions = True
    degradations = (Compression,)
    baseline = "components.evaluation.baselines:of_blocks"
    metrics = (PSNR, SSIM, Metric("psnr_b", "PSNR-B of Y, dB"))

    @property
    def grid(self) -> int:
        """8 pixels, the size of the blocks.

        PSNR-B is computed at the borders of the blocks. With this grid they have the same positions in a rotated image.
        """
        return 8

    def degradation(self, auxiliary: Auxiliary | None = None, *, is_training: bool = False) -> Degradation:
        """Return the compression; in training the block grid has a random offset."""
        return JPEG(as_range(self.settings.quality), random_grid=is_training)

    def compute_metrics(self, outputs: Tensor, inputs: Tensor, references: Tensor) -> dict[str, Tensor]:
        """Compute PSNR, SSIM and PSNR-B of the luma, ``(B,)`` each.

        Args:
            outputs: ``(B, C, H, W)``.
            inputs: not used.
            references: ``(B, C, H, W)``.
        """
        return jpeg_quality(outputs, references)
