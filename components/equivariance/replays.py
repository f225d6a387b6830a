"""Calls that ran without gradients and are run again in backward, as reentrant activation checkpointing does."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.utils.checkpoint import CheckpointFunction
from torch.utils.hooks import RemovableHandle

from .observation import Observation
from .taps import Backward, tap

NO_PASS = -1
"""What torch numbers the time outside of backward passes with."""


def is_in_backward() -> bool:
    """Whether this is run by a backward pass."""
    return torch._C._current_graph_task_id() != NO_PASS


def is_in_reentrant_checkpoint() -> bool:
    """Whether this is run by ``torch.utils.checkpoint.checkpoint(..., use_reentrant=True)``."""
    code = CheckpointFunction.forward.__code__
    frame = sys._getframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None


@dataclass(frozen=True)
class Replay:
    """A call to be found again, and its observation."""

    name: str
    observation: Observation
    backward: Backward


class Replays:
    """The calls that the backward pass at hand is to run again. Layers are hooked during such a pass alone.

    Args:
        register: hooks the layers, if they are not.
    """

    def __init__(self, register: Callable[[], list[RemovableHandle]]) -> None:
        self._register = register
        self._handles: list[RemovableHandle] = []
        self._waiting: dict[str, list[Replay]] = {}
        self._pass = NO_PASS
        self._num_found = 0
        self._reaches_others = False
        self._checkpointed: list[str] = []

    def expect(self, replays: Sequence[Replay], checkpointed: Sequence[str], reaches_others: bool) -> None:
        """Wait for these calls until the backward pass that this is called in ends.

        Args:
            checkpointed: the layers among them that certainly ran under reentrant checkpointing.
            reaches_others: whether the penalty has a gradient without them.
        """
        if self._pass != torch._C._current_graph_task_id():
            self.clear()  # an error ended the pass before
            self._pass, self._num_found = torch._C._current_graph_task_id(), 0
            self._handles = self._register()
            Variable._execution_engine.queue_callback(self._end)
        for replay in replays:
            self._waiting.setdefault(replay.name, []).append(replay)
        self._checkpointed += checkpointed
        self._reaches_others = self._reaches_others or reaches_others

    def found(self, name: str, output: Tensor) -> Tensor | None:
        """Ties the observation of a call to the same call run again; gives the output to go on with, if one waits."""
        waiting = self._waiting.get(name)
        if not waiting or not output.requires_grad:
            return None
        position = 0
        if len(waiting) > 1:  # parts run again last first, but the calls of one part first first: known by its value
            distances = [
                abs(_value_again(each.observation, output) - float(each.observation.value)) for each in waiting
            ]
            position = distances.index(min(distances))
        replay = waiting.pop(position)
        self._num_found += 1
        return tap(output, replay.observation, replay.backward, is_counted=True)[0]

    def clear(self) -> None:
        """Wait no longer, and leave no hooks."""
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


def _value_again(observation: Observation, output: Tensor) -> float:
    """The value of an observation, computed from another output of the same layer."""
    images = len(output) * 2 * observation.comparing.num_pairs // observation.num_entries
    other = Observation(observation.comparing, observation.position, images, output)
    other.compare(observation._layout, observation._field)
    return float(other.value)
