"""The private parts of torch that the regulariser uses, tested with torch 2.11 and 2.13.

No other module of this package uses private parts of torch.

========================  ==========================================  ==================================================
part of torch             purpose                                     if torch lacks it
========================  ==========================================  ==================================================
reference counts          write into a gradient that nobody else      ``reference_counts`` returns None, and gradients
                          holds                                       are copied
``DisableTorchFunction``  hide the regulariser's own operations from  the import fails
                          the user's torch function modes
version counters          hide the regulariser's pass-through from    the import fails
                          layers that keep their output for backward
graph tasks               know which backward pass runs, and call a   the import fails
                          function at its end
``_conv_forward``         convolve with another kernel and the        the penalty "channel" fails
                          module's own padding
``_compiled_call_impl``   trace one call of a network, also if the    the first step fails
                          network is compiled
``tree_leaves``           find the tensors in nested arguments        the import fails
========================  ==========================================  ==================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DisableTorchFunction
from torch._C import _current_graph_task_id as backward_pass
from torch.autograd import Variable
from torch.utils._pytree import tree_leaves

__all__ = [
    "NO_PASS", "DisableTorchFunction", "at_end_of_backward", "backward_pass", "call_of", "convolve", "reference_counts",
    "set_call", "set_version", "tree_leaves", "uncompiled",
]  # fmt: skip

NO_PASS = -1
"""What ``backward_pass`` returns outside of a backward pass."""


def reference_counts(tensor: Tensor) -> tuple[int, int] | None:
    """How many references C++ holds to a tensor, and to its memory; None if this torch does not provide the counts."""
    try:
        memory = tensor.untyped_storage()._cdata
        return tensor._use_count(), torch._C._storage_Use_Count(memory)  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        return None


def set_version(tensor: Tensor, version: int) -> None:
    """Set the counter of in-place operations (``tensor._version``)."""
    torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))


def at_end_of_backward(call: Callable[[], None]) -> None:
    """Call a function at the end of the backward pass that is running."""
    Variable._execution_engine.queue_callback(call)


def convolve(module: nn.Conv2d, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply the module's convolution with another kernel and bias.

    Args:
        module: the convolution whose stride, padding and the like are used.
        maps: the input, ``(B, C, H, W)``.
        weight: the kernel.
        bias: the bias, or None.
    """
    return module._conv_forward(maps, weight, bias)


def uncompiled(network: nn.Module) -> Callable[..., Any]:
    """The function that a call of the network runs if the network is not compiled; it includes the hooks."""
    return network._call_impl


def call_of(network: nn.Module) -> Callable[..., Any] | None:
    """The function that a call of the network runs instead of ``uncompiled``; None if there is none."""
    return network._compiled_call_impl


def set_call(network: nn.Module, call: Callable[..., Any] | None) -> None:
    """Set the function that ``call_of`` returns; None removes it."""
    if call is None:
        network.__dict__.pop("_compiled_call_impl", None)
    else:
        network._compiled_call_impl = call
