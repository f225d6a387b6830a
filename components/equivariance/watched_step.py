"""What was seen of a network in one step, and the penalty it makes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .layer_terms import ChannelCall
from .layers import Term
from .observation import Comparing, Observation, settle
from .options import NonFiniteFeaturesError
from .pairing import PairedBatch, first_entry
from .taps import Backward, weighted_sum


@dataclass
class Seen:
    """A call of a layer: an observation with its anchor, or a term with a graph of its own.

    Attributes:
        name: of the layer.
        index: of the call among the layer's calls.
        term: what it is compared by; None as long as this is not known.
        shape: of the layer's output.
        channel_call: what the channel penalty of a first forward will be computed from.
        is_repeated: whether it ran without gradients, so that activation checkpointing may run it again in backward.
        is_checkpointed: whether torch's reentrant checkpointing ran it, so that it must.
    """

    name: str
    index: int
    term: Term | None
    shape: tuple[int, ...]
    observation: Observation | None = None
    anchor: Tensor | None = None
    value: Tensor | None = None
    channel_call: ChannelCall | None = None
    is_repeated: bool = False
    is_checkpointed: bool = False


@dataclass(frozen=True)
class Collected:
    """A step's penalty, differentiable, and the value of each layer, detached."""

    total: Tensor
    values: dict[str, Tensor]


@dataclass
class Step:
    """What has been seen of one batch.

    Attributes:
        probabilities: how probably each layer is taken in this step.
        taken: the layers taken.
        executed: the layers called, one entry a call.
        comparable: the layers that could be compared by some term, taken or not.
        obstacles: why layers could not be compared.
    """

    batch: PairedBatch
    comparing: Comparing
    backward: Backward
    probabilities: dict[str, float]
    taken: frozenset[str]
    executed: list[str] = field(default_factory=list)
    comparable: set[str] = field(default_factory=set)
    seen: list[Seen] = field(default_factory=list)
    obstacles: dict[str, str] = field(default_factory=dict)
    _num_calls: dict[str, int] = field(default_factory=dict)

    def enter(self, name: str) -> int:
        """A layer is called: the index of the call among the layer's."""
        index = self._num_calls.get(name, 0)
        self._num_calls[name] = index + 1
        self.executed.append(name)
        return index

    def collected(self, weights: Mapping[str, float], on_backward: Callable[[Sequence[Seen]], None]) -> Collected:
        """``sum_l w_l L_l``, and the L_l of the layers taken: the sum of a layer's terms, each the mean of its calls.

        Args:
            on_backward: told at the beginning of each backward pass of the calls that were observed.

        Raises:
            NonFiniteFeaturesError: one is not finite; names the first.
        """
        counted = [seen for seen in self.seen if seen.name in weights and seen.term is not None]
        observed = [(seen, seen.observation) for seen in counted if seen.observation is not None]
        settled = settle([observation for _, observation in observed]) if observed else torch.empty(0, 1)
        found = iter(settled[:, 0].unbind())
        values = [next(found) if seen.observation is not None else _there(seen.value) for seen in counted]
        num_calls = Counter((seen.name, seen.term) for seen in counted)
        factors = [
            weights[seen.name] / self.probabilities.get(seen.name, 1.0) / num_calls[seen.name, seen.term]
            for seen in counted
        ]
        parts = [f * seen.value for f, seen in zip(factors, counted, strict=True) if seen.value is not None]
        if observed:
            weighted = [f for f, seen in zip(factors, counted, strict=True) if seen.observation is not None]
            parts.append(self._observed_part(observed, settled, weighted, on_backward))
        total = parts[0] if parts else self._nothing()
        if len(parts) > 1:
            total = torch.stack([part.to(total.dtype) for part in parts]).sum()
        by_name: dict[str, Tensor] = {}
        for seen, value in zip(counted, values, strict=True):
            calls = num_calls[seen.name, seen.term]
            part = value.detach() / calls if calls > 1 else value.detach()
            by_name[seen.name] = by_name[seen.name] + part if seen.name in by_name else part
        _check_finite(total, by_name)
        return Collected(total, by_name)

    def _observed_part(
        self,
        observed: Sequence[tuple[Seen, Observation]],
        settled: Tensor,
        factors: Sequence[float],
        on_backward: Callable[[Sequence[Seen]], None],
    ) -> Tensor:
        """What the taps make of the penalty."""
        calls, observations = [seen for seen, _ in observed], [observation for _, observation in observed]
        anchors = [seen.anchor for seen in calls]
        for seen, observation in observed:
            seen.anchor = None  # the graph holds it: held here too, it would keep the graph alive in a circle
            observation.probability = self.probabilities.get(seen.name, 1.0)
        backward = self.backward

        def begin(upstreams: Tensor) -> None:
            backward.begin(observations, settled, upstreams)
            on_backward(calls)

        return weighted_sum(settled[:, 0], factors, anchors, begin)

    def _nothing(self) -> Tensor:
        """The penalty where none of the layers taken could be compared at this image size."""
        return torch.zeros((), device=first_entry(self.batch.inputs).device, requires_grad=True)


def _there(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def _check_finite(total: Tensor, values: Mapping[str, Tensor]) -> None:
    """Raise if a penalty is not finite, for the first layer whose value is not.

    Raises:
        NonFiniteFeaturesError: there is one; names it.
    """
    if math.isfinite(total.item()):
        return
    for name, value in values.items():
        if not torch.isfinite(value):
            raise NonFiniteFeaturesError(
                f"{name}: its features are NaN or infinite, the first of the penalised layers: lower the learning "
                "rate or the penalty's weight, or look at the images of this batch"
            )
