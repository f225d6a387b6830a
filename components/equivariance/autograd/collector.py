"""From the records of a step to its penalty: the comparisons of a first forward, the weights, and the sum."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers.layouts import Layout
from ..layers.plan import LayerPlanning
from ..layers.spec import field_term
from ..layers.tracing import Layer
from ..options import NonFiniteFeaturesError
from ..pairing import first_entry
from .comparison import compute_values
from .injection import Backward, weighted_sum
from .layer_terms import kernel_value
from .recompute import ExpectedCall
from .records import StepRecord, TermRecord


@dataclass(frozen=True)
class Collected:
    """The result of a step.

    Attributes:
        total: the penalty, differentiable.
        values: the value of each layer, detached.
    """

    total: Tensor
    values: dict[str, Tensor]


class PenaltyCollector:
    """Computes the penalty of a step from what the recorder noted while the network ran.

    Args:
        modules: all convolutions and linear layers of the network by name, in order of registration.
        planning: what is compared at which layer.

    Attributes:
        backward: the state of the latest collected step, with the gradient norms of its backward pass; None before.
        incompatibilities: why layers could not be compared in the latest step.
    """

    def __init__(self, modules: Mapping[str, Layer], planning: LayerPlanning) -> None:
        self._modules = modules
        self._planning = planning
        self._unexecuted: list[str] = []
        self.incompatibilities: dict[str, str] = {}
        self.backward: Backward | None = None

    @property
    def skipped(self) -> dict[str, str]:
        """Why layers are not penalised: because of their properties, or of what the latest forward showed."""
        reasons = {name: [reason] for name, reason in self._planning.plan.skipped.items()}
        for name, incompatibility in self.incompatibilities.items():
            reasons.setdefault(name, []).append(incompatibility)
        for name in self._unexecuted:
            reasons.setdefault(name, []).append(
                "its module was not called in the latest forward (functions may use its weights all the same, as in "
                "nn.MultiheadAttention)"
            )
        return {name: "; ".join(several) for name, several in reasons.items()}

    def collect(self, step: StepRecord) -> Collected:
        """``sum_l w_l L_l``, and each L_l of the sampled layers in order of execution.

        L_l is the sum of the layer's terms. A term of a layer that was called several times is the mean over the calls,
        so every call counts and the weight keeps its meaning.

        Raises:
            ValueError: no layer could be compared. `NonFiniteFeaturesError`: a value is not finite; the message names
                the first such layer.
        """
        terms = [record for record in step.terms if self._complete(step, record)]
        self.incompatibilities = step.incompatibilities
        self._unexecuted = [name for name in self._planning.plan.terms if name not in step.executed]
        weights = self._weights(step)
        terms = [record for record in terms if record.name in weights]
        num_calls = Counter((record.name, record.term) for record in terms)
        for record in terms:
            probability = step.probabilities.get(record.name, 1.0)
            record.factor = weights[record.name] / probability / num_calls[record.name, record.term]
        parts = [record.factor * record.value for record in terms if record.value is not None]
        if compared := [record for record in terms if record.comparison is not None]:
            parts.append(_injected_sum(step, compared))
        total = parts[0] if parts else _nothing(step)
        if len(parts) > 1:
            total = torch.stack([part.to(total.dtype) for part in parts]).sum()
        values: dict[str, Tensor] = {}
        for record in terms:
            assert record.value is not None
            calls, value = num_calls[record.name, record.term], record.value.detach()
            value = value / calls if calls > 1 else value
            values[record.name] = values[record.name] + value if record.name in values else value
        _check_finite(total, values)
        self.backward = step.backward
        return Collected(total, values)

    def _complete(self, step: StepRecord, record: TermRecord) -> bool:
        """Compare what a first forward has kept; return whether the term counts, or the forward has ruled it out."""
        terms = self._planning.plan.terms.get(record.name, ()) if record.name in step.sampled else ()
        if record.term is None and record.comparison is not None:
            term = field_term(terms)
            layout = self._layout(step, record) if term else None
            if term is None or layout is None:
                record.comparison.drop()
                if term and not set(terms) & {"channel", "projection"}:
                    step.comparable.discard(record.name)
                return False
            record.term = term
            record.comparison.compare(layout, term)
        elif record.term not in terms:
            return False
        elif record.channel_call is not None:
            layout = self._layout(step, record)
            if layout is None:
                return False
            record.value = record.channel_call.value(layout, self._planning.options)
            record.channel_call = None
        elif record.term == "projection":
            spec = self._planning.spec[record.name]
            field = self._planning.requested[record.name] or spec.field
            record.value = kernel_value(self._modules[record.name], spec, field, self._planning.options)
        return True

    def _layout(self, step: StepRecord, record: TermRecord) -> Layout | None:
        """The layout of a call's output, as the first forward has shown it."""
        try:
            return self._planning.layout(record.name, record.index, record.shape, step.batch)
        except ValueError as error:
            step.incompatibilities[record.name] = str(error)
            return None

    def _weights(self, step: StepRecord) -> dict[str, float]:
        """The weight w_l of every layer that could be compared in this step, whether sampled or not.

        Raises:
            ValueError: there is no such layer.
        """
        possible = step.comparable & set(self._planning.plan.terms)
        names = [name for name in dict.fromkeys(step.executed) if name in possible]
        if not names:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.skipped.items())
            raise ValueError(
                f"layers: none could be penalised ({reasons or 'none of those asked for was executed'}); the network "
                "must be given batch.inputs as pair() made it, whole and in its order"
            )
        return self._planning.layer_weights(tuple(names))


def _injected_sum(step: StepRecord, compared: Sequence[TermRecord]) -> Tensor:
    """The sum of the terms whose gradients are injected at the layers' outputs; their values enter the records."""
    backward, expected_calls = step.backward, step.expected_calls  # without the batch, which the graph would keep
    comparisons, anchors, recomputed = [], [], []
    for record in compared:
        assert record.comparison is not None
        record.comparison.probability = step.probabilities.get(record.name, 1.0)
        comparisons.append(record.comparison)
        anchors.append(record.anchor)
        record.anchor = None  # the graph holds it; a reference here would make a cycle that keeps the graph alive
        if record.ran_without_gradient:
            recomputed.append(ExpectedCall(record.name, record.comparison, backward, record.ran_in_checkpoint))
    rows = compute_values(comparisons)
    for record, value in zip(compared, rows[:, 0].unbind(), strict=True):
        record.value = value
    reaches_others = len(recomputed) < len(compared)

    def begin(upstreams: Tensor) -> None:
        backward.begin(comparisons, rows, upstreams)
        if recomputed:
            expected_calls.expect(recomputed, reaches_others)

    return weighted_sum(rows[:, 0], [record.factor for record in compared], anchors, begin)


def _nothing(step: StepRecord) -> Tensor:
    """The penalty if none of the sampled layers could be compared at this image size: 0."""
    return torch.zeros((), device=first_entry(step.batch.inputs).device, requires_grad=True)


def _check_finite(total: Tensor, values: Mapping[str, Tensor]) -> None:
    """Raise an error for the first layer whose value is not finite, if the penalty is not finite.

    Raises:
        NonFiniteFeaturesError: there is such a layer. The message names it.
    """
    if math.isfinite(total.item()):
        return
    for name, value in values.items():
        if not torch.isfinite(value):
            raise NonFiniteFeaturesError(
                f"{name}: its features are NaN or infinite, the first of the penalised layers: lower the learning "
                "rate or the penalty's weight, or look at the images of this batch"
            )
