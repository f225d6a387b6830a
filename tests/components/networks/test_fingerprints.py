"""The published modules are those of the references: names, shapes, outputs and gradients in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.equivariance.groups import C4, group_named
from components.networks import build_network
from components.networks.convolutional.derainnet import DerainNet, guided_filter
from components.networks.convolutional.ffdnet import FFDNet
from components.networks.convolutional.redcnn import REDCNN
from components.networks.form import surround
from components.networks.group.convolution import ComputedConvolution, GroupConvolution, LiftingConvolution
from components.networks.transformers.restormer import Attention, FeedForward, Restormer
from components.networks.transformers.swinir import SwinIR
from components.networks.transformers.window_attention import Perceptron, WindowAttention, WindowLayer
from components.networks.unets.drunet import DRUNet
from components.networks.unets.fbpconvnet import FBPConvNet
from components.networks.unets.mprnet import MPRNet
from components.networks.unets.nafnet import ChannelNorm, NAFNet
from components.networks.unrolled.acdnet import ACDNet, ACDNetOutput
from components.networks.unrolled.dicdnet import DICDNet
from components.networks.unrolled.oscnet import OSCNet
from components.networks.unrolled.prenet import PReNet
from components.networks.unrolled.rcdnet import RCDNet
from components.networks.unrolled.separation import Parts, Separation
from tests.components.networks.fingerprints import fingerprint as fingerprints
from tests.components.networks.fingerprints.fingerprint import GRADIENT
from tests.components.networks.fingerprints.oscnet import reference_basis

pytestmark = pytest.mark.unit
TOLERANCE = 1e-9
D4 = group_named("D4")


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


def rcdnet_outputs(output: Separation) -> dict[str, Tensor]:
    return {
        "out": output.images[-1],
        "B0": output.first_image,
        "B_stage1": output.images[0],
        "R_stage1": output.layers[0],
        "R_last": output.layers[-1],
    }


def dicdnet_outputs(output: Separation) -> dict[str, Tensor]:
    return {
        "out": output.images[-1],
        "X0": output.first_image,
        "X_stage1": output.images[0],
        "A_last": output.layers[-1],
    }


def call_acdnet(network: nn.Module, image: Tensor, interpolated: Tensor, third: Tensor) -> Any:
    """The note asks for a mask of zeros and ones instead of the third input, which is in 0..255."""
    return network(image, interpolated, (third / 255 > 0.35).double())


def call_ffdnet(network: nn.Module, image: Tensor, second: Tensor) -> Any:
    """The note asks for sigma = 25 / 255 in place of the second input."""
    return network(image, torch.full_like(second, 25 / 255))


MIRRORS_AFTER = [0, 1, 2, 3, 6, 5, 4, 7]
"""Number of an element of D4 in the reference, which mirrors up and down after turning -> its number in eqreg.

Up and down after r turns is left to right before 2 - r turns. The list is its own inverse.
"""


def fields(output: Tensor) -> dict[str, Tensor]:
    """The reference has an axis of elements, of which there are as many as fields of 5 channels leave."""
    return {"out": output.unflatten(1, (5, -1))}  # (B, 5 t, H, W) -> (B, 5, t, H, W)


def call_in_the_order_of_the_reference(layer: ComputedConvolution, maps: Tensor) -> Tensor:
    """Call a layer of D4 whose weights, input and output have the elements in the order of the reference."""

    def reordered(fields: Tensor) -> Tensor:  # (B, F t, H, W)
        return fields.unflatten(1, (-1, 8))[:, :, MIRRORS_AFTER].flatten(1, 2)

    weight = layer.weight[:, :, MIRRORS_AFTER] if layer.weight.shape[2] > 1 else layer.weight
    own = reordered(maps) if layer.in_channels % 8 == 0 else maps
    output = torch.func.functional_call(layer, {"weight": weight, "bias": layer.bias}, (own,))
    return reordered(output)


def oscnet(**settings: Any) -> OSCNet:
    """With the basis of the reference, which its fingerprint does not hold."""
    network = OSCNet(**settings)
    network.fcnn.Basis.copy_(reference_basis())
    return network


def call_derainnet(network: nn.Module, image: Tensor) -> Any:
    """The restored image, and the base layer of the image."""
    return network(image), network.base_layer(image)  # type: ignore[operator]


def mprnet_outputs(output: list[Tensor]) -> dict[str, Tensor]:
    return dict(zip(("stage3", "stage2", "stage1"), output, strict=True))


def dncnn(channels: int, **settings: Any) -> nn.Module:
    return build_network("dncnn", in_channels=channels, out_channels=channels, **settings)


def swinir_tiny(**changes: Any) -> SwinIR:
    return SwinIR(**{"width": 24, "groups": 2, "depth": 2, "heads": 2, "image_size": 24, **changes})  # type: ignore[arg-type]


def tiny_restormer(**settings: Any) -> Restormer:
    return Restormer(width=16, blocks=(1, 1, 1, 1), refinement_blocks=1, **settings)


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
    "SwinIR_tiny": Published(swinir_tiny),
    "SwinIR_denoise_color": Published(lambda: SwinIR(image_size=128)),
    "SwinIR_denoise_gray": Published(lambda: SwinIR(colours=1, image_size=128)),
    "SwinIR_classical_x2": Published(lambda: SwinIR(scale=2, upsampler="pixelshuffle", image_size=48)),
    "SwinIR_light_x2": Published(
        lambda: SwinIR(scale=2, width=60, groups=4, upsampler="pixelshuffledirect", image_size=64)
    ),
    "P4ConvZ2": Published(lambda: LiftingConvolution(3, 5, 3, C4), fields),
    "P4ConvP4": Published(lambda: GroupConvolution(3, 5, 3, C4), fields),
    "P4MConvZ2": Published(lambda: LiftingConvolution(3, 5, 3, D4), fields, call_in_the_order_of_the_reference),
    "P4MConvP4M": Published(lambda: GroupConvolution(3, 5, 3, D4), fields, call_in_the_order_of_the_reference),
    "RCDNet": Published(RCDNet, rcdnet_outputs),
    "RCDNet_simple": Published(lambda: RCDNet(form="simple"), rcdnet_outputs),
    "RCDNet_eqreg_width": Published(lambda: RCDNet(form="simple", dual_channels=33), rcdnet_outputs),
    "DICDNet": Published(DICDNet, dicdnet_outputs, call_acdnet),
    "DICDNet_eqreg_width": Published(lambda: DICDNet(dual_channels=35), dicdnet_outputs, call_acdnet),
    "OSCNet": Published(oscnet, dicdnet_outputs, call_acdnet),
    "OSCNet_eqreg_width": Published(lambda: oscnet(dual_channels=35), dicdnet_outputs, call_acdnet),
    "Restormer_tiny": Published(tiny_restormer),
    "Restormer_derain": Published(Restormer),
    "Restormer_denoise_color": Published(lambda: Restormer(norm="bias_free")),
    "Restormer_denoise_gray": Published(lambda: Restormer(colours=1, norm="bias_free")),
    "DRUNet_color": Published(DRUNet),
    "DRUNet_gray": Published(lambda: DRUNet(colours=1)),
    "Restormer_dual_pixel": Published(lambda: Restormer(dual_pixel=True)),
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
    "SwinIR_denoise_color",
    "SwinIR_denoise_gray",
    "SwinIR_classical_x2",
    "SwinIR_light_x2",
    "RCDNet_simple",
    "RCDNet_eqreg_width",
    "DICDNet_eqreg_width",
    "OSCNet_eqreg_width",
    "Restormer_derain",
    "Restormer_denoise_color",
    "Restormer_denoise_gray",
    "Restormer_dual_pixel",
    "DRUNet_color",
    "DRUNet_gray",
    "FBPConvNet_matconvnet_crop",
    "FBPConvNet_jonzhaocn",
    "MPRNet_derain",
    "MPRNet_denoise",
    "MPRNet_deblur",
}
"""Fingerprints of networks that take seconds."""

MODES = [
    pytest.param(name, mode, id=f"{name}-{mode}", marks=pytest.mark.slow if name in SLOW else ())
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


def with_an_approximate_gelu() -> nn.Module:
    network = tiny_restormer()
    for module in network.modules():
        if isinstance(module, FeedForward):
            module.forward = approximately_gated.__get__(module)  # type: ignore[method-assign]
    return network


def approximately_gated(layers: FeedForward, maps: Tensor) -> Tensor:
    first, second = layers.dwconv(layers.project_in(maps)).chunk(2, dim=1)
    output: Tensor = layers.project_out(F.gelu(first, approximate="tanh") * second)
    return output


def with_heads_of_distant_channels() -> nn.Module:
    network = tiny_restormer()
    for module in network.modules():
        if isinstance(module, Attention):
            order = torch.arange(module.project_out.in_channels).unflatten(0, (module.heads, -1)).T.flatten()
            module.qkv_dwconv.register_forward_hook(
                lambda _, inputs, output, order=order: output.unflatten(1, (3, -1))[:, :, order].flatten(1, 2)
            )
            inverse = order.argsort()
            module.project_out.register_forward_pre_hook(lambda _, inputs, inverse=inverse: inputs[0][:, inverse])
    return network


def without_temperature() -> nn.Module:
    network = tiny_restormer()
    for module in network.modules():
        if isinstance(module, Attention):
            module.temperature.register_hook(torch.zeros_like)
    return network


def with_the_image_added() -> nn.Module:
    network = DRUNet(colours=1)
    network.register_forward_hook(lambda _, inputs, output: output + inputs[0][:, :1])
    return network


def with_another_epsilon() -> nn.Module:
    network = ACDNet()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1.1e-5
    return network


def with_tanh_gelu() -> nn.Module:
    network = swinir_tiny()
    for module in network.modules():
        if isinstance(module, Perceptron):
            module.forward = lambda maps, own=module: own.fc2(F.gelu(own.fc1(maps), approximate="tanh"))  # type: ignore[method-assign]
    return network


def with_the_mean_colour_of_grey() -> nn.Module:
    """0 is subtracted: the network sees brighter images."""
    network = swinir_tiny()
    network.register_forward_pre_hook(lambda _, inputs: inputs[0] + 0.01)
    network.register_forward_hook(lambda _, inputs, output: output - 0.01)
    return network


def with_the_table_turned() -> nn.Module:
    """The offset from j to i in place of that from i to j."""
    network = swinir_tiny()
    for module in network.modules():
        if isinstance(module, WindowAttention):
            module.relative_position_index = module.relative_position_index.T.contiguous()
    return network


def with_keys_before_queries() -> nn.Module:
    network = swinir_tiny()
    for module in network.modules():
        if isinstance(module, WindowAttention):
            module.qkv.register_forward_hook(
                lambda _, inputs, output: torch.cat((output[..., 24:48], output[..., :24], output[..., 48:]), dim=-1)
            )
    return network


def with_windows_that_are_not_shifted() -> nn.Module:
    network = swinir_tiny()
    for module in network.modules():
        if isinstance(module, WindowLayer):
            module.shift = 0
    return network


def without_the_mask() -> nn.Module:
    network = swinir_tiny()
    for module in network.modules():
        if isinstance(module, WindowAttention):
            own = module.forward
            module.forward = lambda maps, grid, is_shifted, own=own: own(maps, grid, False)  # type: ignore[method-assign]
    return network


class WithTheFirstCopyOfTheKernels(RCDNet):
    def _parts(self) -> Parts:
        return replace(super()._parts(), kernels=self.conv[0] / 10)


class WithTheFirstKernelsThroughout(RCDNet):
    def _parts(self) -> Parts:
        parts = super()._parts()
        return replace(parts, kernels=parts.first_kernels)


class WithTheStepsOfOtherStages(RCDNet):
    def _parts(self) -> Parts:
        parts = super()._parts()
        return replace(parts, image_steps=[*parts.image_steps[1:], parts.image_steps[0]])


def with_elements_the_other_way_round() -> nn.Module:
    layer = GroupConvolution(3, 5, 3, C4)
    layer._sources = [C4.sources(element) for element in C4.inverses]
    return layer


class WithoutMask(DICDNet):
    def forward(self, CT_ma: Tensor, LIct: Tensor, Mask: Tensor) -> Separation:
        return super().forward(CT_ma, LIct, torch.ones_like(Mask))


def with_orientations_before_kernels() -> nn.Module:
    network = oscnet()
    network.fcnn.register_forward_hook(
        lambda _, inputs, kernels: kernels.unflatten(1, (4, 8)).transpose(1, 2).flatten(1, 2)
    )
    return network


def with_a_narrower_filter() -> nn.Module:
    network = DerainNet()
    network.register_forward_hook(
        lambda module, inputs, output: (
            output + guided_filter(surround(inputs[0], 10), 14, 1.0)[..., 10:-10, 10:-10] - module.base_layer(inputs[0])
        )
    )
    return network


def with_the_dictionary_divided_by_ten() -> nn.Module:
    network = oscnet()
    network.fcnn.register_forward_hook(lambda _, inputs, kernels: kernels / 10)
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
        pytest.param("SwinIR_tiny", with_tanh_gelu, set(), id="SwinIR, GELU by tanh"),
        pytest.param("SwinIR_tiny", with_the_mean_colour_of_grey, set(), id="SwinIR, another mean colour"),
        pytest.param("SwinIR_tiny", with_the_table_turned, set(), id="SwinIR, offsets from j to i"),
        pytest.param("SwinIR_tiny", with_keys_before_queries, set(), id="SwinIR, keys before queries"),
        pytest.param("SwinIR_tiny", with_windows_that_are_not_shifted, set(), id="SwinIR, no shift"),
        pytest.param("SwinIR_tiny", without_the_mask, set(), id="SwinIR, no mask"),
        pytest.param("SwinIR_tiny", lambda: swinir_tiny(image_range=255.0), set(), id="SwinIR, range of JPEG"),
        pytest.param("RCDNet", WithTheFirstCopyOfTheKernels, {"B0"}, id="the first copy of the kernels"),
        pytest.param("RCDNet", WithTheFirstKernelsThroughout, {"B0"}, id="C0 for C"),
        pytest.param("DICDNet", WithoutMask, {"X0"}, id="no mask"),
        pytest.param("OSCNet", OSCNet, {"X0"}, id="another basis of the same span"),
        pytest.param("OSCNet", with_orientations_before_kernels, {"X0"}, id="orientations before kernels"),
        pytest.param("OSCNet", with_the_dictionary_divided_by_ten, {"X0"}, id="dictionary / 10"),
        pytest.param("RCDNet", WithTheStepsOfOtherStages, {"B0", "R_stage1"}, id="steps of other stages"),
        pytest.param("P4ConvP4", with_elements_the_other_way_round, set(), id="elements the other way round"),
        pytest.param("DRUNet_gray", with_the_image_added, set(), id="a global residual", marks=pytest.mark.slow),
        pytest.param("Restormer_tiny", with_an_approximate_gelu, set(), id="approximate gelu"),
        pytest.param("Restormer_tiny", with_heads_of_distant_channels, set(), id="heads of distant channels"),
        pytest.param("Restormer_tiny", without_temperature, {"out"}, id="no gradient of the temperature"),
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


def test_a_layer_of_mirrors_in_another_order_of_elements_is_noticed() -> None:
    fingerprint = fingerprints.load("P4MConvP4M")
    layer = GroupConvolution(3, 5, 3, D4).double()
    fingerprints.fill(layer, fingerprint["gain"])
    (maps,) = fingerprints.inputs(fingerprint)
    found = fingerprints.deviations(fingerprint, layer, fields(layer(maps)), "eval")
    assert found["out"] > 1000 * TOLERANCE


P4M_SOURCES = [
    *([0, 1, 2, 3, 4, 5, 6, 7], [3, 0, 1, 2, 5, 6, 7, 4], [2, 3, 0, 1, 6, 7, 4, 5], [1, 2, 3, 0, 7, 4, 5, 6]),
    *([4, 5, 6, 7, 0, 1, 2, 3], [5, 6, 7, 4, 3, 0, 1, 2], [6, 7, 4, 5, 2, 3, 0, 1], [7, 4, 5, 6, 1, 2, 3, 0]),
]
"""``[h][m]``: the plane of the weights that the reference uses from element m to element h."""


def test_the_planes_of_the_weights_are_those_of_the_reference() -> None:
    sources = [D4.sources(element) for element in range(8)]
    own = [[MIRRORS_AFTER[sources[MIRRORS_AFTER[h]][MIRRORS_AFTER[m]]] for m in range(8)] for h in range(8)]
    assert own == P4M_SOURCES
    assert [C4.sources(element) for element in range(4)] == [row[:4] for row in P4M_SOURCES[:4]]
