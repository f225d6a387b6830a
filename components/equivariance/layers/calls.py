"""A call of a layer, and the layouts in which its output can be compared."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..pairing import PairedBatch
from .layouts import Layout
from .plan import LayerPlanning
from .spec import Term

_MOST_SHAPES = 64  # the number of batch shapes whose layouts are cached


@dataclass(frozen=True, eq=False)
class LayerCall:
    """A call of a layer with the whole batch.

    Attributes:
        name: of the layer.
        index: of the call among the layer's calls.
        arguments: the positional arguments.
        keywords: the keyword arguments.
        output: ``(B, ...)``.
        patches: into which the images are cut, in a first forward, of which the planning knows nothing; else None.
    """

    name: str
    index: int
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Tensor
    patches: tuple[int, int] | None = None

    @property
    def hidden(self) -> Tensor:
        """The input of the layer."""
        hidden: Tensor = self.arguments[0] if self.arguments else self.keywords["input"]
        return hidden


@dataclass(frozen=True)
class OutputLayouts:
    """The layouts of a call's output.

    Attributes:
        by_term: the layout for each term that the call can be compared by.
        incompatibility: why it cannot be compared by the other terms, or None.
    """

    by_term: Mapping[Term, Layout]
    incompatibility: str | None = None


class CallLayouts:
    """The layouts of the outputs of all calls, cached by call and shapes for each shape of batches.

    Args:
        planning: tells the terms and the layout of each layer.
    """

    def __init__(self, planning: LayerPlanning) -> None:
        self._planning = planning
        self._by_shapes: dict[Hashable, dict[Hashable, OutputLayouts]] = {}
        self._current: dict[Hashable, OutputLayouts] = {}  # of the current batch's shapes

    def start(self, batch: PairedBatch) -> None:
        """Use the cache of a batch's shapes."""
        if len(self._by_shapes) >= _MOST_SHAPES:
            self._by_shapes.clear()
        self._current = self._by_shapes.setdefault(batch.shapes, {})

    def clear(self) -> None:
        """Drop all layouts, because the planning has changed."""
        self._by_shapes = {}

    def of(self, batch: PairedBatch, call: LayerCall) -> OutputLayouts:
        """The layouts of a call's output; there are none if no output of the layer is compared."""
        if not batch.num_pairs or not self._terms(call.name):
            return OutputLayouts({})  # layouts are needed only to compare the outputs of pairs
        key = (call.name, call.index, call.hidden.shape, call.output.shape)
        known = self._current.get(key)
        if known is None:
            known = self._current[key] = self._computed(batch, call)
        return known

    def _computed(self, batch: PairedBatch, call: LayerCall) -> OutputLayouts:
        terms = self._terms(call.name)
        try:
            layout = self._planning.layout(call.name, call.index, call.output.shape, batch, call.patches)
        except ValueError as error:
            return OutputLayouts({}, str(error))
        window, incompatibility = self._planning.spec[call.name].window, None
        if window and any(term != "channel" for term in terms):
            incompatibility = window.alignment_incompatibility(call.hidden.shape[-2:], call.output.shape[-2:])
            incompatibility = incompatibility or self._planning.oblong_maps(layout, call.output.shape, batch)
        by_term = {term: layout for term in terms if term == "channel" or not incompatibility}
        return OutputLayouts(by_term, incompatibility)

    def _terms(self, name: str) -> list[Term]:
        """The terms that compare a layer's outputs."""
        return [term for term in self._planning.terms(name) if term != "projection"]
