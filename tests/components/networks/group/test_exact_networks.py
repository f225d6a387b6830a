"""The networks out of group convolutions are exactly equivariant, new and trained, and no trivial functions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.equivariance import EquivarianceRegularizer, diagnose, equivariance_error, group_named, projected
from components.inference.tiles import restore
from components.networks import build_network, has_batch_statistics, network_settings
from components.networks.group.convolution import ComputedConvolution, FieldBatchNorm
from tests.components.equivariance.exact import random_images
from tests.components.equivariance.exact_groups import C4, D4, PlaneGroup
from tests.components.networks.exact_networks import convolutions, random_network
from tests.components.networks.small import devices_in

pytestmark = pytest.mark.unit

PLANES = {"c4_dncnn": C4, "c4_unet": C4, "d4_dncnn": D4, "d4_unet": D4}
"""Name -> the group of an oracle that moves arrays by numpy."""

NAMES = list(PLANES)
EVEN = [(12, 12), (8, 20)]
ODD = [(13, 13), (12, 9), (7, 11), (1, 1), (2, 5)]


def exact(name: str, **settings: Any) -> nn.Module:
    """A small network with random weights, in double precision and evaluation mode."""
    depth = 2 if name.endswith("unet") else 3
    return random_network(name, **{"width": 8, "depth": depth, "norm": "batch", **settings})


def deviation(network: nn.Module, images: Tensor, plane: PlaneGroup) -> float:
    """The largest entry by which the output of a moved image differs from the moved output, relative to the output."""
    with torch.no_grad():
        output = network(images)
        changes = [
            (network(plane.spatial(images, element)) - plane.spatial(output, element)).abs().max()
            for element in range(1, plane.order)
        ]
    return float(max(changes) / output.abs().max())


# ------------------------------------------------------------------------------------------------------------ exactness


SIZES_AND_SCALES = [
    pytest.param(name, scale, size, marks=() if scale == 1 or size == (13, 13) else pytest.mark.slow)
    for name in NAMES
    for scale in (1, 2, 3, 4)
    for size in (*EVEN, *ODD)
]


@pytest.mark.parametrize(("name", "scale", "size"), SIZES_AND_SCALES)
def test_the_output_turns_with_the_stack_at_every_size_and_scale(name: str, scale: int, size: tuple[int, int]) -> None:
    network = exact(name, scale=scale, in_channels=5)
    assert deviation(network, random_images(2, 5, *size), PLANES[name]) < 1e-12


@pytest.mark.parametrize("norm", [pytest.param("none", marks=pytest.mark.slow), "batch"])
@pytest.mark.parametrize("name", NAMES)
def test_a_trained_network_is_as_exact_as_a_new_one(name: str, norm: str) -> None:
    network = exact(name, norm=norm).train()
    before = {key: value.clone() for key, value in network.named_parameters()}
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for step in range(5):
        images, targets = (random_images(2, 3, 12, 12, seed=2 * step + part) for part in range(2))
        optimizer.zero_grad()
        F.mse_loss(network(images), targets).backward()
        optimizer.step()
    for key, value in network.named_parameters():
        assert (value - before[key]).abs().max() > 1e-3 or value.ndim == 1, key  # a mean takes the bias before it away
    for size in (*EVEN, *ODD):
        assert deviation(network.eval(), random_images(1, 3, *size), PLANES[name]) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_in_training_mode_a_whole_batch_that_is_moved_gives_the_moved_batch(name: str) -> None:
    network = exact(name).train()
    assert deviation(network, random_images(3, 3, 12, 9), PLANES[name]) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_no_layer_has_an_equivariance_error(name: str) -> None:
    network = exact(name)
    group = name[:2].upper()
    found = equivariance_error(network, random_images(1, 3, 12, 12), group=group)
    assert set(found) == {*convolutions(network), "output"}
    assert max(found.values()) < 1e-12


@pytest.mark.parametrize("name", ["c4_dncnn", "c4_unet"])
def test_a_network_under_quarter_turns_alone_does_not_mirror(name: str) -> None:
    assert deviation(exact(name), random_images(1, 3, 12, 12), D4) > 0.05


@pytest.mark.parametrize("name", ["dncnn", "unet"])
def test_the_plain_network_is_not_exact(name: str) -> None:
    """The tests above would see an error."""
    assert deviation(exact(name), random_images(1, 3, 12, 12), C4) > 0.05


# ----------------------------------------------------------------------------------------------------------- the oracle


@torch.no_grad()
def plain_twin(network: nn.Module, **arguments: Any) -> nn.Module:
    """The plain network with the kernels of a network, and the values of each field given to all its channels."""
    order = int(network.group.order)  # type: ignore[union-attr]
    twin = random_network(type(network).__name__[2:].lower(), norm="batch", **arguments)
    own = [each for each in network.modules() if isinstance(each, ComputedConvolution | FieldBatchNorm)]
    others = [each for each in twin.modules() if isinstance(each, nn.Conv2d | nn.BatchNorm2d)]
    for module, other in zip(own, others, strict=True):
        if isinstance(module, ComputedConvolution):
            other.weight.copy_(module.computed_kernel())
            if module.bias is not None:
                assert other.bias is not None
                other.bias.copy_(module.bias.repeat_interleave(len(other.bias) // len(module.bias)))
        else:
            for key, value in module.state_dict().items():
                each = value.repeat_interleave(order) if value.ndim else value
                other.state_dict()[key].copy_(each)
    return twin


@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_the_plain_one_with_tied_weights(name: str, scale: int) -> None:
    """At even sizes: at an odd one, the plain U-Net pools on one side."""
    network = exact(name, width=16, depth=3, match="channels", scale=scale)
    images = random_images(2, 3, 12, 20)
    twin = plain_twin(network, width=16, depth=3, scale=scale)
    torch.testing.assert_close(network(images), twin(images), rtol=0, atol=1e-12)


# -------------------------------------------------------------------------------------------------------- not trivial


@pytest.mark.parametrize("name", NAMES)
def test_the_output_is_no_trivial_function_of_the_image(name: str) -> None:
    network, images = exact(name), random_images(1, 3, 12, 12)
    output = network(images)
    assert (output - images).std() > 0.1 * images.std()
    assert output.std() > 0.1 * images.std()
    elsewhere = network(images.roll(5, 3))
    assert (output - elsewhere).std() > 0.1 * output.std()


@pytest.mark.parametrize("name", NAMES)
def test_the_output_depends_on_the_element_of_each_hidden_channel(name: str) -> None:
    """With symmetric kernels, all channels of a field would be equal, and their order without effect."""
    network, images = exact(name), random_images(1, 3, 12, 12)
    output = network(images)
    order = PLANES[name].order
    *hidden, last = convolutions(network).values()
    if last.kernel_size == (1, 1):
        *hidden, _ = hidden  # a pixel has no direction: the sum over the elements of its fields is all that is left
    for layer in hidden:
        handle = layer.register_forward_hook(
            lambda module, inputs, maps: maps.unflatten(1, (-1, order)).roll(1, 2).flatten(1, 2)
        )
        assert (network(images) - output).std() > 1e-3 * output.std()
        handle.remove()


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_gradient(name: str, norm: str) -> None:
    network = exact(name, norm=norm, scale=2).train()
    F.mse_loss(network(random_images(2, 3, 9, 12)), random_images(2, 3, 18, 24)).backward()
    norms = {key: value.grad.norm() for key, value in network.named_parameters() if value.grad is not None}
    assert list(norms) == [key for key, _ in network.named_parameters()]
    taken_away = {"model.2.bias"} if norm == "batch" and "dncnn" in name else set()  # by the mean after it
    assert all(value > 0 for key, value in norms.items() if key not in taken_away)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1, 2])
def test_a_new_network_is_its_first_channels_enlarged_and_can_leave_them(name: str, scale: int) -> None:
    torch.manual_seed(0)
    plain = name.partition("_")[2]
    network, other = (build_network(each, in_channels=5, scale=scale, width=16, depth=3) for each in (name, plain))
    images = torch.rand(2, 5, 9, 12)
    torch.testing.assert_close(network(images), other(images))
    (network(images) - 1).square().mean().backward()
    last = list(convolutions(network).values())[-1]
    assert last.weight.grad is not None
    assert (last.weight.grad.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("name", ["c4_unet", "d4_unet"])
def test_an_odd_side_is_pooled_and_enlarged_by_the_mean_over_both_grids(name: str) -> None:
    """Oracle: numpy's repetition and largest values, from the first pixel and from the last."""
    import numpy as np

    from components.networks.group.unet import _doubled, _pooled

    def blocks(row: np.ndarray) -> np.ndarray:
        return np.array([max(row[start : start + 2]) for start in range(0, len(row), 2)])

    maps = random_images(1, 2, 4, 7)
    rows = maps.numpy()[0, 0].reshape(2, 2, 7).max(axis=1)  # two rows of blocks, an even side
    expected = np.stack([(blocks(row) + blocks(row[::-1])[::-1]) / 2 for row in rows])
    pooled = _pooled(maps)
    np.testing.assert_allclose(pooled.numpy()[0, 0], expected, rtol=0, atol=1e-15)
    lines = pooled.numpy()[0, 0].repeat(2, axis=0).repeat(2, axis=1)
    wide = (lines[:, :7] + lines[:, ::-1][:, :7][:, ::-1]) / 2
    np.testing.assert_allclose(_doubled(pooled, maps).numpy()[0, 0], wide, rtol=0, atol=1e-15)


# -------------------------------------------------------------------------------------- the regulariser and the doctor


def step(network: nn.Module, element: int = 1, **options: Any) -> dict[str, float]:
    """The penalties of a regularised step, backward pass included, by layer."""
    regularizer = EquivarianceRegularizer(network.train(), **options)
    scale = int(network.scale)  # type: ignore[arg-type]
    targets = random_images(4, 3, 12 * scale, 12 * scale, seed=7)
    batch = regularizer.pair(random_images(4, 3, 12, 12), targets, element=element)
    output = network(batch.inputs)
    (F.l1_loss(output, batch.targets) + regularizer.penalty()).backward()
    assert regularizer.skipped == {}
    return {name: float(value) for name, value in regularizer.layer_penalties().items()}


@pytest.mark.parametrize("scale", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_the_regular_penalty_of_every_layer_is_zero(name: str, scale: int) -> None:
    for element in range(1, PLANES[name].order):
        network = exact(name, scale=scale)
        found = step(network, element, group=name[:2].upper())
        assert list(found) == list(dict.fromkeys(found))
        assert set(found) == set(convolutions(network))
        assert max(found.values()) < 1e-24  # the squares of residuals


@pytest.mark.parametrize("name", ["d4_dncnn", "d4_unet"])
def test_fields_of_mirrors_are_fields_of_turns(name: str) -> None:
    assert max(step(exact(name), 3, group="C4").values()) < 1e-24


@pytest.mark.parametrize("name", NAMES)
def test_the_kernels_are_their_own_projections(name: str) -> None:
    network = exact(name)
    found = step(network, penalty="projection", pairing="none", group=name[:2].upper())
    assert set(found) == set(convolutions(network))
    assert max(found.values()) < 1e-24


@pytest.mark.parametrize(
    ("name", "penalty"),
    [
        pytest.param(name, penalty, marks=() if (name, penalty) == ("c4_dncnn", "regular") else pytest.mark.slow)
        for name, penalties in (
            ("c4_dncnn", ("rotation", "channel", "rotation+channel", "regular", "projection", "paper")),
            ("c4_unet", ("regular",)),
        )
        for penalty in penalties
    ],
)
def test_a_network_under_turns_learns_to_mirror_and_stays_exact_under_turns(name: str, penalty: Any) -> None:
    """The penalties under D4 are not zero, and their gradient passes the kernels to the weights."""
    network = exact(name, width=16, norm="none").train()
    regularizer = EquivarianceRegularizer(network, penalty=penalty, group="D4", pairing="append", pair_fraction=1.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    generator, images = torch.Generator().manual_seed(0), random_images(2, 3, 12, 12)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        batch = regularizer.pair(images, images, generator=generator, element=5)
        outputs = network(batch.inputs)
        value = regularizer.penalty()
        (F.mse_loss(outputs, batch.targets) + value).backward()
        optimizer.step()
        values.append(float(value.detach()))
    regularizer.detach()
    assert 1e-3 < sum(values[-5:]) < 0.99 * sum(values[:5])
    assert deviation(network.eval(), images, C4) < 1e-12


@pytest.mark.parametrize("size", [(12, 12), (12, 8)])
@pytest.mark.parametrize("name", NAMES)
def test_the_doctor_says_that_the_network_is_exact_and_that_nothing_is_to_be_penalised(
    name: str, size: tuple[int, int]
) -> None:
    """Also where the fields are as many as the columns of the maps, with which they must not be confused."""
    group = name[:2].upper()
    width = {"C4": 16, "D4": 23}[group]  # 8 fields
    network = exact(name, width=width)
    diagnosis = diagnose(network, random_images(1, 3, *size), group)
    assert diagnosis.is_exact
    assert (diagnosis.can_be_exact, diagnosis.fatal, diagnosis.findings, diagnosis.untied) == (True, (), (), ())
    assert {layer.name for layer in diagnosis.layers} == set(convolutions(network))
    assert [layer.incompatibilities for layer in diagnosis.layers] == [()] * len(diagnosis.layers)
    assert [layer.field for layer in diagnosis.layers] == ["regular"] * (len(diagnosis.layers) - 1) + ["trivial"]
    assert diagnosis.verdict.endswith("it is now, and so is every layer: there is nothing to penalise")


def test_the_doctor_finds_no_fault_at_an_odd_size() -> None:
    diagnosis = diagnose(exact("c4_unet"), random_images(1, 3, 13, 13))
    assert (diagnosis.is_exact, diagnosis.can_be_exact, diagnosis.fatal) == (True, True, ())


def test_the_doctor_does_not_call_a_network_exact_that_could_be() -> None:
    diagnosis = diagnose(exact("c4_dncnn"), random_images(1, 3, 12, 12), "D4")
    assert not diagnosis.is_exact
    assert "nothing to penalise" not in diagnosis.verdict


@pytest.mark.parametrize("size", [(12, 12), (12, 8)])
@pytest.mark.parametrize("group", ["C2", "C4", "D4"])
@pytest.mark.parametrize("name", NAMES)
def test_projecting_leaves_the_weights_as_they_are(name: str, group: str, size: tuple[int, int]) -> None:
    network, images = exact(name, width=16, scale=2), random_images(1, 3, *size)
    copy = projected(network, images, group)
    torch.testing.assert_close(dict(copy.state_dict()), dict(network.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(copy(images), network(images), rtol=0, atol=0)


# --------------------------------------------------------------------------------------------------- exports and tiles


@pytest.mark.parametrize("name", ["c4_dncnn", "c4_unet", pytest.param("d4_unet", marks=pytest.mark.slow)])
def test_an_exported_program_is_exact_at_sizes_and_parities_that_its_example_did_not_have(name: str) -> None:
    network = exact(name, scale=2)
    program = torch.export.export(
        network,
        (random_images(2, 3, 16, 12),),
        dynamic_shapes=[dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)],
    )
    assert devices_in(program) == []
    run = program.module()
    for size in [(8, 20), (13, 13), (12, 9), (7, 11), (5, 6)]:
        images = random_images(3, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(run(images), network(images), rtol=0, atol=1e-12)
        assert deviation(run, images, PLANES[name]) < 1e-12
    found = equivariance_error(run, random_images(1, 3, 12, 12), group=name[:2].upper())
    assert set(found) == {*convolutions(network), "output"}  # the layers of the program have the names of the modules
    assert max(found.values()) < 1e-12
    assert diagnose(run, random_images(1, 3, 12, 12), name[:2].upper()).is_exact


@pytest.mark.parametrize("name", ["c4_dncnn", "c4_unet"])
def test_tiles_equal_one_pass_at_sizes_that_the_poolings_divide(name: str) -> None:
    network = exact(name).float()
    image = torch.rand(3, 172, 132)
    with torch.no_grad():
        whole = network(image[None])[0]
    tiled = restore(network, image, tile=112, overlap=64)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5 * float(whole.abs().max()))


# ------------------------------------------------------------------------------------------------------------- settings


def num_parameters(name: str, **settings: Any) -> int:
    with torch.device("meta"):
        network = build_network(name, **settings)
    return sum(parameter.numel() for parameter in network.parameters())


COUNTS = {  # at the default settings, for colour images, as the modules say
    ("c4_dncnn", "parameters"): 667_043,
    ("d4_dncnn", "parameters"): 688_094,
    ("c4_dncnn", "channels"): 167_635,
    ("d4_dncnn", "channels"): 83_819,
    ("c4_unet", "parameters"): 34_512_035,
    ("d4_unet", "parameters"): 34_541_729,
    ("c4_unet", "channels"): 8_629_843,
    ("d4_unet", "channels"): 4_314_923,
}


@pytest.mark.parametrize(("name", "match"), COUNTS)
def test_a_network_equals_the_plain_one_in_parameters_or_in_channels(name: str, match: str) -> None:
    plain, number = num_parameters(name.partition("_")[2]), num_parameters(name, match=match)
    order, (width,) = PLANES[name].order, network_settings(name, match=match).channels.values()
    assert number == COUNTS[name, match]
    if match == "parameters":
        assert number == pytest.approx(plain, rel=0.03)
        assert width == order * round(64 / math.sqrt(order))
    else:
        assert number == pytest.approx(plain / order, rel=0.005)
        assert width == 64
    with torch.device("meta"):
        first, *_ = convolutions(build_network(name, match=match)).values()
    assert first.out_channels == width


def test_c4_dncnn_has_the_parameters_of_its_layers() -> None:
    """32 fields: 3 channels to 32 fields, 18 times 32 to 32, 32 to 3; 9 pixels, biases, scales and shifts."""
    lifting, between, last = 3 * 32 * 9 + 32, 32 * 32 * 4 * 9 + 32, 32 * 3 * 9 + 3
    assert num_parameters("c4_dncnn") == lifting + 18 * (between + 2 * 32) + last


def test_the_fields_of_a_unet_are_rounded_at_each_resolution() -> None:
    settings = network_settings("d4_unet")
    assert [settings.num_fields(level) for level in range(5)] == [23, 45, 91, 181, 362]
    assert [network_settings("c4_unet", width=1).num_fields(level) for level in range(3)] == [1, 1, 2]


def test_statistics_of_a_batch_are_seen() -> None:
    assert has_batch_statistics(exact("c4_dncnn"))
    assert not has_batch_statistics(exact("c4_dncnn", norm="none"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 1}, "depth: 1: use a whole number of at least 2"),
        ({"width": 0}, "width: 0: use a whole number of at least 1"),
        (
            {"width": 30, "match": "channels"},
            "width: 30: does not divide by [48] into regular fields: use 32, or match",
        ),
        ({"match": "flops"}, "match: 'flops': use one of parameters, channels"),
        ({"group": "D4"}, "group: unknown; known here: width, depth, norm, match"),
        ({"scale": 5}, "scale 5: use one of 1, 2, 3, 4"),
        ({"in_channels": 1}, "1 <= out_channels <= in_channels, got 3 and 1"),
        ({"norm": "layer"}, "norm 'layer' is unknown"),
    ],
)
def test_impossible_settings_are_refused_with_their_values(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(name, **settings)


def test_a_group_is_that_of_the_name() -> None:
    for name in NAMES:
        assert build_network(name, width=8, depth=2).group == group_named(name[:2].upper())


@pytest.mark.parametrize("name", NAMES)
def test_the_diagnosis_has_one_note_for_all_layers_that_compute_their_kernel(name: str) -> None:
    """The doctor numbers its notes: one for each layer would fill its screen."""
    report = diagnose(exact(name), random_images(1, 3, 12, 12), name[:2].upper())
    assert {layer.notes for layer in report.layers} == {
        ("its kernel is computed from its weight, so no projection changes it",)
    }
