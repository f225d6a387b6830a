"""Penalty gradients for layers under reentrant activation checkpointing.

The first forward of such a layer has no graph, so no gradient can be injected there. The backward pass runs the layer
again; the penalty's gradient is injected into that run.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction
from torch.utils.hooks import RemovableHandle

from ..compat import NO_PASS, at_end_of_backward, backward_pass
from .comparison import LayerComparison
from .injection import Backward, inject


def is_in_backward() -> bool:
    """Whether a backward pass is running."""
    return backward_pass() != NO_PASS


def is_in_reentrant_checkpoint() -> bool:
    """Whether ``torch.utils.checkpoint.checkpoint(..., use_reentrant=True)`` runs the current code."""
    code = CheckpointFunction.forward.__code__
    frame = sys._getframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None


@dataclass(frozen=True)
class ExpectedCall:
    """A call that will be recomputed.

    Attributes:
        name: of the layer.
        comparison: of the call.
        backward: the state that the gradient injections of the step share.
        is_certain: whether the call certainly ran under reentrant checkpointing.
    """

    name: str
    comparison: LayerComparison
    backward: Backward
    is_certain: bool


class ExpectedCalls:
    """The calls that the current backward pass will recompute. Layers have hooks only during such a pass.

    Args:
        register: adds hooks to the layers that have none, and returns the handles.
    """

    def __init__(self, register: Callable[[], list[RemovableHandle]]) -> None:
        self._register = register
        self._handles: list[RemovableHandle] = []
        self._waiting: dict[str, list[ExpectedCall]] = {}
        self._pass = NO_PASS
        self._num_found = 0
        self._reaches_others = False
        self._checkpointed: list[str] = []

    def expect(self, calls: Sequence[ExpectedCall], reaches_others: bool) -> None:
        """Expect these calls until the current backward pass ends.

        Args:
            calls: the calls that may be recomputed.
            reaches_others: whether the penalty has a gradient without these calls.
        """
        if self._pass != backward_pass():
            self.clear()  # an error ended the previous pass
            self._pass, self._num_found = backward_pass(), 0
            self._handles = self._register()
            at_end_of_backward(self._end)
        for call in calls:
            self._waiting.setdefault(call.name, []).append(call)
        self._checkpointed += [call.name for call in calls if call.is_certain]
        self._reaches_others = self._reaches_others or reaches_others

    def found(self, name: str, output: Tensor) -> Tensor | None:
        """Inject the comparison of an expected call into its recomputation; return the output, or None if none fits."""
        waiting = self._waiting.get(name)
        if not waiting or not output.requires_grad:
            return None
        position = 0
        # Checkpointed parts are recomputed in reverse order, but the calls inside a part run in forward order. So the
        # value of a call tells which of the expected calls it is.
        if len(waiting) > 1:
            distances = [
                abs(_recomputed_value(each.comparison, output) - float(each.comparison.value)) for each in waiting
            ]
            position = distances.index(min(distances))
        call = waiting.pop(position)
        self._num_found += 1
        return inject(output, call.comparison, call.backward, is_counted=True)[0]

    def clear(self) -> None:
        """Stop expecting calls, and remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._waiting, self._checkpointed = [], {}, []
        self._pass, self._reaches_others = NO_PASS, False

    def _end(self) -> None:
        lost = [name for name in dict.fromkeys(self._checkpointed) if self._waiting.get(name)]
        reached_none = not (self._num_found or self._reaches_others)
        self.clear()
        if lost:
            message = (
                f"penalty: {', '.join(lost)} ran under reentrant activation checkpointing and this backward pass did "
                "not run them again, so the penalty has no gradient there: take task loss and penalty in one backward "
                "pass, let the input of each checkpointed part require a gradient, or use "
                "checkpoint(..., use_reentrant=False)"
            )
            if reached_none:
                raise RuntimeError(message)
            warnings.warn(message, stacklevel=2)


def _recomputed_value(comparison: LayerComparison, output: Tensor) -> float:
    """The value of a comparison, computed from another output of the same layer."""
    images = len(output) * 2 * comparison.rule.num_pairs // comparison.num_entries
    other = LayerComparison(comparison.rule, comparison.position, images, output)
    other.compare(comparison._layout, comparison._field)
    return float(other.value)
