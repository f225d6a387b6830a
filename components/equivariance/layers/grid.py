"""When a convolution commutes with quarter turns, whatever its weights: the geometry of its window.

Legend: H rows, W columns. Along an axis: size N, kernel k, dilation d, span ``d (k - 1) + 1``, padding p, stride s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

Convolution = nn.Conv2d | nn.ConvTranspose2d
Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """The window of a convolution.

    Attributes:
        kernel_size: (rows, columns).
        stride: (rows, columns).
        padding: (rows, columns), "same" or "valid".
        dilation: (rows, columns).
        is_transposed: whether the convolution is transposed.
    """

    kernel_size: Pair
    stride: Pair
    padding: Pair | str
    dilation: Pair
    is_transposed: bool = False

    @classmethod
    def of(cls, module: Convolution) -> Window:
        """The window of a module."""
        is_transposed = isinstance(module, nn.ConvTranspose2d)
        return cls.of_call(module.kernel_size, module.stride, module.padding, module.dilation, is_transposed)

    @classmethod
    def of_call(
        cls, kernel_size: Sequence[int], stride: Any, padding: Any, dilation: Any, is_transposed: bool
    ) -> Window:
        """The window of a call of ``conv2d`` or ``conv_transpose2d`` with these arguments.

        Args:
            kernel_size: (rows, columns).
            stride: as torch takes it, for one or both axes.
            padding: likewise, or "same" or "valid".
            dilation: likewise.
            is_transposed: whether the call is one of ``conv_transpose2d``.
        """
        steps = padding if isinstance(padding, str) else _pair(padding)
        return cls(_pair(kernel_size), _pair(stride), steps, _pair(dilation), is_transposed)

    def incompatibility(self, needs_squares: bool = True) -> str | None:
        """Why no weights can make the layer commute with quarter turns at any image size, or None.

        The kernel, stride, padding and dilation must be square. The total of ``padding="same"`` must be even, otherwise
        one side gets more padding than the other. A group of half turns only does not need squares.
        """
        for option in ("kernel_size", "stride", "padding", "dilation"):
            value = getattr(self, option)
            if needs_squares and not isinstance(value, str) and value[0] != value[1]:
                return f"{option} {tuple(value)} is not square: a quarter turn would need another"
        if self.padding == "same" and any((self.span(axis) - 1) % 2 for axis in (0, 1)):
            return f'padding "same" of kernel_size {self.kernel_size} is uneven: one side gets more of it'
        return None

    def alignment_incompatibility(self, input_size: Sequence[int], output_size: Sequence[int]) -> str | None:
        """Why the grid of windows is not symmetric at this image size, or None.

        Convolution: the windows start at ``-p, s - p, ...``. They reach both borders equally only if
        ``(N + 2p - span) mod s = 0``. Transposed convolution: the full output is ``(N - 1) s + span`` wide; p is cut
        off at the start and ``p - o`` at the end. So the output padding ``o = N_out - ((N - 1) s + span - 2p)`` must be
        0. A negative one is a crop by the module itself at the end.

        Args:
            input_size: ``(H, W)`` of the layer's input.
            output_size: ``(H, W)`` of its output.
        """
        for axis in (0, 1):
            # "valid" means no padding. "same" exists only for stride 1, where no part of the image is left over.
            padding = 0 if isinstance(self.padding, str) else self.padding[axis]
            size, stride = input_size[axis], self.stride[axis]
            if self.is_transposed:
                extra = output_size[axis] - ((size - 1) * stride + self.span(axis) - 2 * padding)
                if extra:
                    what = f"output padding {extra}" if extra > 0 else f"a crop by {-extra}"
                    return f"{what} at input size {tuple(input_size)} is on one side only, must be 0"
            elif left_over := (size + 2 * padding - self.span(axis)) % stride:
                return (
                    f"(size + 2 padding - kernel) mod stride = {left_over} at input size "
                    f"{tuple(input_size)}, not 0: its grid is not symmetric"
                )
        return None

    def span(self, axis: int) -> int:
        """The extent of the window along an axis: ``d (k - 1) + 1``."""
        return self.dilation[axis] * (self.kernel_size[axis] - 1) + 1


def _pair(value: Any) -> Pair:
    """An argument of a convolution as values for both axes; it may be 1, (1,) or (1, 2)."""
    several = (value, value) if isinstance(value, int) else tuple(int(v) for v in value)
    return (several[0], several[-1])
