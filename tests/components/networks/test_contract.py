"""The contract of the networks around published modules: one state, one stack, any size, an export, a penalty."""

from __future__ import annotations

import itertools
import math
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.export.passes import move_to_device_pass
from torch.nn import functional as F

from components.equivariance import EquivarianceRegularizer, diagnose, equivariance_error, projected
from components.equivariance.diagnosis.projection import Fields
from components.members import NETWORKS
from components.networks import build_network, network_class, network_settings
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


@pytest.mark.parametrize("side", [8, 16, 20, 21, 22, 24])
@pytest.mark.parametrize(
    ("name", "settings", "fields"),
    [
        ("dncnn", {"width": 8, "depth": 4}, "auto"),
        ("unet", {"width": 8, "depth": 3}, "auto"),
        ("prenet", {}, "auto"),
        ("redcnn", {}, "auto"),
        ("derainnet", {}, "auto"),
        ("ffdnet", {}, "auto"),
        ("nafnet", {}, "auto"),
        ("nafnet", {"encoder_blocks": (1, 1, 1), "decoder_blocks": (1, 1, 1)}, "auto"),
        ("drunet", {}, "auto"),
        ("restormer", {"width": 16, "hidden_multiple": 8}, "auto"),
        ("fbpconvnet", {"upsampling": "in_place", "width": 16}, "auto"),
        ("mprnet", {"stage2": "whole"}, "auto"),
        ("acdnet", {}, "trivial"),
        ("rcdnet", {}, "auto"),
        ("dicdnet", {}, "auto"),
    ],
)
def test_a_network_says_with_which_sides_its_features_can_turn(
    name: str, settings: dict[str, Any], fields: Fields, side: int
) -> None:
    network = random(name, **settings)
    copy = projected(network, stack(network, 48, 48), fields=fields)
    error = equivariance_error(copy, stack(network, side, side))["output"]
    assert error < 1e-12 or error > 1e-6
    chosen = network_settings(name, **{**SMALL.get(name, {}), **settings})
    assert chosen.can_turn(side) == (error < 1e-12)


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
