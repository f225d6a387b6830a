"""How far an exported file is from its model: the largest difference, the equivariance error, the least side."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from components.equivariance import equivariance_error
from pipeline.commands.doctor import smooth_images
from pipeline.commands.exporting.form import Run
from pipeline.commands.exporting.source import Source

SIZES = ((1, 64, 64), (2, 37, 29), (1, 33, 48), (3, 17, 40), (2, 96, 65))
"""Batch, height, width of the images on which model and file are compared; larger for a network that declares a least
side above 16."""

GROUP = "C4"

MOST_ERRORS = 10
"""Largest difference of the equivariance errors / bound of the difference of outputs."""

_LONG = 33  # long side of the narrow images
_MOST_TRIED = 16


@dataclass(frozen=True)
class Comparison:
    """A file beside its model.

    Attributes:
        largest_difference: of any value of any output, absolute.
        largest_output: largest absolute value of the model's outputs.
        sizes: batch, height, width of the images that were compared.
        least_side: least height and width from which on the file agrees with the model, in pixels.
        group: of the equivariance errors.
        model_equivariance_error: relative residual of the model's output.
        equivariance_error: relative residual of the file's output.
    """

    largest_difference: float
    largest_output: float
    sizes: tuple[tuple[int, int, int], ...]
    least_side: int
    group: str
    model_equivariance_error: float
    equivariance_error: float

    def fault(self, bound: float) -> str:
        """Why the file is not the model, in one line; empty if it is.

        Args:
            bound: largest difference for outputs of at most 1; in proportion for larger outputs. The equivariance
                errors may differ by `MOST_ERRORS` times as much.
        """
        if self.largest_difference > bound * max(1.0, self.largest_output):
            return (
                f"differs from the model by {self.largest_difference:.1e}, and its outputs reach "
                f"{self.largest_output:.2g}: more than {bound:g} of that (of 1 at least)"
            )
        if not abs(self.equivariance_error - self.model_equivariance_error) <= MOST_ERRORS * bound:  # NaN, too
            return (
                f"has an equivariance error of {self.equivariance_error:.6f}, and the model has "
                f"{self.model_equivariance_error:.6f}"
            )
        return ""

    def as_dict(self) -> dict[str, object]:
        """The fields, as JSON's types."""
        return asdict(self)


class _Callable(nn.Module):
    """A function as a module without parameters, which ``equivariance_error`` takes."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def forward(self, images: Tensor) -> Tensor:
        return self.run(images)


@torch.no_grad()
def compare(source: Source, run: Run, bound: float) -> Comparison:
    """Compares a file with its model at five sizes and turned, and finds the least side.

    Args:
        source: the model.
        run: the file, loaded.
        bound: largest difference for outputs of at most 1, which decides about the least side.

    Raises:
        Exception: what the file raises at one of the sizes.
    """
    channels, more = source.contract.inputs, max(0, source.smallest_side - 16)
    sizes = tuple((batch, height + more, width + more) for batch, height, width in SIZES)
    generator = torch.Generator().manual_seed(1)
    largest_difference = largest_output = 0.0
    for batch, height, width in sizes:
        images = torch.rand(batch, channels, height, width, generator=generator)
        difference, output = _difference(source, run, images)
        largest_difference, largest_output = max(largest_difference, difference), max(largest_output, output)
    images = smooth_images(channels, 64 + 4 * more)
    errors = [
        equivariance_error(network, images, group=GROUP)["output"] for network in (source.network, _Callable(run))
    ]
    least = _least_side(source, run, bound, _MOST_TRIED + 1 + more)
    return Comparison(largest_difference, largest_output, sizes, least, GROUP, errors[0], errors[1])


def _difference(source: Source, run: Run, images: Tensor) -> tuple[float, float]:
    """The largest difference and the largest output of the model; infinite if the shapes differ."""
    wanted, found = source.network(images), run(images)
    if wanted.shape != found.shape:
        return float("inf"), wanted.abs().max().item()
    difference = (found - wanted).abs().max().item()
    return (float("inf") if difference != difference else difference), wanted.abs().max().item()  # NaN


def _least_side(source: Source, run: Run, bound: float, top: int) -> int:
    """The least side of square and of narrow images from which on up to ``top`` the file agrees with the model."""
    least = top
    for side in range(top, 0, -1):
        long = top + _LONG
        for height, width in ((side, side), (side, long), (long, side)):
            generator = torch.Generator().manual_seed(side)
            images = torch.rand(1, source.contract.inputs, height, width, generator=generator)
            try:
                difference, output = _difference(source, run, images)
            except Exception:  # each runtime has its own
                return least
            if difference > bound * max(1.0, output):
                return least
        least = side
    return least


__all__ = ["SIZES", "Comparison", "compare"]
