"""Attention between the pixels of a window, and a layer of it on windows that are shifted or not.

Maps have their channels last. With a window of w x w pixels, N = w^2, h heads of d = C / h channels, and n x m windows:

- attention: ``q, k, v`` are one linear layer, ``(B, H, W, C) -> (B, H, W, 3C)``, in this order, each with its heads one
  after the other; in each window and head ``softmax(q k^T / sqrt(d) + b) v``, ``(N, d) -> (N, d)``; then a linear
  layer ``(B, H, W, C) -> (B, H, W, C)``. ``b_ij`` is the entry of a table for the offset between the pixels i and j,
  one for each of ``(2w - 1)^2`` offsets and each head;
- layer: ``x = x + attention(LN(x))``, ``x = x + fc2(gelu(fc1(LN(x))))``. ``gelu`` is the exact one.

A shifted layer rolls the maps by ``-s`` pixels along both axes, attends in the windows of what it got, and rolls back.
The windows that hold both ends of the maps then have pixels that are no neighbours: their entry of ``b`` is lowered by
100, which is not minus infinity. Windows that are shifted by half of an even w turn into each other under quarter
turns. Those of an odd w do not: ``s = (w - 1) / 2`` pixels are cut off at one border, and ``s + 1`` at the other.

Source: Liu, Lin, Cao, Hu, Wei, Zhang, Lin, Guo, *Swin Transformer: Hierarchical Vision Transformer using Shifted
Windows*, ICCV 2021 (arXiv 2103.14030).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.networks.form import positions
from components.networks.stochastic_depth import StochasticDepth

BLOCKED = -100.0
"""What the mask adds between pixels that are no neighbours."""

SPREAD = 0.02
"""Standard deviation of initial weights; values beyond 2 are drawn again."""


class WindowGrid:
    """How maps of one size are cut into windows, and which pixels of a shifted window are no neighbours.

    An exported program cuts by indices: its shapes may not depend on the number of windows along an axis, because the
    exporter takes a side that is not 1 in its example for one that never is. Indices and mask name no device.

    Args:
        maps: ``(B, H, W, C)``; H and W are multiples of the window.
        window: w.
        shift: of the layers that are shifted, in pixels.

    Attributes:
        mask: ``(B n m, 1, N, N)``, `BLOCKED` between pixels that are no neighbours in a shifted window, else 0. In a
            window of the rolled maps, two pixels are neighbours if both are among the last ``shift`` rows of the maps
            or neither is, and likewise for the columns.

    Example:
        >>> maps = torch.arange(8.0).view(1, 2, 4, 1)
        >>> grid = WindowGrid(maps, window=2, shift=1)
        >>> grid.cut(maps)[..., 0]
        tensor([[0., 1., 4., 5.],
                [2., 3., 6., 7.]])
        >>> torch.equal(grid.join(grid.cut(maps), maps), maps)
        True
        >>> grid.mask[:, 0, 0]
        tensor([[   0.,    0., -100., -100.],
                [   0., -100., -100., -100.]])
    """

    def __init__(self, maps: Tensor, window: int, shift: int) -> None:
        self.window = window
        rows, columns = maps[0, :, 0, 0], maps[0, 0, :, 0]  # (H), (W)
        if torch.compiler.is_exporting():
            self._order, self._places = _window_order(rows, columns, window)
        is_down, is_right = (positions(line).flip(0) < shift for line in (rows, columns))
        region = 2 * is_down[:, None] + is_right  # (H, W), from 0 to 3
        region = self.cut(region.expand(maps.shape[0], -1, -1).unsqueeze(3)).squeeze(2)  # (B, H, W, 1) -> (B n m, N)
        blocked = torch.full_like(maps[0, 0, 0, :1], BLOCKED)  # (1), of the type and on the device of the maps
        self.mask = (blocked * (region[:, :, None] != region[:, None, :])).unsqueeze(1)

    def cut(self, maps: Tensor) -> Tensor:
        """Cut maps into windows, by image, window row and window column: ``(B, H, W, K) -> (B n m, N, K)``."""
        side = self.window
        if torch.compiler.is_exporting():
            tokens = maps.flatten(1, 2).index_select(1, self._order)  # (B, H W, K)
            return tokens.flatten(0, 1).unflatten(0, (-1, side**2))
        parts = maps.unflatten(2, (-1, side)).unflatten(1, (-1, side))  # (B, n, w, m, w, K)
        return parts.transpose(2, 3).flatten(3, 4).flatten(0, 2)  # (B, n, m, w, w, K) -> (B n m, N, K)

    def join(self, windows: Tensor, maps: Tensor) -> Tensor:
        """Put windows together: ``(B n m, N, K) -> (B, H, W, K)``.

        Args:
            windows: of `cut`, with any channels.
            maps: from which they were cut.
        """
        (images, height, width), side = maps.shape[:3], self.window
        if torch.compiler.is_exporting():
            tokens = windows.flatten(0, 1).unflatten(0, (images, -1))  # (B n m N, K) -> (B, H W, K)
            return tokens.index_select(1, self._places).unflatten(1, (height, width))
        parts = windows.view(images, height // side, width // side, side, side, -1)  # (B, n, m, w, w, K)
        return parts.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (B, n, w, m, w, K) -> (B, H, W, K)


def _window_order(rows: Tensor, columns: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """The pixel at each place of all windows, and the place of each pixel; ``(H W)`` each.

    Args:
        rows: a line ``(H,)`` on the device of the maps.
        columns: a line ``(W,)``.
        window: w.
    """
    width = torch.ones_like(columns, dtype=torch.int64).sum()  # W; a tensor, which every exporter can compute with
    across = width // window  # windows side by side
    r, c = positions(rows)[:, None], positions(columns)  # (H, 1), (W)
    places = (r // window * across + c // window) * window**2 + r % window * window + c % window  # (H, W)
    place = positions(places.flatten())
    number, inside = place // window**2, place % window**2
    order = (number // across * window + inside // window) * width + number % across * window + inside % window
    return order, places.flatten()


class WindowAttention(nn.Module):
    """Attention of several heads inside windows, with a table of biases for relative positions.

    Shapes: ``(B, H, W, C)`` -> ``(B, H, W, C)``.

    Args:
        width: C.
        heads: h, which divides the width.
        window: w.
    """

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_positions(window))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=SPREAD)

    def forward(self, maps: Tensor, grid: WindowGrid, is_shifted: bool) -> Tensor:
        """Attend in each window.

        Args:
            maps: ``(B, H, W, C)``, rolled if they are shifted.
            grid: of maps of this size.
            is_shifted: whether pixels that are no neighbours are to be masked.
        """
        windows = grid.cut(self.qkv(maps)).unflatten(2, (3, self.heads, -1))  # (B n m, N, 3, h, d)
        queries, keys, values = windows.permute(2, 0, 3, 1, 4).unbind(0)  # each (B n m, h, N, d)
        weights = (float(queries.shape[-1]) ** -0.5 * queries) @ keys.transpose(-2, -1)  # (B n m, h, N, N)
        bias = self.relative_position_bias_table[self.relative_position_index]  # (N, N, h)
        weights = weights + bias.permute(2, 0, 1)
        if is_shifted:
            weights = weights + grid.mask
        attended = (weights.softmax(-1) @ values).transpose(1, 2).flatten(2)  # (B n m, h, N, d) -> (B n m, N, C)
        return self.proj(grid.join(attended, maps))


def relative_positions(window: int) -> Tensor:
    """The entry of the table for each two pixels of a window: ``(N, N)``, from 0 to ``(2w - 1)^2 - 1``.

    With the pixels i and j in rows r and columns c it is ``(r_i - r_j + w - 1) (2w - 1) + c_i - c_j + w - 1``.

    Example:
        >>> relative_positions(2)
        tensor([[4, 3, 1, 0],
                [5, 4, 2, 1],
                [7, 6, 4, 3],
                [8, 7, 5, 4]])
    """
    rows, columns = torch.arange(window**2).view(window, window), torch.arange(window)
    rows, columns = (rows // window).flatten(), columns.repeat(window)
    down, right = (each[:, None] - each[None, :] + window - 1 for each in (rows, columns))
    return down * (2 * window - 1) + right


class Perceptron(nn.Module):
    """``fc2(gelu(fc1(x)))`` on the channels of each pixel, ``(..., C)`` -> ``(..., C)``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, maps: Tensor) -> Tensor:
        """Apply both layers."""
        return self.fc2(F.gelu(self.fc1(maps)))


class WindowLayer(nn.Module):
    """Attention in windows and two linear layers, each added to its input.

    Shapes: ``(B, H, W, C)`` -> ``(B, H, W, C)``; H and W are multiples of the window.

    Args:
        width: C.
        heads: of the attention.
        window: w.
        shift: s, below w; 0 for windows that are not shifted.
        expansion: channels between the two linear layers / C.
        drop_path_rate: how often training leaves out each of both, see `StochasticDepth`.
        image_size: height and width of the images whose mask the state_dict holds, as in the reference; None for no
            mask. Images may have any size, and the mask is never read: it is computed for each image.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        window: int,
        shift: int,
        expansion: int,
        drop_path_rate: float,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        self.shift = shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window)
        self.attn_depth = StochasticDepth(drop_path_rate)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Perceptron(width, expansion * width)
        self.mlp_depth = StochasticDepth(drop_path_rate)
        if image_size is not None and shift:
            mask = WindowGrid(torch.empty(1, image_size, image_size, 1), window, shift).mask
            self.register_buffer("attn_mask", mask.squeeze(1))  # (n m, 1, N, N) -> (n m, N, N)

    def forward(self, maps: Tensor, grid: WindowGrid) -> Tensor:
        """Apply the layer.

        Args:
            maps: ``(B, H, W, C)``.
            grid: of maps of this size.
        """
        attended = self.norm1(maps)
        if self.shift:
            attended = torch.roll(attended, (-self.shift, -self.shift), dims=(1, 2))  # pixel i takes i + s
        attended = self.attn(attended, grid, is_shifted=self.shift > 0)
        if self.shift:
            attended = torch.roll(attended, (self.shift, self.shift), dims=(1, 2))  # pixel i takes i - s
        maps = maps + self.attn_depth(attended)
        return maps + self.mlp_depth(self.mlp(self.norm2(maps)))
