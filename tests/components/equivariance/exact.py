"""Kernels that are exactly symmetric, built by the textbook and without the code under test; and slow oracles.

Legend: o output field, i input field, k and m orientations of the two, a and b rows and columns of a kernel.
"""

import numpy as np
import torch
from torch import Tensor, nn

ORDER = 4


def loop_rotate(maps: Tensor, element: int) -> Tensor:
    """Quarter turns counter-clockwise, pixel by pixel: once, ``out[i, j] = in[j, W - 1 - i]``."""
    for _ in range(element):
        height, width = maps.shape[-2:]
        turned = maps.new_empty(*maps.shape[:-2], width, height)
        for i in range(width):
            for j in range(height):
                turned[..., i, j] = maps[..., j, width - 1 - i]
        maps = turned
    return maps


def loop_regular(maps: Tensor, element: int) -> Tensor:
    """The regular action, channel by channel: channel 4c + k comes from channel 4c + (k - n) mod 4."""
    turned = loop_rotate(maps, element)
    out = torch.empty_like(turned)
    for channel in range(turned.shape[1]):
        field, orientation = divmod(channel, ORDER)
        out[:, channel] = turned[:, ORDER * field + (orientation - element) % ORDER]
    return out


def loop_size(first: Tensor, second: Tensor, relative: bool = True) -> float:
    """The size of ``first - second`` with explicit sums, in Python numbers."""
    sizes = []
    for a, b in zip(first.numpy(force=True), second.numpy(force=True), strict=True):
        a, b = a.ravel().tolist(), b.ravel().tolist()
        difference = sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)
        scale = (sum(x * x for x in a) / len(a) + sum(y * y for y in b) / len(b)) / 2
        sizes.append(difference / scale if relative else difference)
    return sum(sizes) / len(sizes)


def turned_kernel(kernel: Tensor, element: int) -> Tensor:
    """A kernel turned by numpy, ``(a, b)`` -> ``(a, b)``."""
    return torch.from_numpy(np.rot90(kernel.numpy(), element).copy())


def lifting_kernel(fields: int, channels: int, size: int = 3, sign: int = 1, seed: int = 0) -> Tensor:
    """``W[4c + k] = rot(w_c, sign k)``: from an image to regular fields; exact for sign = 1."""
    base = _random(fields, channels, size, size, seed=seed)
    weight = torch.empty(ORDER * fields, channels, size, size, dtype=torch.float64)
    for o in range(fields):
        for k in range(ORDER):
            for i in range(channels):
                weight[ORDER * o + k, i] = turned_kernel(base[o, i], sign * k)
    return weight


def group_kernel(fields_out: int, fields_in: int, size: int = 3, seed: int = 1) -> Tensor:
    """``W[o, k, i, m] = rot(w[o, i, (m - k) mod 4], k)``: from regular fields to regular fields."""
    base = _random(fields_out, fields_in, ORDER, size, size, seed=seed)
    weight = torch.empty(ORDER * fields_out, ORDER * fields_in, size, size, dtype=torch.float64)
    for o in range(fields_out):
        for i in range(fields_in):
            for k in range(ORDER):
                for m in range(ORDER):
                    weight[ORDER * o + k, ORDER * i + m] = turned_kernel(base[o, i, (m - k) % ORDER], k)
    return weight


def projection_kernel(channels: int, fields_in: int, size: int = 3, seed: int = 2) -> Tensor:
    """``W[o, i, m] = rot(w[o, i], m)``: from regular fields to an image."""
    return lifting_kernel(fields_in, channels, size, seed=seed).transpose(0, 1).contiguous()


def symmetric_kernel(channels_out: int, channels_in: int, size: int = 3, seed: int = 3) -> Tensor:
    """Kernels that no quarter turn changes."""
    base = _random(channels_out, channels_in, size, size, seed=seed)
    weight = torch.zeros_like(base)
    for o in range(channels_out):
        for i in range(channels_in):
            weight[o, i] = sum(turned_kernel(base[o, i], n) for n in range(ORDER)) / ORDER
    return weight


def circulant_kernel(fields_out: int, fields_in: int, width: int = ORDER, seed: int = 4) -> Tensor:
    """``W[o, k, i, m] = w[o, i, (m - k) mod t]``: block-circulant in the channels, arbitrary in space."""
    base = _random(fields_out, fields_in, width, 3, 3, seed=seed)
    weight = torch.empty(width * fields_out, width * fields_in, 3, 3, dtype=torch.float64)
    for o in range(fields_out):
        for i in range(fields_in):
            for k in range(width):
                for m in range(width):
                    weight[width * o + k, width * i + m] = base[o, i, (m - k) % width]
    return weight


def convolution(weight: Tensor, **options: int) -> nn.Conv2d:
    """A convolution with these weights, no bias and as much padding as keeps the size."""
    channels_out, channels_in, size, _ = weight.shape
    options.setdefault("padding", size // 2)
    module = nn.Conv2d(channels_in, channels_out, size, bias=False, dtype=weight.dtype, **options)
    module.weight.data.copy_(weight)
    return module


def exact_network(dtype: torch.dtype = torch.float64, in_place: bool = False) -> nn.Sequential:
    """An exactly equivariant network: lifting, group convolution, projection."""
    network = nn.Sequential(
        convolution(lifting_kernel(3, 3)),
        nn.ReLU(inplace=in_place),
        convolution(group_kernel(2, 3)),
        nn.ReLU(inplace=in_place),
        convolution(projection_kernel(3, 2)),
    )
    return network.to(dtype)


def plain_network(width: int = 8, channels: int = 3, in_place: bool = False, seed: int = 5) -> nn.Sequential:
    """An ordinary network with random weights, in double precision: convolutions "0", "2" and "4"."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(inplace=in_place),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=in_place),
            nn.Conv2d(width, channels, 3, padding=1),
        ).double()


def random_images(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 6) -> Tensor:
    """Zero-mean noise."""
    return _random(*shape, seed=seed).to(dtype)


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
