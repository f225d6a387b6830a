"""Networks give the size they should, count the parameters they should and export with dynamic sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from components.networks import NETWORKS, build_network
from components.networks.convolutional.resnet import ResNet
from components.networks.unets.unet import _repeated
from tests.components.networks.exact_networks import convolutions, random_network
from tests.components.networks.small import SMALL, devices_in

pytestmark = pytest.mark.unit

RESTORATIONS = ("dncnn", "unet")
EXACT = ("c4_dncnn", "c4_unet", "d4_dncnn", "d4_unet")


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def cubic_enlargement(size: int, scale: int) -> Tensor:
    """``(scale size, size)``: Keys' cubic convolution with a = -0.75, borders repeated, from its definition."""

    def weight(x: float) -> float:
        a, x = -0.75, abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    matrix = torch.zeros(scale * size, size, dtype=torch.float64)
    for fine in range(scale * size):
        place = (fine + 0.5) / scale - 0.5
        for coarse in range(math.floor(place) - 1, math.floor(place) + 3):
            matrix[fine, min(max(coarse, 0), size - 1)] += weight(place - coarse)
    return matrix


@pytest.mark.parametrize("name", [*RESTORATIONS, *EXACT])
@pytest.mark.parametrize("size", [(16, 16), (17, 23), (40, 9), (5, 64)])
@pytest.mark.parametrize(("inputs", "outputs", "scale"), [(1, 1, 1), (3, 3, 1), (4, 3, 2), (3, 1, 3), (3, 3, 4)])
def test_a_stack_of_any_size_gives_an_image_scale_times_as_large(
    name: str, size: tuple[int, int], inputs: int, outputs: int, scale: int
) -> None:
    network = build_network(name, in_channels=inputs, out_channels=outputs, scale=scale, width=8, depth=3, norm="none")
    assert (network.in_channels, network.out_channels, network.scale) == (inputs, outputs, scale)
    output = network(torch.rand(2, inputs, *size))
    assert output.shape == (2, outputs, scale * size[0], scale * size[1])


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (13, 13), (9, 40), (1, 1)])
def test_a_classifier_gives_logits_at_any_size(size: tuple[int, int]) -> None:
    network = build_network("resnet", in_channels=1, classes=7, width=8, depth=3, norm="none")
    assert (network.is_classifier, network.in_channels, network.classes) == (True, 1, 7)
    logits = network(torch.rand(2, 1, *size))
    assert logits.shape == (2, 7)
    assert (logits[0] != logits[1]).all()


@pytest.mark.parametrize("name", RESTORATIONS)
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_a_new_restoration_is_its_first_channels_enlarged_and_can_leave_them(name: str, scale: int) -> None:
    torch.manual_seed(0)
    inputs = torch.rand(2, 5, 12, 15)
    network = build_network(name, in_channels=5, scale=scale, width=16, depth=3, norm="none")
    rows, columns = (cubic_enlargement(size, scale) for size in (12, 15))
    expected = rows @ inputs[:, :3].double() @ columns.T
    torch.testing.assert_close(network(inputs), expected.float())
    (network(inputs) - expected.float().square()).square().mean().backward()
    last = list(convolutions(network).values())[-1]
    assert last.weight.grad is not None
    assert (last.weight.grad.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("name", [*RESTORATIONS, *EXACT])
def test_every_input_reaches_the_residual_and_only_the_first_ones_the_image_it_corrects(name: str) -> None:
    network = random_network(name, in_channels=5, out_channels=3, width=8, depth=3, norm="none")
    stack = torch.rand(1, 5, 16, 16, dtype=torch.float64)
    output = network(stack)
    for channel in range(5):
        other = stack.clone()
        other[:, channel] += 0.1
        assert not torch.allclose(network(other), output)
    nn.init.zeros_(list(convolutions(network).values())[-1].weight)
    other = torch.cat([stack[:, :3], torch.rand(1, 2, 16, 16, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(network(other), network(stack))


FIRST_VALUES = {  # of each convolution but the last, from seed 7
    "dncnn": [0.485087, -0.14649],
    "unet": [
        *(-0.39811, 0.066824, 0.169088, -0.033294, -0.073763, -0.077825),
        *(0.153455, 0.12895, -0.084006, -0.09133, 0.118072, -0.029649),
    ],
}


@pytest.mark.parametrize("name", RESTORATIONS)
def test_a_colour_restoration_begins_with_the_values_that_it_always_had(name: str) -> None:
    """Models are stored and runs repeated by them."""
    torch.manual_seed(7)
    *hidden, last = convolutions(build_network(name, width=8, depth=3, norm="none")).values()
    assert [float(module.weight.detach().flatten()[0]) for module in hidden] == pytest.approx(
        FIRST_VALUES[name], abs=1e-5
    )
    assert not last.weight.any()


def test_the_names_in_a_state_dict_are_those_of_stored_models() -> None:
    names = {name: list(build_network(name, width=8, depth=2, norm="none").state_dict()) for name in RESTORATIONS}
    weights = {
        name: [key.removesuffix(".weight") for key in keys if key.endswith(".weight")] for name, keys in names.items()
    }
    assert weights["dncnn"] == ["model.0", "model.2"]
    assert weights["unet"] == [
        *("down.0.conv1", "down.0.conv2", "down.1.conv1", "down.1.conv2"),
        *("up.0", "merge.0.conv1", "merge.0.conv2", "last"),
    ]


@pytest.mark.parametrize(("channels", "depth", "published"), [(1, 17, 555_137), (3, 20, 668_227)])
def test_dncnn_has_the_published_parameter_count(channels: int, depth: int, published: int) -> None:
    """DnCNN-S (grey, 17 layers) and CDnCNN-B (colour, 20), as released: with the normalisation merged into it."""
    network = build_network("dncnn", in_channels=channels, out_channels=channels, width=64, depth=depth, norm="none")
    assert num_parameters(network) == published


def test_unet_doubles_its_channels_at_every_resolution() -> None:
    """FBPConvNet: 1 channel, width 64, 5 resolutions."""
    network = build_network("unet", in_channels=1, out_channels=1, width=64, depth=5, norm="none")
    widths = [64, 128, 256, 512, 1024]

    def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
        return inputs * outputs * kernel * kernel + outputs

    down = sum(conv(i, o) + conv(o, o) for i, o in zip([1, *widths[:-1]], widths, strict=True))
    up = sum(conv(2 * w, w) + conv(2 * w, w) + conv(w, w) for w in widths[:-1])
    assert num_parameters(network) == down + up + conv(64, 1, 1)


def test_resnet_has_the_parameters_of_resnet_18_but_for_both_ends() -> None:
    """Published for ImageNet: 11,689,512, with a 7x7 convolution first and 512 features last."""
    network = build_network("resnet", classes=1000, width=64, depth=4, norm="batch")
    first, last = 3 * 64 * (7 * 7 - 3 * 3), (512 - 512 // 4) * 1000
    assert num_parameters(network) == 11_689_512 - first - last


@pytest.mark.parametrize("name", RESTORATIONS)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_enlarging_costs_parameters_in_the_last_layer_alone(name: str, scale: int) -> None:
    plain, enlarging = (build_network(name, scale=factor, width=8, depth=3, norm="none") for factor in (1, scale))
    of_last = num_parameters(list(convolutions(plain).values())[-1])
    assert num_parameters(enlarging) - num_parameters(plain) == (scale**2 - 1) * of_last


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_residuals_of_a_new_classifier_are_zero(norm: str) -> None:
    """So the size of its maps does not grow with its blocks where nothing normalises."""
    torch.manual_seed(0)
    network = build_network("resnet", width=8, depth=1, norm=norm).eval()
    assert isinstance(network, ResNet)
    stage = network.stages[0]
    maps = torch.rand(2, 8, 10, 10)
    torch.testing.assert_close(stage(maps), maps)
    (stage(maps) - maps.square()).square().mean().backward()
    assert sum(float(p.grad.norm()) for p in stage.parameters() if p.grad is not None) > 0


EXPORTED: list[tuple[str, dict[str, object]]] = [("resnet", {"norm": "batch"})]
EXPORTED += [(name, {"scale": scale}) for name in RESTORATIONS for scale in (1, 2, 3, 4)]
EXPORTED += [(name, {"scale": scale}) for name, scale in zip(EXACT, (3, 3, 1, 1), strict=True)]


@pytest.mark.parametrize(("name", "settings"), EXPORTED)
def test_an_exported_network_gives_the_same_at_other_sizes(name: str, settings: dict[str, object]) -> None:
    """Exported as MLflow does, which leaves to torch what can be dynamic."""
    network = random_network(name, in_channels=4, width=4, depth=2, **settings).float()
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    exported = torch.export.export(network, (torch.rand(2, 4, 64, 48),), dynamic_shapes=[dynamic]).module()
    for shape in [(1, 4, 37, 51), (3, 4, 24, 24), (2, 4, 5, 80)]:
        images = torch.rand(shape)
        with torch.inference_mode():
            torch.testing.assert_close(exported(images), network(images))


@pytest.mark.parametrize(("name", "settings"), EXPORTED)
def test_an_exported_network_names_no_device_and_runs_on_that_to_which_it_is_moved(
    name: str, settings: dict[str, object]
) -> None:
    network = random_network(name, in_channels=4, width=4, depth=3, **settings).float()
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    program = torch.export.export(network, (torch.rand(2, 4, 64, 48),), dynamic_shapes=[dynamic])
    assert devices_in(program) == []
    moved = move_to_device_pass(program, "meta").module()
    for shape in [(1, 4, 37, 51), (3, 4, 24, 24)]:
        output = moved(torch.empty(shape, device="meta"))
        assert output.device.type == "meta"
        assert output.shape == network(torch.rand(shape)).shape


def test_every_network_is_among_those_whose_export_is_tested() -> None:
    """Those of one published form each, in test_contract.py."""
    assert {name for name, _ in EXPORTED} | set(SMALL) == set(NETWORKS)


class OnOneDevice(nn.Module):
    """What no network may be: an operation of it names a device."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + torch.arange(inputs.shape[-1], device=inputs.device)


def test_an_operation_that_names_a_device_is_seen_in_an_export() -> None:
    (found,) = devices_in(torch.export.export(OnOneDevice(), (torch.rand(2, 3),)))
    assert "arange" in found


@pytest.mark.parametrize("size", [(2, 2), (5, 4), (4, 7), (1, 9), (6001, 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_unet_enlarges_by_repeating_each_pixel_and_cuts_what_is_too_much(
    size: tuple[int, int], memory_format: torch.memory_format
) -> None:
    coarse = [-(-side // 2) for side in size]
    maps = torch.rand(2, 3, *coarse).to(memory_format=memory_format)
    skip = torch.full((2, 5, *size), torch.nan).to(memory_format=memory_format)  # its sizes count, not its values
    expected = maps.numpy().repeat(2, axis=2).repeat(2, axis=3)[..., : size[0], : size[1]]
    assert np.array_equal(_repeated(maps, skip).numpy(), expected)


def test_unet_keeps_pixels_in_their_place_at_odd_sizes() -> None:
    """Far from the border that differs, an odd image and its even part are restored alike."""
    network = random_network("unet", width=8, depth=3, norm="none")
    images = torch.rand(1, 3, 101, 99, dtype=torch.float64)
    with torch.inference_mode():
        whole, part = network(images), network(images[..., :100, :96])
    torch.testing.assert_close(whole[..., :60, :60], part[..., :60, :60])


@pytest.mark.parametrize("name", RESTORATIONS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 1}, "depth: 1: use a whole number of at least 2"),
        ({"width": 0}, "width: 0: use a whole number of at least 1"),
        ({"widht": 8}, r"widht: unknown; did you mean width\?"),
        ({"classes": 8}, "classes: unknown; known here: width, depth, norm"),
        ({"scale": 5}, "scale 5: use one of 1, 2, 3, 4"),
        ({"in_channels": 1}, "1 <= out_channels <= in_channels, got 3 and 1"),
        ({"out_channels": 0}, "1 <= out_channels <= in_channels, got 0 and 3"),
    ],
)
def test_impossible_restorations_are_refused_with_their_values(
    name: str, settings: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=f"{name}:? .*{message}"):
        build_network(name, **{"norm": "none", **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 0}, "network resnet: depth: 0: use a whole number of at least 1"),
        ({"classes": 0}, "resnet needs .*classes >= 1, got 3, 0"),
        ({"width": 30}, "width: 30: does not divide by 4 into regular fields: use 32"),
        ({"width": 0}, "width: 0: use a whole number of at least 1"),
        ({"scale": 2}, "scale: unknown; known here: width, depth, norm"),
    ],
)
def test_impossible_classifiers_are_refused_with_their_values(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network("resnet", **settings)


@pytest.mark.parametrize("name", ["dncnn", "resnet", "unet"])
def test_an_unknown_norm_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="norm 'layer' is unknown"):
        build_network(name, depth=3, norm="layer")


def test_an_unknown_network_is_refused_with_the_known_names() -> None:
    with pytest.raises(ValueError, match=", ".join(sorted(NETWORKS))):
        build_network("uformer")
