"""The published modules are those of the references: names, shapes, outputs and gradients in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.networks import build_network
from components.networks.convolutional.derainnet import DerainNet, guided_filter
from components.networks.convolutional.ffdnet import FFDNet
from components.networks.convolutional.redcnn import REDCNN
from components.networks.form import surround
from components.networks.unets.fbpconvnet import FBPConvNet
from components.networks.unets.mprnet import MPRNet
from components.networks.unets.nafnet import ChannelNorm, NAFNet
from components.networks.unrolled.acdnet import ACDNet, ACDNetOutput
from components.networks.unrolled.prenet import PReNet
from tests.components.networks.fingerprints import fingerprint as fingerprints
from tests.components.networks.fingerprints.fingerprint import GRADIENT

pytestmark = pytest.mark.unit
TOLERANCE = 1e-9


class Published(NamedTuple):
    """How a network of a fingerprint is built, called and read."""

    build: Callable[[], nn.Module]
    outputs: Callable[[Any], dict[str, Tensor]] = lambda output: {"out": output}
    """What the module returns -> the outputs by their names in the fingerprint, the result first."""
    call: Callable[..., Any] = lambda network, *inputs: network(*inputs)
    """The network and the inputs of the fingerprint -> what the module returns."""


def prenet_outputs(output: tuple[Tensor, list[Tensor]]) -> dict[str, Tensor]:
    last, stages = output
    return {"out": last, "stage1": stages[0], "stage3": stages[2]}


def acdnet_outputs(output: ACDNetOutput) -> dict[str, Tensor]:
    return {
        "out": output.images[-1],
        "X0": output.first_image,
        "X_nonK_1": output.warm_up_images[1],
        "X_stage1": output.images[0],
        "A_last": output.artifacts[-1],
    }


def call_acdnet(network: nn.Module, image: Tensor, interpolated: Tensor, third: Tensor) -> Any:
    """The note asks for a mask of zeros and ones instead of the third input, which is in 0..255."""
    return network(image, interpolated, (third / 255 > 0.35).double())


def call_ffdnet(network: nn.Module, image: Tensor, second: Tensor) -> Any:
    """The note asks for sigma = 25 / 255 in place of the second input."""
    return network(image, torch.full_like(second, 25 / 255))


def call_derainnet(network: nn.Module, image: Tensor) -> Any:
    """The restored image, and the base layer of the image."""
    return network(image), network.base_layer(image)  # type: ignore[operator]


def mprnet_outputs(output: list[Tensor]) -> dict[str, Tensor]:
    return dict(zip(("stage3", "stage2", "stage1"), output, strict=True))


def dncnn(channels: int, **settings: Any) -> nn.Module:
    return build_network("dncnn", in_channels=channels, out_channels=channels, **settings)


PUBLISHED = {
    "PReNet": Published(PReNet, prenet_outputs),
    "PReNet_LSTM": Published(lambda: PReNet(adds_input=False), prenet_outputs),
    "PReNet_GRU": Published(lambda: PReNet(adds_input=False, memory="gru"), prenet_outputs),
    "PReNet_x": Published(lambda: PReNet(adds_input=False, sees_input=False), prenet_outputs),
    "PReNet_r": Published(lambda: PReNet(shared_blocks=True), prenet_outputs),
    "PRN": Published(lambda: PReNet(memory="none"), prenet_outputs),
    "PRN_r": Published(lambda: PReNet(memory="none", shared_blocks=True), prenet_outputs),
    "RED_CNN": Published(REDCNN),
    "DnCNN_gray_17": Published(lambda: dncnn(channels=1, depth=17, norm="none")),
    "DnCNN_gray_17_BN": Published(lambda: dncnn(channels=1, depth=17, norm="batch")),
    "DnCNN_color_20": Published(lambda: dncnn(channels=3, depth=20, norm="none")),
    "ACDNet": Published(ACDNet, acdnet_outputs, call_acdnet),
    "ACDNet_eqreg_width": Published(lambda: ACDNet(maps=8, dual_channels=35), acdnet_outputs, call_acdnet),
    "FFDNet_gray": Published(FFDNet, call=call_ffdnet),
    "NAFNet_tiny": Published(lambda: NAFNet(3, 8, 1, (1, 1), (1, 1))),
    "NAFNet_SIDD_w32": Published(NAFNet),
    "NAFNet_GoPro_w32": Published(
        lambda: NAFNet(middle_blocks=1, encoder_blocks=(1, 1, 1, 28), decoder_blocks=(1, 1, 1, 1))
    ),
    "DerainNet": Published(
        DerainNet, lambda output: dict(zip(("out", "base_layer"), output, strict=True)), call_derainnet
    ),
    "FBPConvNet_matconvnet_crop": Published(FBPConvNet),
    "FBPConvNet_jonzhaocn": Published(lambda: FBPConvNet(upsampling="pytorch_port")),
    "MPRNet_derain": Published(MPRNet, mprnet_outputs),
    "MPRNet_denoise": Published(lambda: MPRNet(80, 48, 32), mprnet_outputs),
    "MPRNet_deblur": Published(lambda: MPRNet(96, 48, 32), mprnet_outputs),
}
"""Name of the fingerprint -> how to compare."""

SLOW = {
    "NAFNet_SIDD_w32",
    "NAFNet_GoPro_w32",
    "FBPConvNet_matconvnet_crop",
    "FBPConvNet_jonzhaocn",
    "MPRNet_derain",
    "MPRNet_denoise",
    "MPRNet_deblur",
}
"""Fingerprints of networks that take seconds."""


MODES = [
    pytest.param(name, mode, marks=pytest.mark.slow if name in SLOW else ())
    for name in PUBLISHED
    for mode in fingerprints.modes(fingerprints.load(name))
]


def compared(name: str, network: nn.Module, mode: str = "eval") -> dict[str, float]:
    """The deviations of a network from the fingerprint ``name``."""
    fingerprint = fingerprints.load(name)
    fingerprints.fill(network.double().train(mode == "train"), fingerprint["gain"])
    outputs = PUBLISHED[name].outputs(PUBLISHED[name].call(network, *fingerprints.inputs(fingerprint)))
    return fingerprints.deviations(fingerprint, network, outputs, mode)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_module_has_the_names_order_and_shapes_of_the_reference(name: str) -> None:
    assert fingerprints.structure(PUBLISHED[name].build()) == fingerprints.stored_structure(fingerprints.load(name))


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_a_published_module_has_the_outputs_and_gradients_of_the_reference(name: str, mode: str) -> None:
    found = compared(name, PUBLISHED[name].build(), mode)
    assert max(found.values()) < TOLERANCE, found


# ------------------------------------------------------------------------------------------------ what is noticed


def without_the_second_relu() -> nn.Module:
    network = PReNet()
    network.get_submodule("res_conv3")[3] = nn.Identity()  # type: ignore[index]
    return network


def without_gradient_through_the_fed_back_image() -> nn.Module:
    network = PReNet()
    network.conv0.register_forward_pre_hook(
        lambda _, inputs: torch.cat((inputs[0][:, :3], inputs[0][:, 3:].detach()), dim=1)
    )
    return network


def with_the_skip_added_after_the_relu() -> nn.Module:
    network = REDCNN()
    network.tconv1.register_forward_hook(lambda _, inputs, output: output.relu())
    return network


def with_branches_that_are_not_scaled() -> nn.Module:
    network = NAFNet(3, 8, 1, (1, 1), (1, 1))
    network.middle_blks[0].beta.register_hook(torch.zeros_like)
    return network


def with_the_epsilon_of_other_norms() -> nn.Module:
    network = NAFNet(3, 8, 1, (1, 1), (1, 1))
    for module in network.modules():
        if isinstance(module, ChannelNorm):
            module.register_forward_hook(
                lambda norm, inputs, _: F.layer_norm(
                    inputs[0].movedim(1, -1), norm.weight.shape, norm.weight, norm.bias, eps=1e-5
                ).movedim(-1, 1)
            )
    return network


def with_attention_by_the_largest_value() -> nn.Module:
    network = NAFNet(3, 8, 1, (1, 1), (1, 1))
    network.middle_blks[0].sca[0] = nn.AdaptiveMaxPool2d(1)  # type: ignore[union-attr, index]
    return network


def with_another_epsilon() -> nn.Module:
    network = ACDNet()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1.1e-5
    return network


def with_a_narrower_filter() -> nn.Module:
    network = DerainNet()
    network.register_forward_hook(
        lambda module, inputs, output: (
            output + guided_filter(surround(inputs[0], 10), 14, 1.0)[..., 10:-10, 10:-10] - module.base_layer(inputs[0])
        )
    )
    return network


def with_what_was_enlarged_first() -> nn.Module:
    network = FBPConvNet()
    network.get_submodule("block_1_2").register_forward_pre_hook(lambda _, inputs: inputs[0].roll(64, 1))
    return network


def with_the_largest_of_four_pixels() -> nn.Module:
    network = MPRNet()
    network.stage1_encoder.down23.down[0] = nn.MaxPool2d(2)
    return network


@pytest.mark.parametrize(
    ("name", "build", "same"),
    [
        pytest.param("PReNet", lambda: PReNet(stages=5), {"stage1", "stage3"}, id="five stages"),
        pytest.param("PReNet", without_the_second_relu, set(), id="no second ReLU"),
        pytest.param(
            "PReNet",
            without_gradient_through_the_fed_back_image,
            {"out", "stage1", "stage3"},
            id="no gradient through the image fed back",
        ),
        pytest.param("PReNet", lambda: PReNet(adds_input=False), set(), id="PReNet_LSTM for PReNet"),
        pytest.param("RED_CNN", with_the_skip_added_after_the_relu, set(), id="skip after ReLU"),
        pytest.param("ACDNet", with_another_epsilon, set(), id="epsilon 1.1e-5 for 1e-5"),
        pytest.param("NAFNet_tiny", with_the_epsilon_of_other_norms, set(), id="epsilon 1e-5 for 1e-6"),
        pytest.param("NAFNet_tiny", with_attention_by_the_largest_value, set(), id="attention by a maximum"),
        pytest.param("NAFNet_tiny", with_branches_that_are_not_scaled, {"out"}, id="no gradient of beta"),
        pytest.param("DerainNet", lambda: DerainNet(activation="tanh"), {"base_layer"}, id="tanh for ReLU"),
        pytest.param("DerainNet", with_a_narrower_filter, {"base_layer"}, id="radius 14 for 15"),
        pytest.param(
            "FBPConvNet_matconvnet_crop",
            lambda: FBPConvNet(upsampling="pytorch_port"),
            set(),
            id="the first row cropped for the last",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "FBPConvNet_matconvnet_crop",
            with_what_was_enlarged_first,
            set(),
            id="the enlarged maps before the others",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "MPRNet_derain", lambda: MPRNet(stage2="whole"), set(), id="whole for bands", marks=pytest.mark.slow
        ),
        pytest.param(
            "MPRNet_derain",
            with_the_largest_of_four_pixels,
            set(),
            id="largest of four pixels for their mean",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_altered_network_is_noticed(name: str, build: Callable[[], nn.Module], same: set[str]) -> None:
    found = compared(name, build())
    assert {key for key, value in found.items() if value < TOLERANCE} == same
    assert found[GRADIENT] > 1000 * TOLERANCE


def test_parameters_that_should_have_no_gradient_are_noticed() -> None:
    network = PReNet()
    network.conv_o.requires_grad_(False)
    found = compared("PReNet", network)
    assert found.pop(GRADIENT) == float("inf")
    assert max(found.values()) < TOLERANCE


def in_another_order() -> nn.Module:
    network = PReNet()
    moved = network.conv_i
    del network.conv_i
    network.conv_i = moved
    return network


@pytest.mark.parametrize(
    ("name", "build", "differs"),
    [
        pytest.param("PReNet", in_another_order, {"parameters"}, id="order"),
        pytest.param("PReNet", lambda: PReNet(width=33), {"params", "parameters"}, id="width"),
        pytest.param("PReNet", lambda: PReNet().requires_grad_(False), set(), id="frozen is no other structure"),
        pytest.param("PReNet", lambda: nn.Sequential(PReNet()), {"parameters"}, id="a prefix"),
        pytest.param(
            "RED_CNN",
            lambda: nn.ModuleList([REDCNN(), nn.BatchNorm2d(1, affine=False)]),
            {"parameters", "buffers"},
            id="buffers",
        ),
    ],
)
def test_another_structure_is_noticed(name: str, build: Callable[[], nn.Module], differs: set[str]) -> None:
    own, stored = fingerprints.structure(build()), fingerprints.stored_structure(fingerprints.load(name))
    assert {key for key, value in own.items() if value != stored[key]} == differs
