"""What a network does between its layers: pools, resizes, padding, crops, tables, parameters of single channels.

As in `tracing`, functions are recorded, not modules, so this works for exported programs, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from ..groups import Group
from ..layers.grid import Window
from ..layers.tracing import Call, Trace, Unshuffled
from ..penalties import EPSILON

LAYERS = ("conv2d", "conv_transpose2d", "linear")
SUMS = ("add", "iadd", "radd")
_PRODUCTS = ("matmul", "bmm", "scaled_dot_product_attention")
_POOLS = {
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "avg_pool2d": ("input", "kernel_size", "stride", "padding", "ceil_mode"),
}
_CROPS = ("getitem", "slice", "narrow")


def plain_name(function: Any) -> str:
    """The name: ``add`` for torch.add, ``Tensor.__add__``, ``Tensor.add_``, ``add.Tensor`` of an exported program."""
    return str(getattr(function, "__name__", "")).split(".")[0].strip("_")


@dataclass(frozen=True)
class Spatial:
    """A pool, a resize, a padding or a crop.

    Attributes:
        kind: "pool", "resize", "padding" or "crop".
        after: the last layer that was called before it; empty if there was none.
        input_size: ``(H, W)``; of a crop with a window, that of the layer's input.
        output_size: ``(H, W)``.
        window: of a pool, or of the transposed convolution whose output is cropped.
        details: the function of a pool, the mode of a resize, the widths of a padding as ``F.pad`` takes them, or those
            of a crop in the same order.
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


@dataclass(frozen=True)
class Attention:
    """An attention between queries and keys that one layer gives.

    Attributes:
        head_width: the number of channels of a head.
        window: the side of the square windows in which pixels attend to each other; None if an image is not cut into
            square windows, and where channels attend.
        shift: the cyclic roll (rows, columns) of the maps before they were cut.
    """

    head_width: int
    window: int | None = None
    shift: tuple[int, int] = (0, 0)

    @property
    def is_lopsided(self) -> bool:
        """Whether a quarter turn maps the shifted windows to others."""
        return self.window is not None and any(2 * shift % self.window for shift in self.shift)


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
        spatial: pools, resizes, paddings and crops, in order. A pool along one axis and another along the other axis,
            at once after it, are one pool.
        tables: parameter name -> the table in the first sum that adds it.
        table_sums: the sums that add a table: number of the sum among all sums -> number of the table's argument.
        channel_parameters: name -> parameter or buffer with one value per channel that is combined with features of so
            many channels.
        attentions: layer -> the attention that follows.
        kernels: call of a layer without a module -> its weight, if that is computed from parameters.
    """

    spatial: list[Spatial] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)
    table_sums: dict[int, int] = field(default_factory=dict)
    channel_parameters: dict[str, ChannelParameter] = field(default_factory=dict)
    attentions: dict[str, Attention] = field(default_factory=dict)
    kernels: dict[Call, Tensor] = field(default_factory=dict)


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
        self._pools = WeakTensorKeyDictionary()  # output -> number in `seen.spatial`
        self._names = WeakTensorKeyDictionary()  # of parameters, buffers and what is computed only from them
        for name, tensor in (*network.named_buffers(), *network.named_parameters()):
            self._names[tensor] = name
        self._modules = {name for name, _ in network.named_modules()}

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
        if name in LAYERS:
            self._note_kernel(args[1] if len(args) > 1 else kwargs["weight"])
        elif isinstance(result, Tensor):
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
        elif name in _CROPS:
            self._note_crop(name, args, kwargs, result)
        elif name in _PRODUCTS:
            self._attends_after = len(self._trace.calls)
            self._note_attention(args[0] if args else kwargs["query"])
        elif name == "index_select":
            self._note_selection(dict(zip(("input", "dim", "index"), args, strict=False)) | kwargs, result)
        self._note_parameters(name, (*args, *kwargs.values()), result)

    def _note_kernel(self, weight: Tensor) -> None:
        call = self._trace.calls[-1]
        if call.parameter and call.name not in self._modules and not isinstance(weight, nn.Parameter):
            self.seen.kernels[call] = weight.detach()

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
        maps = given["input"]
        number = self._pools.get(maps)
        first = self.seen.spatial[number] if number is not None else None
        if first and first.window and first.details == name and (both := joined_windows(first.window, window)):
            self.seen.spatial[number] = replace(first, output_size=tuple(result.shape[-2:]), window=both)
        else:
            self._add("pool", maps, result, window=window, details=name)
        self._pools[result] = len(self.seen.spatial) - 1

    def _note_crop(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        """Record a part of maps ``(B, C, H, W)`` that an index, a slice or ``narrow`` takes."""
        maps, *index = args or (None,)
        if not (isinstance(maps, Tensor) and maps.ndim == result.ndim == 4):
            return
        widths = _widths(_slices(name, index, kwargs, maps.ndim), maps.shape)
        if not widths or not any(widths):
            return
        call = self._trace.calls[-1] if self._trace.calls else None
        if call and call.window and call.window.is_transposed and call.output_shape == tuple(maps.shape):
            sizes = (call.input_shape[-2:], tuple(result.shape[-2:]))
            self.seen.spatial.append(Spatial("crop", self._after, *sizes, window=call.window, details=widths))
        else:
            self._add("crop", maps, result, details=widths)

    def _note_selection(self, given: dict[str, Any], result: Tensor) -> None:
        """Record what picks rows or columns of ``(B, C, H, W)`` by their positions: a padding, a crop or a resize."""
        maps, axis, index = given["input"], given["dim"], given["index"]
        if maps.ndim != 4 or axis % 4 < 2 or not len(index):
            return
        length, is_last = maps.shape[axis], axis % 4 == 3
        if torch.equal(index.flip(0), length - 1 - index):  # also copies of one pixel
            return
        own = torch.arange(length, device=index.device)
        kind, widths = "resize", (0, 0)
        if len(index) <= length and bool((index.diff() == 1).all()):
            kind, widths = "crop", (int(index[0]), length - 1 - int(index[-1]))
        elif len(index) > length:
            starts = (index.unfold(0, length, 1) == own).all(dim=1).nonzero().flatten().tolist()
            if starts:  # (M - N + 1, N) -> where the image lies in what is picked
                kind, widths = "padding", (starts[0], len(index) - length - starts[0])
        if kind == "resize":
            self._add(kind, maps, result, details="columns" if is_last else "rows")
        else:
            self._add(kind, maps, result, details=widths if is_last else (0, 0, *widths))

    def _note_attention(self, queries: Any) -> None:
        """Record an attention, from queries ``(B, heads, N, width)`` or ``(B, heads, width, N)``.

        Images run one by one, so several entries are the windows of an image.
        """
        if not (self._trace.calls and isinstance(queries, Tensor) and queries.ndim == 4):
            return
        call = self._trace.calls[-1]
        channels = call.output_shape[1] if call.kind == "convolution" else call.output_shape[-1]
        entries, heads, *sides = queries.shape
        for width, places in (reversed(sides), sides):
            if channels in (heads * width, 2 * heads * width, 3 * heads * width):  # one layer gives q, kv or qkv
                shift, side = self._trace.shift_of(queries), math.isqrt(places)
                is_cut = side**2 == places and width == sides[1] and (entries > 1 or any(shift))
                found = Attention(width, side, shift) if is_cut else Attention(width)
                self.seen.attentions.setdefault(call.name, found)

    def _note_parameters(self, name: str, values: tuple[Any, ...], result: Tensor) -> None:
        tensors = [value for value in values if isinstance(value, Tensor)]
        named = [tensor for tensor in tensors if tensor in self._names]
        if tensors and len(named) == len(tensors):
            self._names[result] = self._names[named[0]]
            return
        is_attention = self._attends_after == len(self._trace.calls)  # then the axes are heads and positions
        if is_attention:
            return
        first, last = result.shape[1] if result.ndim == 4 else None, result.shape[-1] if result.ndim else None
        if name == "batch_norm" and result.ndim > 2:  # its channels are the second axis; of five axes, they are fields
            last = None
        channels = (first, last)
        for tensor in named:
            wide = [size for size in tensor.shape if size > 1]
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


def joined_windows(first: Window, second: Window) -> Window | None:
    """The window of two pools along one axis each, one after the other; None if they are not.

    Example:
        >>> along_rows = Window((3, 1), (1, 1), (1, 0), (1, 1))
        >>> joined_windows(along_rows, Window((1, 3), (1, 1), (0, 1), (1, 1))).kernel_size
        (3, 3)
    """
    axes = []
    for axis in (0, 1):
        of_axis = [
            tuple(getattr(window, option)[axis] for option in ("kernel_size", "stride", "padding", "dilation"))
            for window in (first, second)
        ]
        pooling = [each for each in of_axis if each[:3] != (1, 1, 0)]
        if len(pooling) != 1:
            return None
        axes.append(pooling[0])
    kernel_size, stride, padding, dilation = zip(*axes, strict=True)
    return Window(kernel_size, stride, padding, dilation)


def _slices(name: str, index: list[Any], kwargs: dict[str, Any], ndim: int) -> dict[int, slice] | None:
    """Axis -> slice of an index, ``aten.slice`` or ``narrow``; None if the index has something else."""
    if name == "getitem":
        parts = list(index[0]) if isinstance(index[0], tuple) else [index[0]]
        if any(part is not Ellipsis and not isinstance(part, slice) for part in parts):
            return None
        if Ellipsis in parts:
            place = parts.index(Ellipsis)
            parts[place : place + 1] = [slice(None)] * (ndim + 1 - len(parts))
        return dict(enumerate(parts))
    order = ("dim", "start", "length") if name == "narrow" else ("dim", "start", "end", "step")
    given = dict(zip(order, index, strict=False)) | kwargs
    start = given.get("start")
    end = start + given["length"] if name == "narrow" else given.get("end")
    return {int(given.get("dim", 0)) % ndim: slice(start, end, given.get("step"))}


def _widths(slices: dict[int, slice] | None, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """How much slices cut off on the left, on the right, at the top and at the bottom; None if they skip pixels."""
    widths: list[int] = []
    for axis in (3, 2):
        start, stop, step = (slices or {}).get(axis, slice(None)).indices(shape[axis])
        if slices is None or step != 1:
            return None
        widths += (start, shape[axis] - stop)
    return tuple(widths)


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
