"""What the recorder notes of a network in one step: the terms of the penalty, each with the call that it is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..layers.plan import RecorderOptions
from ..layers.sampling import sample_layers
from ..layers.spec import Term
from ..pairing import PairedBatch
from .comparison import ComparisonRule, LayerComparison
from .injection import Backward
from .layer_terms import ChannelCall
from .recompute import ExpectedCalls


@dataclass(eq=False)
class TermRecord:
    """A term of the penalty, from one call of a layer: a comparison of its output, or a value with its own graph.

    Attributes:
        name: of the layer.
        index: of the call among the layer's calls.
        term: what the call is compared by; None while this is not known.
        shape: of the layer's output.
        comparison: of the layer's output, for a term whose gradient is injected there.
        anchor: connects the penalty to the gradient injection at this call.
        channel_call: the call from which the channel penalty of a first forward will be computed.
        value: the size of the residual: detached with a comparison, else differentiable; None until it is computed.
        factor: of the value in the penalty.
        ran_without_gradient: whether activation checkpointing may recompute the call in the backward pass.
        ran_in_checkpoint: whether torch's reentrant checkpointing ran the call, so it must be recomputed.
    """

    name: str
    index: int
    term: Term | None
    shape: tuple[int, ...]
    comparison: LayerComparison | None = None
    anchor: Tensor | None = None
    channel_call: ChannelCall | None = None
    value: Tensor | None = None
    factor: float = 0.0
    ran_without_gradient: bool = False
    ran_in_checkpoint: bool = False


@dataclass(eq=False)
class StepRecord:
    """What was recorded of one batch.

    Attributes:
        batch: the paired batch.
        rule: how the maps of the pairs are compared.
        backward: the state that the gradient injections share.
        expected_calls: receives the calls that a backward pass will recompute.
        probabilities: the probability of each layer to be sampled in this step.
        sampled: the sampled layers.
        executed: the layers that were called, one entry for each call.
        comparable: the layers that could be compared by some term, whether sampled or not.
        terms: the recorded terms.
        incompatibilities: why layers could not be compared.
    """

    batch: PairedBatch
    rule: ComparisonRule
    backward: Backward
    expected_calls: ExpectedCalls
    probabilities: Mapping[str, float] = field(default_factory=dict)
    sampled: frozenset[str] = frozenset()
    executed: list[str] = field(default_factory=list)
    comparable: set[str] = field(default_factory=set)
    terms: list[TermRecord] = field(default_factory=list)
    incompatibilities: dict[str, str] = field(default_factory=dict)
    _num_calls: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        batch: PairedBatch,
        options: RecorderOptions,
        *,
        probabilities: Mapping[str, float],
        measures_gradients: bool,
        expected_calls: ExpectedCalls,
    ) -> StepRecord:
        """The record of a batch, before the network has run.

        Args:
            batch: the paired batch.
            options: what to compare, and how.
            probabilities: with which the layers are sampled.
            measures_gradients: whether the backward pass of this step sums up `GradientNorms`.
            expected_calls: receives the calls that a backward pass will recompute.
        """
        rule = ComparisonRule(
            group=options.group,
            element=batch.element,
            num_pairs=batch.num_pairs,
            size=options.size,
            measure=options.measure,
            scale_gradient=options.scale_gradient,
            field_share=options.field_share,
        )
        backward = Backward(options.max_gradient_ratio, measures=measures_gradients)
        step = cls(batch, rule, backward, expected_calls)
        step.sample(probabilities)
        return step

    def sample(self, probabilities: Mapping[str, float]) -> None:
        """Sample the layers of this step with these probabilities."""
        self.probabilities, self.sampled = probabilities, frozenset(sample_layers(probabilities, self.batch.position))

    def enter(self, name: str) -> int:
        """Record that a layer is called; return the index of the call among the layer's calls."""
        index = self._num_calls.get(name, 0)
        self._num_calls[name] = index + 1
        self.executed.append(name)
        return index
