"""Tracing of one forward: which layers run, in which order, and what happens to their outputs.

Tracing works for any network whose convolutions and linear layers are called through torch, including exported
programs, because it records calls of functions, not of modules. It changes nothing and keeps no output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from .grid import Window
from .layouts import Patches

Layer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
LAYER_TYPES = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
ADJOINT = " (adjoint)"
"""After the name of a weight, for its calls as a transposed convolution, if it is also that of a convolution."""

_SPLITS = ("chunk", "split", "split_with_sizes", "tensor_split")
_KINDS = {"conv2d": "convolution", "conv_transpose2d": "convolution", "linear": "linear"}
_REARRANGEMENTS = (
    "view", "reshape", "unsafe_view", "flatten", "unflatten", "permute", "transpose", "movedim", "contiguous", "clone",
)  # fmt: skip
"""Operations whose result has the values of its first argument, in another order or another shape."""


class Unshuffled(NamedTuple):
    """Neighbouring channels that come from PixelUnshuffle: channel ``r^2 c + p`` is sub-pixel p of fine channel c."""

    start: int
    number: int
    factor: int


@dataclass(eq=False)
class Call:
    """One call of a convolution or linear layer, with what the trace found.

    Attributes:
        name: of the layer: the name of its module, or of its weight.
        kind: "convolution" or "linear".
        input_shape: of the first argument.
        output_shape: of the result.
        weight_shape: of the weight.
        num_groups: the number of channel groups of a convolution.
        window: of a convolution.
        shift: the cyclic roll (rows, columns) that the input has undergone.
        sub_pixel: r, if the output consists of the r^2 sub-pixels of finer maps: PixelShuffle(r) follows, or what
            PixelUnshuffle(r) gave is added, and no operation between mixes channels.
        joins_unshuffled: whether it is added to what PixelUnshuffle gave.
        reads_image: whether no layer comes before it.
        unshuffled: the channels of the input that come from PixelUnshuffle, if no operation between mixes channels.
        patches: (rows, columns) of the patches of each image that lie on the batch axis; (1, 1) for whole images.
        parameter: the name of the parameter that is the weight, or from which it is computed; empty if there is none.
        cuts: positions among the channels at which the output, or what is added to it, is sliced, split or joined with
            others.
        input_cuts: those of the input that are known before the call.
        sources: the calls from whose outputs the input comes by pointwise operations.
        splits: those of the cuts at which the output is split into parts, as into the halves of a gate or the
            groups of a norm.
        feeding: of a depthwise convolution the calls whose outputs it reads: its channels are theirs.
    """

    name: str
    kind: Literal["convolution", "linear"]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    num_groups: int = 1
    window: Window | None = None
    shift: tuple[int, int] = (0, 0)
    sub_pixel: int | None = None
    joins_unshuffled: bool = False
    reads_image: bool = False
    unshuffled: tuple[Unshuffled, ...] = ()
    patches: tuple[int, int] = (1, 1)
    parameter: str = ""
    cuts: set[int] = field(default_factory=set)
    input_cuts: tuple[int, ...] = ()
    sources: tuple[Call, ...] = ()
    splits: set[int] = field(default_factory=set)
    feeding: tuple[Call, ...] = ()

    def split(self, places: Iterable[int]) -> None:
        """Note that the channels of the output are split at these positions."""
        self.cuts.update(places)
        self.splits.update(places)
        for call in self.feeding:
            call.split(places)

    @property
    def is_transposed(self) -> bool:
        """Whether it is a call of a transposed convolution."""
        return bool(self.window and self.window.is_transposed)


@dataclass(frozen=True, eq=False)
class _Tag:
    """What the trace knows about a tensor.

    Attributes:
        is_feature: whether a layer comes before it.
        calls: the calls whose outputs it comes from by pointwise operations.
        shift: its cyclic roll (rows, columns).
        unshuffled: the channels that come from PixelUnshuffle by pointwise operations.
        parameter: the name of the first parameter, if the tensor is computed from parameters and buffers only.
        patches: (rows, columns) of the patches of each image on its batch axis.
        source: the maps ``(B, C, H, W)`` whose values it has, while it is on the way to other maps.
        is_constant: whether it is computed from buffers only.
        cuts: positions at which parts of it were joined along the channels.
    """

    is_feature: bool = False
    calls: tuple[Call, ...] = ()
    shift: tuple[int, int] = (0, 0)
    unshuffled: tuple[Unshuffled, ...] = ()
    parameter: str | None = None
    patches: tuple[int, int] = (1, 1)
    source: Tensor | None = None
    is_constant: bool = False
    cuts: tuple[int, ...] = ()


@dataclass
class Trace:
    """The trace of a forward.

    Attributes:
        calls: all calls in order of execution.
        position_tables: parameter name -> the shape of a position table that was added to features.
    """

    calls: list[Call] = field(default_factory=list)
    position_tables: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _sums: dict[tuple[Call, ...], None] = field(default_factory=dict, repr=False, compare=False)
    _tags: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary, repr=False, compare=False)

    def unshuffled(self, tensor: Tensor) -> tuple[Unshuffled, ...]:
        """The channels of a tensor that come from PixelUnshuffle by pointwise operations."""
        tag: _Tag = self._tags.get(tensor, _Tag())
        return tag.unshuffled

    def latest_patches(self, name: str) -> tuple[int, int] | None:
        """The patches of the latest call, if it is one of the layer called ``name``."""
        return self.calls[-1].patches if self.calls and self.calls[-1].name == name else None

    def take_for(self, tensor: Tensor, other: Tensor) -> None:
        """Give a tensor the tag of another tensor that it replaces."""
        if other in self._tags:
            self._tags[tensor] = self._tags[other]

    def shift_of(self, tensor: Tensor) -> tuple[int, int]:
        """The cyclic roll (rows, columns) that a tensor has undergone."""
        tag: _Tag = self._tags.get(tensor, _Tag())
        return tag.shift

    def _finish(self) -> None:
        """Tell apart the two roles of a weight, and give what is combined pointwise the same cuts."""
        plain = {call.name for call in self.calls if not call.is_transposed}
        for call in self.calls:
            if call.is_transposed and call.name in plain:
                call.name += ADJOINT
        has_changed = True
        while has_changed:
            has_changed = False
            for calls in self._sums:
                cuts = {cut for call in calls for cut in call.cuts}
                for call in calls:
                    has_changed = has_changed or call.cuts != cuts
                    call.cuts |= cuts


@contextmanager
def tracing(network: nn.Module, on_call: Callable[[Call, Tensor], None] | None = None) -> Iterator[Trace]:
    """Trace every part of the network that runs inside the block.

    Args:
        network: its module names become the names of the calls.
        on_call: called with each call and its output. Later operations may overwrite this output in place.
    """
    tracer = _Tracer(network, on_call)
    handles = []
    for name, module in network.named_modules():
        if isinstance(module, LAYER_TYPES):
            handles.append(module.register_forward_pre_hook(tracer.entering(name or "network")))
            handles.append(module.register_forward_hook(tracer.leaving, always_call=True))
    try:
        with tracer:
            yield tracer.trace
        tracer.trace._finish()
    finally:
        for handle in handles:
            handle.remove()


class _Tracer(TorchFunctionMode):
    def __init__(self, network: nn.Module, on_call: Callable[[Call, Tensor], None] | None) -> None:
        super().__init__()
        self.trace = Trace()
        self._on_call = on_call
        self._parameters = {id(parameter): name for name, parameter in network.named_parameters()}
        self._buffers = {id(buffer) for buffer in network.buffers()}
        self._tags = self.trace._tags
        self._module: str | None = None

    def entering(self, name: str) -> Callable[..., None]:
        def enter(*_: object) -> None:
            self._module = name

        return enter

    def leaving(self, *_: object) -> None:
        self._module = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # An operation of an exported program has a name like "conv2d.default"; in-place operations end in "_".
        name = getattr(func, "__name__", "").split(".")[0].strip("_")
        if isinstance(result, Tensor):
            self._note(name, args, kwargs, result)
        else:
            tensors = [part for part in result if isinstance(part, Tensor)] if isinstance(result, tuple | list) else []
            for part in tensors:  # results of chunk, split and unbind
                self._tags[part] = self._inherited(args, kwargs, part)
            if name in _SPLITS and len(tensors) > 1:
                self._note_splits(args[0] if args else kwargs["input"], tensors)
        return result

    def _note(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        if name in _KINDS:
            self._tags[result] = self._called(name, args, kwargs, result)
            return
        tag = self._inherited(args, kwargs, result)
        if name == "pixel_shuffle":
            factor = int(args[1] if len(args) > 1 else kwargs["upscale_factor"])
            for call in self._tag(args[0]).calls:
                call.sub_pixel = factor
        elif name == "pixel_unshuffle":
            factor = int(args[1] if len(args) > 1 else kwargs["downscale_factor"])
            tag = replace(tag, unshuffled=(Unshuffled(0, result.shape[-3], factor),))
        elif name == "cat" and result.ndim >= 3:
            tag = replace(tag, unshuffled=self._joined(args, kwargs, result.ndim))
            if args and result.shape[-2:] == args[0][0].shape[-2:]:
                dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
                tag = replace(tag, cuts=self._joined_cuts(args[0]) if _axis(result.ndim, dim) == 1 else tag.cuts)
        elif name in ("getitem", "slice", "narrow"):
            self._cut(args[0], _slice_of_channels(name, args, kwargs))
        elif name == "glu":  # a gate of its halves
            dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
            self._note_splits(args[0], list(args[0].chunk(2, dim)))
        elif name == "group_norm":
            self._note_norm(args[0], int(args[1] if len(args) > 1 else kwargs["num_groups"]))
        elif name == "roll":
            tag = replace(tag, shift=_added(tag.shift, _spatial_roll(args, kwargs, result.ndim)))
        elif name in _REARRANGEMENTS and args and isinstance(args[0], Tensor):
            tag = self._rearranged(args[0], result, tag)
        elif name in ("add", "iadd", "radd"):
            self._look_for_position_table(args, result)
            self._look_for_sub_pixels(args, result)
        self._tags[result] = tag

    def _called(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> _Tag:
        """Record a call of a layer, and return the tag of its output."""
        transposed = name == "conv_transpose2d"
        order = ["input", "weight", "bias", "stride", "padding"]
        order += ["output_padding", "groups", "dilation"] if transposed else ["dilation", "groups"]
        given = dict(zip(order, args, strict=False)) | kwargs
        maps, weight = given["input"], given["weight"]
        window, groups = None, 1
        if name != "linear":
            defaults = (given.get("stride", 1), given.get("padding", 0), given.get("dilation", 1))
            window, groups = Window.of_call(weight.shape[2:], *defaults, transposed), int(given.get("groups", 1))
        parameter = self._tag(weight).parameter or ""  # also of a weight that is computed from parameters
        layer = self._module or parameter.removesuffix(".weight").removesuffix("weight")
        incoming = self._tag(maps)
        call = Call(
            layer or f"{name} {len(self.trace.calls)}",
            _KINDS[name],  # type: ignore[arg-type]
            tuple(maps.shape),
            tuple(result.shape),
            tuple(weight.shape),
            groups,
            window,
            incoming.shift,
            reads_image=not incoming.is_feature,
            unshuffled=incoming.unshuffled,
            patches=incoming.patches,
            parameter=parameter,
            input_cuts=incoming.cuts if name != "linear" else (),
            sources=incoming.calls if name != "linear" else (),
            feeding=incoming.calls if name != "linear" and groups == maps.shape[-3] == result.shape[-3] else (),
        )
        self.trace.calls.append(call)
        if self._on_call:
            self._on_call(call, result)
        return _Tag(True, (call,), incoming.shift, patches=incoming.patches)

    def _rearranged(self, tensor: Tensor, result: Tensor, tag: _Tag) -> _Tag:
        """The tag of a rearrangement's result, with the patches that the images are cut into or joined from."""
        before = self._tag(tensor)
        source = tensor if tensor.ndim == 4 else before.source
        if source is None or result.ndim != 4:
            return replace(tag, source=source, patches=before.patches)
        if result.shape[0] == source.shape[0]:
            return replace(tag, patches=before.patches)
        return replace(tag, patches=_patches(source, result, before.patches))

    def _inherited(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> _Tag:
        """The tag of an operation's result: rolls are kept; calls and unshuffling only while the shape stays."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        for value in args:  # the lists of cat and stack
            if isinstance(value, tuple | list):
                tensors += [part for part in value if isinstance(part, Tensor)]
        tags = [self._tag(tensor) for tensor in tensors]
        same = [tag for tag, tensor in zip(tags, tensors, strict=True) if tensor.shape == result.shape]
        numbers = [tag for tag, tensor in zip(tags, tensors, strict=True) if tensor.is_floating_point()]
        variable = [tag for tag in numbers if not tag.is_constant]
        calls = tuple(dict.fromkeys(call for tag in same for call in tag.calls))
        cuts = tuple(dict.fromkeys(cut for tag in same for cut in tag.cuts))
        for call in calls:
            call.cuts.update(cuts)
        if len(calls) > 1:
            self.trace._sums[calls] = None
        return _Tag(
            any(tag.is_feature for tag in tags),
            calls,
            next((tag.shift for tag in tags if any(tag.shift)), (0, 0)) if not _mixed_rolls(tags) else (0, 0),
            next((tag.unshuffled for tag in same if tag.unshuffled), ()),
            variable[0].parameter if variable and all(tag.parameter for tag in variable) else None,
            next((tag.patches for tag, t in zip(tags, tensors, strict=True) if _are_alike(t, result)), (1, 1)),
            is_constant=bool(numbers) and not variable,
            cuts=cuts,
        )

    def _joined(self, args: tuple[Any, ...], kwargs: dict[str, Any], ndim: int) -> tuple[Unshuffled, ...]:
        """The unshuffled channels of maps that are concatenated along their channels; of the first along other axes."""
        parts = args[0] if args else kwargs["tensors"]
        dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        if dim % ndim != ndim - 3:
            return self._tag(parts[0]).unshuffled if dim % ndim < ndim - 3 else ()
        found, start = [], 0
        for part in parts:
            found += [each._replace(start=each.start + start) for each in self._tag(part).unshuffled]
            start += part.shape[-3]
        return tuple(found)

    def _look_for_sub_pixels(self, args: tuple[Any, ...], result: Tensor) -> None:
        """Note the layers whose outputs are added to what PixelUnshuffle gave: they have the same channels.

        An element of the group permutes the sub-pixels among these channels. So it does in the summand, or the sum has
        no field.
        """
        if result.ndim < 3:
            return
        tags = [self._tag(value) for value in args if isinstance(value, Tensor) and value.shape == result.shape]
        for whole in (tag.unshuffled[0] for tag in tags if len(tag.unshuffled) == 1):
            if whole.number == result.shape[-3]:
                for call in (call for tag in tags if not tag.unshuffled for call in tag.calls):
                    call.sub_pixel, call.joins_unshuffled = whole.factor, True

    def _note_splits(self, maps: Tensor, parts: list[Tensor]) -> None:
        """Note where the channels of layers' outputs are split."""
        for call in self._tag(maps).calls:
            axis = maps.ndim - (1 if call.kind == "linear" else 3)
            sizes = [part.shape[axis] for part in parts]
            if sum(sizes) == maps.shape[axis]:
                call.split(list(accumulate(sizes[:-1])))

    def _note_norm(self, maps: Tensor, groups: int) -> None:
        """Note that groups of channels are normalised together: each is a part, unless it is one channel."""
        size = maps.shape[1] // groups
        for call in self._tag(maps).calls:
            if size > 1 and call.kind == "convolution":
                call.split(range(size, maps.shape[1], size))

    def _cut(self, maps: Any, positions: Iterable[int]) -> None:
        """Note that maps ``(B, C, H, W)`` of convolutions are cut at positions among their channels."""
        calls = self._tag(maps).calls if isinstance(maps, Tensor) and maps.ndim == 4 else ()
        if all(call.kind == "convolution" for call in calls):
            inner = [position for position in positions if 0 < position < maps.shape[1]]
            for call in calls:
                call.cuts.update(inner)

    def _joined_cuts(self, parts: Sequence[Tensor]) -> tuple[int, ...]:
        """The cuts of maps that are joined along their channels, which are those of each part, too."""
        if any(part.ndim != 4 for part in parts):
            return ()
        stops = list(accumulate(part.shape[1] for part in parts))
        cuts = [*stops[:-1]]
        for stop, part in zip(stops, parts, strict=True):
            cuts += [stop - part.shape[1] + cut for cut in self._tag(part).cuts]
        for part in parts:
            for call in self._tag(part).calls:
                call.cuts.update(cuts)
        return tuple(dict.fromkeys(cuts))

    def _look_for_position_table(self, args: tuple[Any, ...], result: Tensor) -> None:
        """Record a sum of features and a tensor made only of parameters that is larger than 1 on both last axes."""
        for value in args:
            if isinstance(value, Tensor) and value.ndim >= 2 and min(value.shape[-2:]) > 1:
                parameter = self._tag(value).parameter
                if parameter and any(isinstance(o, Tensor) and not self._tag(o).parameter for o in args):
                    self.trace.position_tables[parameter] = tuple(value.shape)

    def _tag(self, tensor: Tensor) -> _Tag:
        if id(tensor) in self._parameters:
            return _Tag(parameter=self._parameters[id(tensor)])
        if id(tensor) in self._buffers:
            return _Tag(is_constant=True)
        tag: _Tag = self._tags.get(tensor, _Tag())
        return tag


def _are_alike(tensor: Tensor, result: Tensor) -> bool:
    """Whether both are maps of the same images or patches."""
    return tensor.ndim == result.ndim == 4 and tensor.shape[0] == result.shape[0]


def _patches(source: Tensor, result: Tensor, before: tuple[int, int]) -> tuple[int, int]:
    """The patches of the images in rearranged maps ``(B', C, H', W')`` of maps ``(B, C, H, W)``.

    Args:
        source: the maps before.
        result: the maps after; each of its entries is a patch of one before, or is joined from several.
        before: (rows, columns) of the patches of the images in the maps before.

    Returns:
        (1, 1) if they are no patches in the order of `layouts.Patches`.
    """
    is_cut = len(result) > len(source)
    fine, coarse = (result, source) if is_cut else (source, result)
    (rows, rest), (columns, other) = (divmod(coarse.shape[axis], fine.shape[axis]) for axis in (2, 3))
    if rest or other or len(fine) != len(coarse) * rows * columns or fine.shape[1] != coarse.shape[1]:
        return (1, 1)
    if not torch.equal(Patches(rows, columns).to_maps(fine.detach()), coarse.detach()):
        return (1, 1)
    # Patches of patches are in the order of all patches only if one of both cuts is into rows or columns alone.
    if is_cut:
        return (before[0] * rows, before[1] * columns) if before[1] == 1 or rows == 1 else (1, 1)
    are_neighbours = rows == 1 or columns == before[1]
    if not are_neighbours or before[0] % rows or before[1] % columns:
        return (1, 1)
    return (before[0] // rows, before[1] // columns)


def _axis(ndim: int, dim: Any) -> int | None:
    return dim % ndim if isinstance(dim, int) and ndim else None


def _slice_of_channels(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    """Start and stop of a slice ``[:, start:stop]``, or of one channel; () if something else is taken."""
    maps = args[0]
    if not isinstance(maps, Tensor) or maps.ndim != 4:
        return ()
    if name == "getitem":
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        if len(index) < 2 or index[0] != slice(None):
            return ()
        if isinstance(index[1], slice):
            start, stop, step = index[1].indices(maps.shape[1])
            return (start, stop) if step == 1 else tuple(range(start, stop))
        return (index[1] % maps.shape[1], index[1] % maps.shape[1] + 1) if isinstance(index[1], int) else ()
    names = ("input", "dim", "start", "length" if name == "narrow" else "end")
    given = dict(zip(names, args, strict=False)) | kwargs
    if _axis(4, given.get("dim", 0)) != 1:
        return ()
    first = int(given.get("start") or 0)
    end = first + int(given["length"]) if name == "narrow" else given.get("end")
    return slice(first, end).indices(maps.shape[1])[:2]


def kernels_in(parameter: Tensor, call: Call) -> list[Tensor]:
    """The kernels that a parameter holds, as views of it.

    Args:
        parameter: the one from which the weight of the call comes.
        call: of a layer.

    Returns:
        The parameter itself, if it has the axes of the weight, those of length 1 apart. Its copies of the weight, of
        which one is used, if its last axes are those of the weight. Nothing, if the weight is computed from other
        numbers, as the factors of a basis.
    """
    shape = call.weight_shape
    if [side for side in parameter.shape if side > 1] == [side for side in shape if side > 1]:
        return [parameter]
    return list(parameter.view(-1, *shape)) if tuple(parameter.shape[-len(shape) :]) == shape else []


def _mixed_rolls(tags: list[_Tag]) -> bool:
    """Whether tensors with different rolls are combined, so that the roll of the result is unknown."""
    rolls = {tag.shift for tag in tags if tag.parameter is None and any(tag.shift)}
    return len(rolls) > 1


def _spatial_roll(args: tuple[Any, ...], kwargs: dict[str, Any], ndim: int) -> tuple[int, int]:
    """(rows, columns) of a roll over both spatial axes of ``(B, C, H, W)`` or ``(B, H, W, C)``; otherwise (0, 0)."""
    given = dict(zip(("input", "shifts", "dims"), args, strict=False)) | kwargs
    shifts, dims = given["shifts"], given.get("dims", ())
    if isinstance(shifts, int) or isinstance(dims, int) or len(shifts) != 2 or len(dims) != 2:
        return (0, 0)
    by_axis = dict(zip((dim % ndim for dim in dims), (int(shift) for shift in shifts), strict=True))
    axes = sorted(by_axis)
    if ndim != 4 or axes not in ([1, 2], [2, 3]):
        return (0, 0)
    return (by_axis[axes[0]], by_axis[axes[1]])


def _added(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    return (first[0] + second[0], first[1] + second[1])


def run_traced(
    network: nn.Module, images: Tensor, on_call: Callable[[Call, Tensor], None] | None = None
) -> tuple[Trace, Tensor]:
    """Run and trace one forward without gradients.

    Args:
        network: the network to run.
        images: its input.
        on_call: as of `tracing`.

    Returns:
        The trace, and the network's output.

    Raises:
        ValueError: the network does not return one tensor ``(B, C, H, W)``, or ``(B, K)`` class scores.
    """
    with torch.no_grad(), tracing(network, on_call) as trace:
        output = network(images)
    if not isinstance(output, Tensor) or output.ndim not in (2, 4):
        raise ValueError("network: equivariance can be measured of one that returns one tensor (B, C, H, W) or (B, K)")
    return trace, output
