"""Kernels exactly symmetric under C2, C4 or D4, with a composition table read off the action, not off a formula.

Element h of D4 is ``turns + 4 * mirror``: first the last axis is flipped if ``mirror``, then the array is turned by
``turns`` quarter turns counter-clockwise. Element h of C2 is h half turns, of C4 h quarter turns. A regular field has
one channel an element, the element is the fast axis: ``out[c, h] = spatial_g(y)[c, index(g^-1 h)]``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from tests.components.equivariance.exact import convolution, random_images


@dataclass(frozen=True, eq=False)
class PlaneGroup:
    """Symmetries of a square, numbered; `move` applies element h to the last two axes of an array."""

    order: int
    move: Callable[[np.ndarray, int], np.ndarray]

    @cached_property
    def table(self) -> list[list[int]]:
        """``table[g][h]`` is the element that does what h, then g do to an array without any symmetry."""
        sample = np.arange(6).reshape(2, 3)  # (6) -> (2, 3)
        return [[self._find(self.move(self.move(sample, h), g)) for h in range(self.order)] for g in range(self.order)]

    def _find(self, moved: np.ndarray) -> int:
        sample = np.arange(6).reshape(2, 3)  # (6) -> (2, 3)
        (element,) = [e for e in range(self.order) if np.array_equal(self.move(sample, e), moved)]
        return element

    def inverse(self, g: int) -> int:
        """The element that undoes g."""
        (element,) = [h for h in range(self.order) if self.table[h][g] == 0]
        return element

    def relative(self, g: int, h: int) -> int:
        """The index of ``g^-1 h``."""
        return self.table[self.inverse(g)][h]

    def spatial(self, maps: Tensor, g: int) -> Tensor:
        """The action on images, ``(..., H, W)`` -> ``(..., H, W)`` or ``(..., W, H)``."""
        return torch.from_numpy(self.move(maps.numpy(force=True), g).copy())

    def regular(self, maps: Tensor, g: int) -> Tensor:
        """The action on regular fields, ``(B, order * fields, H, W)``, channel by channel."""
        moved = self.spatial(maps, g)
        out = torch.empty_like(moved)
        for channel in range(moved.shape[1]):
            field, h = divmod(channel, self.order)
            out[:, channel] = moved[:, self.order * field + self.relative(g, h)]
        return out

    def lifting_kernel(self, fields: int, channels: int, size: int = 3, seed: int = 0) -> Tensor:
        """``W[c, h, i] = spatial_h(w[c, i])``: from an image to regular fields."""
        base = random_images(fields, channels, size, size, seed=seed)
        weight = torch.empty(self.order * fields, channels, size, size, dtype=torch.float64)
        for o in range(fields):
            for h in range(self.order):
                weight[self.order * o + h] = self.spatial(base[o], h)
        return weight

    def group_kernel(self, fields_out: int, fields_in: int, size: int = 3, seed: int = 1) -> Tensor:
        """``W[o, h, i, m] = spatial_h(w[o, i, index(h^-1 m)])``: from regular fields to regular fields."""
        base = random_images(fields_out, fields_in, self.order, size, size, seed=seed)
        weight = torch.empty(self.order * fields_out, self.order * fields_in, size, size, dtype=torch.float64)
        for o in range(fields_out):
            for i in range(fields_in):
                for h in range(self.order):
                    for m in range(self.order):
                        kernel = self.spatial(base[o, i, self.relative(h, m)], h)
                        weight[self.order * o + h, self.order * i + m] = kernel
        return weight

    def projection_kernel(self, channels: int, fields_in: int, size: int = 3, seed: int = 2) -> Tensor:
        """``W[o, i, m] = spatial_m(w[o, i])``: from regular fields to an image."""
        return self.lifting_kernel(fields_in, channels, size, seed).transpose(0, 1).contiguous()  # (I, O) -> (O, I)

    def exact_network(self) -> nn.Sequential:
        """An exactly equivariant network: convolutions "0" (lifting), "2" (group) and "4" (projection)."""
        return nn.Sequential(
            convolution(self.lifting_kernel(3, 3)),
            nn.ReLU(),
            convolution(self.group_kernel(2, 3)),
            nn.ReLU(),
            convolution(self.projection_kernel(3, 2)),
        )


def _half_turns(array: np.ndarray, h: int) -> np.ndarray:
    return np.rot90(array, 2 * h, axes=(-2, -1))


def _quarter_turns(array: np.ndarray, h: int) -> np.ndarray:
    return np.rot90(array, h, axes=(-2, -1))


def _mirror_then_turn(array: np.ndarray, h: int) -> np.ndarray:
    mirror, element = divmod(h, 4)
    return np.rot90(np.flip(array, axis=-1) if mirror else array, element, axes=(-2, -1))


C2 = PlaneGroup(2, _half_turns)
C4 = PlaneGroup(4, _quarter_turns)
D4 = PlaneGroup(8, _mirror_then_turn)

c2_spatial, c2_regular = C2.spatial, C2.regular
c2_lifting_kernel, c2_group_kernel, c2_projection_kernel = C2.lifting_kernel, C2.group_kernel, C2.projection_kernel
c2_exact_network = C2.exact_network
d4_spatial, d4_regular = D4.spatial, D4.regular
d4_lifting_kernel, d4_group_kernel, d4_projection_kernel = D4.lifting_kernel, D4.group_kernel, D4.projection_kernel
d4_exact_network = D4.exact_network
