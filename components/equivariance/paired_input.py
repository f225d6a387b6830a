"""Whether what a network is given is the paired batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .groups import Group
from .pairing import PairedBatch, entries_of


@torch.no_grad()
def check_paired(batch: PairedBatch, group: Group, arguments: Any) -> None:
    """Look at the first pair of what the network is given, if it has the shape of the batch's inputs.

    Normalisation, a change of type or of memory format leaves a pair what it is, up to rounding.

    Raises:
        ValueError: its first copy is not its first original turned.
    """
    if not batch.num_pairs:
        return
    given = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    for entry in entries_of(batch.inputs):
        same = [tensor for tensor in given if tensor.shape == entry.shape]
        if entry.ndim == 4 and same and _is_turned(entry, entry.dtype, batch, group):  # else it was declared invariant
            if not any(_is_turned(tensor, entry.dtype, batch, group) for tensor in same):
                raise ValueError(
                    f"network: it was given {tuple(entry.shape)}, as pair() made, but image {batch.num_pairs} is not "
                    "image 0 turned: call network(batch.inputs) with the batch that pair() returned, in its order; "
                    "crop, augment and add noise before pair(), not after it"
                )
            return


def _is_turned(tensor: Tensor, made_as: torch.dtype, batch: PairedBatch, group: Group) -> bool:
    """Whether the first copy is the first original turned; also where that cannot be said of NaN."""
    precise = torch.promote_types(tensor.dtype, torch.float32)
    original, copy = (tensor[i : i + 1].to(precise) for i in (0, batch.num_pairs))
    turned = group.spatial(original, batch.turns)
    difference = torch.linalg.vector_norm(group.crop(copy) - turned)
    if group.is_on_grid:
        rounding = max((torch.finfo(d).eps for d in (tensor.dtype, made_as) if d.is_floating_point), default=0.0)
        bound = rounding**0.5 * torch.linalg.vector_norm(turned)
    else:  # interpolated, and dark corners that a normalisation moves
        inside = group.crop(torch.ones_like(turned))
        mean = turned.sum() / inside.sum()
        bound = 0.7 * torch.linalg.vector_norm(turned - mean * inside)
    return not bool(difference > bound)
