"""EQ-Reg: rotation-equivariant regularisation of any network, with torch alone.

Three lines in a training loop::

    regularizer = EquivarianceRegularizer(network)
    batch = regularizer.pair(degraded, clean)
    loss = task_loss(network(batch.inputs), batch.targets) + weight * regularizer.penalty()

Conventions (fields, actions, sizes) are in METHOD.md sections 2 and 3, and in `groups` and `penalties`. One way through
the files: `pairing` makes the batch, `watcher` looks at the layers (`tracing`, `layers`, `geometry`, `layouts` and
`sampling` say which and how), `observation` compares, `taps` brings the gradient in, `weighting` says how much it
counts.
"""

from .diagnosis import Diagnosis, diagnose
from .groups import C4, Group, act, act_regular, circular_mask, group_named, rotate, rotate_by, shift_channels
from .layer_weights import GeometricProfile
from .layouts import ChannelsLast, Maps, SubPixel, Tokens, Windows
from .measurement import equivariance_error, equivariance_error_by_element
from .options import NonFiniteFeaturesError
from .pairing import PairedBatch
from .penalties import (
    act_on_kernel,
    channel_residual,
    field_residual,
    kernel_residual,
    pair_scale,
    projection_size,
    regular_residual,
    residual_size,
    rotation_residual,
    unsquared_size,
)
from .regularizer import EquivarianceRegularizer
from .taps import GradientNorms
from .weighting import BalancedWeight, PenaltyWeight

__all__ = [
    "C4",
    "BalancedWeight",
    "ChannelsLast",
    "Diagnosis",
    "EquivarianceRegularizer",
    "GeometricProfile",
    "GradientNorms",
    "Group",
    "Maps",
    "NonFiniteFeaturesError",
    "PairedBatch",
    "PenaltyWeight",
    "SubPixel",
    "Tokens",
    "Windows",
    "act",
    "act_on_kernel",
    "act_regular",
    "channel_residual",
    "circular_mask",
    "diagnose",
    "equivariance_error",
    "equivariance_error_by_element",
    "field_residual",
    "group_named",
    "kernel_residual",
    "pair_scale",
    "projection_size",
    "regular_residual",
    "residual_size",
    "rotate",
    "rotate_by",
    "rotation_residual",
    "shift_channels",
    "unsquared_size",
]
