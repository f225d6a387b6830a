"""EQ-Reg: rotation-equivariant regularisation of any network, with torch as the only dependency.

A training loop needs three lines::

    regularizer = EquivarianceRegularizer(network)
    batch = regularizer.pair(degraded, clean)
    loss = task_loss(network(batch.inputs), batch.targets) + weight * regularizer.penalty()

`groups` and `penalties` state the conventions (fields, actions, sizes), as docs/explanation/method.md does. A way
through the files, in the order of a training step:

    pairing              makes the batch: originals, transformed and unpaired images
    layers/              decides which layers are compared, in which field and layout, and with which weight
    autograd/recorder    records the outputs of the layers while the network runs
    autograd/comparison  compares the originals' outputs with those of the transformed images
    autograd/collector   computes the penalty from what was recorded
    autograd/injection   adds the gradient of the penalty in the backward pass
    weighting            computes the factor of the penalty in the loss
    diagnosis/           measures how equivariant a network is, and reports what prevents it

The examples in the docstrings assume ``import torch``, ``from torch import nn`` and
``from components.equivariance import *``.
"""

from .autograd.injection import GradientNorms
from .config import PENALTIES, EquivarianceConfig, Penalty
from .diagnosis.diagnose import Diagnosis, diagnose
from .diagnosis.equivariance_error import (
    equivariance_error,
    equivariance_error_by_element,
)
from .diagnosis.projection import projected
from .groups import (
    C4,
    Group,
    act,
    act_regular,
    circular_mask,
    group_named,
    rotate,
    rotate_by,
    shift_channels,
)
from .layers.layouts import ChannelsLast, Maps, Patches, SubPixel, Tokens, Windows
from .layers.weights import GeometricProfile
from .options import NonFiniteFeaturesError
from .pairing import PairedBatch
from .penalties import (
    act_on_kernel,
    channel_residual,
    field_residual,
    kernel_relative_mse,
    kernel_residual,
    l2_norm,
    pair_scale,
    regular_residual,
    relative_mse,
    rotation_residual,
)
from .regularizer import EquivarianceRegularizer
from .weighting import BalancedWeight, PenaltyWeight

__all__ = [
    "C4",
    "PENALTIES",
    "BalancedWeight",
    "ChannelsLast",
    "Diagnosis",
    "EquivarianceConfig",
    "EquivarianceRegularizer",
    "GeometricProfile",
    "GradientNorms",
    "Group",
    "Maps",
    "NonFiniteFeaturesError",
    "PairedBatch",
    "Patches",
    "Penalty",
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
    "kernel_relative_mse",
    "kernel_residual",
    "l2_norm",
    "pair_scale",
    "projected",
    "regular_residual",
    "relative_mse",
    "rotate",
    "rotate_by",
    "rotation_residual",
    "shift_channels",
]
