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

    def values(self, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """L_l of the layers taken: the sum of a layer's terms, each the mean of its calls."""
        settle([seen.observation for seen in self.seen if seen.observation is not None])
        calls: dict[str, dict[Term, list[Tensor]]] = {}
        for seen in self.seen:
            if seen.name in weights and seen.term is not None:
                value = seen.observation.value if seen.observation is not None else seen.value
                assert value is not None
                calls.setdefault(seen.name, {}).setdefault(seen.term, []).append(value)
        return {
            name: torch.stack([_mean(values) for values in terms.values()]).sum()
            if len(terms) > 1
            else _mean(*terms.values())
            for name, terms in calls.items()
        }

    def total(self, weights: Mapping[str, float], on_backward: Callable[[Sequence[Seen]], None]) -> Tensor:
        """``sum_l w_l L_l``, differentiable.

        Args:
            on_backward: told at the beginning of each backward pass of the calls that were observed.
        """
        num_calls = Counter((seen.name, seen.term) for seen in self.seen)
        parts: list[Tensor] = []
        observed: list[Seen] = []
        observations: list[Observation] = []
        factors: list[float] = []
        for seen in self.seen:
            if seen.name not in weights:
                continue
            probability = self.probabilities.get(seen.name, 1.0)
            weight = weights[seen.name] / probability / num_calls[seen.name, seen.term]
            if seen.observation is not None:
                seen.observation.probability = probability
                observed.append(seen)
                observations.append(seen.observation)
                factors.append(weight)
            elif seen.value is not None:
                parts.append(weight * seen.value)
        if observed:
            anchors = [seen.anchor for seen in observed]
            for seen in observed:
                seen.anchor = None  # the graph holds it: held here too, it would keep the graph alive in a circle
            backward = self.backward

            def begin(upstreams: Tensor) -> None:
                backward.begin(observations, upstreams)
                on_backward(observed)

            parts.append(weighted_sum(observations, factors, anchors, begin))
        if not parts:  # none of the layers taken could be compared at this image size
            return torch.zeros((), device=first_entry(self.batch.inputs).device, requires_grad=True)
        return torch.stack([part.to(parts[0].dtype) for part in parts]).sum() if len(parts) > 1 else parts[0]


@dataclass(frozen=True)
class Collected:
    """A step's penalty, differentiable, and the value of each layer, detached."""

    total: Tensor
    values: dict[str, Tensor]


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean() if len(values) > 1 else values[0]


def check_finite(total: Tensor, values: Mapping[str, Tensor]) -> None:
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
