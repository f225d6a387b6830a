"""The small networks and the kernels for other groups, checked without the code under test."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.components.equivariance.exact import (
    convolution,
    group_kernel,
    lifting_kernel,
    loop_regular,
    loop_rotate,
    projection_kernel,
    random_images,
)
from tests.components.equivariance.exact_groups import C2, C4, D4, PlaneGroup
from tests.components.equivariance.small_networks import (
    SUB_PIXEL_TURN,
    AuxiliaryInputNetwork,
    Layout,
    SharedNetwork,
    SmallNetwork,
    StridedNetwork,
    SubPixelNetwork,
    TransposedAttentionNetwork,
    TransposedSelfAttention,
    WindowAttentionNetwork,
    averaged_kernel,
    relative_error,
    seeded,
    turned_channels,
)

pytestmark = pytest.mark.unit

TOLERANCE = 1e-10
Case = tuple[Callable[[], SmallNetwork], tuple[int, int]]
CASES: dict[str, Case] = {
    "windows": (WindowAttentionNetwork, (8, 12)),
    "windows, one row": (WindowAttentionNetwork, (4, 8)),
    "windows without position bias": (lambda: WindowAttentionNetwork(position_bias=False), (8, 8)),
    "windows with affine norms": (lambda: WindowAttentionNetwork(16, window=2, norm_affine=True), (6, 4)),
    "transposed": (TransposedAttentionNetwork, (6, 7)),
    "transposed, one head": (lambda: TransposedAttentionNetwork(heads=1), (5, 5)),
    "hidden": (SubPixelNetwork, (6, 4)),
    "hidden, functional": (lambda: SubPixelNetwork("hidden", functional=True), (4, 6)),
    "tail": (lambda: SubPixelNetwork("tail"), (6, 4)),
    "tail, functional": (lambda: SubPixelNetwork("tail", functional=True), (6, 6)),
    "head": (lambda: SubPixelNetwork("head"), (6, 8)),
    "head, functional": (lambda: SubPixelNetwork("head", functional=True), (6, 8)),
    "both": (lambda: SubPixelNetwork("both"), (8, 6)),
    "both, functional": (lambda: SubPixelNetwork("both", functional=True), (6, 6)),
    "strided": (StridedNetwork, (9, 7)),
    "strided, kernel 2": (lambda: StridedNetwork(kernel=2, padding=0), (6, 8)),
    "shared": (SharedNetwork, (6, 5)),
    "auxiliary": (AuxiliaryInputNetwork, (6, 5)),
}


def inputs_for(network: SmallNetwork, batch: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
    images = random_images(batch, 3, *size, seed=7)
    if isinstance(network, AuxiliaryInputNetwork):
        return images, (random_images(batch, 1, *size, seed=8) > 0).double()
    return (images,)


@pytest.fixture(params=CASES, name="case")
def fixture_case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.mark.parametrize("batch", [1, 3])
def test_exact_weights_are_exact(case: Case, batch: int) -> None:
    build, size = case
    network = build().make_exact()
    inputs = inputs_for(network, batch, size)
    output = network(*inputs)
    assert output.shape[:2] == (batch, 3)
    assert output.dtype == torch.float64
    assert (output - output.mean((-2, -1), keepdim=True)).norm() > 0.1 * output.norm()  # more than a constant
    for element in (1, 2, 3):
        assert relative_error(network, element, *inputs) < TOLERANCE
        turned = network(*(torch.rot90(x, element, (-2, -1)) for x in inputs))
        torch.testing.assert_close(turned, torch.rot90(output, element, (-2, -1)), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("batch", [1, 3])
def test_random_weights_are_not(case: Case, batch: int) -> None:
    build, size = case
    network = build()
    for element in (1, 2, 3):
        assert relative_error(network, element, *inputs_for(network, batch, size)) > 0.05


def test_each_layer_and_table_matters(case: Case) -> None:
    build, size = case
    exact, ordinary = build().make_exact(), build()
    inputs, names = inputs_for(exact, 1, size), []
    for name, module in exact.named_modules():
        if not list(module.parameters(recurse=False)) or isinstance(module, TransposedSelfAttention):
            continue  # a temperature is one number a head: any value is exact
        mixed = copy.deepcopy(exact)
        for key, value in mixed.get_submodule(name).named_parameters(recurse=False):
            value.data.copy_(ordinary.get_submodule(name).get_parameter(key))
        assert relative_error(mixed, 1, *inputs) > 1e-4, name
        names.append(name)
    assert len(names) >= 2


def test_the_whole_batch_is_computed_image_by_image(case: Case) -> None:
    build, size = case
    network = build()
    inputs = inputs_for(network, 3, size)
    alone = torch.cat([network(*(x[i : i + 1] for x in inputs)) for i in range(3)])
    torch.testing.assert_close(network(*inputs), alone, rtol=0, atol=1e-12)


def test_weights_depend_on_the_seed_alone(case: Case) -> None:
    build, _ = case
    before = torch.random.get_rng_state()
    first = build()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(1)
    second = build()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_linears_are_all_named_with_their_windows() -> None:
    network = WindowAttentionNetwork()
    linears = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    assert sorted(network.linears) == sorted(linears)
    shifted = [name for name, is_shifted in network.linears.items() if is_shifted]
    assert shifted == ["blocks.1.attention.qkv", "blocks.1.attention.proj"]


@pytest.mark.parametrize("options", [{"window": 3}, {"heads": 4}], ids=["odd window", "heads of width 2"])
def test_windows_that_cannot_be_exact(options: dict[str, int]) -> None:
    network = WindowAttentionNetwork(**options).make_exact()  # type: ignore[arg-type]
    size = 3 * network.window
    assert relative_error(network, 1, random_images(1, 3, size, size)) > 1e-3


def test_heads_of_width_2_cannot_be_exact_in_transposed_attention() -> None:
    network = TransposedAttentionNetwork(heads=4).make_exact()
    assert relative_error(network, 1, random_images(1, 3, 6, 6)) > 1e-3


def test_shifted_windows_do_not_attend_across_the_border() -> None:
    network = WindowAttentionNetwork()
    block, tokens = network.blocks[1], random_images(1, 8, 8, 8)  # (B, H, W, C)
    changed = tokens.clone()
    changed[:, :2] += 1.0 + random_images(1, 2, 8, 8, seed=9)
    difference = (block(changed) - block(tokens)).abs().amax((0, 3))  # (B, H, W, C) -> (H, W)
    assert difference[:2].min() > 0
    assert difference[2:].max() < 1e-12


@pytest.mark.parametrize("element", [0, 1, 2, 3])
def test_the_turn_of_sub_pixels(element: int) -> None:
    images = random_images(2, 3, 6, 4)
    first = F.pixel_unshuffle(loop_rotate(images, element), 2)
    second = loop_rotate(F.pixel_unshuffle(images, 2), element)
    assert torch.equal(first, second[:, turned_channels(12, "unshuffled trivial", element)])
    if element == 1:
        assert torch.equal(first, second[:, [4 * c + j for c in range(3) for j in SUB_PIXEL_TURN]])
    fine = random_images(2, 8, 6, 4)
    first = F.pixel_unshuffle(loop_regular(fine, element), 2)
    second = loop_rotate(F.pixel_unshuffle(fine, 2), element)
    assert torch.equal(first, second[:, turned_channels(32, "unshuffled regular", element)])


@pytest.mark.parametrize(
    ("kernel", "layout_in", "layout_out"),
    [
        (lifting_kernel(2, 3), "trivial", "regular"),
        (group_kernel(2, 3), "regular", "regular"),
        (projection_kernel(3, 2), "regular", "trivial"),
    ],
    ids=["lifting", "group", "projection"],
)
def test_averaging_keeps_exact_kernels_and_only_those(kernel: Tensor, layout_in: Layout, layout_out: Layout) -> None:
    torch.testing.assert_close(averaged_kernel(kernel, layout_in, layout_out), kernel, rtol=0, atol=1e-14)
    other = random_images(*kernel.shape)
    once = averaged_kernel(other, layout_in, layout_out)
    assert 0.4 < once.norm() / other.norm() < 0.6
    torch.testing.assert_close(averaged_kernel(once, layout_in, layout_out), once, rtol=0, atol=1e-14)


@pytest.mark.parametrize("element", [1, 2, 3])
def test_shuffled_maps_are_regular_fields(element: int) -> None:
    network = SubPixelNetwork().make_exact()
    maps: dict[str, Tensor] = {}
    assert network.shuffle is not None
    network.shuffle.register_forward_hook(lambda _module, _inputs, output: maps.update(shuffled=output))
    images = random_images(1, 3, 6, 4)
    network(images)
    expected = loop_regular(maps["shuffled"], element)
    network(loop_rotate(images, element))
    torch.testing.assert_close(maps["shuffled"], expected, rtol=0, atol=TOLERANCE)


def test_functional_shuffling_is_the_same_network() -> None:
    images = random_images(2, 3, 6, 4)
    for variant in ("hidden", "tail", "head", "both"):
        network, functional = SubPixelNetwork(variant), SubPixelNetwork(variant, functional=True)
        assert torch.equal(network(images), functional(images))
        assert not any(isinstance(m, nn.PixelShuffle | nn.PixelUnshuffle) for m in functional.modules())
        assert network(images).shape == (2, 3, int(6 * network.scale), int(4 * network.scale))


@pytest.mark.parametrize(
    ("size", "exact_turns"),
    [((9, 9), {1, 2, 3}), ((9, 7), {1, 2, 3}), ((8, 8), set()), ((9, 8), {3}), ((8, 9), {1})],
)
def test_strides_are_exact_at_odd_sizes_only(size: tuple[int, int], exact_turns: set[int]) -> None:
    """One turn reverses the columns alone, three turns the rows alone, two turns both: these must have an odd size."""
    network = StridedNetwork().make_exact()
    for element in (1, 2, 3):
        error = relative_error(network, element, random_images(2, 3, *size))
        assert error < TOLERANCE if element in exact_turns else error > 0.05


def test_shared_modules_are_called_as_said() -> None:
    network = SharedNetwork()
    calls: dict[str, int] = {}
    for name, module in network.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
    network(random_images(1, 3, 4, 4))
    assert {name: count for name, count in calls.items() if name} == network.calls
    assert network.alias is network.twin
    assert network.tied is not network.twin
    assert network.tied.weight is network.twin.weight
    assert {"alias.weight", "twin.weight", "tied.weight"} <= set(network.state_dict())


# ------------------------------------------------------------------------------------------------------ other groups

GROUPS = {"C2": C2, "C4": C4, "D4": D4}


@pytest.fixture(params=GROUPS, name="group")
def fixture_group(request: pytest.FixtureRequest) -> PlaneGroup:
    return GROUPS[request.param]


def test_the_composition_table_is_that_of_a_group(group: PlaneGroup) -> None:
    elements = range(group.order)
    assert all(sorted(row) == list(elements) for row in group.table)
    assert group.table[0] == list(elements)
    for g in elements:
        assert group.table[group.inverse(g)][g] == group.table[g][group.inverse(g)] == 0
        for h in elements:
            assert all(group.table[group.table[g][h]][e] == group.table[g][group.table[h][e]] for e in elements)


def test_the_order_of_mirror_and_turn() -> None:
    array = torch.arange(6.0).view(2, 3)  # (6) -> (2, 3)
    assert torch.equal(D4.spatial(array, 5), torch.rot90(array.flip(-1), 1))
    assert not torch.equal(D4.spatial(array, 5), torch.rot90(array, 1).flip(-1))
    assert D4.table[1][4] == 5
    assert D4.table[4][1] == 7


def test_actions_compose(group: PlaneGroup) -> None:
    maps = random_images(2, 2 * group.order, 3, 4)
    for g in range(group.order):
        for h in range(group.order):
            together = group.table[g][h]
            assert torch.equal(group.spatial(group.spatial(maps, h), g), group.spatial(maps, together))
            assert torch.equal(group.regular(group.regular(maps, h), g), group.regular(maps, together))


def test_c4_agrees_with_the_kernels_that_stand() -> None:
    assert torch.equal(C4.lifting_kernel(2, 3), lifting_kernel(2, 3))
    assert torch.equal(C4.group_kernel(2, 3), group_kernel(2, 3))
    assert torch.equal(C4.projection_kernel(3, 2), projection_kernel(3, 2))
    maps = random_images(2, 8, 3, 4)
    assert all(torch.equal(C4.regular(maps, n), loop_regular(maps, n)) for n in range(4))


def test_exact_kernels_commute_layer_by_layer(group: PlaneGroup) -> None:
    lifting, middle = convolution(group.lifting_kernel(2, 3)), convolution(group.group_kernel(2, 2))
    projection, images = convolution(group.projection_kernel(3, 2)), random_images(2, 3, 5, 6)
    with torch.no_grad():
        for g in range(group.order):
            lifted, expected = lifting(group.spatial(images, g)), lifting(images)
            torch.testing.assert_close(lifted, group.regular(expected, g), rtol=0, atol=TOLERANCE)
            mixed, expected = middle(lifted), middle(expected)
            torch.testing.assert_close(mixed, group.regular(expected, g), rtol=0, atol=TOLERANCE)
            torch.testing.assert_close(
                projection(mixed), group.spatial(projection(expected), g), rtol=0, atol=TOLERANCE
            )


def test_exact_networks_are_exact_and_ordinary_ones_not(group: PlaneGroup) -> None:
    network, images = group.exact_network(), random_images(3, 3, 5, 6)
    ordinary = copy.deepcopy(network)
    with seeded(0):
        for module in ordinary:
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
    with torch.no_grad():
        for g in range(1, group.order):
            for candidate, is_exact in ((network, True), (ordinary, False)):
                output = candidate(images)
                error = (candidate(group.spatial(images, g)) - group.spatial(output, g)).norm() / output.norm()
                assert error < TOLERANCE if is_exact else error > 0.05


def test_c4_kernels_are_not_mirror_symmetric() -> None:
    output = (network := C4.exact_network())(images := random_images(1, 3, 5, 5))
    assert (network(D4.spatial(images, 4)) - D4.spatial(output, 4)).norm() > 0.05 * output.norm()
