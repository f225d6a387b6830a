"""Tracing of one forward: which layers run, in which order, and what happens to their outputs.

Tracing works for any network whose convolutions and linear layers are called through torch, including exported
programs, because it records calls of functions, not of modules. It changes nothing and keeps no output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from .grid import Window

Layer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
LAYER_TYPES = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_SPLITS = ("chunk", "split", "split_with_sizes", "tensor_split")
_KINDS = {"conv2d": "convolution", "conv_transpose2d": "convolution", "linear": "linear"}


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
        cuts: the numbers of channels before each cut, if the output is split into parts, as into the halves of a gate.
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
    cuts: tuple[int, ...] = ()
    feeding: tuple[Call, ...] = ()

    def cut(self, places: Iterable[int]) -> None:
        """Note that the channels of the output are split at these places."""
        self.cuts = tuple(sorted({*self.cuts, *places}))
        for call in self.feeding:
            call.cut(places)


@dataclass(frozen=True)
class _Tag:
    """What the trace knows about a tensor.

    Attributes:
        is_feature: whether a layer comes before it.
        calls: the calls whose outputs it comes from by pointwise operations.
        shift: its cyclic roll (rows, columns).
        unshuffled: the channels that come from PixelUnshuffle by pointwise operations.
        parameter: the name of the first parameter, if the tensor is computed from parameters only.
    """

    is_feature: bool = False
    calls: tuple[Call, ...] = ()
    shift: tuple[int, int] = (0, 0)
    unshuffled: tuple[Unshuffled, ...] = ()
    parameter: str | None = None


@dataclass
class Trace:
    """The trace of a forward.

    Attributes:
        calls: all calls in order of execution.
        position_tables: parameter name -> the shape of a position table that was added to features.
    """

    calls: list[Call] = field(default_factory=list)
    position_tables: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _tags: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary, repr=False, compare=False)

    def unshuffled(self, tensor: Tensor) -> tuple[Unshuffled, ...]:
        """The channels of a tensor that come from PixelUnshuffle by pointwise operations."""
        tag: _Tag = self._tags.get(tensor, _Tag())
        return tag.unshuffled

    def take_for(self, tensor: Tensor, other: Tensor) -> None:
        """Give a tensor the tag of another tensor that it replaces."""
        if other in self._tags:
            self._tags[tensor] = self._tags[other]


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
    finally:
        for handle in handles:
            handle.remove()


class _Tracer(TorchFunctionMode):
    def __init__(self, network: nn.Module, on_call: Callable[[Call, Tensor], None] | None) -> None:
        super().__init__()
        self.trace = Trace()
        self._on_call = on_call
        self._parameters = {id(parameter): name for name, parameter in network.named_parameters()}
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
                self._note_cuts(args[0] if args else kwargs["input"], tensors)
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
        elif name == "roll":
            tag = replace(tag, shift=_added(tag.shift, _spatial_roll(args, kwargs, result.ndim)))
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
        window, groups, is_depthwise = None, 1, False
        if name != "linear":
            defaults = (given.get("stride", 1), given.get("padding", 0), given.get("dilation", 1))
            window, groups = Window.of_call(weight.shape[2:], *defaults, transposed), int(given.get("groups", 1))
            is_depthwise = groups == maps.shape[-3] == result.shape[-3]
        parameter = self._tag(weight).parameter or ""  # also of a weight that is computed from one parameter
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
            feeding=incoming.calls if is_depthwise else (),
        )
        self.trace.calls.append(call)
        if self._on_call:
            self._on_call(call, result)
        return _Tag(True, (call,), incoming.shift)

    def _inherited(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> _Tag:
        """The tag of an operation's result: rolls are kept; calls and unshuffling only while the shape stays."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        for value in args:  # the lists of cat and stack
            if isinstance(value, tuple | list):
                tensors += [part for part in value if isinstance(part, Tensor)]
        tags = [self._tag(tensor) for tensor in tensors]
        same = [tag for tag, tensor in zip(tags, tensors, strict=True) if tensor.shape == result.shape]
        parameters = [tag.parameter for tag, t in zip(tags, tensors, strict=True) if t.is_floating_point()]
        return _Tag(
            any(tag.is_feature for tag in tags),
            tuple(dict.fromkeys(call for tag in same for call in tag.calls)),
            next((tag.shift for tag in tags if any(tag.shift)), (0, 0)) if not _mixed_rolls(tags) else (0, 0),
            next((tag.unshuffled for tag in same if tag.unshuffled), ()),
            parameters[0] if parameters and all(parameters) else None,
        )

    def _note_cuts(self, maps: Tensor, parts: list[Tensor]) -> None:
        """Note where the channels of layers' outputs are split."""
        for call in self._tag(maps).calls:
            axis = maps.ndim - (1 if call.kind == "linear" else 3)
            sizes = [part.shape[axis] for part in parts]
            if sum(sizes) == maps.shape[axis]:
                call.cut(list(accumulate(sizes[:-1])))

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
        tag: _Tag = self._tags.get(tensor, _Tag())
        return tag


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
