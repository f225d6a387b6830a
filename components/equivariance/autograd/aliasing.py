"""Whether a gradient that arrives in a backward pass has no other owner, so that it may be modified in place.

Autograd gives one tensor to several branches (both terms of a sum receive the same one), and users and hooks may hold
it, too. Three reference counts show who holds a tensor: of the tensor in C++, of its memory, and of its Python object.
The counts of an unshared gradient are not assumed. They are measured once, on two small graphs: one whose gradient is
certainly unshared, and one whose gradient is certainly shared. If the counts do not differ, every gradient counts as
shared.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..compat import DisableTorchFunction, reference_counts

Counts = tuple[int, int, int]


def is_unshared(gradient: Tensor) -> bool:
    """Whether only the calling backward method holds the gradient that autograd has passed to it."""
    own = _counts_of_ours()
    return own is not None and _counts(gradient) == own and _is_dense(gradient) and _is_torchs(gradient)


def _counts(gradient: Tensor) -> Counts | None:
    counts = reference_counts(gradient)
    return counts and (*counts, sys.getrefcount(gradient))


def _is_torchs(gradient: Tensor) -> bool:
    """Whether torch allocated the memory; references of numpy or another library are not counted."""
    return gradient.untyped_storage().resizable()


def _is_dense(gradient: Tensor) -> bool:
    """Whether each entry has its own position in memory; the entries of an expanded tensor do not."""
    if gradient.is_contiguous():
        return True
    return gradient.ndim == 4 and gradient.is_contiguous(memory_format=torch.channels_last)


@cache
def _counts_of_ours() -> Counts | None:
    """The counts of an unshared gradient; None if they do not differ from those of a shared one."""
    with torch.inference_mode(False), torch.enable_grad(), DisableTorchFunction():
        alone, shared = _Probe.measure(is_shared=False), _Probe.measure(is_shared=True)
    return alone if alone != shared else None


class _Probe(torch.autograd.Function):
    """Records the counts of the gradient that arrives at it, as a gradient injection would see them."""

    found: Counts | None

    @classmethod
    def measure(cls, is_shared: bool) -> Counts | None:
        start = torch.zeros(2, requires_grad=True)
        other = start * 1.0  # made first, so backward reaches it last, and it still holds its gradient
        probed, _ = cls.apply(start * 1.0)
        # Both terms of a sum receive one tensor; a product makes a new one.
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


def _counts_as_in_is_unshared(gradient: Tensor) -> Counts | None:
    """The counts, taken at the same call depth as in `is_unshared`: each call holds the Python object once more."""
    return _counts(gradient)
