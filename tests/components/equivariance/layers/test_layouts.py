"""Layouts of a layer's output: to maps and back, what is inferred, and what must be declared."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.equivariance import (
    ChannelsLast,
    EquivarianceRegularizer,
    Maps,
    SubPixel,
    Tokens,
    Windows,
    equivariance_error,
)
from components.equivariance.layers.layouts import Layout, layout_of
from tests.components.equivariance.exact import (
    group_kernel,
    lifting_kernel,
    loop_regular,
    loop_rotate,
    loop_size,
    projection_kernel,
    random_images,
)
from tests.components.equivariance.exact_groups import C2
from tests.components.equivariance.small_networks import window_partition

pytestmark = pytest.mark.unit

B, C, H, W = 2, 8, 4, 6
MAPS = random_images(B, C, H, W)


def _tokens(maps: Tensor, shift: tuple[int, int] = (0, 0)) -> Tensor:
    """Channels last, after a roll."""
    return torch.roll(maps, shift, (2, 3)).permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)


def _fine(maps: Tensor) -> Tensor:
    """Sub-pixels by loops: channel ``4 c + 2 i + j`` has pixels (2 h + i, 2 w + j) of channel c."""
    parts = [maps[:, c, i::2, j::2] for c in range(maps.shape[1]) for i in (0, 1) for j in (0, 1)]
    return torch.stack(parts, 1)


LAYOUTS: dict[str, tuple[Layout, Tensor]] = {
    "maps": (Maps(), MAPS),
    "sub-pixels": (SubPixel(2), _fine(MAPS)),
    "channels last": (ChannelsLast(), _tokens(MAPS)),
    "channels last, rolled": (ChannelsLast((-1, 2)), _tokens(MAPS, (-1, 2))),
    "tokens": (Tokens(H, W), _tokens(MAPS).flatten(1, 2)),
    "tokens, height alone": (Tokens(height=H), _tokens(MAPS).flatten(1, 2)),
    "tokens, width alone": (Tokens(width=W), _tokens(MAPS).flatten(1, 2)),
    "tokens, rolled": (Tokens(H, W, (3, -1)), _tokens(MAPS, (3, -1)).flatten(1, 2)),
    "windows": (Windows(2, H, W), window_partition(_tokens(MAPS), 2)),
    "windows, height alone": (Windows(2, height=H, num_windows=6), window_partition(_tokens(MAPS), 2)),
    "windows, width alone": (Windows(2, width=W, num_windows=6), window_partition(_tokens(MAPS), 2)),
    "windows, rolled": (Windows(2, H, W, (-1, -1)), window_partition(_tokens(MAPS, (-1, -1)), 2)),
    "square windows": (Windows(2, H, W), window_partition(_tokens(MAPS), 2).unflatten(1, (2, 2))),
}
every_layout = pytest.mark.parametrize(("layout", "raw"), LAYOUTS.values(), ids=LAYOUTS)


@every_layout
def test_a_layout_gives_the_maps_and_takes_them_back(layout: Layout, raw: Tensor) -> None:
    assert torch.equal(layout.to_maps(raw), MAPS)
    assert torch.equal(layout.from_maps(MAPS).reshape(raw.shape), raw)


@every_layout
def test_a_layout_takes_whole_images_of_a_batch(layout: Layout, raw: Tensor) -> None:
    of_one = len(raw) // B
    assert torch.equal(layout.to_maps(raw[:of_one]), MAPS[:1])
    assert torch.equal(layout.from_maps(MAPS[1:]).reshape(raw[of_one:].shape), raw[of_one:])


# -------------------------------------------------------------------------------------------------------- inference

SQUARE = random_images(B, C, 4, 4)


@pytest.mark.parametrize(
    ("raw", "is_linear", "shift", "factor"),
    [
        (SQUARE, False, (0, 0), 1),
        (_fine(SQUARE), False, (0, 0), 2),
        (_tokens(SQUARE), True, (0, 0), 1),
        (_tokens(SQUARE, (-1, -1)), True, (-1, -1), 1),
        (_tokens(SQUARE, (-2, 1)).flatten(1, 2), True, (-2, 1), 1),
        (window_partition(_tokens(SQUARE, (-1, -1)), 2), True, (-1, -1), 1),
        (window_partition(_tokens(SQUARE), 2).unflatten(1, (2, 2)), True, (0, 0), 1),
        (window_partition(_tokens(SQUARE), 4), True, (0, 0), 1),
    ],
)
def test_layouts_of_square_maps_are_inferred(raw: Tensor, is_linear: bool, shift: tuple[int, int], factor: int) -> None:
    assert torch.equal(layout_of(raw.shape, B, None, is_linear, shift, factor).to_maps(raw), SQUARE)


@pytest.mark.parametrize("image_size", [(4, 6), (8, 12), (2, 3)])
def test_layouts_of_other_maps_follow_from_the_aspect_of_the_image(image_size: tuple[int, int]) -> None:
    for raw in (_tokens(MAPS).flatten(1, 2), window_partition(_tokens(MAPS), 2)):
        assert torch.equal(layout_of(raw.shape, B, None, True, (0, 0), 1, image_size).to_maps(raw), MAPS)


def test_sixteen_tokens_of_an_oblong_image_are_not_taken_for_a_square() -> None:
    assert layout_of((B, 16, C), B, None, True, (0, 0), 1, (16, 64)) == Tokens(2, 8)
    with pytest.raises(ValueError, match=r"16 tokens or windows do not fill .* aspect 4:6: declare Tokens\(height, w"):
        layout_of((B, 16, C), B, None, True, (0, 0), 1, (4, 6))


@pytest.mark.parametrize(
    ("shape", "declared", "is_linear", "message"),
    [
        ((B, 17, C), None, True, r"17 tokens or windows do not fill.*declare Tokens\(height, width\).*class token"),
        ((B, 24, C), None, True, r"24 tokens or windows do not fill"),
        ((B, 24, C), Tokens(5, 5), True, r"24 tokens are not 5 x 5: declare Tokens\(height, width\)"),
        ((B, 24, C), Tokens(height=5), True, r"24 tokens are not 5 x 4"),
        ((B, 24, C), ChannelsLast(), True, r"\(2, 24, 8\) of 2 images is not laid out as ChannelsLast"),
        ((B, 4, 6, C), Tokens(4, 6), True, r"is not laid out as Tokens"),
        ((B, C), None, True, r"\(2, 8\) of a batch of 2 images has no place for each entry"),
        ((3, 16, C), None, True, r"\(3, 16, 8\) of a batch of 2 images has no place"),
        ((6 * B, 4, C), None, True, r"6 tokens or windows do not fill.*Windows\(size, height, width\)"),
        ((6 * B, 4, C), Windows(2), True, r"is not made of square windows.*declare Windows\(size, height, width\)"),
        ((6 * B, 4, C), Windows(3, 4, 6), True, r"is not made of square windows"),
        ((4 * B, 6, C), None, True, r"is not made of square windows"),
        ((3 * B, C, 4, 4), None, False, r"6 entries on the batch axis, the paired batch 2 images"),
    ],
)
def test_what_cannot_be_laid_out_is_refused_with_what_to_declare(
    shape: tuple[int, ...], declared: Layout | None, is_linear: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        layout_of(shape, B, declared, is_linear, (0, 0), 1)


# ---------------------------------------------------------------------------------------------------- in a network


class TokenNetwork(nn.Module):
    """A convolution, a linear layer on tokens ``(B, N, C)`` or on channels last, and a last convolution."""

    def __init__(self, is_flat: bool = True, weights: tuple[Tensor, Tensor, Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.is_flat = is_flat
        self.embed = nn.Conv2d(3, 8, 3, padding=1)
        self.linear = nn.Linear(8, 8)
        self.last = nn.Conv2d(8, 3, 3, padding=1)
        self.double()
        for module, weight in zip((self.embed, self.linear, self.last), weights or (), strict=False):
            module.weight.data.copy_(weight.reshape(module.weight.shape))
            assert module.bias is not None
            module.bias.data.zero_()

    def forward(self, images: Tensor) -> Tensor:
        tokens = torch.tanh(self.embed(images)).permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)
        if self.is_flat:
            tokens = self.linear(tokens.flatten(1, 2)).unflatten(1, tokens.shape[1:3])
        else:
            tokens = self.linear(tokens)
        return self.last(torch.tanh(tokens).permute(0, 3, 1, 2))  # (B, H, W, C) -> (B, C, H, W)


C4_WEIGHTS = (lifting_kernel(2, 3), group_kernel(2, 2, size=1), projection_kernel(3, 2))
C2_WEIGHTS = (C2.lifting_kernel(4, 3), C2.group_kernel(4, 4, size=1), C2.projection_kernel(3, 4))


def _step(network: nn.Module, images: Tensor, element: int, **options: object) -> EquivarianceRegularizer:
    regularizer = EquivarianceRegularizer(network, **options)  # type: ignore[arg-type]
    for _ in range(2):
        network(regularizer.pair(images, images, element=element).inputs)
        regularizer.penalty()
    return regularizer


@pytest.mark.parametrize("size", [(4, 6), (3, 5)])
@pytest.mark.parametrize("group", ["C2", "C4"])
def test_tokens_of_maps_that_are_not_square_can_be_declared(group: str, size: tuple[int, int]) -> None:
    images, element = random_images(4, 3, *size), 1 if group == "C2" else 2
    exact = TokenNetwork(weights=C2_WEIGHTS if group == "C2" else C4_WEIGHTS)
    options = {"group": group, "layouts": {"linear": Tokens(*size)}}
    regularizer = _step(exact, images, element, **options)
    assert list(regularizer.layer_penalties()) == ["embed", "linear", "last"]
    assert max(regularizer.layer_penalties().values()) < 1e-24
    network = TokenNetwork()
    act: Callable[[Tensor, int], Tensor] = C2.regular if group == "C2" else loop_regular
    with torch.no_grad():
        maps = [network.embed(x) for x in (images[:1], loop_rotate(images[:1], 2))]
        maps = [F.conv2d(torch.tanh(m), network.linear.weight[..., None, None], network.linear.bias) for m in maps]
    expected = loop_size(maps[1], act(maps[0], element))
    assert _step(network, images, element, **options).layer_penalties()["linear"] == pytest.approx(expected, rel=1e-9)


def test_a_declaration_and_the_inferred_layout_give_the_same_penalty() -> None:
    images = random_images(4, 3, 6, 6)
    for is_flat, declared in ((True, Tokens(6, 6)), (True, Tokens()), (False, ChannelsLast())):
        network = TokenNetwork(is_flat)
        inferred = _step(network, images, 1)
        assert inferred.skipped == {}
        assert _step(network, images, 1, layouts={"lin*": declared}).layer_penalties() == inferred.layer_penalties()


def test_tokens_with_one_of_no_place_are_named_with_the_remedy() -> None:
    class WithClassToken(TokenNetwork):
        def forward(self, images: Tensor) -> Tensor:
            tokens = self.embed(images).flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, N, C)
            tokens = self.linear(torch.cat((tokens.mean(1, keepdim=True), tokens), 1))[:, 1:]  # (B, N + 1, C)
            return self.last(tokens.transpose(1, 2).unflatten(2, images.shape[-2:]))  # (B, N, C) -> (B, C, H, W)

    regularizer = _step(WithClassToken(), random_images(4, 3, 6, 6), 1)
    assert list(regularizer.layer_penalties()) == ["embed", "last"]
    assert "37 tokens" in regularizer.skipped["linear"]
    assert "declare Tokens(height, width)" in regularizer.skipped["linear"]


def test_a_pooled_linear_layer_has_no_place_and_is_named() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.gate, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8), nn.Conv2d(8, 3, 3)
            self.double()

        def forward(self, images: Tensor) -> Tensor:
            maps = self.first(images)
            return self.last(maps * self.gate(maps.mean((2, 3)))[..., None, None])  # (B, C) -> (B, C, 1, 1)

    regularizer = _step(Gated(), random_images(4, 3, 6, 6), 1)
    assert list(regularizer.layer_penalties()) == ["first", "last"]
    assert "has no place for each entry, so it cannot turn" in regularizer.skipped["gate"]


def test_a_declared_layout_for_no_layer_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"layouts: 'liner' fits no .*; did you mean 'linear'"):
        EquivarianceRegularizer(TokenNetwork(), layouts={"liner": Tokens()})


@pytest.mark.parametrize("size", [(4, 6), (6, 6), (9, 4)])
def test_the_error_of_tokens_is_measured_at_any_aspect_for_every_turn(size: tuple[int, int]) -> None:
    images = random_images(2, 3, *size)
    for layouts in ({}, {"linear": Tokens(*size)}):
        errors = equivariance_error(TokenNetwork(weights=C4_WEIGHTS), images, layouts=layouts)
        assert list(errors) == ["embed", "linear", "last", "output"]
        assert max(errors.values()) < 1e-12
    assert equivariance_error(TokenNetwork(), images)["linear"] > 0.5
