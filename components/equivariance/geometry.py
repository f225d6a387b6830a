"""When a convolution commutes with quarter turns: the geometry of its window, whatever its weights.

Legend: H rows, W columns; along an axis: size N, kernel k, dilation d, span ``d (k - 1) + 1``, padding p,
stride s.
"""

from collections.abc import Sequence

from torch import nn

Convolution = nn.Conv2d | nn.ConvTranspose2d


def window_obstacle(module: Convolution) -> str | None:
    """Why no weights can make the layer commute with quarter turns at any image size, or None.

    A window must be square, as must its steps; ``padding="same"`` must be even, or one side gets more of it.
    """
    for option in ("kernel_size", "stride", "padding", "dilation"):
        value = getattr(module, option)
        if not isinstance(value, str) and value[0] != value[1]:
            return f"{option} {tuple(value)} is not square: a quarter turn would need another"
    if module.padding == "same" and (_span(module, axis=0) - 1) % 2:
        return f'padding "same" of kernel_size {module.kernel_size} is uneven: one side gets more of it'
    return None


def alignment_obstacle(module: Convolution, input_size: Sequence[int], output_size: Sequence[int]) -> str | None:
    """Why the layer's grid of windows is not symmetric at this image size, or None.

    Convolution: windows start at ``-p, s - p, ...``; they reach both borders alike only if
    ``(N + 2p - span) mod s = 0``. Transposed convolution: of the full output, ``(N - 1) s + span`` wide, p is
    cut at the start and ``p - o`` at the end, so the output padding ``o = N_out - ((N - 1) s + span - 2p)``
    must be 0.

    Args:
        input_size: ``(H, W)`` of the layer's input.
        output_size: ``(H, W)`` of its output.
    """
    for axis in (0, 1):
        # "valid" is none; "same" exists only for stride 1, where no part of the image is left over
        padding = 0 if isinstance(module.padding, str) else module.padding[axis]
        size, stride = input_size[axis], module.stride[axis]
        if isinstance(module, nn.ConvTranspose2d):
            extra = output_size[axis] - ((size - 1) * stride + _span(module, axis) - 2 * padding)
            if extra:
                return f"output padding {extra} at input size {tuple(input_size)} is on one side only, must be 0"
        elif left_over := (size + 2 * padding - _span(module, axis)) % stride:
            return (
                f"(size + 2 padding - kernel) mod stride = {left_over} at input size "
                f"{tuple(input_size)}, not 0: its grid is not symmetric"
            )
    return None


def _span(module: Convolution, axis: int) -> int:
    return module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
