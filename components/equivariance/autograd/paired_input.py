"""Check that the network receives the paired batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..compat import tree_leaves
from ..groups import Group
from ..pairing import PairedBatch, entries_of


@torch.no_grad()
def check_paired(batch: PairedBatch, group: Group, arguments: Any) -> None:
    """Check the first pair in the network's arguments, if an argument has the shape of the batch's inputs.

    Normalisation, another type or another memory format does not break a pair, up to rounding.

    Args:
        batch: the paired batch.
        group: the group.
        arguments: what the network receives, also nested.

    Raises:
        ValueError: the first transformed image does not belong to the first original.
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
    """Whether the first transformed image belongs to the first original; true also if they hold NaN."""
    precise = torch.promote_types(tensor.dtype, torch.float32)
    original, copy = (tensor[i : i + 1].to(precise) for i in (0, batch.num_pairs))
    turned = group.spatial(original, batch.element)
    difference = torch.linalg.vector_norm(group.crop(copy) - turned)
    if group.is_on_grid:
        rounding = max((torch.finfo(d).eps for d in (tensor.dtype, made_as) if d.is_floating_point), default=0.0)
        bound = rounding**0.5 * torch.linalg.vector_norm(turned)
    else:  # interpolation and cropping add errors: a normalisation also changes the pixels outside the circle
        inside = group.crop(torch.ones_like(turned))
        mean = turned.sum() / inside.sum()
        bound = 0.7 * torch.linalg.vector_norm(turned - mean * inside)
    return not bool(difference > bound)
