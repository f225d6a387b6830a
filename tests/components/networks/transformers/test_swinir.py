"""SwinIR: its attention is the textbook's, its windows fit any size, and what limits its equivariance is named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from components.equivariance import diagnose, equivariance_error, projected
from components.equivariance.layers.spec import named_layers, requested_fields
from components.networks import build_network, layer_choices, network_class, network_settings
from components.networks.transformers.swinir import SwinIR
from components.networks.transformers.window_attention import WindowGrid, WindowLayer
from components.networks.weights import load_weights
from tests.components.networks.fingerprints import fingerprint as fingerprints
from tests.components.networks.small import SMALL, random, stack

pytestmark = pytest.mark.unit

ARGUMENTS: dict[str, Any] = {"width": 8, "groups": 1, "depth": 2, "heads": 2, "window": 4}


def symmetric(network: nn.Module) -> nn.Module:
    """Give every table of relative positions its mean over the elements of D4, in place."""
    for name, table in network.named_parameters():
        if name.endswith("relative_position_bias_table"):
            side = math.isqrt(len(table))
            plane = table.data.view(side, side, -1)
            turns = [part.rot90(n, (0, 1)) for part in (plane, plane.flip(1)) for n in range(4)]
            table.data.copy_(torch.stack(turns).mean(dim=0).flatten(0, 1))
    return network


# ----------------------------------------------------------------------------------------------------- window attention


def attended(layer: WindowLayer, maps: np.ndarray) -> np.ndarray:
    """The attention of a layer by the definition, pixel by pixel: ``(H, W, C)`` -> ``(H, W, C)``."""
    attention, (height, width, channels) = layer.attn, maps.shape
    window, heads, shift = math.isqrt(len(attention.relative_position_index)), attention.heads, layer.shift
    per_head = channels // heads
    weight, bias, out, of_out, table = (
        value.detach().numpy()
        for value in (
            attention.qkv.weight,
            attention.qkv.bias,
            attention.proj.weight,
            attention.proj.bias,
            attention.relative_position_bias_table,
        )
    )
    offsets = table.reshape(2 * window - 1, 2 * window - 1, heads)
    queries, keys, values = np.split(maps @ weight.T + bias, 3, axis=-1)
    pixels = [(row, column) for row in range(height) for column in range(width)]
    result = np.zeros_like(maps)
    for row, column in pixels:
        # Where the pixel lies after the roll, and whether the roll took it from one end of the map to the other.
        moved, wraps = ((row - shift) % height, (column - shift) % width), (row < shift, column < shift)
        logits, seen = [], []
        for other in pixels:
            place = ((other[0] - shift) % height, (other[1] - shift) % width)
            if [p // window for p in place] != [p // window for p in moved]:
                continue
            offset = offsets[moved[0] - place[0] + window - 1, moved[1] - place[1] + window - 1]
            blocked = -100.0 * ((other[0] < shift, other[1] < shift) != wraps)
            pairs = (queries[row, column] * keys[other]).reshape(heads, per_head).sum(axis=1) / math.sqrt(per_head)
            logits.append(pairs + offset + blocked)
            seen.append(values[other].reshape(heads, per_head))
        powers = np.exp(np.array(logits) - np.max(logits, axis=0))  # (pixels of the window, heads)
        shares = powers / powers.sum(axis=0)
        result[row, column] = (shares[:, :, None] * np.array(seen)).sum(axis=0).reshape(channels)
    return result @ out.T + of_out


@pytest.mark.parametrize("size", [(8, 12), (4, 4), (4, 8)])
@pytest.mark.parametrize("shift", [0, 2, 1])
def test_attention_in_windows_is_that_of_the_definition(shift: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = WindowLayer(6, heads=2, window=4, shift=shift, expansion=2, drop_path_rate=0.0).double()
    nn.init.normal_(layer.attn.relative_position_bias_table)
    maps = torch.randn(2, *size, 6, dtype=torch.float64)
    rolled = maps.roll((-shift, -shift), (1, 2))
    with torch.no_grad():
        found = layer.attn(rolled, WindowGrid(rolled, 4, shift), shift > 0).roll((shift, shift), (1, 2))
    for image, own in zip(maps, found, strict=True):
        torch.testing.assert_close(own, torch.from_numpy(attended(layer, image.numpy())), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shift", [0, 2])
def test_a_layer_adds_the_attention_and_then_its_two_linear_layers(shift: int) -> None:
    torch.manual_seed(0)
    layer = WindowLayer(6, heads=3, window=4, shift=shift, expansion=3, drop_path_rate=0.1).double().eval()
    maps = torch.randn(1, 4, 8, 6, dtype=torch.float64)

    def normal(values: np.ndarray) -> np.ndarray:
        spread = np.sqrt(values.var(axis=-1, keepdims=True) + 1e-5)
        return np.asarray((values - values.mean(axis=-1, keepdims=True)) / spread)

    expected = maps[0].numpy()
    expected = expected + attended(layer, normal(expected))
    fc1, fc2 = layer.mlp.fc1, layer.mlp.fc2
    hidden = normal(expected) @ fc1.weight.detach().numpy().T + fc1.bias.detach().numpy()
    hidden = hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2  # GELU, exact
    expected = expected + hidden @ fc2.weight.detach().numpy().T + fc2.bias.detach().numpy()
    with torch.no_grad():
        found = layer(maps, WindowGrid(maps, 4, 2))
    torch.testing.assert_close(found[0], torch.from_numpy(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("window", "shift", "size"), [(4, 2, (8, 12)), (7, 3, (21, 7)), (8, 4, (8, 8)), (3, 1, (6, 9))]
)
def test_a_mask_separates_the_nine_regions_of_the_reference(window: int, shift: int, size: tuple[int, int]) -> None:
    """Oracle: each region has a number, as in the Swin Transformer; pixels of two numbers do not see each other."""
    numbers = np.zeros(size)
    for i, rows in enumerate((slice(0, -window), slice(-window, -shift), slice(-shift, None))):
        for j, columns in enumerate((slice(0, -window), slice(-window, -shift), slice(-shift, None))):
            numbers[rows, columns] = 3 * i + j
    expected = []
    for row in range(0, size[0], window):
        for column in range(0, size[1], window):
            part = numbers[row : row + window, column : column + window].reshape(-1)
            expected.append(np.where(part[:, None] != part, -100.0, 0.0))
    grid = WindowGrid(torch.zeros(2, *size, 5), window, shift)
    found = grid.mask.squeeze(1).double().numpy()
    assert np.array_equal(found, np.concatenate([expected, expected]))  # of both images
    assert (found == -100).any()


# --------------------------------------------------------------------------------------------------- sizes and scales


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (4, 4), (5, 8), (13, 20), (8, 8)])
def test_an_image_is_reflected_below_and_on_the_right_up_to_whole_windows(size: tuple[int, int]) -> None:
    """Oracle: numpy's reflection, which goes to and fro where the image is smaller than what is missing."""
    network, image = random("swinir").published, torch.rand(2, 3, *size, dtype=torch.float64)
    pads = [(0, 0), (0, 0), *((0, -side % 4) for side in size)]
    whole = torch.from_numpy(np.pad(image.numpy(), pads, mode="reflect"))
    expected = network(whole)[..., : size[0], : size[1]]  # type: ignore[operator]
    torch.testing.assert_close(network(image), expected, rtol=0, atol=0)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("scale", "upsampler", "layers"),
    [
        (2, "auto", {"conv_before_upsample.0", "upsample.0", "conv_last"}),
        (3, "pixelshuffle", {"conv_before_upsample.0", "upsample.0", "conv_last"}),
        (4, "auto", {"conv_before_upsample.0", "upsample.0", "upsample.2", "conv_last"}),
        (2, "pixelshuffledirect", {"upsample.0"}),
        (3, "pixelshuffledirect", {"upsample.0"}),
        (4, "pixelshuffledirect", {"upsample.0"}),
        (1, "auto", {"conv_last"}),
        (1, "none", {"conv_last"}),
    ],
)
def test_each_scale_has_its_upsampling(scale: int, upsampler: str, layers: set[str]) -> None:
    network = random("swinir", scale=scale, upsampler=upsampler)
    heads = {name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    assert heads - {"conv_first", "layers.0.conv", "conv_after_body"} == layers
    for size in ((5, 7), (8, 4), (1, 1)):
        assert network(stack(network, *size)).shape == (1, 3, scale * size[0], scale * size[1])


@pytest.mark.parametrize(
    ("scale", "settings", "parameters"),
    [
        (2, {}, 11_752_487),
        (3, {}, 11_752_487 + (9 * 64 + 1) * 64 * (9 - 4)),
        (4, {}, 11_752_487 + (9 * 64 + 1) * 64 * 4),
        (2, {"width": 60, "groups": 4, "upsampler": "pixelshuffledirect"}, 910_152),
        (4, {"width": 60, "groups": 4, "upsampler": "pixelshuffledirect"}, 910_152 + (9 * 60 + 1) * 3 * (16 - 4)),
    ],
)
def test_super_resolution_has_the_published_number_of_parameters(
    scale: int, settings: dict[str, Any], parameters: int
) -> None:
    """That of x2 is in the fingerprints; the others follow from the sizes of the convolutions that differ."""
    with torch.device("meta"):
        network = build_network("swinir", scale=scale, **settings)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_the_range_of_jpeg_scales_what_the_network_sees_and_gives() -> None:
    """Oracle: the same network in the range [0, 1] with its first layer enlarged and its last one made smaller."""
    network, image = random("swinir", image_range=255, window=7), torch.rand(1, 3, 9, 14, dtype=torch.float64)
    other = random("swinir", window=7)
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        other.conv_first.weight.mul_(255)  # type: ignore[operator, union-attr]
        for values in (other.conv_last.weight, other.conv_last.bias):  # type: ignore[union-attr]
            values.div_(255)  # type: ignore[operator]
    torch.testing.assert_close(network(image), other(image), rtol=0, atol=1e-12)


@pytest.mark.parametrize("colours", [1, 3, 4])
def test_the_mean_colour_is_that_of_three_channels(colours: int) -> None:
    """What conv_first sees of a constant image of this colour, and of a black one."""
    network, seen = random("swinir", in_channels=colours, out_channels=colours), []
    network.conv_first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # type: ignore[union-attr]
    network(torch.zeros(1, colours, 4, 4, dtype=torch.float64))
    mean = [0.4488, 0.4371, 0.4040] if colours == 3 else [0.0] * colours
    assert (-seen[0][0, :, 0, 0]).tolist() == pytest.approx(mean, abs=1e-15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"scale": 2, "upsampler": "none"},
            r"upsampler: 'none' does not fit scale 2: use pixelshuffle or pixelshuffled",
        ),
        ({"upsampler": "pixelshuffle"}, "upsampler: 'pixelshuffle' does not fit scale 1: use none, or auto"),
        ({"scale": 5}, "scale 5: use 1 or 2 or 3 or 4"),
        ({"upsampler": "nearest"}, "upsampler: 'nearest': use one of auto, none, pixelshuffle, pixelshuffledirect"),
        ({"heads": 7}, "heads: 7 do not divide width 180: use a width of 175 or 182"),
        ({"width": 4, "heads": 6}, "heads: 6 do not divide width 4: use a width of 6"),
        ({"window": 0}, "window: 0: use a whole number of at least 1"),
        ({"image_range": 100}, "image_range: 100: use 1 or 255"),
        ({"drop_path_rate": 1.0}, "drop_path_rate: 1.0: use a number of at least 0 and below 1"),
        ({"depth": 0}, "depth: 0"),
        ({"inputs": ("mask",), "in_channels": 1}, "needs image, and the stack holds mask"),
        ({"image_range": True}, "image_range: True: use 1 or 255"),
        ({"drop_path_rate": "0.1"}, "drop_path_rate: '0.1': use a number of at least 0 and below 1"),
        ({"drop_path_rate": math.nan}, "drop_path_rate: nan: use a number of at least 0 and below 1"),
    ],
)
def test_impossible_settings_are_refused_with_their_values(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network("swinir", **arguments)


def test_the_channels_of_regular_fields_are_those_of_the_maps() -> None:
    assert network_settings("swinir").channels == {"width": 180}


# ------------------------------------------------------------------------------------------------------------- weights


def test_the_network_has_the_published_parameters_and_indices_and_holds_no_masks() -> None:
    """The masks of the reference, of images of 128 pixels, would be 75 MB."""
    stored = fingerprints.stored_structure(fingerprints.load("SwinIR_denoise_color"))
    own = fingerprints.structure(build_network("swinir"))
    assert own["parameters"] == stored["parameters"]
    assert own["buffers"] == [each for each in stored["buffers"] if not each[0].endswith("attn_mask")]


@pytest.mark.parametrize("image_size", [None, 8, 24])
def test_weights_load_with_masks_of_any_size_or_none(tmp_path: Path, image_size: int | None) -> None:
    torch.manual_seed(1)
    published = SwinIR(**ARGUMENTS, image_size=image_size)
    assert image_size is None or published.state_dict()["layers.0.residual_group.blocks.1.attn_mask"].any()
    torch.save({"params": published.state_dict()}, tmp_path / "weights.pth")
    network = build_network("swinir", **SMALL["swinir"]).eval()
    load_weights(network, tmp_path / "weights.pth")
    image = torch.rand(1, 3, 13, 24)
    torch.testing.assert_close(network(image), published.eval()(image), rtol=0, atol=0)


def test_weights_load_without_the_indices_of_relative_positions(tmp_path: Path) -> None:
    weights = {key: value for key, value in SwinIR(**ARGUMENTS).state_dict().items() if "index" not in key}
    torch.save(weights, tmp_path / "weights.pth")
    network = build_network("swinir", **SMALL["swinir"])
    load_weights(network, tmp_path / "weights.pth")
    torch.testing.assert_close(network.state_dict()["norm.weight"], weights["norm.weight"])
    index = network.state_dict()["layers.0.residual_group.blocks.1.attn.relative_position_index"]
    assert index.shape == (16, 16)
    assert index.max() == 48


@pytest.mark.parametrize("window", [4, 2])
def test_weights_with_other_indices_of_relative_positions_are_refused(tmp_path: Path, window: int) -> None:
    weights = SwinIR(**{**ARGUMENTS, "window": window}).state_dict()
    name = "layers.0.residual_group.blocks.0.attn.relative_position_index"
    weights[name] = weights[name].T.contiguous()
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights of other settings; .*relative_position"):
        load_weights(build_network("swinir", **SMALL["swinir"]), tmp_path / "weights.pth")


def test_parameters_may_not_be_missing(tmp_path: Path) -> None:
    weights = {key: value for key, value in SwinIR(**ARGUMENTS).state_dict().items() if "bias_table" not in key}
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"missing: layers\.0\..*\.relative_position_bias_table, .*"):
        load_weights(build_network("swinir", **SMALL["swinir"]), tmp_path / "weights.pth")


@pytest.mark.parametrize(
    "settings",
    [
        {"window": 8},
        {"window": 7, "image_range": 255},
        {"window": 8, "scale": 3},
        {"window": 8, "scale": 4, "upsampler": "pixelshuffledirect"},
        {"depth": 1, "in_channels": 1, "out_channels": 1},
    ],
)
def test_the_form_for_chainner_is_the_published_module_with_its_masks(settings: dict[str, Any]) -> None:
    network = random("swinir", **settings).float()
    module, images = network.chainner(), stack(network, 9, 17).float()  # type: ignore[operator]
    assert type(module) is SwinIR
    torch.testing.assert_close(module(images), network(images), rtol=0, atol=0)
    more = module.state_dict().keys() - network.state_dict().keys()
    shifted = {name for name, layer in network.named_modules() if isinstance(layer, WindowLayer) and layer.shift}
    assert more == {f"{name}.attn_mask" for name in shifted}


def test_the_loader_of_chainner_builds_the_same_network(spandrel: Any) -> None:
    """An independent implementation of the reference, with the weights of ours."""
    for settings in ({"window": 8}, {"window": 7, "image_range": 255}, {"window": 8, "scale": 4}):
        network = random("swinir", **settings).float()
        found = spandrel.ModelLoader(device="cpu").load_from_state_dict(network.chainner().state_dict())  # type: ignore[operator]
        assert (found.architecture.id, found.scale) == ("SwinIR", network.scale)
        images = stack(network, 23, 17).float()
        with torch.no_grad():
            torch.testing.assert_close(found.model.eval()(images), network(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 7}, "image_range 255 with window 7, and 1 with others; this one has 1 with 7"),
        ({"image_range": 255}, "this one has 255 with 4"),
        ({"inputs": ("image", "mask"), "in_channels": 4}, "takes one image; this one takes 4 channels and gives 3"),
    ],
)
def test_what_the_loader_of_chainner_would_misread_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random("swinir", **settings).chainner()  # type: ignore[operator]


# -------------------------------------------------------------------------------------------------------- equivariance


def kinds(network: nn.Module, *size: int) -> tuple[bool | None, set[str], set[str]]:
    """Whether the output can be exact, the kinds of what forbids it, and of what limits fields alone."""
    found = diagnose(network, stack(network, *size))
    limits = {each.kind for layer in found.layers for each in layer.incompatibilities if not each.is_fatal}
    return found.can_be_exact, {each.kind for _, each in found.fatal}, limits


@pytest.mark.parametrize("scale", [1, 2])
def test_tables_of_relative_positions_forbid_exactness_until_they_are_symmetric(scale: int) -> None:
    network = random("swinir", scale=scale)
    assert kinds(network, 12, 12) == (False, {"position table"}, set())
    assert kinds(symmetric(network), 12, 12) == (True, set(), set())


@pytest.mark.parametrize(("size", "exact"), [(12, True), (13, False), (15, False), (16, True)])
def test_sizes_that_need_a_padding_forbid_exactness(size: int, exact: bool) -> None:
    found = diagnose(symmetric(random("swinir")), stack(random("swinir"), size, size))
    assert found.can_be_exact is exact
    assert {each.kind for _, each in found.fatal} == (set() if exact else {"padding", "crop"})
    assert found.depends_on_size
    assert exact or found.fitting_size in ((12, 12), (16, 16))


@pytest.mark.parametrize(
    ("size", "fatal"), [(21, {"window shift"}), (14, {"window shift"}), (20, {"window shift", "padding", "crop"})]
)
def test_shifted_windows_of_an_odd_side_as_for_jpeg_forbid_exactness_at_every_size(size: int, fatal: set[str]) -> None:
    network = symmetric(random("swinir", window=7, image_range=255))
    assert kinds(network, size, size) == (False, fatal, set())
    assert kinds(symmetric(random("swinir", window=7, depth=1)), 14, 14) == (True, set(), set())  # none is shifted


@pytest.mark.parametrize(
    ("width", "heads", "limits"), [(12, 2, {"heads"}), (8, 2, set()), (20, 2, {"heads"}), (16, 4, set())]
)
def test_heads_that_cut_through_fields_limit_their_layers_and_forbid_nothing(
    width: int, heads: int, limits: set[str]
) -> None:
    """6 and 10 channels for the published 30 and 10."""
    network = symmetric(random("swinir", width=width, heads=heads))
    assert kinds(network, 8, 8) == (True, set(), limits)
    images = stack(network, 8, 8)
    assert equivariance_error(projected(network, images, fields="trivial"), images)["output"] < 1e-12
    in_regular_fields = equivariance_error(projected(network, images), images)["output"]
    assert in_regular_fields > 1e-4 if limits else in_regular_fields < 1e-12


@pytest.mark.parametrize("group", ["C2", "C4", "D4"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"scale": 2}, {"scale": 3, "upsampler": "pixelshuffledirect"}, {"scale": 4}],
    ids=["same size", "x2", "x3 direct", "x4"],
)
def test_projected_weights_and_symmetric_tables_make_the_output_equivariant(
    settings: dict[str, Any], group: str
) -> None:
    """Shifted windows with their masks, and the layouts of sub-pixels, keep the fields."""
    network = symmetric(random("swinir", width=16, **settings))
    images = stack(network, 12, 8)
    before = equivariance_error(network, images, group=group)["output"]
    copy = projected(network, images, group)
    assert equivariance_error(copy, images, group=group)["output"] < 1e-12 < 1e-2 < before
    assert equivariance_error(copy, stack(network, 16, 24), group=group)["output"] < 1e-12
    assert equivariance_error(copy, stack(network, 13, 8), group=group)["output"] > 1e-4  # a padding on one side


@pytest.mark.parametrize("side", [8, 12, 13, 14, 16])
def test_its_features_can_turn_with_sides_of_whole_windows(side: int) -> None:
    network = symmetric(random("swinir", width=16))
    copy = projected(network, stack(network, 16, 16))
    error = equivariance_error(copy, stack(network, side, side))["output"]
    assert error < 1e-12 or error > 1e-6
    assert network_settings("swinir", **{**SMALL["swinir"], "width": 16}).can_turn(side) == (error < 1e-12)


def test_random_tables_keep_projected_weights_from_being_equivariant() -> None:
    network = random("swinir")
    images = stack(network, 8, 8)
    assert equivariance_error(projected(network, images), images)["output"] > 1e-3


def test_every_layer_is_measured_as_a_map_at_sizes_that_need_a_padding_and_are_not_square() -> None:
    network = random("swinir")
    with torch.no_grad():
        names = {name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert set(equivariance_error(network, stack(network, 9, 14))) == names | {"output"}


def test_the_published_network_is_diagnosed() -> None:
    """With the settings of light super-resolution, whose heads have 10 channels; two layers of its 24."""
    network = random("swinir", width=60, heads=6, window=8, scale=2, upsampler="pixelshuffledirect")
    found = diagnose(network, stack(network, 16, 16))
    assert {each.kind for _, each in found.fatal} == {"position table"}
    layers = {layer.name: layer for layer in found.layers}
    limit = layers["layers.0.residual_group.blocks.0.attn.qkv"].incompatibilities[0]
    assert limit.reason == "attention heads of 10 channels cut through regular fields of 4"
    assert layers["upsample.0"].notes == ("compared after PixelShuffle(2)",)
    assert layers["layers.0.residual_group.blocks.1.attn.qkv"].notes == (
        "compared with its window shift (4, 4) undone",
    )
    assert [layer.name for layer in found.layers if layer.residual is None] == []
    assert isinstance(found.verdict, str)


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({}, set()),
        ({"scale": 2}, {"conv_before_upsample.0", "upsample.0"}),
        ({"scale": 3}, {"conv_before_upsample.0"}),
        ({"scale": 4}, {"conv_before_upsample.0", "upsample.0", "upsample.2"}),
        ({"scale": 2, "upsampler": "pixelshuffledirect"}, set()),
    ],
)
def test_the_layers_of_eqreg_t_are_those_that_its_released_code_penalises(
    settings: dict[str, Any], more: set[str]
) -> None:
    """The convolutions but for the last, the ends of the attention and both linear layers; no queries, keys, values."""
    network = random("swinir", **settings)
    inside = {
        f"layers.0.residual_group.blocks.{number}.{layer}"
        for number in (0, 1)
        for layer in ("attn.proj", "mlp.fc1", "mlp.fc2")
    }
    found = requested_fields(named_layers(network), layer_choices(network)["eqreg-t"])
    assert set(found) == inside | {"conv_first", "layers.0.conv", "conv_after_body"} | more
    assert list(layer_choices(network_class("swinir"))) == ["eqreg-t"]


def test_no_layer_of_a_training_step_is_left_out() -> None:
    from components.equivariance import EquivarianceRegularizer

    network = random("swinir").train()
    regularizer = EquivarianceRegularizer(network, pairing="append", pair_fraction=1.0)
    images: Tensor = stack(network, 10, 10, batch=2)
    batch = regularizer.pair(images, images, generator=torch.Generator().manual_seed(0))
    network(batch.inputs)
    regularizer.penalty()
    linears = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert sorted(regularizer.layer_penalties()) == sorted(linears)
    assert regularizer.skipped == {}
    regularizer.detach()
