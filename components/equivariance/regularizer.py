"""The equivariance regulariser: a penalty on a network's layers, in training only, without a trace."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import TracebackType
from typing import Literal, Self

import torch
from torch import Tensor, nn

from .groups import ChannelGroup, group_named
from .layer_weights import LayerWeights, check_layer_weights, normalised_layer_weights
from .layers import (
    Comparison,
    LayerFacts,
    Layers,
    channel_obstacle,
    check_patterns,
    match_patterns,
    named_layers,
    requested_fields,
)
from .layouts import Layout
from .options import check_choice
from .pairing import (
    Entries,
    EntryField,
    NonSquare,
    PairedBatch,
    Pairing,
    check_pair_fraction,
    count_pairs,
    draw_uniform,
    each_entry,
    entries_of,
    entry_fields,
    first_entry,
    insert_copies,
    make_square,
)
from .penalties import Size
from .taps import GradientNorms
from .watcher import LayerWatcher, WatchOptions

Penalty = Literal["rotation", "channel", "rotation+channel", "regular", "projection", "paper"]
COMPARISONS: dict[Penalty, tuple[Comparison, ...]] = {
    "rotation": ("rotation",),
    "channel": ("channel",),
    "rotation+channel": ("rotation", "channel"),
    "regular": ("regular",),
    "projection": ("projection",),
    "paper": ("regular",),
}
Normalise = Literal["relative", "none"]


class EquivarianceRegularizer:
    """Penalises the part of each layer's output that does not turn as the image does.

    ``penalty() = sum_l w_l L_l`` with L_l as in METHOD.md section 3 and w_l summing to 1: a scalar without unit that
    scales with neither batch, channels, image size nor the number of layers. One step is::

        batch = regularizer.pair(degraded, clean, generator=generator)
        loss = task_loss(network(batch.inputs), batch.targets) + weight * regularizer.penalty()

    Layers are watched from `pair` to `penalty`, while the network is in training mode and gradients are enabled;
    between steps the network carries no hooks. A copy of the network never feeds the regulariser. With
    DistributedDataParallel or torch.compile, give the network here unwrapped and call the wrapped one; each worker
    pairs images of its own. Works under automatic mixed precision and activation checkpointing (of the network's
    parts, if reentrant); double backward is not possible, nor is ``torch.compile(fullgraph=True)``.

    The first forward after construction is traced: it runs uncompiled and keeps the maps of its pairs, so its memory is
    higher than that of all others. Under torch.compile it must come before any other compiled call in training mode.

    Args:
        network: any module with convolutions or linear layers.
        penalty: what is compared. Under "rotation" every field is trivial. "paper" is the released code's: unsquared
            norms over the whole tensor, every layer of mean weight 1. "projection" compares kernels and needs no pairs.
        group: "C4" (quarter turns), "C2", "D4" (with mirrors), "C8" or any "C<N>" (bilinear, inside a circle).
        layers: "auto" (every convolution and token-wise linear layer: hidden ones regular, the last before the image
            trivial), name patterns, or a mapping from name patterns to "regular" or "trivial".
        layouts: name patterns -> how those layers' outputs are laid out (`layouts`), where it cannot be inferred.
        layer_weights: "uniform", {"profile": "geometric", "decay": d}, or a mapping from name patterns to weights.
        sample_layers: how many layers to penalise in a step, drawn with probabilities proportional to their weights and
            weighted so that the mean over draws is the sum over all: a number of layers from 1, or a share below 1;
            None for all.
        sample_fields: what share of each layer's regular fields to compare in a step, above 0 and below 1, drawn with
            equal probabilities: on average the penalty of all; None for all. Refused under "paper", whose norms are no
            means, and without effect under "rotation", "channel" and "projection". Compared whole nevertheless: trivial
            fields, and layers whose gradient has no closed form (`scale_gradient`, groups that are not on the grid).
        normalise: "relative", or "none" for mean squares in the features' own units.
        scale_gradient: whether gradient flows through the denominator of a relative size.
        pairing: "replace" (B images stay B), "append" (B become B + k), or, for "projection" alone, "none".
        pair_fraction: k / B.
        channel_group: channels shifted among themselves by the channel penalty: the group's order, or "all".
        max_gradient_ratio: at a layer's output, the largest norm of its own penalty gradient relative to that of the
            gradient arriving there, pair by pair (`taps.Backward.add`); None for no cap. "channel" and "projection"
            reach their layer's parameters alone and are not capped. With a cap, take task and penalty in one backward
            pass.
        measure_gradients: whether `gradient_norms` is to be known, which `BalancedWeight` needs.
        non_square: what `pair` does to images that are not square where turns need squares: "crop" or "pad" (with
            zeros).

    Raises:
        ValueError: an option that is not one of the allowed, or no layer that can be penalised.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        penalty: Penalty = "regular",
        group: str = "C4",
        layers: Layers = "auto",
        layouts: Mapping[str, Layout] | None = None,
        layer_weights: LayerWeights = "uniform",
        sample_layers: float | None = None,
        sample_fields: float | None = None,
        normalise: Normalise = "relative",
        scale_gradient: bool = False,
        pairing: Pairing = "replace",
        pair_fraction: float = 0.25,
        channel_group: int | Literal["all"] | None = None,
        max_gradient_ratio: float | None = None,
        measure_gradients: bool = False,
        non_square: NonSquare = "crop",
    ) -> None:
        check_choice("penalty", penalty, COMPARISONS)
        check_choice("normalise", normalise, ("relative", "none"))
        check_choice("pairing", pairing, ("replace", "append", "none"))
        check_choice("non_square", non_square, ("crop", "pad"))
        self.group = group_named(group)
        channels: ChannelGroup = self.group.order if channel_group is None else channel_group
        check_choice("channel_group", channels, (self.group.order, "all"))
        if pairing != "none":
            check_pair_fraction(pair_fraction, pairing)
        elif penalty != "projection":
            raise ValueError(
                f"pairing: 'none' leaves nothing to compare under penalty {penalty!r}; use replace or append"
            )
        if max_gradient_ratio is not None and not max_gradient_ratio > 0:
            raise ValueError(f"max_gradient_ratio: {max_gradient_ratio} must be above 0, or None for no cap")
        if sample_layers is not None and not sample_layers > 0:
            raise ValueError(
                f"sample_layers: {sample_layers} must be a number of layers, a share below 1, or None for all"
            )
        if sample_fields is not None and not 0 < sample_fields <= 1:
            raise ValueError(f"sample_fields: {sample_fields} must be a share above 0 and at most 1, or None for all")
        if sample_fields is not None and penalty == "paper":
            raise ValueError(
                "sample_fields: the norms of penalty 'paper' are no means, so no sample stands for all: use None"
            )
        modules = named_layers(network)
        requested = requested_fields(modules, layers)
        check_layer_weights(modules, layer_weights)
        check_patterns("layouts", modules, layouts or {})
        declared = {name: (layouts or {})[fit] for name, fit in match_patterns(modules, layouts or {}).items()}
        size: Size = "paper" if penalty == "paper" else normalise
        options = WatchOptions(
            COMPARISONS[penalty],
            self.group,
            size,
            scale_gradient,
            channels,
            max_gradient_ratio,
            measure_gradients,
            sample_layers,
            sample_fields,
        )
        self._layer_weights = copy.deepcopy(layer_weights)  # a change of the mapping later on is none here
        self._has_raw_weights = penalty == "paper"
        self._watcher = LayerWatcher(network, modules, requested, declared, self._weights, options)
        if not self._watcher.candidates:
            raise ValueError(f"layers: none can be penalised ({self.skipped or 'the network has none'})")
        self._weights(self._watcher.candidates)  # refuses weights that reach none of them
        self._largest_shift = self.group.order - 1
        if channels == "all":
            facts = [LayerFacts.of(module) for module in modules.values()]
            widths = [each.outputs for each in facts if channel_obstacle(each, channels) is None]
            self._largest_shift = min(widths, default=self.group.order) - 1
        self._pairing: Pairing = pairing
        self._pair_fraction = pair_fraction
        self._non_square: NonSquare = non_square
        self._layer_penalties: dict[str, Tensor] = {}
        self._detached = False

    @property
    def skipped(self) -> dict[str, str]:
        """The layers that are not penalised, each with the reason, as of the latest forward.

        Under "rotation+channel" a layer named here may still be penalised by the other of the two.
        """
        return self._watcher.skipped

    def pair(
        self,
        inputs: Entries,
        targets: Entries,
        *,
        fields: Mapping[str, EntryField] | None = None,
        generator: torch.Generator | None = None,
        turns: int | None = None,
        shift: int | None = None,
        num_pairs: int | None = None,
    ) -> PairedBatch:
        """Make pairs of images and their turned copies, and watch the network's next forward.

        The order is originals, copies, singles. With k = pair_fraction * B pairs, "replace" gives up images k..2k-1 for
        the copies of 0..k-1 (B images out), "append" keeps all (B + k out). With an explicit `num_pairs` all images are
        kept under either pairing (B + num_pairs out), so none is drawn in vain.

        Images that are not square are cropped or padded to squares (`pairing.make_square`) whatever is drawn, unless
        the group has half turns alone or `turns` is given and keeps their shape.

        Args:
            inputs: ``(B, C, H, W)``, or several tensors by name.
            targets: likewise. Images are turned each at its own size: a low-resolution input, a mask.
            fields: entries by name ("inputs" and "targets" for lone tensors) -> "image" or "invariant" (a label,
                copied); entries of four axes are images unless declared.
            generator: what turns, shift and the choices of layers and fields are drawn from, four numbers in all in
                every step; torch's default one if None.
            turns: element of the group, for C4 quarter turns 1, 2 or 3; drawn uniformly, without the identity, if None.
            shift: channel shift of the penalty "channel", from 1; drawn uniformly if None.
            num_pairs: pairs to make; from `pair_fraction` if None.

        Raises:
            ValueError: entries that do not fit each other, the number of pairs or the turns.
            RuntimeError: after `detach`.
        """
        if self._detached:
            raise RuntimeError("pair() after detach(): build a new EquivarianceRegularizer")
        kinds = entry_fields(inputs, targets, fields or {})
        num_images = len(first_entry(inputs))
        num_given_up = 0
        if self._pairing == "none":
            num_pairs = 0
        elif num_pairs is None:
            num_pairs = count_pairs(num_images, self._pair_fraction)
            num_given_up = num_pairs if self._pairing == "replace" else 0
        is_drawn = turns is None
        *of_group, position, field_position = draw_uniform(4, generator)
        if turns is None:
            turns = 1 + int(of_group[0] * (self.group.order - 1))
        if shift is None:
            shift = 1 + int(of_group[1] * self._largest_shift)
        check_choice("turns", turns, range(1, self.group.order))
        check_choice("shift", shift, range(1, self._largest_shift + 1))
        swaps = self.group.quarter_turns(turns) in (None, 1, 3)
        if self._pairing != "none" and ((is_drawn and self.group.needs_squares) or swaps):
            inputs, targets = self._squares(inputs, targets, kinds)

        def paired(name: str, entry: Tensor) -> Tensor:
            if self._pairing == "none":
                return entry
            return insert_copies(entry, num_pairs, num_given_up, turns, kinds[name], self.group)

        batch = PairedBatch(
            each_entry("inputs", inputs, paired),
            each_entry("targets", targets, paired),
            turns,
            shift,
            num_pairs,
            position,
            field_position,
        )
        self._watcher.start(batch)
        return batch

    def penalty(self) -> Tensor:
        """``sum_l w_l L_l`` of the forward since `pair`: a scalar, exact before backward, not yet weighted.

        What was collected is given away with it: nothing is kept alive here, and a second call raises. If layers are
        sampled it is an unbiased estimate.

        Raises:
            RuntimeError: no forward in training mode since `pair`.
            ValueError: no layer could be compared, says why; `NonFiniteFeaturesError` names a layer with NaN features.
        """
        collected = self._watcher.collect()
        self._layer_penalties = collected.values
        return collected.total

    def layer_penalties(self) -> dict[str, float]:
        """L_l of each layer in the latest `penalty`, in order of execution; empty before the first."""
        return {name: value.item() for name, value in self._layer_penalties.items()}

    def gradient_norms(self) -> GradientNorms | None:
        """What arrived and what the penalty added at the penalised layers in the latest backward pass; None before it.

        Measured only with ``measure_gradients=True``.
        """
        backward = self._watcher.backward
        return backward.norms if backward else None

    def detach(self) -> None:
        """End for good: no hooks are left on the network, nor anything of the network's features here."""
        self._watcher.stop()
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
        """Both with their images cropped or padded to squares."""
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
