"""The options of the regulariser, and the penalties that can be chosen by name.

To add a penalty, write a function like `Measure` and one entry in `PENALTIES`; or give a `Penalty` of your own to the
regulariser.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from .groups import group_named
from .layers.layouts import Layout
from .layers.spec import Comparison, Layers
from .layers.weights import LayerWeights
from .options import check_choice
from .pairing import NonSquare, Pairing, check_pair_fraction
from .penalties import Measure, Size

Normalise = Literal["relative", "none"]


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """What is compared at each layer, how its size is measured, and what that needs.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from components.equivariance import EquivarianceRegularizer
        >>> def correlation(originals, transformed, element, field, group):
        ...     expected = group.act(originals, element, field)
        ...     return 1 - nn.functional.cosine_similarity(expected.flatten(1), transformed.flatten(1)).mean()
        >>> network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
        >>> regularizer = EquivarianceRegularizer(network, penalty=Penalty(measure=correlation))
        >>> batch = regularizer.pair(torch.rand(8, 1, 16, 16), torch.rand(8, 1, 16, 16))
        >>> outputs = network(batch.inputs)
        >>> 0 <= regularizer.penalty().item() <= 2
        True
    """

    comparisons: tuple[Comparison, ...] = ("regular",)
    """What is compared: outputs in their fields, outputs as images, outputs after a channel shift, or kernels."""
    measure: Measure | None = None
    """The size of a comparison of outputs; None for the sizes of `penalties`. Autograd computes its gradient."""
    size: Size | None = None
    """The size of a residual, whatever ``normalise`` says; None: as ``normalise`` says."""
    is_mean: bool = True
    """Whether the size is a mean over values. If not, the layer weights have the mean 1, and fields are not sampled."""
    needs_pairs: bool = True
    """Whether the batch must hold pairs."""
    needs_exact_group: bool = False
    """Whether the group must act on the pixel grid without interpolation."""
    has_regular_fields: bool = True
    """Whether channels are compared in regular fields, so that the group's order must divide their number."""
    has_output_gradient: bool = True
    """Whether the gradient enters at the layers' outputs, where it can be capped and balanced."""
    samples_fields: bool = False
    """Whether ``sample_fields`` has an effect."""

    def __post_init__(self) -> None:
        if not isinstance(self.comparisons, tuple) or not self.comparisons:
            raise ValueError(f"comparisons: {self.comparisons!r}: use a tuple of names, such as ('regular',)")
        for comparison in self.comparisons:
            check_choice("comparisons", comparison, get_args(Comparison))
        of_outputs = [name for name in self.comparisons if name in ("regular", "rotation")]
        if len(of_outputs) > 1 or len(set(self.comparisons)) < len(self.comparisons):
            raise ValueError(f"comparisons: {self.comparisons}: use at most one of regular and rotation, and each once")
        if self.measure is not None and len(of_outputs) < len(self.comparisons):
            raise ValueError(
                f"comparisons: {self.comparisons}: a measure compares outputs: use ('regular',) or ('rotation',)"
            )
        if self.size is not None:
            check_choice("size", self.size, get_args(Size))


PENALTIES: dict[str, Penalty] = {
    "rotation": Penalty(comparisons=("rotation",), has_regular_fields=False),
    "channel": Penalty(comparisons=("channel",), has_output_gradient=False),
    "rotation+channel": Penalty(comparisons=("rotation", "channel")),
    "regular": Penalty(comparisons=("regular",), samples_fields=True),
    "projection": Penalty(
        comparisons=("projection",), needs_pairs=False, needs_exact_group=True, has_output_gradient=False
    ),
    "paper": Penalty(comparisons=("regular",), size="paper", is_mean=False),
}
"""Name -> penalty. "paper" is the penalty of the released code: unsquared norms over the whole tensor."""


@dataclass(frozen=True, kw_only=True)
class EquivarianceConfig:
    """The options of `EquivarianceRegularizer`.

    Raises:
        ValueError: the value of an option is not allowed.

    Example:
        >>> config = EquivarianceConfig(penalty="rotation", pair_fraction=0.5)
        >>> config.rule.comparisons
        ('rotation',)
    """

    penalty: str | Penalty = "regular"
    """What is compared: a name of `PENALTIES`, or a penalty of your own."""
    group: str = "C4"
    """"C4" (quarter turns), "C2", "D4" (with mirrors), "C8" or any "C<N>" (bilinear, inside a circle)."""
    layers: Layers = "auto"
    """"auto", name patterns, or a mapping from name patterns to "regular" or "trivial". "auto" takes every convolution
    and token-wise linear layer: hidden layers are regular, the last one before the image is trivial."""
    layouts: Mapping[str, Layout] | None = None
    """Name patterns -> the layouts of these layers' outputs (`layouts`), where they cannot be inferred."""
    layer_weights: LayerWeights = "uniform"
    """"uniform", {"profile": "uniform"}, {"profile": "geometric", "decay": d}, or a mapping from name patterns to
    weights."""
    sample_layers: float | None = None
    """How many layers to penalise in each step: a number from 1, or a share below 1; None for all. Layers are drawn
    with probabilities proportional to their weights, and reweighted so that the expected penalty is the sum over all
    layers. So is the expected gradient, but where a cap (`max_gradient_ratio`) acts it can be smaller: the cap is
    relative to the arriving gradient, which lacks the penalties of later layers that were not drawn."""
    sample_fields: float | None = None
    """The share of each layer's regular fields to compare in each step, above 0 and at most 1; None for all. Fields are
    drawn with equal probability, so that the expected penalty is that of all fields. Refused for a penalty that is no
    mean or has a measure. No effect under "rotation", "channel" and "projection". Two cases always use all fields:
    trivial fields, and layers whose gradient has no closed form (`scale_gradient`, groups that are not on the grid)."""
    normalise: Normalise = "relative"
    """"relative", or "none" for mean squares in the units of the features."""
    scale_gradient: bool = False
    """Whether the gradient flows through the denominator of a relative size."""
    pairing: Pairing = "replace"
    """"replace" (B images stay B), "append" (B become B + k), or "none" (only for a penalty that needs no pairs)."""
    pair_fraction: float = 0.25
    """k / B."""
    channel_group: int | Literal["all"] | None = None
    """How many channels the channel penalty shifts among each other: the order of the group (None), or "all"."""
    max_gradient_ratio: float | None = None
    """The cap on the penalty's gradient at a layer's output, for each pair: its norm is at most this multiple of the
    norm of the gradient that arrives there (`injection.Backward`). None for no cap. Gradients that do not enter at the
    outputs reach only the parameters of their layer and are not capped. With a cap, take task loss and penalty in one
    backward pass."""
    measure_gradients: bool = False
    """Whether to measure `gradient_norms`, which `BalancedWeight` needs."""
    non_square: NonSquare = "crop"
    """What `pair` does to non-square images where the element needs squares: "crop", or "pad" (with zeros)."""

    @property
    def rule(self) -> Penalty:
        """The penalty itself."""
        return self.penalty if isinstance(self.penalty, Penalty) else PENALTIES[self.penalty]

    def __post_init__(self) -> None:
        if not isinstance(self.penalty, Penalty):
            check_choice("penalty", self.penalty, list(PENALTIES))
        check_choice("normalise", self.normalise, ("relative", "none"))
        check_choice("pairing", self.pairing, ("replace", "append", "none"))
        check_choice("non_square", self.non_square, ("crop", "pad"))
        order = group_named(self.group).order
        check_choice("channel_group", order if self.channel_group is None else self.channel_group, (order, "all"))
        if self.pairing != "none":
            check_pair_fraction(self.pair_fraction, self.pairing)
        elif self.rule.needs_pairs:
            raise ValueError(
                f"pairing: 'none' leaves nothing to compare under penalty {self.penalty!r}; use replace or append"
            )
        if self.max_gradient_ratio is not None and not self.max_gradient_ratio > 0:
            raise ValueError(f"max_gradient_ratio: {self.max_gradient_ratio} must be above 0, or None for no cap")
        if self.sample_layers is not None and not self.sample_layers > 0:
            raise ValueError(
                f"sample_layers: {self.sample_layers} must be a number of layers, a share below 1, or None for all"
            )
        if self.sample_fields is not None and not 0 < self.sample_fields <= 1:
            raise ValueError(
                f"sample_fields: {self.sample_fields} must be a share above 0 and at most 1, or None for all"
            )
        if self.sample_fields is not None and self.rule.measure is not None:
            raise ValueError(
                f"sample_fields: {self.sample_fields} has no effect on a measure, which compares all fields: use None"
            )
        if self.sample_fields is not None and not self.rule.is_mean:
            raise ValueError(
                f"sample_fields: the norms of penalty {self.penalty!r} are no means, so no sample stands for all: use "
                "None"
            )
