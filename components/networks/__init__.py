"""The networks: one module for each, registered under the name that params.yaml uses.

To add a network, write its module and one line in ``NETWORKS`` (``components/members.py``). The class owns its
``Settings`` (a ``components.networks.blocks.NetworkSettings``), whose defaults are the published ones, and takes the
settings first and the shape of the task by keyword.

A network comes in two layers:

- The *published module* has the published names and order of parameters, arguments and range of values. Published
  weights load into it, and fingerprints test it.
- The *product's form* (`components.networks.form`), what ``build_network`` gives, takes one stack
  ``(B, in_channels, H, W)`` of floats in [0, 1] of any height and width, and returns the restored image
  ``(B, out_channels, scale H, scale W)``. It has the parameters of the published module under the same names and no
  other. Its attribute ``published`` is the published module, often the network itself.

A task with several inputs stacks them along the channels, in the order of its ``gives``. All inputs are scalar images
of one size, and all of them rotate in the same way. Pairing, tiling, export and the registry therefore handle one
tensor only. A network either takes the whole stack and corrects its first image, or declares by name which inputs it
``needs``. In training mode it may return several supervised images, the final one first.

A classifier takes the same stack and returns logits ``(B, classes)``. It declares ``in_channels`` and ``classes``. The
attribute ``is_classifier`` distinguishes a classifier from a restoration network. All networks can be exported with a
dynamic batch, height and width. No operation in the exported graph names a device, so the graph runs on the device of
its weights.

A network that chaiNNer's loader knows has a method ``chainner``. It returns the module whose ``state_dict`` has the
published names. With these names it is the network itself.

Example:
    >>> {"dncnn", "prenet", "restormer"} <= NETWORKS.keys()
    True
    >>> {name: network_class(name).needs for name in ("prenet", "acdnet", "unet")}
    {'prenet': ('image',), 'acdnet': ('image', 'li', 'metal_mask'), 'unet': None}
"""

from __future__ import annotations

from components.members import NETWORKS
from components.networks.build import (
    build_network,
    has_batch_statistics,
    layer_choices,
    network_class,
    network_settings,
    takes_named_inputs,
    why_unfit,
)

__all__ = [
    "NETWORKS",
    "build_network",
    "has_batch_statistics",
    "layer_choices",
    "network_class",
    "network_settings",
    "takes_named_inputs",
    "why_unfit",
]
