"""The contract of the networks around published modules: one state, one stack, any size, an export, a penalty."""

from __future__ import annotations

import itertools
import math
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass
from torch.nn import functional as F

from components.equivariance import EquivarianceRegularizer, diagnose, equivariance_error, projected
from components.equivariance.diagnosis.projection import Fields
from components.equivariance.layers.spec import named_layers, requested_fields
from components.members import NETWORKS
from components.networks import build_network, layer_choices, network_class, network_settings
from components.networks.form import Extension, crop, extend, extend_to_multiple, surround
from tests.components.networks.fingerprints import fingerprint as fingerprints
from tests.components.networks.small import SMALL, devices_in, random, stack

pytestmark = pytest.mark.unit

SIZES = [(1, 1), (1, 9), (2, 2), (5, 30), (21, 21), (22, 40), (23, 17)]


@pytest.mark.parametrize(
    ("name", "settings", "fingerprint"),
    [
        ("acdnet", {}, "ACDNet"),
        ("prenet", {}, "PReNet"),
        ("redcnn", {}, "RED_CNN"),
        ("dncnn", {"norm": "none"}, "DnCNN_color_20"),
        ("acdnet", {"maps": 8, "dual_channels": 35}, "ACDNet_eqreg_width"),
        ("prenet", {"memory": "none", "shared_blocks": True}, "PRN_r"),
        ("ffdnet", {}, "FFDNet_gray"),
        ("derainnet", {}, "DerainNet"),
        ("fbpconvnet", {}, "FBPConvNet_matconvnet_crop"),
        ("fbpconvnet", {"upsampling": "pytorch_port"}, "FBPConvNet_jonzhaocn"),
        ("mprnet", {}, "MPRNet_derain"),
        ("mprnet", {"stage2": "whole"}, "MPRNet_derain"),
        ("mprnet", {"width": 80, "unet_growth": 48, "orsnet_growth": 32}, "MPRNet_denoise"),
        ("mprnet", {"width": 96, "unet_growth": 48, "orsnet_growth": 32}, "MPRNet_deblur"),
        ("nafnet", {}, "NAFNet_SIDD_w32"),
        ("nafnet", SMALL["nafnet"], "NAFNet_tiny"),
        ("rcdnet", {}, "RCDNet"),
        ("rcdnet", {"form": "simple"}, "RCDNet_simple"),
        ("rcdnet", {"form": "simple", "dual_channels": 33}, "RCDNet_eqreg_width"),
        ("dicdnet", {}, "DICDNet"),
        ("dicdnet", {"dual_channels": 35}, "DICDNet_eqreg_width"),
        ("oscnet", {}, "OSCNet"),
        ("oscnet", {"dual_channels": 35}, "OSCNet_eqreg_width"),
        ("drunet", {}, "DRUNet_color"),
        ("drunet", {"in_channels": 2, "out_channels": 1}, "DRUNet_gray"),
        ("restormer", {}, "Restormer_derain"),
        ("restormer", {"norm": "bias_free"}, "Restormer_denoise_color"),
        ("restormer", {"norm": "bias_free", "in_channels": 1, "out_channels": 1}, "Restormer_denoise_gray"),
        ("restormer", {"width": 16, "blocks": (1, 1, 1, 1), "refinement_blocks": 1}, "Restormer_tiny"),
    ],
)
def test_a_network_has_the_parameters_of_the_published_one_and_no_other(
    name: str, settings: dict[str, Any], fingerprint: str
) -> None:
    network = build_network(name, **settings)
    stored = fingerprints.stored_structure(fingerprints.load(fingerprint))
    assert fingerprints.structure(network) == fingerprints.structure(network.published) == stored


def test_a_network_of_its_own_form_is_its_published_module() -> None:
    network = build_network("dncnn", depth=3)
    assert network.published is network


@pytest.mark.parametrize("name", SMALL)
def test_the_published_module_and_the_network_are_one_state(name: str) -> None:
    network = random(name)
    published = network.published
    assert type(published) is network_class(name).published_class
    other = {key: value + 1 for key, value in published.state_dict().items()}
    published.load_state_dict(other)  # type: ignore[operator]
    torch.testing.assert_close(dict(network.state_dict()), other)
    published.train()  # type: ignore[operator]
    assert network.training
    network.float()
    assert {value.dtype for value in published.parameters()} == {torch.float32}  # type: ignore[operator]
    copied = deepcopy(network)
    nn.init.zeros_(next(copied.published.parameters()))
    assert next(network.parameters()).any()


def test_an_image_passes_prenet_as_it_is() -> None:
    network, image = random("prenet"), torch.rand(2, 3, 9, 12, dtype=torch.float64)
    last, stages = network.published(image)
    torch.testing.assert_close(network(image), last, rtol=0, atol=0)
    assert len(stages) == 3


@pytest.mark.parametrize("size", [(8, 6), (7, 6), (3, 5), (24, 21)])
def test_ffdnet_gets_the_noise_level_of_each_image_from_the_stack(size: tuple[int, int]) -> None:
    network = random("ffdnet")
    image, sigma = (
        torch.rand(2, 1, *size, dtype=torch.float64),
        torch.tensor([10, 50.0]).double().view(2, 1, 1, 1) / 255,
    )
    output = network(torch.cat((image, sigma.expand(2, 1, *size)), dim=1))
    torch.testing.assert_close(output, network.published(image, sigma), rtol=0, atol=0)
    assert (output - network(torch.cat((image, sigma.flip(0).expand(2, 1, *size)), dim=1))).abs().min() > 0


@pytest.mark.parametrize("size", [(1, 1), (7, 6), (4, 9), (5, 5)])
def test_ffdnet_repeats_the_last_row_and_column_of_an_image_of_odd_size(size: tuple[int, int]) -> None:
    """Oracle: numpy's padding by the edge."""
    network = random("ffdnet").published
    image, sigma = torch.rand(1, 1, *size, dtype=torch.float64), torch.full((1, 1, 1, 1), 0.1, dtype=torch.float64)
    even = np.pad(image.numpy(), [(0, 0), (0, 0), *((0, side % 2) for side in size)], mode="edge")
    expected = network(torch.from_numpy(even), sigma)[..., : size[0], : size[1]]  # type: ignore[operator]
    torch.testing.assert_close(network(image, sigma), expected, rtol=0, atol=0)  # type: ignore[operator]


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 7), (2, 6)])
def test_ffdnet_sees_an_image_of_a_few_pixels_with_its_last_row_and_column_repeated(size: tuple[int, int]) -> None:
    """Oracle: numpy's padding by the edge, to 4 pixels or to an even number of them."""
    network = random("ffdnet")
    inputs = stack(network, *size)
    sides = [max(4, side + side % 2) for side in size]
    pads = [(0, 0), (0, 0), *((0, after - side) for after, side in zip(sides, size, strict=True))]
    image, level = torch.from_numpy(np.pad(inputs.numpy(), pads, mode="edge")).split(1, dim=1)
    expected = network.published(image, level[..., :1, :1])[..., : size[0], : size[1]]
    torch.testing.assert_close(network(inputs), expected, rtol=0, atol=0)


def test_ffdnet_has_its_published_settings_for_colours() -> None:
    """12 convolutions, of 13 maps to 96 channels first and of 96 to 12 maps last: 3 colours of 4 sub-pixels each."""
    network = build_network("ffdnet", width=96, depth=12, in_channels=4, out_channels=3)
    shapes = [tuple(value.shape) for name, value in network.named_parameters() if name.endswith("weight")]
    assert shapes == [(96, 13, 3, 3), *[(96, 96, 3, 3)] * 10, (12, 96, 3, 3)]
    assert network(torch.rand(1, 4, 9, 7)).shape == (1, 3, 9, 7)


@pytest.mark.parametrize("size", [(5, 9), (8, 12), (24, 6)])
def test_nafnet_gives_what_the_published_module_gives(size: tuple[int, int]) -> None:
    """But for a side of at most 4 pixels, which the form extends further."""
    network = random("nafnet")
    image = stack(network, *size)
    torch.testing.assert_close(network(image), network.published(image), rtol=0, atol=0)
    wide = F.pad(image, (0, -size[1] % 4, 0, -size[0] % 4))
    expected = network.published(wide)[..., : size[0], : size[1]]
    torch.testing.assert_close(network(image), expected, rtol=0, atol=0)


def test_nafnet_sees_an_image_of_a_few_pixels_in_a_frame_of_zeros() -> None:
    network = random("nafnet")
    image = stack(network, 3, 12)
    expected = network.published(F.pad(image, (0, 0, 0, 5)))[..., :3, :]
    torch.testing.assert_close(network(image), expected, rtol=0, atol=0)


def test_a_new_nafnet_corrects_by_its_outer_layers_alone() -> None:
    """Each block of it is the identity, so only ``beta`` and ``gamma`` have a gradient in the blocks."""
    network = build_network("nafnet", **SMALL["nafnet"])
    network(torch.rand(1, 3, 16, 16)).square().mean().backward()
    moved = {key for key, value in network.named_parameters() if value.grad is not None and value.grad.any()}
    of_blocks = {key.rpartition(".")[2] for key in moved if key.startswith(("encoders", "middle_blks", "decoders"))}
    assert of_blocks == {"beta", "gamma"}


@pytest.mark.parametrize("size", [(5, 9), (8, 12), (24, 6), (1, 1), (17, 16), (1, 40)])
@pytest.mark.parametrize(("name", "oracle"), [("restormer", "reflect"), ("drunet", "edge")])
def test_a_network_of_three_halvings_sees_an_image_extended_to_multiples_of_8(
    name: str, oracle: Any, size: tuple[int, int]
) -> None:
    """By reflection and by copies as their published test scripts do; a side of at most 8 pixels becomes 16."""
    network = random(name)
    inputs = stack(network, *size)
    sides = [max(16, 8 * math.ceil(side / 8)) for side in size]
    pads = [(0, 0), (0, 0), *((0, after - side) for after, side in zip(sides, size, strict=True))]
    wide = torch.from_numpy(np.pad(inputs.numpy(), pads, mode=oracle))
    expected = network.published(wide)[..., : size[0], : size[1]]
    torch.testing.assert_close(network(inputs), expected, rtol=0, atol=0)


def test_drunet_gives_twice_the_image_for_twice_the_image_and_noise_level() -> None:
    network = random("drunet")
    inputs = stack(network, 16, 24)
    torch.testing.assert_close(network(2 * inputs), 2 * network(inputs), rtol=1e-12, atol=0)
    louder = inputs.clone()
    louder[:, -1] *= 2
    assert (network(louder) - network(inputs)).abs().max() > 1e-3


def test_drunet_finds_the_noise_level_wherever_it_lies_in_the_stack() -> None:
    network, other = random("drunet"), random("drunet", inputs=("noise_level", "image"))
    inputs = stack(network, 16, 16)
    torch.testing.assert_close(other(inputs[:, [3, 0, 1, 2]]), network(inputs), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "hidden"),
    [
        ({}, [127, 255, 510, 1021]),
        ({"hidden_multiple": 4}, [128, 256, 512, 1024]),
        ({"hidden_multiple": 8, "width": 8}, [24, 48, 88, 176]),  # of 21, 42, 85, 170
        ({"expansion": 2, "hidden_multiple": 4}, [96, 192, 384, 768]),
    ],
)
def test_the_feed_forward_layers_of_restormer_have_the_published_width_or_a_multiple(
    settings: dict[str, Any], hidden: list[int]
) -> None:
    few = {"blocks": (1, 1, 1, 1), "refinement_blocks": 1}
    network = build_network("restormer", **{**few, **settings})
    levels = (network.encoder_level1, network.encoder_level2, network.encoder_level3, network.latent)
    assert [level[0].ffn.project_out.in_channels for level in levels] == hidden
    assert [level[0].ffn.project_in.out_channels for level in levels] == [2 * number for number in hidden]


def test_the_norms_of_restormer_without_a_bias_do_not_subtract_the_mean() -> None:
    maps = torch.rand(2, 8, 3, 4, dtype=torch.float64)
    variance = maps.var(dim=1, keepdim=True, correction=0)
    for norm, expected in (("bias_free", maps), ("with_bias", maps - maps.mean(dim=1, keepdim=True))):
        body = random("restormer", norm=norm).encoder_level1[0].norm1.body
        nn.init.ones_(body.weight)
        bias = 0 if body.bias is None else body.bias[:, None, None]
        torch.testing.assert_close(body(maps), expected / (variance + 1e-5).sqrt() + bias)


@pytest.mark.parametrize("name", ["acdnet", "dicdnet", "oscnet"])
@pytest.mark.parametrize("order", list(itertools.permutations(("image", "li", "metal_mask"))))
def test_a_network_for_ct_finds_its_inputs_in_the_stack_and_gets_their_published_values(
    order: tuple[str, ...], name: str
) -> None:
    parts = {name: torch.rand(1, 1, 12, 9, dtype=torch.float64) for name in ("image", "li", "metal_mask")}
    parts["metal_mask"] = (parts["metal_mask"] > 0.8).double()
    network = random(name, inputs=order)
    output = network(torch.cat([parts[name] for name in order], dim=1))
    published = network.published(255 * parts["image"], 255 * parts["li"], 1 - parts["metal_mask"])
    torch.testing.assert_close(output, published.images[-1] / 255, rtol=0, atol=1e-12)


def test_a_network_leaves_what_it_does_not_need_in_the_stack() -> None:
    parts = torch.rand(1, 3, 30, 30, dtype=torch.float64)
    network = random("redcnn", in_channels=3, inputs=("li", "image", "metal_mask"))
    torch.testing.assert_close(network(parts), network.published(parts[:, 1:2]), rtol=0, atol=0)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("more", [-1, 1])
def test_a_stack_of_another_number_of_channels_is_refused(name: str, more: int) -> None:
    """Its images lie elsewhere: an image with alpha, or a stack without its last mask."""
    network = random(name)
    channels = int(network.in_channels)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"\(1, {channels + more}, 24, 24\): this network takes {channels} channels"):
        network(torch.rand(1, channels + more, 24, 24, dtype=torch.float64))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", SIZES)
def test_a_stack_of_any_size_gives_an_image_of_this_size(name: str, size: tuple[int, int]) -> None:
    network = random(name)
    output = network(stack(network, *size, batch=2))
    assert output.shape == (2, network.out_channels, *size)
    assert output.isfinite().all()


@pytest.mark.parametrize(("size", "pads"), [((5, 30), (8, 9)), ((22, 12), (0, 0)), ((20, 21), (1, 1))])
def test_redcnn_sees_a_small_image_reflected_at_its_borders(size: tuple[int, int], pads: tuple[int, int]) -> None:
    """Reflection without repeating the border; numpy's rule, which torch's own padding refuses beyond the size."""
    network = random("redcnn")
    image = stack(network, *size)
    rows, columns = (max(0, 22 - side) for side in size)
    around = [(0, 0), (0, 0), (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)]
    wide = torch.from_numpy(np.pad(image.numpy(), around, mode="reflect"))
    expected = network.published(wide)[:, :, around[2][0] :, around[3][0] :][..., : size[0], : size[1]]
    torch.testing.assert_close(network(image), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 4), (6, 6), (7, 5), (2, 3)])
@pytest.mark.parametrize("least", [1, 6, 9])
def test_cropping_takes_back_what_extending_added(size: tuple[int, int], least: int) -> None:
    images = torch.rand(2, 3, *size)
    extended = extend(images, least)
    assert tuple(extended.shape[-2:]) == tuple(max(side, least) for side in size)
    assert torch.equal(crop(extended, images, least), images)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 4), (8, 8), (16, 9), (2, 3)])
@pytest.mark.parametrize(("multiple", "least"), [(2, 1), (8, 1), (4, 12)])
@pytest.mark.parametrize(("mode", "oracle"), [("zero", "constant"), ("copy", "edge"), ("reflection", "reflect")])
def test_an_extension_to_a_multiple_is_that_of_numpy_and_can_be_cropped(
    size: tuple[int, int], multiple: int, least: int, mode: Extension, oracle: Any
) -> None:
    images = torch.rand(2, 3, *size)
    extended = extend_to_multiple(images, multiple, mode, least)
    sides = [max(multiple * math.ceil(side / multiple), least) for side in size]
    pads = [(0, 0), (0, 0), *((0, after - side) for after, side in zip(sides, size, strict=True))]
    assert np.array_equal(extended.numpy(), np.pad(images.numpy(), pads, mode=oracle))
    assert torch.equal(crop(extended, images, 1), images)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 16), (13, 10), (2, 3)])
@pytest.mark.parametrize(("least", "multiple"), [(1, 4), (8, 4), (16, 8), (5, 3)])
def test_an_extension_around_an_image_to_a_multiple_is_that_of_numpy_and_can_be_cropped(
    size: tuple[int, int], least: int, multiple: int
) -> None:
    images = torch.rand(2, 3, *size)
    missing = [-(-max(side, least) // multiple) * multiple - side for side in size]
    around = [(0, 0), (0, 0), *((each // 2, each - each // 2) for each in missing)]
    extended = extend(images, least, multiple)
    assert torch.equal(extended, torch.from_numpy(np.pad(images.numpy(), around, mode="reflect")))
    assert torch.equal(crop(extended, images, least, multiple), images)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (12, 7)])
@pytest.mark.parametrize("width", [1, 10])
def test_the_surroundings_of_an_image_are_those_of_numpy(size: tuple[int, int], width: int) -> None:
    images = torch.rand(2, 3, *size)
    around = [(0, 0), (0, 0), (width, width), (width, width)]
    assert torch.equal(surround(images, width), torch.from_numpy(np.pad(images.numpy(), around, mode="reflect")))


@pytest.mark.parametrize("side", [4, 6, 9])
def test_extending_by_an_even_number_commutes_with_quarter_turns(side: int) -> None:
    images = torch.rand(1, 2, side, side)
    least = side + 4
    assert torch.equal(extend(images.rot90(1, (2, 3)), least), extend(images, least).rot90(1, (2, 3)))
    assert torch.equal(extend(images.rot90(1, (2, 3)), 1, least), extend(images, 1, least).rot90(1, (2, 3)))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "mprnet" else ()) for name in SMALL]
)
def test_an_exported_program_restores_what_the_module_restores_and_names_no_device(name: str) -> None:
    network = random(name).float()
    example = stack(network, 48, 33, batch=2).float()
    program = torch.export.export(network, (example,), dynamic_shapes=[dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)])
    assert devices_in(program) == []
    run = program.module()
    for size in SIZES:
        images = stack(network, *size, batch=3).float()
        with torch.inference_mode():
            torch.testing.assert_close(run(images), network(images), rtol=1e-5, atol=1e-5)
    moved = move_to_device_pass(program, "meta").module()
    assert moved(example.to("meta")).device.type == "meta"


# ------------------------------------------------------------------------------------------------------------ training


def test_prenet_can_be_supervised_at_every_stage() -> None:
    network = random("prenet", supervised="all").train()
    image = stack(network)
    outputs = network(image)
    stages = network.published(image)[1]
    assert [torch.equal(*pair) for pair in zip(outputs, reversed(stages), strict=True)] == [True] * 3
    assert isinstance(network.eval()(image), Tensor)
    assert isinstance(random("prenet").train()(image), Tensor)  # as published: the last stage alone


def test_acdnet_is_supervised_by_all_images_and_artifacts_with_the_published_weights() -> None:
    network = random("acdnet").train()
    inputs = stack(network)
    outputs = network(inputs)
    assert network.output_weights == (1.0, *[0.1] * (len(outputs) - 1))
    published = network.published(255 * inputs[:, :1], 255 * inputs[:, 1:2], 1 - inputs[:, 2:])
    torch.testing.assert_close(outputs[0], published.images[-1] / 255)
    torch.testing.assert_close(outputs[-1], inputs[:, :1] - published.warm_up_artifacts[-1] / 255)
    wanted = 1 + 2 + 1 + 2 + 2 + 2  # result; earlier images, first image, warm-up images; artifacts of both
    assert len(outputs) == wanted
    assert isinstance(network.eval()(inputs), Tensor)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_that_can_have_a_gradient_gets_one(name: str) -> None:
    """Several processes wait for the gradient of each."""
    network = random(name).train()
    outputs = network(stack(network, batch=2))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum(output.square().mean() for output in outputs).backward()
    assert [key for key, value in network.named_parameters() if value.requires_grad and value.grad is None] == []


PENALTIES = ("rotation", "channel", "rotation+channel", "regular", "projection", "paper")


QUICK = ("redcnn", "ffdnet", "dncnn")
"""Networks that take every penalty in the tests that are not slow."""

STEPS = [
    pytest.param(
        name,
        penalty,
        id=f"{name}-{penalty}",
        marks=pytest.mark.slow if name not in QUICK and penalty != "regular" else (),
    )
    for name in (*SMALL, "dncnn")
    for penalty in PENALTIES
]


@pytest.mark.parametrize(("name", "penalty"), STEPS)
def test_twenty_regularised_steps_make_a_network_more_equivariant(name: str, penalty: Any) -> None:
    settings = {
        "dncnn": {"width": 8, "depth": 4, "norm": "none"},
        "acdnet": {"maps": 4},
        "swinir": {"width": 16},
    }.get(name, {})
    network = random(name, **settings).float().train()
    regularizer = EquivarianceRegularizer(network, penalty=penalty, pairing="append", pair_fraction=1.0)
    rate = 2e-2 if name == "derainnet" else 2e-3  # the larger one where few layers have large weights
    optimizer = torch.optim.Adam([value for value in network.parameters() if value.requires_grad], lr=rate)
    generator = torch.Generator().manual_seed(0)
    inputs = stack(network, 24, 24, batch=2).float()
    targets = inputs[:, : int(network.out_channels)]  # type: ignore[arg-type]
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        batch = regularizer.pair(inputs, targets, generator=generator)
        outputs = network(batch.inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        value = regularizer.penalty()
        loss = F.mse_loss(outputs[0], batch.targets) + value
        loss.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert regularizer.layer_penalties()
    assert sum(values[-5:]) < sum(values[:5])
    regularizer.detach()
    assert all(bool(value.isfinite().all()) for value in network.parameters())


def test_the_layers_of_eqreg_t_are_those_that_its_released_code_penalises() -> None:
    """The first layer, both ends of the feed-forward layers, the end of the attention, and what changes the size."""
    network = build_network("restormer", width=16, blocks=(1, 1, 1, 1), refinement_blocks=1)
    layers = layer_choices(network)["eqreg-t"]
    of_blocks = ("attn.project_out", "ffn.project_in", "ffn.project_out")
    places = [f"encoder_level{n}.0" for n in (1, 2, 3)] + ["latent.0"]
    places += [f"decoder_level{n}.0" for n in (3, 2, 1)] + ["refinement.0"]
    expected = {f"{place}.{layer}" for place in places for layer in of_blocks}
    expected |= {f"{name}.body.0" for name in ("down1_2", "down2_3", "down3_4", "up4_3", "up3_2", "up2_1")}
    expected |= {"patch_embed.proj", "reduce_chan_level3", "reduce_chan_level2"}
    assert set(requested_fields(named_layers(network), layers)) == expected
    regularizer = EquivarianceRegularizer(network.train(), layers=layers)
    batch = regularizer.pair(torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16))
    network(batch.inputs)
    regularizer.penalty()
    assert set(regularizer.layer_penalties()) | set(regularizer.skipped) == expected
    hidden = {place: network.get_submodule(f"{place}.ffn.project_out").in_channels for place in places}
    # As published, 42, 85 and 170 hidden channels: the gate multiplies halves that cut through fields.
    assert set(regularizer.skipped) == {f"{place}.ffn.project_in" for place, number in hidden.items() if number % 4}


# ------------------------------------------------------------------------------------------- the oracle of a network


@pytest.mark.parametrize("group", ["C2", "C4", "D4"])
@pytest.mark.parametrize(
    ("name", "settings", "fields"),
    [
        ("dncnn", {"width": 8, "depth": 4}, "auto"),
        ("dncnn", {"width": 8, "depth": 4, "scale": 2}, "auto"),
        ("unet", {"width": 8, "depth": 3}, "auto"),
        ("unet", {"width": 8, "depth": 2, "scale": 3}, "auto"),
        ("prenet", {}, "auto"),
        ("prenet", {"memory": "gru", "adds_input": False}, "auto"),
        ("prenet", {"memory": "none", "shared_blocks": True, "in_channels": 1, "out_channels": 1}, "auto"),
        ("redcnn", {}, "auto"),
        # The linear layers between its weights and its maps mix all channels: only scalar fields can be kept.
        ("acdnet", {}, "trivial"),
        ("ffdnet", {}, "auto"),
        ("nafnet", {}, "auto"),
        ("nafnet", {}, "trivial"),
        ("rcdnet", {}, "auto"),
        ("rcdnet", {}, "trivial"),
        ("rcdnet", {"form": "simple", "dual_channels": 4, "maps": 3}, "auto"),
        ("dicdnet", {}, "auto"),
        ("dicdnet", {"dual_channels": 4, "maps": 6}, "trivial"),
        ("drunet", {}, "auto"),
        ("restormer", {"width": 16, "hidden_multiple": 8}, "auto"),
        ("restormer", {"width": 16, "hidden_multiple": 8, "norm": "bias_free"}, "auto"),
        ("restormer", {"hidden_multiple": 1}, "trivial"),
        ("derainnet", {}, "auto"),
        ("derainnet", {"activation": "tanh", "in_channels": 1, "out_channels": 1}, "auto"),
        ("fbpconvnet", {"upsampling": "in_place", "width": 16}, "auto"),
        ("mprnet", {"stage2": "whole"}, "auto"),
        # As published, the gates of the feed-forward layers cut through fields, so these layers keep scalar fields.
        ("restormer", {"width": 16, "hidden_multiple": 1}, "auto"),
    ],
)
def test_projected_weights_make_the_output_equivariant(
    name: str, settings: dict[str, Any], fields: Fields, group: str
) -> None:
    network = random(name, **settings)
    images = stack(network)
    before = equivariance_error(network, images, group=group)["output"]
    copy = projected(network, images, group, fields)
    assert equivariance_error(copy, images, group=group)["output"] < 1e-12 < 1e-2 < before
    output = copy(images)
    if output.shape == images.shape:  # it is no trivial function of the image
        assert (output - images).std() > 1e-3 * images.std()
    again = projected(copy, images, group, fields)  # a projection
    torch.testing.assert_close(dict(again.state_dict()), dict(copy.state_dict()), rtol=0, atol=1e-12)


def test_regular_fields_do_not_pass_the_linear_layers_of_acdnet() -> None:
    network = random("acdnet")
    images = stack(network)
    assert equivariance_error(projected(network, images), images)["output"] > 1e-9
    assert equivariance_error(projected(network, images, fields="trivial"), images)["output"] < 1e-12
    assert diagnose(network, images).can_be_exact


@pytest.mark.parametrize(("orientations", "group"), [(4, "C4"), (2, "C2")])
def test_the_dictionary_of_oscnet_is_exact_as_it_is_if_its_orientations_are_the_group(
    orientations: int, group: str
) -> None:
    """The maps of a kernel are a regular field, so the kernels need no projection."""
    network = random("oscnet", orientations=orientations, kernels=8 // orientations)
    images = stack(network)
    copy = projected(network, images, group)
    assert torch.equal(copy.fcnn.weights, network.fcnn.weights)  # type: ignore[union-attr, arg-type]
    found = equivariance_error(copy, images, group=group)
    assert found["output"] < 1e-12 < 1e-2 < equivariance_error(network, images, group=group)["output"]
    assert found["fcnn.weights (adjoint)"] < 1e-12
    output = copy(images)
    assert (output - images[:, :1]).std() > 1e-3 * images.std()


def test_eight_orientations_are_no_regular_fields_of_quarter_turns() -> None:
    """A quarter turn moves the maps of a kernel by two, and those of a regular field by one; scalar fields are left."""
    network = random("oscnet", orientations=8)
    images = stack(network)
    assert equivariance_error(projected(network, images), images)["output"] > 1e-4
    basis = network.fcnn.Basis  # type: ignore[union-attr]
    turned = basis.rot90(1, (0, 1))  # type: ignore[operator]
    is_symmetric = (turned - basis).abs().amax(dim=(0, 1, 2)) < 1e-6  # type: ignore[operator]
    assert 3 <= is_symmetric.sum() < 25
    network.fcnn.weights.data *= is_symmetric  # type: ignore[union-attr, operator]
    copy = projected(network, images, fields="trivial")
    assert equivariance_error(copy, images)["output"] < 1e-6  # the rounding of the basis to single precision
    assert diagnose(network, images).can_be_exact


@pytest.mark.parametrize(("name", "side", "fitting"), [("nafnet", 21, 20), ("drunet", 21, 24), ("restormer", 21, 24)])
def test_an_extension_on_one_side_is_named_with_a_size_that_needs_none(name: str, side: int, fitting: int) -> None:
    network = random(name)
    found = diagnose(network, stack(network, side, side))
    assert {incompatibility.kind for _, incompatibility in found.fatal} == {"padding", "crop"}
    assert (found.can_be_exact, found.fitting_size) == (False, (fitting, fitting))
    images = stack(network, side, side)
    assert equivariance_error(projected(network, images), images)["output"] > 1e-3
    other = diagnose(network, stack(network, fitting, fitting))
    assert other.can_be_exact
    assert not any(layer.incompatibilities for layer in other.layers)
    assert other.findings == ()


def test_the_feed_forward_layers_of_the_published_restormer_limit_its_fields() -> None:
    """127, 255, 510 and 1021 hidden channels, before the gate twice as many; 1020 divide by 4, their halves do not."""
    network = random("restormer", width=48, heads=(1, 2, 4, 8), hidden_multiple=1).float()
    found = diagnose(network, stack(network, 16, 16).float())
    limits = {
        (layer.name, each.kind, each.reason.partition(" channels")[0])
        for layer in found.layers
        for each in layer.incompatibilities
    }
    places = {"encoder_level1": 254, "encoder_level2": 510, "latent": 2042, "decoder_level2": 510}
    places |= {"decoder_level1": 510, "refinement": 510}
    layers = ("ffn.project_in", "ffn.dwconv")
    expected = {(f"{place}.0.{layer}", "channels", str(number)) for place, number in places.items() for layer in layers}
    whole = ("encoder_level3", "decoder_level3")
    expected |= {(f"{place}.0.{layer}", "split", "1020 output") for place in whole for layer in layers}
    assert limits == expected
    assert found.can_be_exact
    assert "only with trivial fields, so symmetric kernels, in 16 of 58 layers" in found.verdict


def test_heads_that_cut_through_fields_are_named() -> None:
    network = random("restormer", heads=(1, 8, 2, 2))  # 2 channels each at the second level
    found = diagnose(network, stack(network, 16, 16))
    kinds = {layer.name: [each.kind for each in layer.incompatibilities] for layer in found.layers}
    assert {name for name, of_layer in kinds.items() if of_layer} == {
        f"{place}.0.attn.qkv_dwconv" for place in ("encoder_level2", "decoder_level2")
    }
    assert kinds["encoder_level2.0.attn.qkv_dwconv"] == ["heads"]


def test_projecting_does_not_touch_the_network_itself() -> None:
    network = random("redcnn")
    before = deepcopy(network.state_dict())
    projected(network, stack(network))
    torch.testing.assert_close(dict(network.state_dict()), dict(before), rtol=0, atol=0)


def test_a_group_off_the_grid_cannot_be_projected_on() -> None:
    with pytest.raises(ValueError, match=r"C8.*use C2, C4 or D4"):
        projected(random("redcnn"), stack(random("redcnn")), "C8")


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("prenet", {"scale": 2}, "scale 2: use 1"),
        ("prenet", {"in_channels": 4}, "image, which has 3 channels, got 4"),
        ("redcnn", {"inputs": ("mask",)}, "needs image, and the stack holds mask"),
        ("acdnet", {"inputs": ("image",), "in_channels": 1}, "needs li and metal_mask"),
        ("acdnet", {"out_channels": 3}, "one channel, got 3"),
        ("prenet", {"memory": "rnn"}, "memory: 'rnn': use one of lstm, gru, none"),
        ("prenet", {"stages": 0}, "stages: 0: use a whole number of at least 1"),
        ("redcnn", {"width": 0}, "width: 0"),
        ("acdnet", {"maps": 0}, "maps: 0"),
        ("acdnet", {"supervised": "some"}, "supervised: 'some': use one of last, all"),
        ("redcnn", {"depth": 3}, "depth: unknown"),
        ("ffdnet", {"inputs": ("image",), "in_channels": 1}, "needs noise_level, and the stack holds image"),
        ("ffdnet", {"depth": 1}, "depth: 1"),
        ("nafnet", {"encoder_blocks": (1, 0)}, r"encoder_blocks: \[1, 0\]: use whole numbers from 1 to 1000"),
        ("nafnet", {"encoder_blocks": 3}, "encoder_blocks: 3: use a list of whole numbers"),
        ("nafnet", {"encoder_blocks": ()}, r"encoder_blocks: \[\]: use 1 to 12 levels"),
        ("nafnet", {"decoder_blocks": (1, 1)}, r"decoder_blocks: \[1, 1\]: use as many levels .* has, 4"),
        ("nafnet", {"middle_blocks": 0}, "middle_blocks: 0"),
        ("nafnet", {"in_channels": 1}, "image, which has 3 channels, got 1"),
        ("rcdnet", {"form": "short"}, "form: 'short': use one of official, simple"),
        ("rcdnet", {"stages": 2}, "stages: 2: use a whole number of at least 3"),
        ("rcdnet", {"form": "simple", "stages": 1}, "stages: 1: use a whole number of at least 2"),
        ("rcdnet", {"dual_channels": 0}, "dual_channels: 0"),
        ("rcdnet", {"supervised": "some"}, "supervised: 'some': use one of last, all"),
        ("rcdnet", {"inputs": ("mask",), "in_channels": 1}, "needs image, and the stack holds mask"),
        ("dicdnet", {"inputs": ("image", "li"), "in_channels": 2}, "needs metal_mask"),
        ("dicdnet", {"out_channels": 3}, "dicdnet restores images of one channel, got 3"),
        ("dicdnet", {"stages": 1}, "stages: 1: use a whole number of at least 2"),
        ("oscnet", {"out_channels": 2}, "oscnet restores images of one channel, got 2"),
        ("oscnet", {"orientations": 0}, "orientations: 0"),
        ("oscnet", {"supervised": "none"}, "supervised: 'none': use one of last, all"),
        ("drunet", {"inputs": ("image",), "in_channels": 3}, "needs noise_level, and the stack holds image"),
        ("drunet", {"blocks": 0}, "blocks: 0"),
        ("restormer", {"width": 9}, "width: 9: use an even number"),
        ("restormer", {"blocks": (1, 1, 1)}, r"blocks: \[1, 1, 1\]: use 4 numbers, one for each level"),
        ("restormer", {"heads": (1, 2, 5, 8)}, "5 heads do not divide the 192 channels of level 3"),
        ("restormer", {"expansion": 0.01}, "expansion: 0.01: use a number of at least 0.021"),
        ("restormer", {"expansion": "wide"}, "expansion: 'wide': use a number"),
        ("restormer", {"norm": "BiasFree"}, "norm: 'BiasFree': use one of with_bias, bias_free"),
        ("restormer", {"hidden_multiple": 0}, "hidden_multiple: 0"),
        ("restormer", {"dual_pixel": True}, "dual_pixel: unknown"),
        ("derainnet", {"activation": "gelu"}, "activation: 'gelu': use one of relu, tanh"),
        ("derainnet", {"width": 0}, "width: 0"),
        ("fbpconvnet", {"levels": 1}, "levels: 1: use a whole number of at least 2"),
        ("fbpconvnet", {"upsampling": "bilinear"}, "upsampling: 'bilinear': use one of matconvnet, pytorch_port, in_p"),
        ("fbpconvnet", {"in_channels": 3}, "image, which has 1 channels, got 3"),
        ("mprnet", {"stage2": "quarters"}, "stage2: 'quarters': use one of bands, whole"),
        ("mprnet", {"supervised": "first"}, "supervised: 'first': use one of last, all"),
        ("mprnet", {"unet_growth": -1}, "unet_growth: -1: use a whole number of at least 0"),
        ("mprnet", {"scale": 2}, "scale 2: use 1"),
    ],
)
def test_impossible_networks_are_refused_with_their_values(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(name, **arguments)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_states_what_it_needs_and_which_scales_it_has(name: str) -> None:
    network = network_class(name)
    if not network.is_classifier:
        assert network.needs is None or network.needs[0] == "image"
        assert 1 in network.scales
    assert network_settings(name).smallest_side >= 1
