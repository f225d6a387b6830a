"""Watching a network's layers during one step: hooks that come with a batch and go with it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

from .geometry import Convolution
from .groups import Field
from .layers import Comparison, ImageLayers, LayerPlan, Term, plan_layers
from .observation import LayerCall, SizeOptions, call_obstacle, capped_term, term_value
from .pairing import PairedBatch


class LayerWatcher:
    """Collects the penalty terms of a network's layers while it runs on a paired batch.

    Values and hooks live here and in the autograd graph, never on the network's modules. The hooks are plain
    functions bound to one module, so a deep copy of the network, made at any time, is whole and not watched.

    Args:
        network: watched only while it is in training mode and gradients are enabled.
        modules: all its convolutions by name, in order of registration.
        requested: the layers to compare, each with its field or None for the automatic one.
        comparisons: what to compare at each.
        size_options: how to take the size of a residual.
    """

    def __init__(
        self,
        network: nn.Module,
        modules: Mapping[str, Convolution],
        requested: Mapping[str, Field | None],
        comparisons: Sequence[Comparison],
        size_options: SizeOptions,
    ) -> None:
        self._network = network
        self._modules = modules
        self._requested = requested
        self._comparisons = comparisons
        self._size_options = size_options
        self._first_forward_is_over = False
        self._handles: list[RemovableHandle] = []
        self._batch: PairedBatch | None = None
        self._executed: list[str] = []
        self._values: list[tuple[str, Term, Tensor]] = []
        self._obstacles: dict[str, str] = {}
        names: list[str | None] = [*modules] or [None]
        self.plan = self._plan_with(ImageLayers(names[0], names[-1]))  # the first forward will show the order

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
        return any(self._terms(name) for name in self._requested)

    def start(self, batch: PairedBatch) -> None:
        """Watch the next forwards, on this batch; drops whatever was collected before."""
        self.stop()
        self._batch = batch
        self._obstacles = {}
        self._handles = [
            module.register_forward_hook(self._hook(name, module), with_kwargs=True)
            for name, module in self._modules.items()
        ]

    def stop(self) -> None:
        """Remove the hooks and drop batch and values."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._batch, self._executed, self._values = [], None, [], []

    def collect(self) -> dict[str, Tensor]:
        """The penalty L_l of each layer in order of execution, then stop.

        A layer's terms are summed; several calls of a layer are averaged, so that none is left out and the
        weight keeps its meaning.

        Raises:
            RuntimeError: no batch, or no forward in training mode since `start`.
            ValueError: no layer could be compared.
        """
        if self._batch is None:
            raise RuntimeError("penalty() comes after pair(...) and network(batch.inputs), once per pair()")
        if not self._executed:
            raise RuntimeError(
                "penalty() found no forward since pair(): run network(batch.inputs) first, in training mode "
                "(network.train()), with gradients enabled, on the very network that was given "
                "(DistributedDataParallel may wrap it; DataParallel and copies run other modules; activation "
                "checkpointing needs use_reentrant=False)"
            )
        if not self._first_forward_is_over:
            self._first_forward_is_over = True
            self.plan = self._plan_with(ImageLayers(self._executed[0], self._executed[-1]))
        calls: dict[str, dict[Term, list[Tensor]]] = {}
        for name, term, value in self._values:
            if term in self.plan.terms.get(name, ()):
                calls.setdefault(name, {}).setdefault(term, []).append(value)
        self.stop()
        if not calls:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.skipped.items())
            raise ValueError(f"layers: none could be penalised ({reasons or 'none of those asked for was executed'})")
        return {
            name: torch.stack([torch.stack(values).mean() for values in terms.values()]).sum()
            for name, terms in calls.items()
        }

    def _plan_with(self, image_layers: ImageLayers) -> LayerPlan:
        group = self._size_options.channel_group
        return plan_layers(self._modules, self._requested, self._comparisons, group, image_layers)

    def _terms(self, name: str) -> tuple[Term, ...]:
        """What to compute for a layer: in the first forward, as a hidden layer and as the last one."""
        if self._first_forward_is_over:
            return self.plan.terms.get(name, ())
        hidden, last = (self._plan_with(ImageLayers(last=at)).terms.get(name, ()) for at in (None, name))
        return tuple(dict.fromkeys(hidden + last))

    def _hook(self, name: str, watched: Convolution) -> Callable[..., Tensor | None]:
        def observe(
            module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Tensor
        ) -> Tensor | None:
            if module is watched and self._network.training and torch.is_grad_enabled():
                keywords = dict(keywords)
                hidden, *others = arguments or (keywords.pop("input"),)
                return self._observe(name, LayerCall(watched, hidden, tuple(others), keywords, output))
            return None

        return observe

    def _observe(self, name: str, call: LayerCall) -> Tensor:
        """Computes the layer's terms; gives the output to go on with."""
        batch = self._batch
        assert batch is not None, "hooks are removed with the batch"
        self._executed.append(name)
        for term in self._terms(name):
            obstacle = call_obstacle(term, call, batch)
            if obstacle is not None:
                self._obstacles[name] = obstacle
                continue
            cap = self._size_options.max_gradient_ratio
            if cap is not None and term != "channel" and call.output.requires_grad:
                output, value = capped_term(term, call, batch, self._size_options, cap)
                self._values.append((name, term, value))
                call = replace(call, output=output)
                continue
            # Keeps its own tensors as they are: activation checkpointing recomputes the layer without hooks,
            # and would miss them.
            with saved_tensors_hooks(_as_it_is, _as_it_is):
                self._values.append((name, term, term_value(term, call, batch, self._size_options)))
        return call.output


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
