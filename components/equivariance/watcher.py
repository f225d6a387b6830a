"""Watching a network's layers during one step: from the paired batch to its penalty."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

from .groups import Field
from .layer_terms import ChannelCall, kernel_value
from .layers import Term
from .layouts import Layout
from .observation import Comparing, Observation
from .paired_input import check_paired
from .pairing import PairedBatch
from .planning import LayerPlanning, WatchOptions
from .replays import Replay, Replays, is_in_backward, is_in_reentrant_checkpoint
from .sampling import sample_layers
from .taps import Backward, tap
from .tracing import Layer, Trace, tracing
from .watch_hooks import FirstCall, Hook
from .watched_step import Collected, Seen, Step

__all__ = ["Collected", "LayerWatcher", "WatchOptions"]

_GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, are spread evenly
_MOST_SHAPES = 64  # of batches whose layouts are remembered


@dataclass(frozen=True)
class _Layouts:
    """How the output of a call is laid out for each term that it can be compared by, and why not for the others."""

    by_term: Mapping[Term, Layout]
    obstacle: str | None


class LayerWatcher:
    """Collects the penalty terms of a network's layers while it runs on a paired batch.

    Values live here and in the autograd graph; hooks are on the network's modules from `start` to `collect` alone, and
    for as long as a backward pass runs parts again. A copy of the network, made at any time, is whole and not watched.

    The first forward is traced (`tracing`), and not compiled: only afterwards is it known which layer is the last
    before the image, and what becomes of each output. Until then the maps of the pairs are kept, so a first step needs
    more memory.

    Args:
        network: watched only while it is in training mode and gradients are enabled.
        modules: all its convolutions and linear layers by name, in order of registration.
        requested: the layers to compare, each with its field or None for the automatic one.
        layouts: the declared layouts by layer name.
        layer_weights: the layers penalised in order of execution -> their weights.
        options: what to compare and how.
    """

    def __init__(
        self,
        network: nn.Module,
        modules: Mapping[str, Layer],
        requested: Mapping[str, Field | None],
        layouts: Mapping[str, Layout],
        layer_weights: Callable[[list[str]], dict[str, float]],
        options: WatchOptions,
    ) -> None:
        self._network = network
        self._modules = modules
        self._options = options
        self._planning = LayerPlanning(modules, requested, layouts, layer_weights, options)
        self._enter, self._leave, self._observe = self._enter_call, self._leave_call, self._observe_call
        self._is_shielded = False
        # The same objects in every step: what torch.compile took in of a first step stays true.
        self._layer_hooks = {name: Hook(module, self._observing(name)) for name, module in modules.items()}
        self._root_hooks = (Hook(network, self._entering), Hook(network, self._leaving))
        self._handles: list[RemovableHandle] = []
        self._first_call: FirstCall | None = None
        self._trace: Trace | None = None
        self._step: Step | None = None
        self._replays = Replays(lambda: [] if self._handles else self._hook_layers())
        self._depth = 0  # of the network's calls that began with gradients
        # By call and shapes, of the batch at hand; and of batches of other shapes.
        self._layouts: dict[Hashable, _Layouts] = {}
        self._layouts_by_shapes: dict[Hashable, dict[Hashable, _Layouts]] = {}
        self._obstacles: dict[str, str] = {}
        self._unexecuted: list[str] = []
        self.backward: Backward | None = None
        """Of the latest step collected: what its taps measured."""

    def _shield(self) -> None:
        """Keeps torch.compile from compiling the watcher's own functions with the network.

        The first step calls it, not the constructor: it imports the compiler, which takes seconds, and some processes
        only construct a regulariser.
        """
        if not self._is_shielded:
            self._enter = torch.compiler.disable(self._enter_call)
            self._leave = torch.compiler.disable(self._leave_call)
            self._observe = torch.compiler.disable(self._observe_call)
            self._is_shielded = True

    @property
    def skipped(self) -> dict[str, str]:
        """Why layers are not penalised: by their kind, or by what the latest forward showed."""
        reasons = {name: [reason] for name, reason in self._planning.plan.skipped.items()}
        for name, obstacle in self._obstacles.items():
            reasons.setdefault(name, []).append(obstacle)
        for name in self._unexecuted:
            reasons.setdefault(name, []).append(
                "its module was not called in the latest forward (functions may use its weights all the same, as in "
                "nn.MultiheadAttention)"
            )
        return {name: "; ".join(several) for name, several in reasons.items()}

    @property
    def candidates(self) -> list[str]:
        """The layers that can be penalised, in whatever order they will be executed."""
        return self._planning.candidates

    def start(self, batch: PairedBatch) -> None:
        """Watch the next forwards, on this batch; drops whatever was collected before."""
        self.stop()
        self._shield()
        probabilities = self._planning.probabilities(self._obstacles)
        taken = sample_layers(probabilities, batch.position)
        backward = Backward(self._options.max_gradient_ratio, self._options.measures_gradients)
        comparing = Comparing(
            self._options.group,
            batch.turns,
            batch.num_pairs,
            self._options.size,
            self._options.scale_gradient,
            self._options.field_share,
        )
        self._step = Step(batch, comparing, backward, probabilities, frozenset(taken))
        if len(self._layouts_by_shapes) >= _MOST_SHAPES:
            self._layouts_by_shapes.clear()
        self._layouts = self._layouts_by_shapes.setdefault(batch.shapes, {})
        self._handles = [
            self._network.register_forward_pre_hook(self._root_hooks[0]),
            *self._hook_layers(),
            self._network.register_forward_hook(self._root_hooks[1], always_call=True),
        ]
        if not self._planning.is_settled:
            self._first_call = FirstCall(self._network, self._run_traced, self._is_watching)

    def stop(self) -> None:
        """Remove the hooks and drop batch and values."""
        for handle in self._handles:
            handle.remove()
        if self._first_call is not None:
            self._first_call.remove()
        self._handles, self._first_call, self._trace, self._step, self._depth = [], None, None, None, 0
        if not is_in_backward():
            self._replays.clear()  # an error may have ended a backward pass

    def collect(self) -> Collected:
        """``sum_l w_l L_l`` and the L_l in order of execution, then stop.

        A layer's terms are summed; several calls of a layer are averaged, so that none is left out and the weight keeps
        its meaning.

        Raises:
            RuntimeError: no batch, or no forward in training mode since `start`.
            ValueError: no layer could be compared, or features are not finite.
        """
        step = self._step
        if step is None:
            raise RuntimeError("penalty() comes after pair(...) and network(batch.inputs), once per pair()")
        if not step.executed:
            raise RuntimeError(
                "penalty() found no forward since pair(): run network(batch.inputs) first, in training mode "
                "(network.train()), with gradients enabled, on the very network that was given "
                "(DistributedDataParallel and torch.compile may wrap it, if the first compiled call came after pair(): "
                "else call torch.compiler.reset() once and pair() again; DataParallel and copies run other modules; "
                "under reentrant activation checkpointing checkpoint the network's parts and call the network itself)"
            )
        trace = self._trace
        self.stop()
        if not self._planning.is_settled:
            self._planning.learn(step.executed, trace)
            self._layouts_by_shapes = {}
            # As in every later step, and so in a run that is resumed: all were looked at, these are compared.
            step.probabilities = self._planning.probabilities(step.obstacles)
            step.taken = frozenset(sample_layers(step.probabilities, step.batch.position))
        self._compare(step)
        self._obstacles = step.obstacles
        self._unexecuted = [name for name in self._planning.plan.terms if name not in step.executed]
        weights = self._weights(step)
        collected = step.collected(weights, self._on_backward(step.backward))
        self.backward = step.backward
        return collected

    # While the network runs

    def _hook_layers(self) -> list[RemovableHandle]:
        return [
            module.register_forward_hook(self._layer_hooks[name], with_kwargs=True)
            for name, module in self._modules.items()
        ]

    def _is_watching(self) -> bool:
        return self._network.training and torch.is_grad_enabled() and not is_in_backward()

    def _run_traced(self, *arguments: Any, **keywords: Any) -> Any:
        """The first call of the network; whatever error ends it, nothing is left of the step."""
        assert self._step is not None
        try:
            with torch._C.DisableTorchFunction():
                check_paired(self._step.batch, self._options.group, (arguments, keywords))
            with tracing(self._network) as self._trace:
                return self._network._call_impl(*arguments, **keywords)
        except BaseException:
            self.stop()
            raise

    def _entering(self, arguments: Any) -> None:
        if not torch.compiler.is_compiling():
            self._enter()

    def _leaving(self, arguments: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            self._leave(output)

    def _enter_call(self) -> None:
        if self._step is not None and (self._depth or self._is_watching()):
            self._depth += 1

    def _leave_call(self, output: Any) -> None:
        self._depth = max(0, self._depth - 1)
        if output is None and sys.exc_info()[0] is not None and not is_in_backward():
            self.stop()  # an error ended the call: it is as if pair() had not been called

    def _observing(self, name: str) -> Callable[..., Tensor | None]:
        def observe(arguments: tuple[Any, ...], keywords: dict[str, Any], output: Tensor) -> Tensor | None:
            return self._observe(name, arguments, keywords, output)

        return observe

    def _observe_call(
        self, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        """Looks at one call of a layer; gives the output to go on with, or None where it stays."""
        step = self._step
        # Nothing of this is part of the network, nor anything that checkpointing would have to run again.
        with torch._C.DisableTorchFunction():
            if is_in_backward():
                with saved_tensors_hooks(_as_it_is, _as_it_is):
                    return self._replays.found(name, output) if self._network.training else None
            # Inside a call that began with gradients they are off where reentrant checkpointing will run again.
            if step is None or not (self._is_watching() or (self._depth and self._network.training)):
                return None
            index = step.enter(name)
            layouts = self._layouts_of(step, name, index, arguments, keywords, output)
            if layouts or "projection" in self._planning.terms(name):
                step.comparable.add(name)
            if name not in step.taken:
                return None
            with saved_tensors_hooks(_as_it_is, _as_it_is):
                seen = Seen(name, index, None, output.shape)
                return self._looked_at(step, seen, layouts, arguments, keywords, output)

    def _looked_at(
        self,
        step: Step,
        seen: Seen,
        layouts: Mapping[Term, Layout],
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        output: Tensor,
    ) -> Tensor | None:
        """Compares one call of a layer that was taken; in a first forward, keeps what will be compared."""
        result: Tensor | None = None
        name, is_settled = seen.name, self._planning.is_settled
        own = next((term for term in layouts if term in ("trivial", "regular")), None)
        if own:
            field_position = (step.batch.field_position + _GOLDEN * len(step.executed)) % 1  # another in each layer
            seen.observation = Observation(step.comparing, field_position, step.batch.num_images, output)
            if is_settled:
                seen.term = own
                seen.observation.compare(layouts[own], own)
            else:
                seen.observation.keep()
            step.seen.append(seen)
            seen.is_repeated = not torch.is_grad_enabled()
            seen.is_checkpointed = seen.is_repeated and is_in_reentrant_checkpoint()
            if output.requires_grad:
                result, seen.anchor = tap(output, seen.observation, step.backward)
                if self._trace is not None:
                    self._trace.take_for(result, output)
        if "channel" in layouts:
            call = ChannelCall.of(step.batch, self._modules[name], arguments, keywords, output)
            other = Seen(name, seen.index, "channel", seen.shape)
            if is_settled:
                other.value = call.value(layouts["channel"], self._options)
            else:
                other.channel_call = call.kept()
            step.seen.append(other)
        if seen.index == 0 and "projection" in self._planning.terms(name):
            step.seen.append(Seen(name, 0, "projection", seen.shape))
        return result

    def _compares_outputs(self, name: str) -> bool:
        return any(term != "projection" for term in self._planning.terms(name))

    def _layouts_of(
        self,
        step: Step,
        name: str,
        index: int,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        output: Tensor,
    ) -> Mapping[Term, Layout]:
        """How the output of a call is laid out for each term that it can be compared by; why not, is noted."""
        if not step.batch.num_pairs or not self._compares_outputs(name):
            return {}  # whatever it was given and gave
        hidden = arguments[0] if arguments else keywords["input"]
        key = (name, index, hidden.shape, output.shape)
        known = self._layouts.get(key)
        if known is None:
            known = self._layouts[key] = self._layouts_anew(step.batch, name, index, hidden, output)
        if known.obstacle is not None:
            step.obstacles[name] = known.obstacle
        return known.by_term

    def _layouts_anew(self, batch: PairedBatch, name: str, index: int, hidden: Tensor, output: Tensor) -> _Layouts:
        terms = [term for term in self._planning.terms(name) if term != "projection"]
        try:
            layout = self._planning.layout(name, index, output.shape, batch)
        except ValueError as error:
            return _Layouts({}, str(error))
        window, turned = self._planning.facts[name].window, [term for term in terms if term != "channel"]
        obstacle = window.alignment_obstacle(hidden.shape[-2:], output.shape[-2:]) if window and turned else None
        return _Layouts({term: layout for term in terms if term == "channel" or not obstacle}, obstacle)

    # After it has run

    def _compare(self, step: Step) -> None:
        """Compare what a first forward has kept, and drop what turned out not to belong."""
        kept = []
        for seen in step.seen:
            terms = self._planning.plan.terms.get(seen.name, ()) if seen.name in step.taken else ()
            if seen.term is None and seen.observation is not None:
                own = next((term for term in terms if term in ("trivial", "regular")), None)
                layout = self._layout_again(step, seen) if own else None
                if own is None or layout is None:
                    seen.observation.drop()
                    if own and layout is None and not set(terms) & {"channel", "projection"}:
                        step.comparable.discard(seen.name)
                    continue
                seen.term = own
                seen.observation.compare(layout, own)
            elif seen.term not in terms:
                continue
            elif seen.channel_call is not None:
                layout = self._layout_again(step, seen)
                if layout is None:
                    continue
                seen.value = seen.channel_call.value(layout, self._options)
                seen.channel_call = None
            elif seen.term == "projection":
                facts = self._planning.facts[seen.name]
                field = self._planning.requested[seen.name] or facts.field
                seen.value = kernel_value(self._modules[seen.name], facts, field, self._options)
            kept.append(seen)
        step.seen = kept

    def _layout_again(self, step: Step, seen: Seen) -> Layout | None:
        try:
            return self._planning.layout(seen.name, seen.index, seen.shape, step.batch)
        except ValueError as error:
            step.obstacles[seen.name] = str(error)
            return None

    def _weights(self, step: Step) -> dict[str, float]:
        """w_l of every layer that could be compared in this step, taken or not.

        Raises:
            ValueError: there is none.
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

    def _on_backward(self, backward: Backward) -> Callable[[Sequence[Seen]], None]:
        """What a backward pass begins with: calls that will be run again are awaited."""

        def begin(observed: Sequence[Seen]) -> None:
            replays, checkpointed = [], []
            for seen in observed:
                if seen.is_repeated and seen.observation is not None:
                    replays.append(Replay(seen.name, seen.observation, backward))
                    if seen.is_checkpointed:
                        checkpointed.append(seen.name)
            if replays:
                self._replays.expect(replays, checkpointed, reaches_others=len(replays) < len(observed))

        return begin


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
