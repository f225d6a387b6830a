"""What prevents equivariance at a layer or between layers, with the remedy of each.

Legend: t the order of the group; along an axis: kernel k, dilation d, span ``d (k - 1) + 1``, padding p, stride s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .geometry import Window
from .groups import Group
from .layers import LayerFacts
from .layouts import Layout, Windows
from .operations import Spatial
from .tracing import Call

FIELD_LIMITS = ("channels", "channel groups", "heads")
"""Kinds of obstacles that leave a layer the trivial fields."""


@dataclass(frozen=True)
class Obstacle:
    """What prevents equivariance somewhere.

    Attributes:
        kind: in a word or two, as "stride".
        reason: in a sentence.
        remedy: what would help.
        is_fatal: no weights of the layers make the output equivariant as long as it is there.
    """

    kind: str
    reason: str
    remedy: str
    is_fatal: bool = False


def layer_obstacles(
    facts: LayerFacts, calls: Sequence[Call], layout: Layout | None, head_width: int | None, group: Group, breaks: bool
) -> Iterator[Obstacle]:
    """What prevents or limits equivariance of a layer, other than having no maps.

    Args:
        facts: of the layer.
        calls: of the layer, in one forward.
        layout: of its output.
        head_width: channels of a head of the attention that follows it, if any does.
        group: on the grid.
        breaks: whether something in the network forbids that the output is equivariant.
    """
    if facts.window and (reason := facts.window.obstacle(group.needs_squares)):
        remedy = "an odd kernel" if "uneven" in reason else "square kernels, strides, paddings and dilations"
        yield Obstacle("window", reason, remedy, breaks)
    for call in calls:
        if call.window:
            yield from _alignment(call.window, call.input_shape[-2:], call.output_shape[-2:], breaks)
    if isinstance(layout, Windows) and any(2 * shift % layout.size for shift in layout.shift):
        rows, columns = (abs(shift) for shift in layout.shift)
        reason = f"windows of {layout.size} shifted by ({rows}, {columns}) are others on a turned image"
        yield Obstacle("window shift", reason, "an even window, shifted by half of it", breaks)
    if not facts.writes_image:
        yield from _field_limits(facts, head_width, group)


def _field_limits(facts: LayerFacts, head_width: int | None, group: Group) -> Iterator[Obstacle]:
    """Why hidden maps cannot be regular fields, or not as they should; trivial fields they can be nevertheless."""
    t = group.order
    if facts.channels % t:
        after = f" after PixelShuffle({facts.factor})" if facts.factor > 1 else ""
        reason = f"{facts.channels} channels{after} do not divide by {t} into regular fields, only trivial ones fit"
        yield Obstacle("channels", reason, f"{_nearest_multiple(facts.channels, t)} channels")
    of_group = facts.inputs // facts.num_groups
    if facts.num_groups > 1 and of_group > 1 and of_group % t:
        reason = f"groups of {of_group} channels cut through regular fields of {t}"
        yield Obstacle("channel groups", reason, f"groups of a multiple of {t} channels, or of one")
    if head_width and head_width % t:
        reason = f"attention heads of {head_width} channels cut through regular fields of {t}"
        yield Obstacle("heads", reason, f"heads of a multiple of {t} channels")


def spatial_obstacles(operation: Spatial, group: Group, breaks: bool) -> Iterator[Obstacle]:
    """What prevents equivariance of a pool, a resize or a padding."""
    sizes = (operation.input_size, operation.output_size)
    if operation.window:
        if reason := operation.window.obstacle(group.needs_squares):
            yield Obstacle("pool", reason, "a square window", breaks)
        for obstacle in _alignment(operation.window, *sizes, breaks):
            yield Obstacle("pool", obstacle.reason, obstacle.remedy, breaks)
    elif operation.kind == "resize" and operation.details == "nearest":
        if any(out % size for size, out in zip(*sizes, strict=True)):
            reason = f"nearest neighbours from {by(sizes[0])} to {by(sizes[1])} are picked from one side"
            yield Obstacle("resize", reason, "a whole factor, or bilinear", breaks)
    elif operation.kind == "padding":
        widths = operation.details
        if any(widths[axis] != widths[axis + 1] for axis in range(0, len(widths) - 1, 2)):
            reason = f"padding {widths} is on one side only"
            yield Obstacle("padding", reason, "equal padding on both sides, or sizes that need none", breaks)


def _alignment(
    window: Window, input_size: Sequence[int], output_size: Sequence[int], breaks: bool
) -> Iterator[Obstacle]:
    reason = window.alignment_obstacle(input_size, output_size)
    if reason and not (window.obstacle(needs_squares=True) and window.kernel_size[0] != window.kernel_size[1]):
        remedy = " or ".join(other_windows(window, input_size, output_size)) or "another stride"
        yield Obstacle("stride", reason, f"{remedy}, or another image size", breaks)
    elif reason:
        yield Obstacle("stride", reason, "another image size", breaks)


def other_windows(window: Window, input_size: Sequence[int], output_size: Sequence[int]) -> list[str]:
    """The nearest two kernels with paddings that are symmetric, skip no pixel and give the same output size."""
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
    """Of a symmetric grid; None where it is not."""
    if is_transposed:
        return (size - 1) * stride + span - 2 * padding
    steps, left_over = divmod(size + 2 * padding - span, stride)
    return None if left_over else steps + 1


def _nearest_multiple(number: int, t: int) -> str:
    below, above = number - number % t, number + -number % t
    return f"{below} or {above}" if below else f"{above}"


def by(size: Sequence[int]) -> str:
    """A size in words: 64x48."""
    return "x".join(str(side) for side in size)
