"""Small networks of the kinds that image restoration uses, each with weights that make it exactly C4-equivariant.

All are in double precision, take images ``(B, 3, H, W)`` and give images. They start with ordinary random weights;
`make_exact` replaces these, in place, by weights for which hidden layers are regular fields and
``network(rot(x, n)) == rot(network(x), n)``. Built without the code under test.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.components.equivariance.exact import (
    ORDER,
    group_kernel,
    lifting_kernel,
    loop_rotate,
    projection_kernel,
    random_images,
    turned_kernel,
)

Layer = nn.Conv2d | nn.Linear
Layout = Literal["trivial", "regular", "unshuffled trivial", "unshuffled regular"]
SUB_PIXEL_TURN = (1, 3, 0, 2)  # unshuffle(rot(x, 1))[j] = rot(unshuffle(x), 1)[SUB_PIXEL_TURN[j]]


# ---------------------------------------------------------------------------------------------------------- weights


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers from this seed inside, and as if nothing had happened afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def set_lifting(layer: Layer, seed: int) -> None:
    """From an image to regular fields. On a depthwise convolution: from each regular field to itself."""
    out, channels, size = _shape(layer)
    _assign(layer, lifting_kernel(out // ORDER, channels, size, seed=seed), "regular", seed)


def set_group(layer: Layer, seed: int) -> None:
    """From regular fields to regular fields; a linear layer is block-circulant."""
    out, channels, size = _shape(layer)
    _assign(layer, group_kernel(out // ORDER, channels // ORDER, size, seed=seed), "regular", seed)


def set_projection(layer: Layer, seed: int) -> None:
    """From regular fields to an image."""
    out, channels, size = _shape(layer)
    _assign(layer, projection_kernel(out, channels // ORDER, size, seed=seed), "trivial", seed)


def set_averaged(layer: Layer, layout_in: Layout, layout_out: Layout, seed: int) -> None:
    """From any layout to any other: the average over the group of a random kernel."""
    kernel = random_images(*_shape(layer)[:2], *[_shape(layer)[2]] * 2, seed=seed)
    scale = math.sqrt(ORDER)  # averaging ORDER independent kernels divides their size by it
    _assign(layer, scale * averaged_kernel(kernel, layout_in, layout_out), layout_out, seed)


def turned_channels(channels: int, layout: Layout, element: int) -> list[int]:
    """The channels c' with ``T(n) y = rot(y, n)[:, c']``, T the action on maps of this layout.

    The unshuffled layouts are those of `pixel_unshuffle(., 2)`: channel ``4d + j``, d the channel of the fine map.
    """
    if layout == "trivial":
        return list(range(channels))
    if layout == "regular":
        return [c - c % ORDER + (c % ORDER - element) % ORDER for c in range(channels)]
    fine = turned_channels(channels // 4, "trivial" if layout == "unshuffled trivial" else "regular", element)
    sub_pixels = list(range(4))
    for _ in range(element):
        sub_pixels = [SUB_PIXEL_TURN[j] for j in sub_pixels]
    return [4 * d + j for d in fine for j in sub_pixels]


def averaged_kernel(weight: Tensor, layout_in: Layout, layout_out: Layout) -> Tensor:
    """The mean over n of the kernel of ``T_out(n) conv_W T_in(n)^-1``, ``(O, I, a, b)`` -> ``(O, I, a, b)``."""
    mean = torch.zeros_like(weight)
    for element in range(ORDER):
        source_out = turned_channels(weight.shape[0], layout_out, element)
        source_in = turned_channels(weight.shape[1], layout_in, element)
        for o in range(weight.shape[0]):
            for i in range(weight.shape[1]):
                mean[o, i] += turned_kernel(weight[source_out[o], source_in[i]], element) / ORDER
    return mean


def _shape(layer: Layer) -> tuple[int, int, int]:
    """Output channels, input channels (of one group of channels), kernel size."""
    return layer.weight.shape[0], layer.weight.shape[1], layer.weight.shape[2] if layer.weight.dim() == 4 else 1


def _assign(layer: Layer, kernel: Tensor, layout: Layout, seed: int) -> None:
    """The kernel, scaled to keep the size of the maps, and a random bias of the output's symmetry."""
    kernel = kernel / math.sqrt(kernel[0].numel())
    layer.weight.data.copy_(kernel.reshape(layer.weight.shape))  # linear: (O, I, 1, 1) -> (O, I)
    bias = random_images(kernel.shape[0], seed=seed + 1000)
    turned = torch.stack([bias[turned_channels(len(bias), layout, n)] for n in range(ORDER)])  # (4, O)
    if layer.bias is not None:
        layer.bias.data.copy_(turned.mean(0))


def relative_error(network: nn.Module, element: int, *inputs: Tensor) -> float:
    """``|network(rot(x)) - rot(network(x))| / |network(x)|``, turned pixel by pixel."""
    with torch.no_grad():
        expected = loop_rotate(network(*inputs), element)
        output = network(*(loop_rotate(x, element) for x in inputs))
    return float((output - expected).norm() / expected.norm())


class SmallNetwork(nn.Module):
    """What all of them share."""

    def make_exact(self, seed: int = 100) -> Self:
        """Exactly equivariant weights, in place."""
        raise NotImplementedError


# ------------------------------------------------------------------------------------------------ window attention


class WindowSelfAttention(nn.Module):
    """Multi-head attention inside windows, ``(B nW, N, C)`` -> ``(B nW, N, C)`` with ``N = window^2``."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int, position_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table: nn.Parameter | None = None
        if position_bias:
            self.relative_position_bias_table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        places = torch.stack((rows, columns)).flatten(1)  # (2, window, window) -> (2, N)
        offsets = places[:, :, None] - places[:, None, :] + window - 1  # (2, N, N), each from 0 to 2 window - 2
        self.register_buffer("relative_position_index", offsets[0] * (2 * window - 1) + offsets[1])

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        B, N, C = windows.shape
        # (B nW, N, 3 C) -> (B nW, N, 3, heads, C / heads) -> (3, B nW, heads, N, C / heads)
        qkv = self.qkv(windows).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attention = q @ k.transpose(-2, -1) / math.sqrt(C // self.heads)  # (B nW, heads, N, N)
        if self.relative_position_bias_table is not None:
            bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]  # (N N, heads)
            attention = attention + bias.view(N, N, -1).permute(
                2, 0, 1
            )  # (N N, heads) -> (N, N, heads) -> (heads, N, N)
        if mask is not None:
            num_windows = mask.shape[0]
            # (B nW, heads, N, N) -> (B, nW, heads, N, N), plus (nW, 1, N, N)
            attention = attention.view(B // num_windows, num_windows, self.heads, N, N) + mask[:, None]
            attention = attention.view(B, self.heads, N, N)  # (B, nW, heads, N, N) -> (B nW, heads, N, N)
        # (B nW, heads, N, C / heads) -> (B nW, N, heads, C / heads) -> (B nW, N, C)
        return self.proj((attention.softmax(-1) @ v).transpose(1, 2).reshape(B, N, C))


class WindowBlock(nn.Module):
    """A Swin block on channels-last tokens ``(B, H, W, C)``."""

    def __init__(
        self, channels: int, heads: int, window: int, shift: int, position_bias: bool, norm_affine: bool
    ) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(channels, elementwise_affine=norm_affine)
        self.attention = WindowSelfAttention(channels, heads, window, position_bias)
        self.norm2 = nn.LayerNorm(channels, elementwise_affine=norm_affine)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))

    def forward(self, tokens: Tensor) -> Tensor:
        H, W = tokens.shape[1:3]
        mixed = self.norm1(tokens)
        if self.shift:
            mixed = torch.roll(mixed, shifts=(-self.shift, -self.shift), dims=(1, 2))  # place i takes i + shift
        windows = window_partition(mixed, self.window)
        windows = self.attention(windows, self._mask(H, W) if self.shift else None)
        mixed = window_reverse(windows, self.window, H, W)
        if self.shift:
            mixed = torch.roll(mixed, shifts=(self.shift, self.shift), dims=(1, 2))  # place i takes i - shift
        tokens = tokens + mixed
        return tokens + self.mlp(self.norm2(tokens))

    def _mask(self, H: int, W: int) -> Tensor:
        """-100 where two tokens of a window were no neighbours before the roll, ``(nW, N, N)``."""
        regions = self.attention.qkv.weight.new_zeros(1, H, W, 1)
        slices = (slice(0, -self.window), slice(-self.window, -self.shift), slice(-self.shift, None))
        for i, rows in enumerate(slices):
            for j, columns in enumerate(slices):
                regions[:, rows, columns] = 3 * i + j
        regions = window_partition(regions, self.window).squeeze(-1)  # (nW, N, 1) -> (nW, N)
        return (regions[:, :, None] != regions[:, None, :]).to(regions.dtype) * -100.0


def window_partition(tokens: Tensor, window: int) -> Tensor:
    """``(B, H, W, C)`` -> ``(B nW, window^2, C)``."""
    B, H, W, C = tokens.shape
    if H % window or W % window:
        raise ValueError(f"windows of {window} x {window} do not fill {H} x {W} tokens")
    tokens = tokens.view(B, H // window, window, W // window, window, C)  # (B, H, W, C) -> (B, nH, w, nW, w, C)
    tokens = tokens.permute(0, 1, 3, 2, 4, 5)  # (B, nH, w, nW, w, C) -> (B, nH, nW, w, w, C)
    return tokens.reshape(-1, window * window, C)  # (B, nH, nW, w, w, C) -> (B nH nW, w w, C)


def window_reverse(windows: Tensor, window: int, H: int, W: int) -> Tensor:
    """``(B nW, window^2, C)`` -> ``(B, H, W, C)``."""
    C = windows.shape[-1]
    tokens = windows.view(-1, H // window, W // window, window, window, C)  # (B nH nW, w w, C) -> (B, nH, nW, w, w, C)
    return tokens.permute(0, 1, 3, 2, 4, 5).reshape(-1, H, W, C)  # -> (B, nH, w, nW, w, C) -> (B, H, W, C)


class WindowAttentionNetwork(SmallNetwork):
    """Swin-like: an embedding, two blocks, the second on shifted windows, and a last convolution.

    `linears` names every linear layer and says whether it runs on shifted windows. The exact weights are exact if
    `window` is even (else shifted windows are not mapped to each other), divides both sizes, and the head width
    ``channels / heads`` divides by 4. Norms have no affine parameters unless `norm_affine`; these are then random.
    """

    def __init__(
        self,
        channels: int = 8,
        heads: int = 2,
        window: int = 4,
        position_bias: bool = True,
        norm_affine: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.window = window
        with seeded(seed):
            self.embed = nn.Conv2d(3, channels, 3, padding=1)
            shifts = (0, window // 2)
            self.blocks = nn.ModuleList(
                WindowBlock(channels, heads, window, shift, position_bias, norm_affine) for shift in shifts
            )
            self.last = nn.Conv2d(channels, 3, 3, padding=1)
            for module in self.modules():
                if isinstance(module, nn.LayerNorm) and norm_affine:
                    nn.init.normal_(module.weight, 1.0, 0.5)
                    nn.init.normal_(module.bias, 0.0, 0.5)
        self.linears: dict[str, bool] = {
            f"blocks.{i}.{name}": bool(shift) and name.startswith("attention")
            for i, shift in enumerate(shifts)
            for name in ("attention.qkv", "attention.proj", "mlp.0", "mlp.2")
        }
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).permute(0, 2, 3, 1).contiguous()  # (B, C, H, W) -> (B, H, W, C)
        for block in self.blocks:
            tokens = block(tokens)
        return self.last(tokens.permute(0, 3, 1, 2))  # (B, H, W, C) -> (B, C, H, W)

    def make_exact(self, seed: int = 100) -> Self:
        set_lifting(self.embed, seed)
        set_projection(self.last, seed + 1)
        for i, name in enumerate(self.linears):
            set_group(self.get_submodule(name), seed + 2 + i)  # type: ignore[arg-type]
        for module in self.modules():
            if isinstance(module, WindowSelfAttention) and module.relative_position_bias_table is not None:
                _symmetrize_table(module.relative_position_bias_table.data)
            if isinstance(module, nn.LayerNorm) and module.elementwise_affine:
                for parameter in (module.weight, module.bias):
                    fields = parameter.data.view(-1, ORDER)  # (C) -> (C / 4, 4)
                    fields.copy_(fields.mean(1, keepdim=True).expand_as(fields))
        return self


def _symmetrize_table(table: Tensor) -> None:
    """A position table ``((2 window - 1)^2, heads)`` becomes its mean over the turns of the window, in place."""
    side = math.isqrt(table.shape[0])
    plane = table.t().reshape(-1, side, side)  # (side side, heads) -> (heads, side side) -> (heads, side, side)
    mean = torch.stack([loop_rotate(plane, n) for n in range(ORDER)]).mean(0)  # (4, heads, side, side) -> one less
    table.copy_(mean.reshape(-1, side * side).t())  # (heads, side, side) -> (heads, side side) -> (side side, heads)


# -------------------------------------------------------------------------------------------- transposed attention


class TransposedSelfAttention(nn.Module):
    """Restormer's attention between channels, ``(B, C, H, W)`` -> ``(B, C, H, W)``."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.rand(heads, 1, 1) + 1.0)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels)
        self.project_out = nn.Conv2d(channels, channels, 1)

    def forward(self, maps: Tensor) -> Tensor:
        B, C, H, W = maps.shape
        q, k, v = (
            part.reshape(B, self.heads, C // self.heads, H * W)  # (B, C, H, W) -> (B, heads, C / heads, H W)
            for part in self.qkv_dwconv(self.qkv(maps)).chunk(3, dim=1)
        )
        attention = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)  # (B, heads, C/heads, C/heads)
        out = (attention * self.temperature).softmax(-1) @ v
        return self.project_out(out.reshape(B, C, H, W))  # (B, heads, C / heads, H W) -> (B, C, H, W)


class TransposedAttentionNetwork(SmallNetwork):
    """Restormer-like: an embedding, transposed attention with a residual, and a last convolution.

    The exact weights are exact if the head width ``channels / heads`` divides by 4.
    """

    def __init__(self, channels: int = 8, heads: int = 2, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            self.embed = nn.Conv2d(3, channels, 3, padding=1)
            self.attention = TransposedSelfAttention(channels, heads)
            self.last = nn.Conv2d(channels, 3, 3, padding=1)
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.embed(images)
        return self.last(maps + self.attention(maps))

    def make_exact(self, seed: int = 100) -> Self:
        set_lifting(self.embed, seed)
        set_group(self.attention.qkv, seed + 1)
        set_lifting(self.attention.qkv_dwconv, seed + 2)
        set_group(self.attention.project_out, seed + 3)
        set_projection(self.last, seed + 4)
        return self


# ------------------------------------------------------------------------------------------------------- sub-pixels


class SubPixelNetwork(SmallNetwork):
    """Convolutions before or after a change between channels and sub-pixels.

    - `hidden`: first, ReLU, expand, shuffle, ReLU, last: output of twice the size.
    - `tail`: first, ReLU, expand, shuffle: the shuffled map is the output, of twice the size.
    - `head`: unshuffle, first, ReLU, last: output of half the size.
    - `both`: unshuffle, first, ReLU, expand, shuffle: output of the input's size.

    `functional` calls ``F.pixel_shuffle`` instead of a module. `scale` is the output's size over the input's.
    `before_shuffle` and `after_unshuffle` name the convolutions on the two sides, or are None.
    """

    def __init__(
        self,
        variant: Literal["hidden", "tail", "head", "both"] = "hidden",
        functional: bool = False,
        channels: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.variant, self.functional = variant, functional
        self.scale = {"hidden": 2.0, "tail": 2.0, "head": 0.5, "both": 1.0}[variant]
        unshuffles, shuffles = variant in ("head", "both"), variant != "head"
        self.before_shuffle: str | None = "expand" if shuffles else None
        self.after_unshuffle: str | None = "first" if unshuffles else None
        with seeded(seed):
            self.first = nn.Conv2d(12 if unshuffles else 3, channels, 3, padding=1)
            self.expand: nn.Conv2d | None = None
            if shuffles:
                self.expand = nn.Conv2d(channels, 4 * (channels if variant == "hidden" else 3), 3, padding=1)
            self.last: nn.Conv2d | None = None
            if variant in ("hidden", "head"):
                self.last = nn.Conv2d(channels, 3, 3, padding=1)
        self.unshuffle = nn.PixelUnshuffle(2) if unshuffles and not functional else None
        self.shuffle = nn.PixelShuffle(2) if shuffles and not functional else None
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        maps = images
        if self.after_unshuffle:  # (B, 3, 2h, 2w) -> (B, 12, h, w)
            maps = F.pixel_unshuffle(maps, 2) if self.unshuffle is None else self.unshuffle(maps)
        maps = F.relu(self.first(maps))
        if self.expand is not None:  # (B, 4C, h, w) -> (B, C, 2h, 2w)
            maps = self.expand(maps)
            maps = F.pixel_shuffle(maps, 2) if self.shuffle is None else self.shuffle(maps)
        if self.last is None:
            return maps
        return self.last(F.relu(maps))

    def make_exact(self, seed: int = 100) -> Self:
        set_averaged(self.first, "unshuffled trivial" if self.after_unshuffle else "trivial", "regular", seed)
        if self.expand is not None:
            fine: Layout = "unshuffled regular" if self.variant == "hidden" else "unshuffled trivial"
            set_averaged(self.expand, "regular", fine, seed + 1)
        if self.last is not None:
            set_projection(self.last, seed + 2)
        return self


class UnshuffledResidualNetwork(SmallNetwork):
    """Restormer-like: what PixelUnshuffle gave is scaled, read, concatenated, and added to by a layer.

    first; unshuffle to x; h = relu(body(scale x)); x + back(relu(merge(cat(h, x)))); shuffle, ReLU, last: output of the
    input's size.
    """

    def __init__(self, channels: int = 8, seed: int = 0) -> None:
        super().__init__()
        self.channels = channels
        with seeded(seed):
            self.first = nn.Conv2d(3, channels, 3, padding=1)
            self.scale = nn.Parameter(1 + torch.rand(4 * channels))
            self.body = nn.Conv2d(4 * channels, channels, 3, padding=1)
            self.merge = nn.Conv2d(5 * channels, channels, 1)
            self.back = nn.Conv2d(channels, 4 * channels, 1)
            self.last = nn.Conv2d(channels, 3, 3, padding=1)
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        maps = F.pixel_unshuffle(self.first(images), 2)  # (B, C, 2h, 2w) -> (B, 4C, h, w)
        hidden = F.relu(self.body(maps * self.scale[:, None, None]))
        hidden = F.relu(self.merge(torch.cat((hidden, maps), dim=1)))  # (B, C, h, w), (B, 4C, h, w) -> (B, C, h, w)
        return self.last(F.relu(F.pixel_shuffle(maps + self.back(hidden), 2)))

    def make_exact(self, seed: int = 100) -> Self:
        set_lifting(self.first, seed)
        turned = [self.scale.data[turned_channels(len(self.scale), "unshuffled regular", n)] for n in range(ORDER)]
        self.scale.data.copy_(torch.stack(turned).mean(0))
        set_averaged(self.body, "unshuffled regular", "regular", seed + 1)
        set_averaged(self.merge, "regular", "regular", seed + 2)
        unshuffled = random_images(self.channels, 4 * self.channels, 1, 1, seed=seed + 3)
        self.merge.weight.data[:, self.channels :] = averaged_kernel(unshuffled, "unshuffled regular", "regular")
        set_averaged(self.back, "regular", "unshuffled regular", seed + 4)
        set_projection(self.last, seed + 5)
        return self


# ---------------------------------------------------------------------------------------------------------- strides


class StridedNetwork(SmallNetwork):
    """A convolution, a strided one, nearest upsampling by the stride, and a last convolution.

    The exact weights are exact if ``(size + 2 padding - kernel) mod stride = 0`` in both axes. With the defaults the
    output is ``2 ceil(size / 2)`` pixels wide: one more than the input's if that is odd.
    """

    def __init__(self, channels: int = 8, kernel: int = 3, padding: int = 1, stride: int = 2, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            self.first = nn.Conv2d(3, channels, 3, padding=1)
            self.down = nn.Conv2d(channels, channels, kernel, stride, padding)
            self.up = nn.Upsample(scale_factor=stride, mode="nearest")
            self.last = nn.Conv2d(channels, 3, 3, padding=1)
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.down(F.relu(self.first(images))))
        return self.last(self.up(maps))  # (B, C, h, w) -> (B, C, stride h, stride w) -> (B, 3, stride h, stride w)

    def make_exact(self, seed: int = 100) -> Self:
        set_lifting(self.first, seed)
        set_group(self.down, seed + 1)
        set_projection(self.last, seed + 2)
        return self


# ------------------------------------------------------------------------------------------- sharing and two inputs


class SharedNetwork(SmallNetwork):
    """`body` is called three times; `twin` and `alias` are one module; `tied` has the parameters of `twin`.

    `calls` says how often a forward pass calls each module, under the first of its names.
    """

    def __init__(self, channels: int = 8, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            self.first = nn.Conv2d(3, channels, 3, padding=1)
            self.body = nn.Conv2d(channels, channels, 3, padding=1)
            self.twin = nn.Conv2d(channels, channels, 3, padding=1)
            self.alias = self.twin
            self.tied = nn.Conv2d(channels, channels, 3, padding=1)
            self.last = nn.Conv2d(channels, 3, 3, padding=1)
        self.tied.weight, self.tied.bias = self.twin.weight, self.twin.bias
        self.calls = {"first": 1, "body": 3, "twin": 2, "tied": 1, "last": 1}
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images)
        for _ in range(3):
            maps = self.body(F.relu(maps))
        for layer in (self.twin, self.alias, self.tied):
            maps = layer(F.relu(maps))
        return self.last(maps)

    def make_exact(self, seed: int = 100) -> Self:
        set_lifting(self.first, seed)
        set_group(self.body, seed + 1)
        set_group(self.twin, seed + 2)
        set_projection(self.last, seed + 3)
        return self


class AuxiliaryInputNetwork(SmallNetwork):
    """Two inputs, an image ``(B, 3, H, W)`` and a mask ``(B, 1, H, W)``: four channels, none of them a field of 4."""

    def __init__(self, channels: int = 8, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            self.first = nn.Conv2d(4, channels, 3, padding=1)
            self.middle = nn.Conv2d(channels, channels, 3, padding=1)
            self.last = nn.Conv2d(channels, 3, 3, padding=1)
        self.double()

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        maps = F.relu(self.first(torch.cat((image, mask), dim=1)))  # (B, 3, H, W), (B, 1, H, W) -> (B, 4, H, W)
        return self.last(F.relu(self.middle(maps)))

    def make_exact(self, seed: int = 100) -> Self:
        set_lifting(self.first, seed)
        set_group(self.middle, seed + 1)
        set_projection(self.last, seed + 2)
        return self
