"""What a network does between its layers: pools, resizes, padding, position tables, parameters of single channels.

As in `tracing`, functions are recorded, not modules, so this works for exported programs, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from ..groups import Group
from ..layers.grid import Window
from ..layers.tracing import Trace, Unshuffled
from ..penalties import EPSILON

LAYERS = ("conv2d", "conv_transpose2d", "linear")
SUMS = ("add", "iadd", "radd")
_PRODUCTS = ("matmul", "bmm", "scaled_dot_product_attention")
_POOLS = {
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "avg_pool2d": ("input", "kernel_size", "stride", "padding", "ceil_mode"),
}


def plain_name(function: Any) -> str:
    """The name: ``add`` for torch.add, ``Tensor.__add__``, ``Tensor.add_``, ``add.Tensor`` of an exported program."""
    return str(getattr(function, "__name__", "")).split(".")[0].strip("_")


@dataclass(frozen=True)
class Spatial:
    """A pool, a resize, a padding or a crop.

    Attributes:
        kind: "pool", "resize", "padding" or "crop".
        after: the last layer that was called before it; empty if there was none.
        input_size: ``(H, W)``.
        output_size: ``(H, W)``.
        window: of a pool.
        details: the function of a pool, the mode of a resize, or the widths of a padding as ``F.pad`` takes them. Where
            indices pick them, "rows" or "columns".
    """

    kind: str
    after: str
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    window: Window | None = None
    details: Any = None


@dataclass(frozen=True)
class Table:
    """A tensor computed only from parameters that was added to features.

    Attributes:
        name: of the parameter.
        value: the added tensor.
        added_to: the shape of the features.
        after: the last layer that was called before.
    """

    name: str
    value: Tensor
    added_to: tuple[int, ...]
    after: str


class ChannelParameter(NamedTuple):
    """A parameter or buffer with one value per channel, as first used.

    Attributes:
        value: the parameter, or a view of it.
        after: the last layer that was called before.
        unshuffled: the channels of the features that come from PixelUnshuffle.
    """

    value: Tensor
    after: str
    unshuffled: tuple[Unshuffled, ...] = ()

    @property
    def factor(self) -> int:
        """r, if the channels are the r^2 sub-pixels of finer maps, all of them; else 1."""
        whole = [each.factor for each in self.unshuffled if each.number == self.value.numel()]
        return whole[0] if whole else 1


@dataclass
class Operations:
    """The operations that were recorded in one forward.

    Attributes:
        spatial: pools, resizes and paddings, in order.
        tables: parameter name -> the table in the first sum that adds it.
        table_sums: the sums that add a table: number of the sum among all sums -> number of the table's argument.
        channel_parameters: name -> parameter or buffer with one value per channel that is combined with features of so
            many channels.
        head_widths: layer -> the number of channels of one head in the attention that follows.
    """

    spatial: list[Spatial] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)
    table_sums: dict[int, int] = field(default_factory=dict)
    channel_parameters: dict[str, ChannelParameter] = field(default_factory=dict)
    head_widths: dict[str, int] = field(default_factory=dict)


class OperationRecorder(TorchFunctionMode):
    """Records operations in `seen` while a network runs inside `tracing`, which supplies the trace.

    Attributes:
        seen: the recorded operations.
    """

    def __init__(self, network: nn.Module, trace: Trace) -> None:
        super().__init__()
        self.seen = Operations()
        self._trace = trace
        self._sums = 0
        self._attends_after = -1  # how many layers had been called before the last matrix product
        self._names = WeakTensorKeyDictionary()  # of parameters, buffers and what is computed only from them
        for name, tensor in (*network.named_buffers(), *network.named_parameters()):
            self._names[tensor] = name

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tables = dict(self._trace.position_tables)
        self._trace.position_tables.clear()
        result = func(*args, **kwargs)
        found = dict(self._trace.position_tables)
        self._trace.position_tables.update(tables | found)
        name = plain_name(func)
        if isinstance(result, Tensor) and name not in LAYERS:
            self._note(name, args, kwargs, result)
        if name in SUMS:
            self._note_sum(args, found)
            self._sums += 1
        return result

    @property
    def _after(self) -> str:
        return self._trace.calls[-1].name if self._trace.calls else ""

    def _note(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        if name in _POOLS:
            self._note_pool(name, args, kwargs, result)
        elif name == "interpolate" or name.startswith("upsample_"):
            mode = kwargs.get("mode", args[3] if len(args) > 3 else "nearest") if name == "interpolate" else name[9:-2]
            self._add("resize", args[0], result, details=mode)
        elif name == "pad":
            self._add("padding", args[0], result, details=tuple(args[1] if len(args) > 1 else kwargs["pad"]))
        elif name == "index_select":
            self._note_selection(dict(zip(("input", "dim", "index"), args, strict=False)) | kwargs, result)
        elif name in _PRODUCTS:
            self._attends_after = len(self._trace.calls)
            self._note_heads(args[0] if args else kwargs["query"])
        self._note_parameters((*args, *kwargs.values()), result)

    def _add(self, kind: str, maps: Any, result: Tensor, **more: Any) -> None:
        if isinstance(maps, Tensor) and maps.ndim >= 2:
            sizes = (tuple(maps.shape[-2:]), tuple(result.shape[-2:]))
            self.seen.spatial.append(Spatial(kind, self._after, *sizes, **more))

    def _note_pool(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        given = dict(zip(_POOLS[name], args, strict=False)) | kwargs
        kernel = given["kernel_size"]
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        stride = given.get("stride")
        stride = kernel if stride is None or stride == [] else stride
        window = Window.of_call(kernel, stride, given.get("padding", 0), given.get("dilation", 1), False)
        self._add("pool", given["input"], result, window=window, details=name)

    def _note_selection(self, given: dict[str, Any], result: Tensor) -> None:
        """Record a choice of rows or columns by their indices, unless it is the same from both sides."""
        maps, index = given["input"], given["index"]
        axis = given["dim"] % maps.ndim - maps.ndim
        if maps.ndim != 4 or axis < -2 or not index.numel():
            return
        size = maps.shape[axis]
        if bool((index + index.flip(0) == size - 1).all()):
            return
        whole = torch.arange(size, device=index.device)
        kind = "resize"
        if len(index) >= size and bool((index.unfold(0, size, 1) == whole).all(dim=1).any()):
            kind = "padding"
        elif bool((index.diff() == 1).all()):
            kind = "crop"
        self._add(kind, maps, result, details=("rows", "columns")[axis + 2])

    def _note_heads(self, queries: Any) -> None:
        """Record the width of attention heads, from queries ``(B, heads, N, width)`` or ``(B, heads, width, N)``."""
        if not (self._trace.calls and isinstance(queries, Tensor) and queries.ndim == 4):
            return
        call = self._trace.calls[-1]
        channels = call.output_shape[1] if call.kind == "convolution" else call.output_shape[-1]
        heads = queries.shape[1]
        for width in (queries.shape[3], queries.shape[2]):
            if channels in (heads * width, 2 * heads * width, 3 * heads * width):  # one layer gives q, kv or qkv
                self.seen.head_widths.setdefault(call.name, width)

    def _note_parameters(self, values: tuple[Any, ...], result: Tensor) -> None:
        tensors = [value for value in values if isinstance(value, Tensor)]
        named = [tensor for tensor in tensors if tensor in self._names]
        if tensors and len(named) == len(tensors):
            self._names[result] = self._names[named[0]]
            return
        is_attention = self._attends_after == len(self._trace.calls)  # then the axes are heads and positions
        if is_attention:
            return
        for tensor in named:
            wide = [size for size in tensor.shape if size > 1]
            channels = (result.shape[1] if result.ndim == 4 else None, result.shape[-1] if result.ndim else None)
            if len(wide) == 1 and wide[0] in channels and tensor.is_floating_point() and self._trace.calls:
                found = ChannelParameter(tensor, self._after, self._trace.unshuffled(result))
                self.seen.channel_parameters.setdefault(self._names[tensor], found)

    def _note_sum(self, args: tuple[Any, ...], found: dict[str, tuple[int, ...]]) -> None:
        for parameter, shape in found.items():
            for number, value in enumerate(args):
                if isinstance(value, Tensor) and value in self._names and tuple(value.shape) == shape:
                    others = [other for other in args if isinstance(other, Tensor) and other is not value]
                    added_to = tuple(others[0].shape) if others else shape
                    table = Table(parameter, value.detach(), added_to, self._after)
                    self.seen.tables.setdefault(parameter, table)
                    self.seen.table_sums[self._sums] = number
                    break


def table_asymmetry(value: Tensor, group: Group) -> float | None:
    """How much an element changes a table, relative to the table's size; 0 is symmetric.

    The table is read as maps ``(1, C, H, W)`` or ``(1, H, W, C)``, as tokens ``(1, N, C)`` of a square map, and as
    relative positions ``(heads, N, N)`` in square windows of N tokens in row order. The most symmetric of the readings
    that fit its shape counts.

    Returns:
        None if no reading fits the shape.
    """
    changes = []
    for turned in _readings(value, group):
        squares = [(turned(element) - value).square().mean() for element in range(1, group.order)]
        changes.append((torch.stack(squares).mean() / (value.square().mean() + EPSILON)).sqrt().item())
    return min(changes, default=None)


def _readings(value: Tensor, group: Group) -> list[Callable[[int], Tensor]]:
    """For each way to read the table's shape, a function from an element to the transformed table."""
    readings: list[Callable[[int], Tensor]] = []
    is_free = not group.needs_squares
    if value.ndim in (3, 4) and (is_free or value.shape[-1] == value.shape[-2]):  # (..., C, H, W)
        readings.append(lambda element: group.spatial(value, element))
    if value.ndim == 4 and (is_free or value.shape[1] == value.shape[2]):  # (1, H, W, C)
        readings.append(lambda element: group.spatial(value.permute(0, 3, 1, 2), element).permute(0, 2, 3, 1))
    side = math.isqrt(value.shape[-2])
    if side**2 == value.shape[-2]:
        places = torch.arange(side**2, device=value.device).view(side, side)
        if value.ndim in (2, 3):  # (..., N, C)
            readings.append(lambda element: value[..., group.spatial(places, element).flatten(), :])
        if value.shape[-1] == value.shape[-2]:  # (..., N, N)
            readings.append(
                lambda element: value[..., (moved := group.spatial(places, element).flatten()), :][..., moved]
            )
    return readings
