"""What is compared at which layer: the possible terms before the first forward, and the actual terms after it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from ..groups import ChannelGroup, FieldType, Group
from ..pairing import PairedBatch, entries_of
from ..penalties import Measure, Size
from .layouts import Layout, Patches, layout_of
from .sampling import inclusion_probabilities
from .spec import Comparison, LayerPlan, LayerSpec, Term, plan_layers
from .tracing import Call, Layer, Trace


@dataclass(frozen=True, kw_only=True)
class RecorderOptions:
    """What the recorder compares, and how; see `EquivarianceRegularizer`."""

    comparisons: tuple[Comparison, ...]
    group: Group
    size: Size
    measure: Measure | None
    scale_gradient: bool
    channel_group: ChannelGroup
    max_gradient_ratio: float | None
    num_sampled: float | None
    field_share: float | None


class LayerPlanning:
    """The terms, the layout and the sampling probability of every layer.

    Only a forward shows which layer is the last one before the image, and what happens to each output (`learn`). Until
    then, the first registered layer is assumed to read the image, and the last one to write it.

    Args:
        modules: all convolutions and linear layers by name, in order of registration.
        requested: the layers to compare, each with its field or None for the automatic one.
        layouts: the declared layouts by layer name.
        layer_weights: a function from the penalised layers, in order of execution, to their weights.
        options: what to compare, and how.
    """

    def __init__(
        self,
        modules: Mapping[str, Layer],
        *,
        requested: Mapping[str, FieldType | None],
        layouts: Mapping[str, Layout],
        layer_weights: Callable[[list[str]], dict[str, float]],
        options: RecorderOptions,
    ) -> None:
        self.requested = requested
        self.layer_weights = lru_cache(maxsize=16)(lambda names: layer_weights(list(names)))  # the same in every step
        self.options = options
        self.has_learned = False
        self._probabilities: tuple[set[str], dict[str, float]] | None = None  # with the layers that were incompatible
        self._layouts = layouts
        self._order: list[str] = []
        self._calls: dict[str, list[Call]] = {}
        # If every declared field is trivial, the fields between the layers are trivial, too.
        is_trivial = bool(requested) and all(field == "trivial" for field in requested.values())
        self.spec = {n: replace(LayerSpec.of(module), has_trivial_input=is_trivial) for n, module in modules.items()}
        names = list(modules)
        if names:
            self.spec[names[0]] = replace(self.spec[names[0]], reads_image=True)
            self.spec[names[-1]] = replace(self.spec[names[-1]], writes_image=True)
        self.plan = self._planned(self.spec, requested)

    @property
    def candidates(self) -> list[str]:
        """The layers that can be penalised; not necessarily in order of execution."""
        return [name for name in self.requested if self._candidate_terms(name)]

    def terms(self, name: str) -> tuple[Term, ...]:
        """The terms of a layer's penalty; before the first forward, all terms that are possible."""
        if self.has_learned:
            return self.plan.terms.get(name, ())
        return self._candidate_terms(name) if name in self.requested else ()

    def probabilities(self, incompatibilities: Collection[str]) -> dict[str, float]:
        """The probability that each layer is taken in a step; before the first forward, 1 for all candidates.

        Args:
            incompatibilities: the layers that could not be compared in the latest step.
        """
        if self._probabilities is None or self._probabilities[0] != set(incompatibilities):
            self._probabilities = set(incompatibilities), self._probabilities_anew(incompatibilities)
        return self._probabilities[1]

    def _probabilities_anew(self, incompatibilities: Collection[str]) -> dict[str, float]:
        if not self.has_learned:
            return {name: 1.0 for name in self.requested if self._candidate_terms(name)}
        names = [name for name in self._order if name in self.plan.terms and name not in incompatibilities]
        names = names or [name for name in self._order if name in self.plan.terms]
        weights = self.layer_weights(tuple(names)) if names else {}
        number = self.options.num_sampled
        if number is None:
            number = float("inf")
        elif number < 1:
            number = max(1.0, number * sum(weight > 0 for weight in weights.values()))
        # A layer that did not fit the last step's image size may fit the next one, so it is always recorded.
        return dict.fromkeys(self.requested, 1.0) | inclusion_probabilities(weights, number)

    def learn(self, executed: Sequence[str], trace: Trace | None) -> None:
        """Learn from the first forward which layer is last, which read the image, and what follows each output.

        Args:
            executed: the layers in order of execution, one entry for each call.
            trace: of the first forward, or None.
        """
        calls: dict[str, list[Call]] = {}
        for call in trace.calls if trace else ():
            calls.setdefault(call.name, []).append(call)
        for name, spec in self.spec.items():
            if name in calls:
                self.spec[name] = replace(spec.seen_in(*calls[name]), writes_image=name == executed[-1])
            else:
                self.spec[name] = replace(spec, reads_image=name == executed[0], writes_image=name == executed[-1])
        self._calls |= calls
        self._order = list(dict.fromkeys(executed))
        self._probabilities = None
        self.has_learned = True
        self.plan = self._planned(self.spec, self.requested)

    def layout(
        self, name: str, index: int, shape: Sequence[int], batch: PairedBatch, patches: tuple[int, int] | None = None
    ) -> Layout:
        """The layout of a layer's output in one of its calls.

        Args:
            name: of the layer.
            index: of the call among the layer's calls.
            shape: of the output.
            batch: the paired batch.
            patches: into which the images are cut; None for those of the first forward.

        Raises:
            ValueError: the output has no layout with a position for each entry; the message says why.
        """
        spec = self.spec[name]
        calls = self._calls.get(name)
        call = calls[min(index, len(calls) - 1)] if calls else None
        shift = call.shift if call else (0, 0)
        patches = patches or (call.patches if call else (1, 1))
        sizes = [(entry.shape[-2], entry.shape[-1]) for entry in entries_of(batch.inputs) if entry.ndim == 4]
        declared, is_linear, size = self._layouts.get(name), spec.window is None, sizes[0] if sizes else None
        return layout_of(shape, batch.num_images, declared, is_linear, shift, spec.factor, size, patches)

    def oblong_maps(self, layout: Layout, shape: Sequence[int], batch: PairedBatch) -> str | None:
        """Why the maps of a convolution on square images have no counterparts on turned images, or None.

        Args:
            layout: of its output.
            shape: of its output.
            batch: the paired batch.
        """
        rows, columns = (layout.rows, layout.columns) if isinstance(layout, Patches) else (1, 1)
        height, width = rows * shape[-2], columns * shape[-1]
        are_square = all(entry.shape[-2] == entry.shape[-1] for entry in entries_of(batch.inputs) if entry.ndim == 4)
        if height == width or not are_square or not self.options.group.needs_squares:
            return None
        return f"its maps of square images are {height}x{width}: a quarter turn would make them {width}x{height}"

    def _planned(self, spec: Mapping[str, LayerSpec], requested: Mapping[str, FieldType | None]) -> LayerPlan:
        options = self.options
        return plan_layers(spec, requested, options.comparisons, options.channel_group, options.group)

    def _candidate_terms(self, name: str) -> tuple[Term, ...]:
        """The terms that are possible for a layer, as a hidden layer or as the last one."""
        found: list[Term] = []
        for is_last in (False, True):
            spec = {name: replace(self.spec[name], reads_image=False, writes_image=is_last)}
            found += self._planned(spec, {name: self.requested[name]}).terms.get(name, ())
        return tuple(dict.fromkeys(found))
