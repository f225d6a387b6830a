"""Recording of a network's layers while it runs on a paired batch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

from ..compat import DisableTorchFunction, uncompiled
from ..layers.calls import CallLayouts, LayerCall
from ..layers.layouts import Layout
from ..layers.plan import LayerPlanning
from ..layers.spec import Term, field_term
from ..layers.tracing import Layer, Trace, tracing
from ..pairing import PairedBatch
from .comparison import LayerComparison
from .hooks import FirstCall, Hook
from .injection import inject
from .layer_terms import ChannelCall
from .paired_input import check_paired
from .recompute import ExpectedCalls, is_in_backward, is_in_reentrant_checkpoint
from .records import StepRecord, TermRecord

_GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, are spread evenly


class LayerRecorder:
    """Records the terms of a network's layers from `start` to `finish`.

    Records are kept here and in the autograd graph. The network's modules have hooks only from `start` to `finish`, and
    while a backward pass recomputes parts of the network. A copy of the network, made at any time, is complete and is
    not recorded.

    The first forward is traced (`tracing`) and runs uncompiled. Only after it is known which layer is the last one
    before the image, and what happens to each output. Until then, the maps of the pairs are kept, so the first step
    needs more memory.

    Args:
        network: recorded only while it is in training mode and gradients are enabled.
        modules: all its convolutions and linear layers by name, in order of registration.
        planning: what is compared at which layer; it learns from the first forward.
    """

    def __init__(self, network: nn.Module, modules: Mapping[str, Layer], planning: LayerPlanning) -> None:
        self._network = network
        self._modules = modules
        self._planning = planning
        self._layouts = CallLayouts(planning)
        self._enter, self._leave, self._record = self._enter_call, self._leave_call, self._record_call
        self._is_shielded = False
        # The hooks are the same objects in every step, so the assumptions of torch.compile from the first step hold.
        self._layer_hooks = {name: Hook(module, self._recording(name)) for name, module in modules.items()}
        self._root_hooks = (Hook(network, self._entering), Hook(network, self._leaving))
        self._handles: list[RemovableHandle] = []
        self._first_call: FirstCall | None = None
        self._trace: Trace | None = None
        self._step: StepRecord | None = None
        self._expected_calls = ExpectedCalls(lambda: [] if self._handles else self._hook_layers())
        self._depth = 0  # how many calls of the network are running that began with gradients

    def start(self, batch: PairedBatch, *, incompatibilities: Collection[str], measures_gradients: bool) -> None:
        """Record the next forwards, on this batch; records of an earlier batch are dropped.

        Args:
            batch: the paired batch.
            incompatibilities: the layers that could not be compared in the latest step.
            measures_gradients: whether the backward pass of this step sums up `GradientNorms`.
        """
        self.stop()
        self._shield()
        self._step = StepRecord.of(
            batch,
            self._planning.options,
            probabilities=self._planning.probabilities(incompatibilities),
            measures_gradients=measures_gradients,
            expected_calls=self._expected_calls,
        )
        self._layouts.start(batch)
        self._handles = [
            self._network.register_forward_pre_hook(self._root_hooks[0]),
            *self._hook_layers(),
            self._network.register_forward_hook(self._root_hooks[1], always_call=True),
        ]
        if not self._planning.has_learned:
            self._first_call = FirstCall(self._network, self._run_traced, self._is_recording)

    def stop(self) -> None:
        """Remove the hooks, and drop the batch and the records."""
        for handle in self._handles:
            handle.remove()
        if self._first_call is not None:
            self._first_call.remove()
        self._handles, self._first_call, self._trace, self._step, self._depth = [], None, None, None, 0
        if not is_in_backward():
            self._expected_calls.clear()  # an error may have ended an earlier backward pass

    def finish(self) -> StepRecord:
        """Stop recording, and return the record of the step.

        Raises:
            RuntimeError: there is no batch, or no forward in training mode since `start`.
        """
        step, trace = self._step, self._trace
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
        self.stop()
        if not self._planning.has_learned:
            self._planning.learn(step.executed, trace)
            self._layouts.clear()
            # Every layer was recorded in this first step. Later steps, also of a resumed run, compare only a sample of
            # the layers, so this step does the same.
            step.sample(self._planning.probabilities(step.incompatibilities))
        return step

    def _shield(self) -> None:
        """Keep torch.compile from compiling the recorder's own functions with the network.

        The first step calls this, not the constructor. It imports the compiler, which takes seconds, and some processes
        only construct a regulariser.
        """
        if not self._is_shielded:
            self._enter = torch.compiler.disable(self._enter_call)
            self._leave = torch.compiler.disable(self._leave_call)
            self._record = torch.compiler.disable(self._record_call)
            self._is_shielded = True

    def _hook_layers(self) -> list[RemovableHandle]:
        return [
            module.register_forward_hook(self._layer_hooks[name], with_kwargs=True)
            for name, module in self._modules.items()
        ]

    def _is_recording(self) -> bool:
        return self._network.training and torch.is_grad_enabled() and not is_in_backward()

    def _run_traced(self, *arguments: Any, **keywords: Any) -> Any:
        """Run and trace the first call of the network; after any error, nothing of the step is left."""
        assert self._step is not None
        try:
            with DisableTorchFunction():
                check_paired(self._step.batch, self._planning.options.group, (arguments, keywords))
            with tracing(self._network) as self._trace:
                return uncompiled(self._network)(*arguments, **keywords)
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
        if self._step is not None and (self._depth or self._is_recording()):
            self._depth += 1

    def _leave_call(self, output: Any) -> None:
        self._depth = max(0, self._depth - 1)
        if output is None and sys.exc_info()[0] is not None and not is_in_backward():
            self.stop()  # an error ended the call: the state is as before pair()

    def _recording(self, name: str) -> Callable[..., Tensor | None]:
        def record_call(arguments: tuple[Any, ...], keywords: dict[str, Any], output: Tensor) -> Tensor | None:
            return self._record(name, arguments, keywords, output)

        return record_call

    def _record_call(
        self, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        """Record one call of a layer; return the output to continue with, or None if it does not change."""
        step = self._step
        # These operations are not part of the network, and activation checkpointing must not recompute them.
        with DisableTorchFunction():
            if is_in_backward():
                with saved_tensors_hooks(_unchanged, _unchanged):
                    return self._expected_calls.found(name, output) if self._network.training else None
            # In a call that began with gradients, they may be off: then reentrant checkpointing recomputes that part.
            if step is None or not (self._is_recording() or (self._depth and self._network.training)):
                return None
            patches = self._trace.latest_patches(name) if self._trace else None
            call = LayerCall(name, step.enter(name), arguments, keywords, output, patches)
            layouts = self._layouts.of(step.batch, call)
            if layouts.incompatibility is not None:
                step.incompatibilities[name] = layouts.incompatibility
            if layouts.by_term or "projection" in self._planning.terms(name):
                step.comparable.add(name)
            if name not in step.sampled:
                return None
            with saved_tensors_hooks(_unchanged, _unchanged):
                module, planning, trace = self._modules[name], self._planning, self._trace
                return _record_terms(step, call, layouts.by_term, module=module, planning=planning, trace=trace)


def _record_terms(
    step: StepRecord,
    call: LayerCall,
    layouts: Mapping[Term, Layout],
    *,
    module: Layer,
    planning: LayerPlanning,
    trace: Trace | None,
) -> Tensor | None:
    """Record the terms of one call of a sampled layer; in a first forward, keep what will be compared later.

    Args:
        step: receives the records.
        call: the call.
        layouts: of the call's output, for each term that it can be compared by.
        module: the layer.
        planning: what is compared at which layer.
        trace: of a first forward.

    Returns:
        The output to continue with, or None if it does not change.
    """
    result, shape = None, call.output.shape
    if (term := field_term(layouts)) is not None:
        position = (step.batch.field_position + _GOLDEN * len(step.executed)) % 1  # differs between layers
        comparison = LayerComparison(step.rule, position, step.batch.num_images, call.output)
        record = TermRecord(call.name, call.index, term if planning.has_learned else None, shape, comparison)
        step.terms.append(record)
        if planning.has_learned:
            comparison.compare(layouts[term], term)
        else:
            comparison.keep()
        record.ran_without_gradient = not torch.is_grad_enabled()
        record.ran_in_checkpoint = record.ran_without_gradient and is_in_reentrant_checkpoint()
        if call.output.requires_grad:
            result, record.anchor = inject(call.output, comparison, step.backward)
            if trace is not None:
                trace.take_for(result, call.output)
    if "channel" in layouts:
        channel_call = ChannelCall.of(step.batch, module, call)
        record = TermRecord(call.name, call.index, "channel", shape)
        step.terms.append(record)
        if planning.has_learned:
            record.value = channel_call.value(layouts["channel"], planning.options)
        else:
            record.channel_call = channel_call.kept()
    if call.index == 0 and "projection" in planning.terms(call.name):
        step.terms.append(TermRecord(call.name, 0, "projection", shape))
    return result


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor
