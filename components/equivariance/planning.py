"""What is compared at which layer: before a first forward what may be, afterwards what is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from .groups import ChannelGroup, Field, Group
from .layers import Comparison, LayerFacts, LayerPlan, Term, plan_layers
from .layouts import Layout, layout_of
from .pairing import PairedBatch, entries_of
from .penalties import Size
from .sampling import inclusion_probabilities
from .tracing import Call, Layer, Trace


@dataclass(frozen=True)
class WatchOptions:
    """What the watcher compares and how: see `EquivarianceRegularizer`."""

    comparisons: tuple[Comparison, ...]
    group: Group
    size: Size
    scale_gradient: bool
    channel_group: ChannelGroup
    max_gradient_ratio: float | None
    measures_gradients: bool
    num_sampled: float | None
    field_share: float | None


class LayerPlanning:
    """The terms, the layout and the chance of every layer.

    Only a forward shows which layer is the last before the image and what becomes of each output (`learn`). Until then
    the first layer registered is taken to read the image and the last one to write it.

    Args:
        modules: all convolutions and linear layers by name, in order of registration.
        requested: the layers to compare, each with its field or None for the automatic one.
        layouts: the declared layouts by layer name.
        layer_weights: the layers penalised in order of execution -> their weights.
        options: what to compare and how.
    """

    def __init__(
        self,
        modules: Mapping[str, Layer],
        requested: Mapping[str, Field | None],
        layouts: Mapping[str, Layout],
        layer_weights: Callable[[list[str]], dict[str, float]],
        options: WatchOptions,
    ) -> None:
        self.requested = requested
        self.layer_weights = lru_cache(maxsize=16)(lambda names: layer_weights(list(names)))  # which stay as they are
        self.options = options
        self.is_settled = False
        self._probabilities: tuple[set[str], dict[str, float]] | None = None  # with the obstacles that they follow from
        self._layouts = layouts
        self._order: list[str] = []
        self._shifts: dict[str, list[tuple[int, int]]] = {}
        # where every field declared is trivial, those between the layers are too
        is_trivial = bool(requested) and all(field == "trivial" for field in requested.values())
        self.facts = {n: replace(LayerFacts.of(module), has_trivial_input=is_trivial) for n, module in modules.items()}
        names = list(modules)
        if names:
            self.facts[names[0]] = replace(self.facts[names[0]], reads_image=True)
            self.facts[names[-1]] = replace(self.facts[names[-1]], writes_image=True)
        self.plan = self._planned(self.facts, requested)

    @property
    def candidates(self) -> list[str]:
        """The layers that can be penalised, in whatever order they will be executed."""
        return [name for name in self.requested if self._candidate_terms(name)]

    def terms(self, name: str) -> tuple[Term, ...]:
        """What a layer is compared by; before the first forward, whatever may turn out to be."""
        if self.is_settled:
            return self.plan.terms.get(name, ())
        return self._candidate_terms(name) if name in self.requested else ()

    def probabilities(self, obstacles: Collection[str]) -> dict[str, float]:
        """How probably each layer is taken in a step; before the first forward all are looked at.

        Args:
            obstacles: the layers that could not be compared in the latest step.
        """
        if self._probabilities is None or self._probabilities[0] != set(obstacles):
            self._probabilities = set(obstacles), self._probabilities_anew(obstacles)
        return self._probabilities[1]

    def _probabilities_anew(self, obstacles: Collection[str]) -> dict[str, float]:
        if not self.is_settled:
            return {name: 1.0 for name in self.requested if self._candidate_terms(name)}
        names = [name for name in self._order if name in self.plan.terms and name not in obstacles]
        names = names or [name for name in self._order if name in self.plan.terms]
        weights = self.layer_weights(tuple(names)) if names else {}
        number = self.options.num_sampled
        if number is None:
            number = float("inf")
        elif number < 1:
            number = max(1.0, number * sum(weight > 0 for weight in weights.values()))
        # Layers that the last step's image size kept out may come back: they are always looked at.
        return dict.fromkeys(self.requested, 1.0) | inclusion_probabilities(weights, number)

    def learn(self, executed: Sequence[str], trace: Trace | None) -> None:
        """Take from the first forward what is last, what reads the image, and what becomes of each output."""
        calls: dict[str, list[Call]] = {}
        for call in trace.calls if trace else ():
            calls.setdefault(call.name, []).append(call)
        for name, facts in self.facts.items():
            if name in calls:
                self.facts[name] = replace(facts.seen_in(calls[name][-1]), writes_image=name == executed[-1])
                self._shifts[name] = [call.shift for call in calls[name]]
            else:
                self.facts[name] = replace(facts, reads_image=name == executed[0], writes_image=name == executed[-1])
        self._order = list(dict.fromkeys(executed))
        self._probabilities = None
        self.is_settled = True
        self.plan = self._planned(self.facts, self.requested)

    def layout(self, name: str, index: int, shape: Sequence[int], batch: PairedBatch) -> Layout:
        """How the output of a layer's call of this index is laid out.

        Raises:
            ValueError: it has no place for each entry; says why.
        """
        facts = self.facts[name]
        shifts = self._shifts.get(name) or [(0, 0)]
        shift = shifts[min(index, len(shifts) - 1)]
        sizes = [(entry.shape[-2], entry.shape[-1]) for entry in entries_of(batch.inputs) if entry.ndim == 4]
        declared, is_linear, size = self._layouts.get(name), facts.window is None, sizes[0] if sizes else None
        return layout_of(shape, batch.num_images, declared, is_linear, shift, facts.factor, size)

    def _planned(self, facts: Mapping[str, LayerFacts], requested: Mapping[str, Field | None]) -> LayerPlan:
        options = self.options
        return plan_layers(facts, requested, options.comparisons, options.channel_group, options.group)

    def _candidate_terms(self, name: str) -> tuple[Term, ...]:
        """What a layer may be compared by, as a hidden layer or as the last one."""
        found: list[Term] = []
        for is_last in (False, True):
            facts = {name: replace(self.facts[name], reads_image=False, writes_image=is_last)}
            found += self._planned(facts, {name: self.requested[name]}).terms.get(name, ())
        return tuple(dict.fromkeys(found))
