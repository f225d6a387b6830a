"""The networks: one module for each, registered under the name that params.yaml uses.

To add a network, write its module and one line in ``NETWORKS`` (``components/members.py``). The class owns its
``Settings`` (a ``components.networks.blocks.NetworkSettings``), whose defaults are the published ones, and takes the
settings first and the shape of the task by keyword.

A restoration network takes one stack ``(B, in_channels, H, W)`` of float images in [0, 1] and returns
``(B, out_channels, scale H, scale W)``:

``output = up(inputs[:, :out_channels]) + residual(inputs)``

``up`` is bicubic interpolation for scale 2, 3 and 4, and the identity for scale 1. A task with several inputs stacks
them along the channels. The image that is corrected comes first. The other inputs follow in the order of the task
(inpainting: image, mask; metal artifacts: linear interpolation, artifact image, metal mask). All inputs are scalar
images of one size, and all of them rotate in the same way. Pairing, tiling, export and the registry therefore handle
one tensor only. A restoration network declares ``in_channels``, ``out_channels`` and ``scale``.

A classifier takes the same stack and returns logits ``(B, classes)``. It declares ``in_channels`` and ``classes``. The
attribute ``is_classifier`` distinguishes a classifier from a restoration network. All networks can be exported with a
dynamic batch, height and width. No operation in the exported graph names a device, so the graph runs on the device of
its weights.

A network that chaiNNer's loader knows has a method ``chainner``. It returns the module whose ``state_dict`` has the
published names. With these names it is the network itself.

Example:
    >>> sorted(NETWORKS)
    ['dncnn', 'resnet', 'unet']
    >>> [name for name in NETWORKS if network_class(name).is_classifier]
    ['resnet']
"""

from __future__ import annotations

from components.members import NETWORKS
from components.networks.build import (
    build_network,
    has_batch_statistics,
    network_class,
    network_settings,
    takes_named_inputs,
    why_unfit,
)

__all__ = [
    "NETWORKS",
    "build_network",
    "has_batch_statistics",
    "network_class",
    "network_settings",
    "takes_named_inputs",
    "why_unfit",
]
