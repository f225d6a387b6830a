"""The equivariance regulariser: a penalty on the layers of a network, in training only."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields, replace
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from .autograd.collector import PenaltyCollector
from .autograd.injection import GradientNorms
from .autograd.recorder import LayerRecorder
from .config import EquivarianceConfig
from .groups import ChannelGroup, group_named
from .layers.plan import LayerPlanning, RecorderOptions
from .layers.spec import (
    LayerSpec,
    channel_incompatibility,
    check_patterns,
    match_patterns,
    named_layers,
    requested_fields,
)
from .layers.weights import check_layer_weights, normalised_layer_weights
from .options import check_choice, check_names
from .pairing import (
    Entries,
    EntryField,
    NonSquare,
    PairedBatch,
    Pairing,
    count_pairs,
    draw_uniform,
    each_entry,
    entries_of,
    entry_fields,
    first_entry,
    insert_transformed,
    make_square,
)


class EquivarianceRegularizer:
    """Penalises the part of each layer's output that does not transform as the image does.

    ``penalty() = sum_l w_l L_l`` is a scalar without unit. L_l is the penalty of layer l (its formula is in `penalties`
    and in docs/explanation/method.md, "Penalties"), and the weights w_l sum to 1. The value does not scale with the
    batch size, the number of channels, the image size or the number of layers. One training step is::

        batch = regularizer.pair(degraded, clean, generator=generator)
        loss = task_loss(network(batch.inputs), batch.targets) + weight * regularizer.penalty()

    The regulariser records layers from `pair` to `penalty`, while the network is in training mode and gradients are
    enabled. Between steps, the network has no hooks. Copies of the network are never recorded. With
    DistributedDataParallel or torch.compile, give the unwrapped network to this class and call the wrapped one; each
    worker pairs its own images. The regulariser works with automatic mixed precision and with activation checkpointing
    (if reentrant: only of parts of the network). It does not support double backward or
    ``torch.compile(fullgraph=True)``.

    The first forward after construction is traced. It runs uncompiled and keeps the maps of its pairs, so it needs more
    memory than later forwards. Under torch.compile, it must come before any other compiled call in training mode.

    Args:
        network: any module with convolutions or linear layers.
        config: the options; None for the defaults.
        options: fields of `EquivarianceConfig`; they replace those of `config`.

    Attributes:
        group: the `Group`.

    Raises:
        ValueError: the value of an option is not allowed, or no layer can be penalised.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
        >>> regularizer = EquivarianceRegularizer(network)
        >>> batch = regularizer.pair(torch.rand(8, 1, 16, 16), torch.rand(8, 1, 16, 16))
        >>> task_loss = nn.functional.l1_loss(network(batch.inputs), batch.targets)
        >>> (task_loss + 0.1 * regularizer.penalty()).backward()
        >>> list(regularizer.layer_penalties()), batch.num_pairs
        (['0', '2'], 2)
    """

    def __init__(self, network: nn.Module, config: EquivarianceConfig | None = None, **options: Any) -> None:
        check_names(options, [field.name for field in fields(EquivarianceConfig)])
        chosen = replace(config or EquivarianceConfig(), **options)
        rule, layouts = chosen.rule, chosen.layouts or {}
        self.group = group_named(chosen.group)
        channels: ChannelGroup = self.group.order if chosen.channel_group is None else chosen.channel_group
        modules = named_layers(network)
        requested = requested_fields(modules, chosen.layers)
        check_layer_weights(modules, chosen.layer_weights)
        check_patterns("layouts", modules, layouts)
        declared = {name: layouts[fit] for name, fit in match_patterns(modules, layouts).items()}
        recorded = RecorderOptions(
            comparisons=rule.comparisons,
            group=self.group,
            size=rule.size or chosen.normalise,
            measure=rule.measure,
            scale_gradient=chosen.scale_gradient,
            channel_group=channels,
            max_gradient_ratio=chosen.max_gradient_ratio,
            num_sampled=chosen.sample_layers,
            field_share=chosen.sample_fields,
        )
        self._layer_weights = copy.deepcopy(chosen.layer_weights)  # later changes of the mapping have no effect
        self._has_raw_weights = not rule.is_mean
        self._measure_gradients = chosen.measure_gradients
        planning = LayerPlanning(
            modules, requested=requested, layouts=declared, layer_weights=self._weights, options=recorded
        )
        self._recorder = LayerRecorder(network, modules, planning)
        self._collector = PenaltyCollector(modules, planning)
        if not planning.candidates:
            raise ValueError(f"layers: none can be penalised ({self.skipped or 'the network has none'})")
        self._weights(planning.candidates)  # raises if all of them have weight 0
        self._largest_shift = self.group.order - 1
        if channels == "all":
            spec = [LayerSpec.of(module) for module in modules.values()]
            widths = [each.outputs for each in spec if channel_incompatibility(each, channels) is None]
            self._largest_shift = min(widths, default=self.group.order) - 1
        self._pairing: Pairing = chosen.pairing
        self._pair_fraction = chosen.pair_fraction
        self._non_square: NonSquare = chosen.non_square
        self._layer_penalties: dict[str, Tensor] = {}
        self._detached = False

    @property
    def skipped(self) -> dict[str, str]:
        """The layers that are not penalised, each with the reason, as of the latest forward.

        Under "rotation+channel", a layer named here may still be penalised by one of the two terms.
        """
        return self._collector.skipped

    def pair(
        self,
        inputs: Entries,
        targets: Entries,
        *,
        fields: Mapping[str, EntryField] | None = None,
        generator: torch.Generator | None = None,
        element: int | None = None,
        shift: int | None = None,
        num_pairs: int | None = None,
        measure_gradients: bool | None = None,
    ) -> PairedBatch:
        """Make pairs of originals and transformed images, and record the network's next forward.

        The order is originals, transformed, unpaired. There are k = pair_fraction * B pairs. "replace" puts the
        transformed images of 0..k-1 in the place of images k..2k-1 (B images out). "append" keeps all images (B + k
        out). With an explicit `num_pairs`, all images are kept under either pairing (B + num_pairs out), so no image of
        the given batch is lost.

        Non-square images are cropped or padded to squares (`pairing.make_square`), whichever element is drawn. They
        stay as they are if the group has only half turns, or if `element` is given and keeps their shape.

        Args:
            inputs: ``(B, C, H, W)``, or several tensors by name.
            targets: likewise. Each image is transformed at its own size, for example a low-resolution input or a mask.
            fields: entries by name ("inputs" and "targets" for single tensors) -> "image" or "invariant" (a label,
                copied). Entries with four axes are images unless declared otherwise.
            generator: the source of four random numbers in every step, for the element, the shift and the choices of
                layers and of fields; torch's default generator if None.
            element: the element of the group, for C4 quarter turns 1, 2 or 3; if None, drawn uniformly without the
                identity.
            shift: the channel shift of the penalty "channel", from 1; drawn uniformly if None.
            num_pairs: the number of pairs to make; computed from `pair_fraction` if None.
            measure_gradients: whether to measure `gradient_norms` in this step; as in the constructor if None.

        Returns:
            The batch to give to the network.

        Raises:
            ValueError: the entries do not fit each other, the number of pairs or the element.
            RuntimeError: `detach` was called before.
        """
        if self._detached:
            raise RuntimeError("pair() after detach(): build a new EquivarianceRegularizer")
        kinds = entry_fields(inputs, targets, fields or {})
        num_images = len(first_entry(inputs))
        num_dropped = 0
        if self._pairing == "none":
            num_pairs = 0
        elif num_pairs is None:
            num_pairs = count_pairs(num_images, self._pair_fraction)
            num_dropped = num_pairs if self._pairing == "replace" else 0
        is_drawn = element is None
        *of_group, position, field_position = draw_uniform(4, generator)
        if element is None:
            element = 1 + int(of_group[0] * (self.group.order - 1))
        if shift is None:
            shift = 1 + int(of_group[1] * self._largest_shift)
        check_choice("element", element, range(1, self.group.order))
        check_choice("shift", shift, range(1, self._largest_shift + 1))
        swaps = self.group.quarter_turns(element) in (None, 1, 3)
        if self._pairing != "none" and ((is_drawn and self.group.needs_squares) or swaps):
            inputs, targets = self._squares(inputs, targets, kinds)

        def paired(name: str, entry: Tensor) -> Tensor:
            if self._pairing == "none":
                return entry
            return insert_transformed(entry, num_pairs, num_dropped, element, kinds[name], self.group)

        batch = PairedBatch(
            inputs=each_entry("inputs", inputs, paired),
            targets=each_entry("targets", targets, paired),
            element=element,
            shift=shift,
            num_pairs=num_pairs,
            position=position,
            field_position=field_position,
        )
        measures = self._measure_gradients if measure_gradients is None else measure_gradients
        self._recorder.start(batch, incompatibilities=self._collector.incompatibilities, measures_gradients=measures)
        return batch

    def penalty(self) -> Tensor:
        """``sum_l w_l L_l`` of the forward since `pair`: a scalar, not yet multiplied by the weight.

        The value is exact before the backward pass. The regulariser keeps no reference to what it recorded, so a second
        call raises. If layers or fields are sampled, the value is an unbiased estimate.

        Raises:
            RuntimeError: there was no forward in training mode since `pair`.
            ValueError: no layer could be compared; the message says why. `NonFiniteFeaturesError` names a layer with
                NaN features.
        """
        collected = self._collector.collect(self._recorder.finish())
        self._layer_penalties = collected.values
        return collected.total

    def layer_penalties(self) -> dict[str, float]:
        """L_l of each layer in the latest `penalty`, in order of execution; empty before the first `penalty`."""
        return {name: value.item() for name, value in self._layer_penalties.items()}

    def gradient_norms(self) -> GradientNorms | None:
        """The norms of the arriving gradient and of the penalty's gradient in the latest backward pass.

        None before the first backward pass, if the step did not measure them (``measure_gradients=True``), and for
        penalties that compare no outputs ("channel", "projection").
        """
        backward = self._collector.backward
        return backward.norms if backward else None

    def detach(self) -> None:
        """Stop for good: remove all hooks from the network, and drop everything that was recorded."""
        self._recorder.stop()
        self._detached = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.detach()

    def _weights(self, names: list[str]) -> dict[str, float]:
        weights = normalised_layer_weights(names, self._layer_weights)
        factor = len(weights) if self._has_raw_weights else 1
        return {name: factor * weight for name, weight in weights.items()}

    def _squares(self, inputs: Entries, targets: Entries, kinds: Mapping[str, EntryField]) -> tuple[Entries, Entries]:
        """Inputs and targets with their images cropped or padded to squares."""
        entries = (*entries_of(inputs), *entries_of(targets))
        if all(entry.shape[-2] == entry.shape[-1] for entry in entries if entry.ndim == 4):
            return inputs, targets
        images: dict[str, Tensor] = {}

        def gather(name: str, entry: Tensor) -> Tensor:
            if kinds[name] == "image":
                images[name] = entry
            return entry

        for which, given in (("inputs", inputs), ("targets", targets)):
            each_entry(which, given, gather)
        squares = make_square(images, self._non_square)
        square_inputs, square_targets = (
            each_entry(which, given, lambda name, entry: squares.get(name, entry))
            for which, given in (("inputs", inputs), ("targets", targets))
        )
        return square_inputs, square_targets
