"""Whether a gradient that arrives in a backward pass belongs to nobody else, so that it may be written into.

Autograd hands one tensor to several branches (both terms of a sum get the same), and users and hooks may hold it too.
Who holds a tensor shows in three reference counts: of the tensor in C++, of its memory, and of its Python object. What
they are for a gradient of our own is not assumed but measured, once, on two small graphs: one whose gradient is surely
unshared and one whose gradient is surely shared. If the counts do not tell them apart, nothing ever counts as owned.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Counts = tuple[int, int, int]


def is_unshared(gradient: Tensor) -> bool:
    """Whether nobody but the calling backward method holds a gradient that was passed to it by autograd."""
    own = _counts_of_ours()
    return own is not None and _counts(gradient) == own and _is_dense(gradient) and _is_torchs(gradient)


def _counts(gradient: Tensor) -> Counts:
    memory = gradient.untyped_storage()
    return (gradient._use_count(), torch._C._storage_Use_Count(memory._cdata), sys.getrefcount(gradient))  # type: ignore[attr-defined]


def _is_torchs(gradient: Tensor) -> bool:
    """Whether torch allocated its memory, and not numpy or another library, whose holders are not counted."""
    return gradient.untyped_storage().resizable()


def _is_dense(gradient: Tensor) -> bool:
    """Whether each entry has its own place in memory, which an expanded one has not."""
    if gradient.is_contiguous():
        return True
    return gradient.ndim == 4 and gradient.is_contiguous(memory_format=torch.channels_last)


@cache
def _counts_of_ours() -> Counts | None:
    """The counts of an unshared gradient; None if they cannot be told from those of a shared one."""
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch._C.DisableTorchFunction():
            alone, shared = _Probe.measure(is_shared=False), _Probe.measure(is_shared=True)
    except (AttributeError, TypeError):  # counts that this torch does not have
        return None
    return alone if alone != shared else None


class _Probe(torch.autograd.Function):
    """Notes the counts of the gradient that arrives at it, as a tap sees its own."""

    found: Counts

    @classmethod
    def measure(cls, is_shared: bool) -> Counts:
        start = torch.zeros(2, requires_grad=True)
        other = start * 1.0  # made first, so that backward comes to it last and it still holds its gradient
        probed, _ = cls.apply(start * 1.0)
        # Both terms of a sum get one tensor; a product makes one of its own.
        result = probed + other if is_shared else probed * 2.0
        (result * 3.0).sum().backward()
        return cls.found

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(maps)
        return maps, maps.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, anchor: Tensor | None) -> Tensor:
        _Probe.found = _counts_as_in_is_unshared(gradient)
        return gradient


def _counts_as_in_is_unshared(gradient: Tensor) -> Counts:
    """At the same depth of calls, since each of them holds the Python object once more."""
    return _counts(gradient)
