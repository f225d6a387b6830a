"""Watching a network's layers during one step: hooks that come with a batch and go with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

from .groups import ChannelGroup, Field, Group, permute_fields
from .layers import Comparison, LayerFacts, LayerPlan, Term, kernel_input_field, plan_layers
from .layouts import Layout, layout_of
from .observation import Comparing, Observation, Size
from .options import NonFiniteFeaturesError
from .pairing import PairedBatch, first_entry
from .penalties import kernel_residual, mean_square, pair_scale, projection_size, residual_size
from .sampling import inclusion_probabilities, sample_layers
from .taps import Backward, tap, weighted_sum
from .tracing import Call, Layer, Trace, tracing


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


@dataclass
class _Seen:
    """A call of a layer in the step at hand: an observation with its anchor, or a term with a graph of its own."""

    name: str
    index: int
    term: Term | None
    observation: Observation | None = None
    anchor: Tensor | None = None
    value: Tensor | None = None
    shape: tuple[int, ...] = ()


@dataclass
class _Step:
    """What has been seen of one batch."""

    batch: PairedBatch
    backward: Backward
    probabilities: dict[str, float]
    taken: frozenset[str]
    executed: list[str] = field(default_factory=list)
    seen: list[_Seen] = field(default_factory=list)
    obstacles: dict[str, str] = field(default_factory=dict)

    def comparing(self, options: WatchOptions) -> Comparing:
        return Comparing(options.group, self.batch.turns, self.batch.num_pairs, options.size, options.scale_gradient)


@dataclass(frozen=True)
class Collected:
    """A step's penalty, differentiable, and the value of each layer, detached."""

    total: Tensor
    values: dict[str, Tensor]


class LayerWatcher:
    """Collects the penalty terms of a network's layers while it runs on a paired batch.

    Values and hooks live here and in the autograd graph, never on the network's modules. The hooks are plain functions
    bound to one module, so a deep copy of the network, made at any time, is whole and not watched.

    The first forward is traced (`tracing`): only afterwards is it known which layer is the last before the image, and what
    becomes of each output. Until then the maps of the pairs are kept, so a first step needs more memory.

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
        layer_weights: Callable[[Sequence[str]], dict[str, float]],
        options: WatchOptions,
    ) -> None:
        self._network = network
        self._modules = modules
        self._requested = requested
        self._layouts = layouts
        self._layer_weights = layer_weights
        self._options = options
        self._hooks = {name: self._hook(name, module) for name, module in modules.items()}
        self._root_hooks = self._hooks_of_root(network)
        self._handles: list[RemovableHandle] = []
        self._step: _Step | None = None
        self._pending: dict[str, list[tuple[Observation, Backward]]] = {}
        self._is_inside = False
        self._tracing: AbstractContextManager[Trace] | None = None
        self._trace: Trace | None = None
        self._is_planned = False
        self._order: list[str] = []
        self._shifts: dict[str, list[tuple[int, int]]] = {}
        self._obstacles: dict[str, str] = {}
        self._facts = {name: LayerFacts.of(module) for name, module in modules.items()}
        names = list(modules)
        if names:  # until the first forward shows the order
            self._facts[names[0]] = replace(self._facts[names[0]], reads_image=True)
            self._facts[names[-1]] = replace(self._facts[names[-1]], writes_image=True)
        self.plan = self._planned()
        self.backward: Backward | None = None
        """Of the latest step collected: what its taps measured."""

    @property
    def skipped(self) -> dict[str, str]:
        """Why layers are not penalised: by their kind, or by what the latest forward showed."""
        reasons = {name: [reason] for name, reason in self.plan.skipped.items()}
        for name, obstacle in self._obstacles.items():
            reasons.setdefault(name, []).append(obstacle)
        return {name: "; ".join(several) for name, several in reasons.items()}

    @property
    def has_candidates(self) -> bool:
        """Whether any layer can be penalised, in whatever order they will be executed."""
        return any(self._candidate_terms(name) for name in self._requested)

    def start(self, batch: PairedBatch) -> None:
        """Watch the next forwards, on this batch; drops whatever was collected before."""
        self.stop()
        probabilities = self._probabilities()
        taken = sample_layers(probabilities, batch.position)
        backward = Backward(self._options.max_gradient_ratio, self._options.measures_gradients)
        self._step = _Step(batch, backward, probabilities, frozenset(taken))
        self._handles = [
            self._network.register_forward_pre_hook(self._root_hooks[0]),
            *(
                module.register_forward_hook(self._hooks[name], with_kwargs=True)
                for name, module in self._modules.items()
            ),
            self._network.register_forward_hook(self._root_hooks[1], always_call=True),
        ]

    def stop(self) -> None:
        """Remove the hooks and drop batch and values."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._step, self._pending, self._is_inside = [], None, {}, False

    def collect(self) -> Collected:
        """``sum_l w_l L_l`` and the L_l in order of execution, then stop.

        A layer's terms are summed; several calls of a layer are averaged, so that none is left out and the weight keeps its
        meaning.

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
                "(DistributedDataParallel and torch.compile may wrap it, if the first compiled call came after pair(); "
                "DataParallel and copies run other modules; under reentrant activation checkpointing call the network "
                "itself, not its parts)"
            )
        if not self._is_planned:
            self._learn(step.executed)
        self._compare(step)
        self._obstacles = step.obstacles
        weights = self._weights(step)
        values = self._values(step, weights)
        self._check_finite(values)
        backward = step.backward
        total = self._total(step, weights)
        pending = {}
        for seen in step.seen:
            if seen.observation is not None and seen.anchor is None and seen.name in values:
                pending.setdefault(seen.name, []).append((seen.observation, backward))
        handles = self._handles
        if pending:
            self._handles = []  # the hooks stay until backward has run these calls again
        self.stop()
        self._pending, self._handles = pending, handles if pending else []
        self.backward = backward
        return Collected(total, {name: value.detach() for name, value in values.items()})

    # What is compared where

    def _planned(self) -> LayerPlan:
        options = self._options
        return plan_layers(self._facts, self._requested, options.comparisons, options.channel_group, options.group)

    def _candidate_terms(self, name: str) -> set[Term]:
        """What a layer may be compared by, as a hidden layer or as the last one."""
        found: set[Term] = set()
        for is_last in (False, True):
            facts = {name: replace(self._facts[name], reads_image=False, writes_image=is_last)}
            options = self._options
            requested = {name: self._requested[name]}
            plan = plan_layers(facts, requested, options.comparisons, options.channel_group, options.group)
            found |= set(plan.terms.get(name, ()))
        return found

    def _probabilities(self) -> dict[str, float]:
        """How probably each layer is taken in a step; before the first forward all alike."""
        if self._is_planned:
            names = [name for name in self._order if name in self.plan.terms and name not in self._obstacles]
            names = names or [name for name in self._order if name in self.plan.terms]
            weights = self._layer_weights(names) if names else {}
        else:
            weights = {name: 1.0 for name in self._requested if self._candidate_terms(name)}
        number = self._options.num_sampled
        if number is None:
            number = float("inf")
        elif number < 1:
            number = max(1.0, number * sum(weight > 0 for weight in weights.values()))
        probabilities = inclusion_probabilities(weights, number)
        # Layers that the last step's image size kept out may come back: they are always looked at.
        return dict.fromkeys(self._requested, 1.0) | probabilities if self._is_planned else probabilities

    def _learn(self, executed: Sequence[str]) -> None:
        """Take from the first forward what is last, what reads the image, and what becomes of each output."""
        calls: dict[str, list[Call]] = {}
        for call in self._trace.calls if self._trace else ():
            calls.setdefault(call.name, []).append(call)
        for name, facts in self._facts.items():
            if name in calls:
                self._facts[name] = replace(facts.seen_in(calls[name][-1]), writes_image=name == executed[-1])
                self._shifts[name] = [call.shift for call in calls[name]]
            else:
                self._facts[name] = replace(facts, reads_image=name == executed[0], writes_image=name == executed[-1])
        self._order = list(dict.fromkeys(executed))
        self._trace, self._is_planned = None, True
        self.plan = self._planned()

    # While the network runs

    def _hooks_of_root(self, network: nn.Module) -> tuple[Callable[..., None], Callable[..., None]]:
        """Plain functions, as those of the layers: a copy of the network carries them without their meaning."""

        def entering(module: nn.Module, arguments: Any) -> None:
            if module is network and not torch.compiler.is_compiling():
                self._enter()

        def leaving(module: nn.Module, arguments: Any, output: Any) -> None:
            if module is network and not torch.compiler.is_compiling():
                self._leave()

        return entering, leaving

    @torch.compiler.disable
    def _enter(self) -> None:
        if self._step is None or not self._is_watching():
            return
        self._is_inside = True
        if not self._is_planned and self._tracing is None:
            self._tracing = tracing(self._network)
            self._trace = self._tracing.__enter__()

    @torch.compiler.disable
    def _leave(self) -> None:
        self._is_inside = False
        if self._tracing is not None:
            self._tracing.__exit__(None, None, None)
            self._tracing = None

    def _is_watching(self) -> bool:
        return self._network.training and torch.is_grad_enabled()

    def _hook(self, name: str, watched: Layer) -> Callable[..., Tensor | None]:
        def observe(
            module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Tensor
        ) -> Tensor | None:
            return self._observe(name, watched, arguments, keywords, output) if module is watched else None

        return observe

    @torch.compiler.disable
    def _observe(
        self, name: str, module: Layer, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        """Looks at one call of a layer; gives the output to go on with, or None where it stays."""
        with torch._C.DisableTorchFunction():  # nothing of this is part of the network
            if name in self._pending:
                return self._replayed(name, output)
            # Inside a call that began with gradients they are off where reentrant checkpointing will run again.
            if self._step is None or not (self._is_watching() or (self._is_inside and self._network.training)):
                return None
            return self._seen(self._step, name, module, arguments, keywords, output)

    def _seen(
        self,
        step: _Step,
        name: str,
        module: Layer,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        output: Tensor,
    ) -> Tensor | None:
        index = step.executed.count(name)
        step.executed.append(name)
        terms = self.plan.terms.get(name, ()) if self._is_planned else self._candidate_terms_of(name)
        if not terms or name not in step.taken:
            if terms:
                self._layout(step, name, index, output, (arguments, keywords), terms)  # whether it could have been
            return None
        result: Tensor | None = None
        own = [term for term in terms if term in ("trivial", "regular")]
        if own and step.batch.num_pairs:
            layout = self._layout(step, name, index, output, (arguments, keywords), own)
            if layout is not None:
                seen = _Seen(name, index, None, shape=tuple(output.shape))
                seen.observation = Observation(step.comparing(self._options), step.batch.num_images, output)
                if self._is_planned:
                    seen.term = own[0]
                    seen.observation.compare(layout, own[0])  # type: ignore[arg-type]
                else:
                    seen.observation.keep()
                step.seen.append(seen)
                if output.requires_grad:
                    result, seen.anchor = tap(output, seen.observation, step.backward)
                output = output if result is None else result
        if "channel" in terms and step.batch.num_pairs:
            layout = self._layout(step, name, index, output, (arguments, keywords), ("channel",))
            if layout is not None:
                hidden, *others = arguments or (keywords["input"],)
                rest = {key: value for key, value in keywords.items() if key != "input" or arguments}
                value = self._channel_value(step.batch, module, layout, hidden, others, rest)
                step.seen.append(_Seen(name, index, "channel", value=value, shape=tuple(output.shape)))
        if "projection" in terms and index == 0:
            step.seen.append(_Seen(name, index, "projection", shape=tuple(output.shape)))
        return result

    def _candidate_terms_of(self, name: str) -> tuple[Term, ...]:
        return tuple(self._candidate_terms(name)) if name in self._requested else ()

    def _layout(
        self,
        step: _Step,
        name: str,
        index: int,
        output: Tensor,
        given: tuple[tuple[Any, ...], dict[str, Any]],
        terms: Sequence[Term],
    ) -> Layout | None:
        """How the output of a call is laid out; None, and the reason noted, where it cannot be compared by these terms."""
        facts = self._facts[name]
        shifts = self._shifts.get(name) or [(0, 0)]
        shift = shifts[min(index, len(shifts) - 1)]
        images, declared = step.batch.num_images, self._layouts.get(name)
        try:
            layout = layout_of(output.shape, images, declared, facts.window is None, shift, facts.factor)
        except ValueError as error:
            step.obstacles[name] = str(error)
            return None
        if facts.window is not None and "channel" not in terms:
            arguments, keywords = given
            hidden = arguments[0] if arguments else keywords["input"]
            obstacle = facts.window.alignment_obstacle(hidden.shape[-2:], output.shape[-2:])
            if obstacle is not None:
                step.obstacles[name] = obstacle
                return None
        return layout

    def _channel_value(
        self,
        batch: PairedBatch,
        module: Layer,
        layout: Layout,
        hidden: Tensor,
        others: list[Any],
        keywords: dict[str, Any],
    ) -> Tensor:
        """Size of ``g(shift_k h) - shift_k g(h)``: g the layer without hooks, h its input on the originals, constant.

        Its gradient reaches the layer's own parameters alone.
        """
        share = hidden.shape[0] // batch.num_images * batch.num_pairs
        options = self._options
        axis = 1 if not isinstance(module, nn.Linear) else hidden.ndim - 1
        with torch.enable_grad(), saved_tensors_hooks(_as_it_is, _as_it_is):
            plain = hidden[:share].detach()
            both = torch.cat((plain, self._shifted(plain, batch.shift, axis)))  # originals, then shifted
            outputs = layout.to_maps(module.forward(both, *others, **keywords))
            first, second = outputs.chunk(2)  # 2 of (P, C, H, W)
            residual = second - self._shifted(first, batch.shift, 1)
            if options.size == "relative":
                scale = pair_scale(first, second)
                return residual_size(residual, scale if options.scale_gradient else scale.detach())
            return residual_size(residual)

    def _shifted(self, features: Tensor, shift: int, axis: int) -> Tensor:
        width = features.shape[axis] if self._options.channel_group == "all" else None
        sources = [(c - shift) % width for c in range(width)] if width else self._options.group.sources(shift)
        return permute_fields(features, sources, axis)

    def _replayed(self, name: str, output: Tensor) -> Tensor | None:
        """Ties an observation of a call that ran without gradients to the same call, run again in backward."""
        if not output.requires_grad or not self._network.training:
            return None
        waiting = self._pending[name]
        position = len(waiting) - 1
        if len(waiting) > 1:  # parts run again last first, but the calls of one part first first: find it by its value
            again = [self._value_again(observation, output) for observation, _ in waiting]
            position = min(range(len(waiting)), key=lambda i: abs(again[i] - float(waiting[i][0].value)))
        observation, backward = waiting.pop(position)
        if not waiting:
            del self._pending[name]
        if not self._pending:
            for handle in self._handles:
                handle.remove()
            self._handles = []
        return tap(output, observation, backward)[0]

    @staticmethod
    def _value_again(observation: Observation, output: Tensor) -> float:
        """The value of an observation, computed from another output of the same layer."""
        images = len(output) * 2 * observation.comparing.num_pairs // observation.num_entries
        other = Observation(observation.comparing, images, output)
        other.compare(observation._layout, observation._field)
        return float(other.value)

    # After it has run

    def _compare(self, step: _Step) -> None:
        """Compare what a first forward has kept, and drop what turned out not to belong."""
        kept = []
        for seen in step.seen:
            terms = self.plan.terms.get(seen.name, ())
            if seen.term is None and seen.observation is not None:
                own = next((term for term in terms if term in ("trivial", "regular")), None)
                layout = self._layout_again(step, seen) if own else None
                if own is None or layout is None:
                    seen.observation.drop()
                    continue
                seen.term = own
                seen.observation.compare(layout, own)  # type: ignore[arg-type]
            elif seen.term not in terms:
                continue
            kept.append(seen)
        step.seen = kept

    def _layout_again(self, step: _Step, seen: _Seen) -> Layout | None:
        facts = self._facts[seen.name]
        shifts = self._shifts.get(seen.name) or [(0, 0)]
        shift = shifts[min(seen.index, len(shifts) - 1)]
        declared = self._layouts.get(seen.name)
        try:
            return layout_of(seen.shape, step.batch.num_images, declared, facts.window is None, shift, facts.factor)
        except ValueError as error:
            step.obstacles[seen.name] = str(error)
            return None

    def _weights(self, step: _Step) -> dict[str, float]:
        """w_l of every layer that could be compared in this step, taken or not.

        Raises:
            ValueError: there is none.
        """
        names = [
            name
            for name in dict.fromkeys(step.executed)
            if name in self.plan.terms and (name not in step.obstacles or any(s.name == name for s in step.seen))
        ]
        if not names:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.skipped.items())
            raise ValueError(f"layers: none could be penalised ({reasons or 'none of those asked for was executed'})")
        return self._layer_weights(names)

    def _values(self, step: _Step, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """L_l of the layers taken: the sum of a layer's terms, each the mean of its calls."""
        calls: dict[str, dict[Term, list[Tensor]]] = {}
        for seen in step.seen:
            if seen.name in weights and seen.term is not None:
                if seen.term == "projection":
                    seen.value = self._kernel_value(seen.name)
                value = seen.observation.value if seen.observation is not None else seen.value
                assert value is not None
                calls.setdefault(seen.name, {}).setdefault(seen.term, []).append(value)
        return {
            name: torch.stack([torch.stack(values).mean() for values in terms.values()]).sum()
            for name, terms in calls.items()
        }

    def _total(self, step: _Step, weights: Mapping[str, float]) -> Tensor:
        num_calls: dict[tuple[str, Term | None], int] = {}
        for seen in step.seen:
            num_calls[seen.name, seen.term] = num_calls.get((seen.name, seen.term), 0) + 1
        parts: list[Tensor] = []
        observed: list[tuple[Observation, float, Tensor | None]] = []
        for seen in step.seen:
            if seen.name not in weights:
                continue
            probability = step.probabilities.get(seen.name, 1.0)
            weight = weights[seen.name] / probability / num_calls[seen.name, seen.term]
            if seen.observation is not None:
                observed.append((seen.observation, weight, seen.anchor))
            elif seen.value is not None:
                parts.append(weight * seen.value)
        if observed:
            observations, factors, anchors = zip(*observed, strict=True)
            parts.append(weighted_sum(observations, factors, anchors))
        if not parts:  # none of the layers taken could be compared at this image size
            return torch.zeros((), device=first_entry(step.batch.inputs).device, requires_grad=True)
        return torch.stack([part.to(parts[0].dtype) for part in parts]).sum()

    def _kernel_value(self, name: str) -> Tensor:
        """``||W - P W||^2 / ||W||^2`` of a layer's kernel."""
        facts, group, module = self._facts[name], self._options.group, self._modules[name]
        weight = module.weight
        if isinstance(module, nn.Linear):
            weight = weight[:, :, None, None]  # (C_out, C_in) -> (C_out, C_in, 1, 1)
        elif isinstance(module, nn.ConvTranspose2d):
            weight = weight.transpose(0, 1)  # (C_in, C_out, ...) -> (C_out, C_in, ...)
        field_out = self._requested[name] or facts.field
        residual = kernel_residual(weight, kernel_input_field(facts, group), field_out, group)
        scale = mean_square(weight[None])[0] * weight.numel()
        return projection_size(residual, scale if self._options.scale_gradient else scale.detach())

    @staticmethod
    def _check_finite(values: Mapping[str, Tensor]) -> None:
        """Raise for the first layer whose value is not finite."""
        if values and not torch.isfinite(torch.stack([value.detach().float() for value in values.values()]).sum()):
            for name, value in values.items():
                if not torch.isfinite(value):
                    raise NonFiniteFeaturesError(
                        f"{name}: its features are NaN or infinite, the first of the penalised layers: lower the learning "
                        "rate or the penalty's weight, or look at the images of this batch"
                    )


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
