"""EQ-Reg: rotation-equivariant regularisation of any network, with torch alone.

Three lines in a training loop::

    regularizer = EquivarianceRegularizer(network)
    batch = regularizer.pair(degraded, clean)
    loss = task_loss(network(batch.inputs), batch.targets) + weight * regularizer.penalty()

Conventions (fields, actions, sizes) are in METHOD.md sections 2 and 3, and in `groups` and `penalties`.
"""

from .groups import act, act_regular, rotate, shift_channels
from .layer_weights import GeometricProfile
from .measurement import equivariance_error
from .pairing import PairedBatch, insert_rotated_copies
from .penalties import channel_residual, pair_scale, regular_residual, residual_size, rotation_residual
from .regularizer import EquivarianceRegularizer
from .weighting import PenaltyWeight

__all__ = [
    "EquivarianceRegularizer",
    "GeometricProfile",
    "PairedBatch",
    "PenaltyWeight",
    "act",
    "act_regular",
    "channel_residual",
    "equivariance_error",
    "insert_rotated_copies",
    "pair_scale",
    "regular_residual",
    "residual_size",
    "rotate",
    "rotation_residual",
    "shift_channels",
]
