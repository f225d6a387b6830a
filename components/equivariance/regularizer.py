"""The equivariance regulariser: a penalty on a network's layers, in training only, without a trace."""

from types import TracebackType
from typing import Literal, Self

import torch
from torch import Tensor, nn

from .groups import GROUP_ORDER
from .layer_weights import LayerWeights, check_layer_weights, normalised_layer_weights
from .layers import Comparison, Layers, channel_obstacle, convolutions, requested_fields
from .observation import Normalise, SizeOptions
from .options import check_choice
from .pairing import (
    PairedBatch,
    Pairing,
    check_pair_fraction,
    check_turns_fit,
    count_pairs,
    draw_between_one_and,
    insert_rotated_copies,
    replace_by_rotated_copies,
)
from .watcher import LayerWatcher

Penalty = Literal["rotation", "channel", "rotation+channel", "regular"]
COMPARISONS: dict[Penalty, tuple[Comparison, ...]] = {
    "rotation": ("rotation",),
    "channel": ("channel",),
    "rotation+channel": ("rotation", "channel"),
    "regular": ("regular",),
}


class EquivarianceRegularizer:
    """Penalises the part of each layer's output that does not turn as the image does.

    ``penalty() = sum_l w_l L_l`` with L_l as in METHOD.md section 3 and w_l summing to 1: a scalar without
    unit that scales with neither batch, channels, image size nor the number of layers. One step is::

        batch = regularizer.pair(degraded, clean, generator=generator)
        loss = task_loss(network(batch.inputs), batch.targets) + weight * regularizer.penalty()

    Layers are watched from `pair` to `penalty`, while the network is in training mode and gradients are
    enabled; between steps the network carries no hooks. A copy of the network never feeds the regulariser.
    With DistributedDataParallel, give the network here unwrapped; each worker pairs images of its own.

    Args:
        network: any module whose convolutions are called with ``(B, C, H, W)``.
        penalty: what is compared. Under "rotation" every field is trivial.
        layers: "auto" (every convolution: hidden ones regular, the last before the image trivial), name
            patterns, or a mapping from name patterns to "regular" or "trivial".
        layer_weights: "uniform", {"profile": "geometric", "decay": d}, or a mapping from name patterns to
            weights.
        normalise: "relative", or "none" for mean squares in the features' own units.
        scale_gradient: whether gradient flows through the denominator of a relative size.
        pairing: "replace" (B images stay B) or "append" (B become B + k).
        pair_fraction: k / B.
        channel_group: channels shifted among themselves by the channel penalty: 4, or "all".
        max_gradient_ratio: at a layer's output, the largest norm of its own penalty gradient relative to that of the
            gradient arriving there, pair by pair (`cap.capped_penalty`); None for no cap. The penalty "channel" reaches
            its layer's parameters alone and is not capped. With a cap, take task and penalty in one backward pass.

    Raises:
        ValueError: an option that is not one of the allowed, or no layer that can be penalised.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        penalty: Penalty = "regular",
        layers: Layers = "auto",
        layer_weights: LayerWeights = "uniform",
        normalise: Normalise = "relative",
        scale_gradient: bool = False,
        pairing: Pairing = "replace",
        pair_fraction: float = 0.25,
        channel_group: Literal[4, "all"] = 4,
        max_gradient_ratio: float | None = None,
    ) -> None:
        check_choice("penalty", penalty, COMPARISONS)
        check_choice("normalise", normalise, ("relative", "none"))
        check_choice("pairing", pairing, ("replace", "append"))
        check_choice("channel_group", channel_group, (GROUP_ORDER, "all"))
        check_pair_fraction(pair_fraction, pairing)
        if max_gradient_ratio is not None and not max_gradient_ratio > 0:
            raise ValueError(f"max_gradient_ratio: {max_gradient_ratio} must be above 0, or None for no cap")
        modules = convolutions(network)
        requested = requested_fields(modules, layers)
        check_layer_weights(modules, layer_weights)
        size_options = SizeOptions(normalise, scale_gradient, channel_group, max_gradient_ratio)
        self._watcher = LayerWatcher(network, modules, requested, COMPARISONS[penalty], size_options)
        if not self._watcher.has_candidates:
            raise ValueError(f"layers: none can be penalised ({self.skipped or 'the network has no convolution'})")
        widths = [m.out_channels for m in modules.values() if channel_obstacle(m, channel_group) is None]
        self._largest_shift = (min(widths, default=GROUP_ORDER) if channel_group == "all" else channel_group) - 1
        self._layer_weights = layer_weights
        self._pairing: Pairing = pairing
        self._pair_fraction = pair_fraction
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
        inputs: Tensor,
        targets: Tensor,
        *,
        generator: torch.Generator | None = None,
        turns: int | None = None,
        shift: int | None = None,
        num_pairs: int | None = None,
    ) -> PairedBatch:
        """Make pairs of images and their rotated copies, and watch the network's next forward.

        The order is originals, copies, singles. With k = pair_fraction * B pairs, "replace" gives up images
        k..2k-1 for the copies of 0..k-1 (B images out), "append" keeps all (B + k out). With an explicit
        `num_pairs` all images are kept under either pairing (B + num_pairs out), so none is drawn in vain.

        Args:
            inputs: ``(B, C, H, W)``.
            targets: ``(B, C', H', W')``, rotated alike at their own size.
            generator: what turns and shift are drawn from, in this order; torch's default one if None.
            turns: quarter turns, 1, 2 or 3; drawn uniformly if None.
            shift: channel shift of the penalty "channel", from 1; drawn uniformly if None.
            num_pairs: pairs to make; from `pair_fraction` if None.

        Raises:
            ValueError: batches that do not fit each other, the number of pairs or the turns.
            RuntimeError: after `detach`.
        """
        if self._detached:
            raise RuntimeError("pair() after detach(): build a new EquivarianceRegularizer")
        if inputs.ndim != 4 or targets.ndim != 4 or len(inputs) != len(targets):
            shapes = f"{tuple(inputs.shape)} and {tuple(targets.shape)}"
            raise ValueError(f"inputs and targets must both be (B, C, H, W) with the same B, not {shapes}")
        make_pairs = insert_rotated_copies
        if num_pairs is None:
            num_pairs = count_pairs(len(inputs), self._pair_fraction)
            if self._pairing == "replace":
                make_pairs = replace_by_rotated_copies
        if turns is None:
            for images in (inputs, targets):
                check_turns_fit(images, turns=1)  # whatever is drawn, so that no later step fails
            turns = draw_between_one_and(GROUP_ORDER - 1, generator)
        if shift is None:
            shift = draw_between_one_and(self._largest_shift, generator)
        check_choice("turns", turns, range(1, GROUP_ORDER))
        check_choice("shift", shift, range(1, self._largest_shift + 1))
        paired_inputs, paired_targets = (make_pairs(images, num_pairs, turns) for images in (inputs, targets))
        batch = PairedBatch(paired_inputs, paired_targets, turns, shift, num_pairs)
        self._watcher.start(batch)
        return batch

    def penalty(self) -> Tensor:
        """``sum_l w_l L_l`` of the forward since `pair`: a scalar, exact before backward, not yet weighted.

        What was collected is given away with it: nothing is kept alive here, and a second call raises.

        Raises:
            RuntimeError: no forward in training mode since `pair`.
            ValueError: no layer could be compared; says why.
        """
        values = self._watcher.collect()
        weights = normalised_layer_weights(list(values), self._layer_weights)
        self._layer_penalties = {name: value.detach() for name, value in values.items()}
        return torch.stack([weights[name] * value for name, value in values.items()]).sum()

    def layer_penalties(self) -> dict[str, float]:
        """L_l of each layer in the latest `penalty`, in order of execution; empty before the first."""
        return {name: value.item() for name, value in self._layer_penalties.items()}

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
