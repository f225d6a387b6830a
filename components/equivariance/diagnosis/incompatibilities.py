"""What prevents equivariance at a layer or between layers, with a hint for each case.

Legend: t is the order of the group. Along an axis: kernel k, dilation d, span ``d (k - 1) + 1``, padding p, stride s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..groups import Group
from ..layers.grid import Window
from ..layers.layouts import Layout, Windows
from ..layers.spec import LayerSpec, channels_incompatibility, through_fields
from ..layers.tracing import Call
from .operations import Attention, Spatial

FIELD_LIMITS = ("channels", "channel groups", "heads", "cut", "split")
"""The kinds of incompatibilities that still allow trivial fields at a layer."""


@dataclass(frozen=True)
class Incompatibility:
    """What prevents equivariance at some place of a network.

    Attributes:
        kind: one or two words, for example "stride".
        reason: what is wrong.
        hint: what would help.
        is_fatal: whether no weights of the layers can make the output equivariant while it is there.
    """

    kind: str
    reason: str
    hint: str
    is_fatal: bool = False


def layer_incompatibilities(
    spec: LayerSpec,
    calls: Sequence[Call],
    layout: Layout | None,
    attention: Attention | None,
    group: Group,
    breaks: bool,
) -> Iterator[Incompatibility]:
    """What prevents or limits equivariance of a layer, other than an output without maps.

    Args:
        spec: of the layer.
        calls: of the layer, in one forward.
        layout: of its output.
        attention: the attention that follows, or None.
        group: a group on the grid.
        breaks: whether something in the network prevents an equivariant output.
    """
    if spec.window and (reason := spec.window.incompatibility(group.needs_squares)):
        hint = "an odd kernel" if "uneven" in reason else "square kernels, strides, paddings and dilations"
        yield Incompatibility("window", reason, hint, breaks)
    for call in calls:
        if call.window:
            yield from _alignment(call.window, call.input_shape[-2:], call.output_shape[-2:], breaks)
        rows, columns = call.patches
        if rows != columns and group.needs_squares:
            reason = f"{rows}x{columns} patches of each image are others on a turned image"
            yield Incompatibility("patches", reason, "as many rows of patches as columns, or whole images", breaks)
    of_layout = Attention(0, layout.size, layout.shift) if isinstance(layout, Windows) else None
    for windows in (of_layout, attention):
        if windows and windows.is_lopsided:
            rows, columns = (abs(shift) for shift in windows.shift)
            reason = f"windows of {windows.window} shifted by ({rows}, {columns}) are others on a turned image"
            yield Incompatibility("window shift", reason, "an even window, shifted by half of it", breaks)
    if not spec.writes_image:
        yield from _field_limits(spec, attention.head_width if attention else None, group)


def _field_limits(spec: LayerSpec, head_width: int | None, group: Group) -> Iterator[Incompatibility]:
    """Why hidden maps cannot be regular fields, or not as they should be; they can still be trivial fields."""
    t = group.order
    if spec.channels % t:
        after = f" after PixelShuffle({spec.factor})" if spec.factor > 1 else ""
        reason = f"{spec.channels} channels{after} do not divide by {t} into regular fields, only trivial ones fit"
        yield Incompatibility("channels", reason, f"{_nearest_multiple(spec.channels, t)} channels")
    elif split := channels_incompatibility(spec, group):
        yield Incompatibility("split", f"{split}, only trivial ones fit", f"parts of a multiple of {t} channels")
    elif cuts := through_fields(spec.cuts, group):
        after = ", ".join(str(cut) for cut in cuts)
        reason = f"its channels are sliced, or joined with others, after {after}, through regular fields of {t}"
        yield Incompatibility("cut", reason, f"parts of a multiple of {t} channels; trivial fields fit as it is")
    of_group = spec.inputs // spec.num_groups
    if spec.num_groups > 1 and of_group > 1 and of_group % t:
        reason = f"groups of {of_group} channels cut through regular fields of {t}"
        yield Incompatibility("channel groups", reason, f"groups of a multiple of {t} channels, or of one")
    if head_width and head_width % t:
        reason = f"attention heads of {head_width} channels cut through regular fields of {t}"
        yield Incompatibility("heads", reason, f"heads of a multiple of {t} channels")


def spatial_incompatibilities(operation: Spatial, group: Group, breaks: bool) -> Iterator[Incompatibility]:
    """What prevents equivariance of a pool, a resize, a padding or a crop.

    Args:
        operation: the pool, resize, padding or crop.
        group: a group on the grid.
        breaks: whether something in the network prevents an equivariant output.
    """
    sizes = (operation.input_size, operation.output_size)
    if operation.kind == "pool" and operation.window:
        if reason := operation.window.incompatibility(group.needs_squares):
            yield Incompatibility("pool", reason, "a square window", breaks)
        for incompatibility in _alignment(operation.window, *sizes, breaks):
            yield Incompatibility("pool", incompatibility.reason, incompatibility.hint, breaks)
    elif operation.kind == "resize" and operation.details == "nearest":
        if any(out % size for size, out in zip(*sizes, strict=True)):
            reason = f"nearest neighbours from {by(sizes[0])} to {by(sizes[1])} are picked from one side"
            yield Incompatibility("resize", reason, "a whole factor, or bilinear", breaks)
    elif operation.details in ("rows", "columns"):
        axis = ("rows", "columns").index(operation.details)
        before, after = (f"{size[axis]} {operation.details}" for size in sizes)
        yield Incompatibility("resize", f"{before} are resized to {after}, more on one side", "a whole factor", breaks)
    elif operation.kind in ("padding", "crop"):
        kind, widths, of = operation.kind, operation.details, ""
        if any(widths[axis] != widths[axis + 1] for axis in range(0, len(widths) - 1, 2)):
            hint = f"equal {kind} on both sides, or sizes that need none"
            if operation.window:
                hint = " or ".join(other_windows(operation.window, *sizes)) or hint
                of = f" of a transposed convolution {by(operation.window.kernel_size)}"
                of += f" with stride {operation.window.stride[0]}"
            yield Incompatibility(kind, f"{kind} {widths}{of} is on one side only", hint, breaks)


def _alignment(
    window: Window, input_size: Sequence[int], output_size: Sequence[int], breaks: bool
) -> Iterator[Incompatibility]:
    reason = window.alignment_incompatibility(input_size, output_size)
    if reason and not (window.incompatibility(needs_squares=True) and window.kernel_size[0] != window.kernel_size[1]):
        hint = " or ".join(other_windows(window, input_size, output_size)) or "another stride"
        yield Incompatibility("stride", reason, f"{hint}, or another image size", breaks)
    elif reason:
        yield Incompatibility("stride", reason, "another image size", breaks)


def other_windows(window: Window, input_size: Sequence[int], output_size: Sequence[int]) -> list[str]:
    """The nearest two kernels with paddings that are symmetric, skip no pixel and give the same output size.

    Args:
        window: the window to replace.
        input_size: ``(H, W)``.
        output_size: ``(H, W)``.
    """
    kernel, stride = window.kernel_size[0], window.stride[0]
    fitting = []
    for k in range(min(kernel, stride), kernel + 2 * stride + 1):
        span = window.dilation[0] * (k - 1) + 1
        for p in range(span // 2 + 1):
            if all(
                _output_size(size, span, p, stride, window.is_transposed) == out
                for size, out in zip(input_size, output_size, strict=True)
            ):
                fitting.append((abs(k - kernel), k, p))
    nearest = sorted(sorted(fitting)[:2], key=lambda each: each[1])
    extra = ", output padding 0" if window.is_transposed else ""
    return [f"kernel {k} with padding {p}{extra}" for _, k, p in nearest]


def _output_size(size: int, span: int, padding: int, stride: int, is_transposed: bool) -> int | None:
    """The output size of a symmetric grid; None if the grid is not symmetric."""
    if is_transposed:
        return (size - 1) * stride + span - 2 * padding
    steps, left_over = divmod(size + 2 * padding - span, stride)
    return None if left_over else steps + 1


def _nearest_multiple(number: int, t: int) -> str:
    below, above = number - number % t, number + -number % t
    return f"{below} or {above}" if below else f"{above}"


def by(size: Sequence[int]) -> str:
    """A size in words, for example 64x48."""
    return "x".join(str(side) for side in size)
