"""Window attention, transposed attention and sub-pixel layers: exact weights, explicit values, declarations."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.equivariance import EquivarianceRegularizer, SubPixel, Windows, equivariance_error
from tests.components.equivariance.exact import (
    convolution,
    lifting_kernel,
    loop_regular,
    loop_rotate,
    loop_size,
    random_images,
)
from tests.components.equivariance.small_networks import (
    AuxiliaryInputNetwork,
    SharedNetwork,
    SmallNetwork,
    StridedNetwork,
    SubPixelNetwork,
    TransposedAttentionNetwork,
    WindowAttentionNetwork,
    window_reverse,
)

pytestmark = pytest.mark.unit

VARIANTS = ["hidden", "tail", "head", "both"]
NETWORKS: dict[str, tuple[Callable[[], SmallNetwork], int]] = {
    "windows": (WindowAttentionNetwork, 8),
    "windows without bias": (lambda: WindowAttentionNetwork(position_bias=False), 12),
    "narrow windows, affine norms": (lambda: WindowAttentionNetwork(16, window=2, norm_affine=True), 6),
    "transposed attention": (TransposedAttentionNetwork, 7),
    **{variant: (lambda v=variant: SubPixelNetwork(v), 6) for variant in VARIANTS},  # type: ignore[misc]
    **{f"{v}, functional": (lambda v=v: SubPixelNetwork(v, functional=True), 6) for v in VARIANTS},  # type: ignore[misc]
    "strided": (StridedNetwork, 9),
    "shared": (SharedNetwork, 6),
}
every_network = pytest.mark.parametrize(("build", "side"), NETWORKS.values(), ids=NETWORKS)
every_turn = pytest.mark.parametrize("element", [1, 2, 3])


def _run(
    network: nn.Module, images: Tensor, element: int, steps: int = 2, **options: object
) -> tuple[EquivarianceRegularizer, list[dict[str, float]]]:
    """A regulariser after some steps on one batch, and the layers' penalties in each."""
    regularizer, found = EquivarianceRegularizer(network, **options), []  # type: ignore[arg-type]
    for _ in range(steps):
        network(regularizer.pair(images, images, element=element, shift=1).inputs)
        regularizer.penalty()
        found.append(regularizer.layer_penalties())
    return regularizer, found


def _layers(network: nn.Module) -> set[str]:
    return {name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


@every_turn
@every_network
def test_exact_weights_have_no_penalty_at_any_layer(build: Callable[[], SmallNetwork], side: int, element: int) -> None:
    network = build().make_exact()
    regularizer, found = _run(network, random_images(4, 3, side, side), element)
    for penalties in found:  # the first step, which is traced, and a later one
        assert set(penalties) == _layers(network)
        assert max(penalties.values()) < 1e-22
    assert regularizer.skipped == {}
    errors = equivariance_error(network, random_images(2, 3, side, side), element)
    assert set(errors) == _layers(network) | {"output"}
    assert max(errors.values()) < 1e-10


@every_network
@pytest.mark.parametrize("penalty", ["rotation", "channel", "rotation+channel", "regular", "projection", "paper"])
def test_the_first_step_is_penalised_as_every_other(penalty: str, build: Callable[[], SmallNetwork], side: int) -> None:
    network = build()
    try:
        _, (first, second) = _run(network, random_images(4, 3, side, side), 1, penalty=penalty)
    except ValueError as error:  # no layer of this network can be penalised so: it is refused, not silent
        assert penalty in ("channel", "projection") and "none could be penalised" in str(error)  # noqa: PT017, PT018
        return
    assert first == pytest.approx(second, rel=1e-12)


# --------------------------------------------------------------------------------------------------------- windows


def _raw_outputs(network: nn.Module, images: Tensor) -> dict[str, list[Tensor]]:
    """Each layer's outputs as they are, differentiable, by hooks."""
    found: dict[str, list[Tensor]] = {}
    handles = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            calls = found.setdefault(name, [])
            handles.append(module.register_forward_hook(lambda _module, _inputs, y, calls=calls: calls.append(y)))
    network(images)
    for handle in handles:
        handle.remove()
    return found


def _window_maps(network: WindowAttentionNetwork, name: str, raw: Tensor, side: int, undone: bool = True) -> Tensor:
    """A layer's output as maps ``(B, C, H, W)``, windows put together and the roll undone."""
    if name in ("embed", "last"):
        return raw
    tokens = raw
    if "attention" in name:
        tokens = window_reverse(raw, network.window, side, side)
        if network.linears[name] and undone:
            tokens = torch.roll(tokens, (network.window // 2,) * 2, (1, 2))
    return tokens.permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)


@every_turn
@pytest.mark.parametrize("side", [8, 12])
def test_every_layer_of_window_attention_is_compared_as_whole_maps_with_the_roll_undone(
    side: int, element: int
) -> None:
    network, images = WindowAttentionNetwork(), random_images(4, 3, side, side)
    first, second = (_raw_outputs(network, x) for x in (images[:1], loop_rotate(images[:1], element)))
    expected = {}
    for name in first:
        a, b = (_window_maps(network, name, maps[name][0], side) for maps in (first, second))
        expected[name] = loop_size(b, (loop_rotate if name == "last" else loop_regular)(a, element))
    for penalties in _run(network, images, element)[1]:
        assert penalties == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("element", [1, 3])
def test_on_rolled_windows_exact_weights_would_look_as_if_they_were_not(element: int) -> None:
    """The more, the less its features are alike all over the image; 1.16 was measured for a perfect map."""
    network, images = WindowAttentionNetwork().make_exact(), random_images(4, 3, 8, 8)
    rolled = {"blocks.1.attention.*": Windows(4, shift=(0, 0))}
    _, (_, penalties) = _run(network, images, element, layouts=rolled)
    first, second = (_raw_outputs(network, x) for x in (images[:1], loop_rotate(images[:1], element)))
    for name in penalties:
        a, b = (_window_maps(network, name, maps[name][0], 8, undone=False) for maps in (first, second))
        expected = loop_size(b, (loop_rotate if name == "last" else loop_regular)(a, element))
        assert penalties[name] == pytest.approx(expected, rel=1e-9, abs=1e-22)
        if name.startswith("blocks.1.attention"):
            assert penalties[name] ** 0.5 > (0.7 if name.endswith("qkv") else 0.3)
        else:
            assert penalties[name] < 1e-22


def test_declared_windows_and_those_found_by_the_trace_are_the_same() -> None:
    network, images = WindowAttentionNetwork(), random_images(4, 3, 8, 8)
    declared = {"blocks.0.attention.*": Windows(4, 8, 8), "blocks.1.attention.*": Windows(4, shift=(-2, -2))}
    _, inferred = _run(network, images, 1)
    _, explicit = _run(network, images, 1, layouts=declared)
    assert explicit[0] == pytest.approx(inferred[0], rel=1e-12)
    assert explicit[1] == pytest.approx(inferred[1], rel=1e-12)


def test_windows_of_maps_that_are_not_square_are_named_with_the_remedy_and_compared_if_declared() -> None:
    network, images = WindowAttentionNetwork().make_exact(), random_images(4, 3, 8, 12)
    regularizer, (_, penalties) = _run(network, images, 2)
    inside = {name for name in network.linears if "attention" in name}
    if inside & set(regularizer.skipped):  # where the image's aspect is not known
        assert set(regularizer.skipped) == inside
        assert all(
            "declare" in reason and "Windows(size, height, width)" in reason for reason in regularizer.skipped.values()
        )
    assert set(penalties) == _layers(network) - set(regularizer.skipped)
    declared = {"blocks.0.attention.*": Windows(4, 8, 12), "blocks.1.attention.*": Windows(4, 8, 12, (-2, -2))}
    regularizer, (_, penalties) = _run(network, images, 2, layouts=declared)
    assert regularizer.skipped == {}
    assert max(penalties.values()) < 1e-22


@pytest.mark.parametrize("size", [(8, 12), (12, 4)])
def test_the_error_of_window_attention_is_measured_at_any_aspect_for_every_turn(size: tuple[int, int]) -> None:
    network, images = WindowAttentionNetwork().make_exact(), random_images(2, 3, *size)
    errors = equivariance_error(network, images)
    assert set(errors) == _layers(network) | {"output"}
    assert max(errors.values()) < 1e-10
    declared = {"blocks.0.attention.*": Windows(4, *size), "blocks.1.attention.*": Windows(4, *size, (-2, -2))}
    assert max(equivariance_error(network, images, layouts=declared).values()) < 1e-10


def test_the_gradient_through_windows_is_that_of_autograd_written_out_by_hand() -> None:
    network, images = WindowAttentionNetwork(), random_images(4, 3, 8, 8)
    regularizer = EquivarianceRegularizer(network)
    for _ in range(2):
        batch = regularizer.pair(images, images, element=3)
        network(batch.inputs)
        value = regularizer.penalty()
        found = torch.autograd.grad(value, list(network.parameters()), allow_unused=True)
        raw = {name: outputs[0] for name, outputs in _raw_outputs(network, batch.inputs).items()}
        expected = torch.zeros((), dtype=torch.float64)
        for name, output in raw.items():
            maps = _window_maps(network, name, output, 8)
            a, b = maps[:1], maps[1:2]
            a = (loop_rotate if name == "last" else loop_regular)(a, 3)
            scale = ((a**2).mean() + (b**2).mean()).detach() / 2
            expected = expected + ((b - a) ** 2).mean() / scale / len(raw)
        wanted = torch.autograd.grad(expected, list(network.parameters()), allow_unused=True)
        assert value.item() == pytest.approx(expected.item(), rel=1e-10)
        for gradient, reference in zip(found, wanted, strict=True):
            a, b = (torch.zeros(()) if g is None else g for g in (gradient, reference))
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


# ------------------------------------------------------------------------------------------------------ sub-pixels


@every_turn
@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_sub_pixel_layers_are_compared_on_the_fine_grid(variant: str, functional: bool, element: int) -> None:
    network = SubPixelNetwork(variant, functional)  # type: ignore[arg-type]
    images = random_images(4, 3, 6, 6)
    first, second = (_raw_outputs(network, x) for x in (images[:1], loop_rotate(images[:1], element)))
    expected, last = {}, list(first)[-1]
    for name in first:
        a, b = first[name][0], second[name][0]
        if name == network.before_shuffle:
            a, b = F.pixel_shuffle(a, 2), F.pixel_shuffle(b, 2)
        expected[name] = loop_size(b, (loop_rotate if name == last else loop_regular)(a, element))
    for penalties in _run(network, images, element)[1]:
        assert penalties == pytest.approx(expected, rel=1e-9)
    if network.before_shuffle:
        _, (_, declared) = _run(network, images, element, layouts={"expand": SubPixel(2)})
        assert declared == pytest.approx(expected, rel=1e-9)


@every_turn
def test_a_low_resolution_input_is_paired_with_its_target_at_their_own_sizes(element: int) -> None:
    network = SubPixelNetwork("tail").make_exact()
    low, high = random_images(4, 3, 6, 6), random_images(4, 3, 12, 12)
    regularizer = EquivarianceRegularizer(network)
    batch = regularizer.pair(low, high, element=element)
    output = network(batch.inputs)
    assert output.shape == batch.targets.shape
    assert torch.equal(batch.targets[1:2], loop_rotate(high[:1], element))
    torch.testing.assert_close(output[1:2], loop_rotate(output[:1], element))
    assert regularizer.penalty() < 1e-22


# ----------------------------------------------------------------------------------- strides, calls, several inputs


def test_a_strided_layer_is_skipped_at_the_wrong_size_only_and_comes_back() -> None:
    network = StridedNetwork().make_exact()
    regularizer = EquivarianceRegularizer(network)
    for side, is_right in ((8, False), (9, True), (8, False), (9, True), (11, True)):
        images = random_images(4, 3, side, side)
        network(regularizer.pair(images, images, element=1).inputs)
        value = regularizer.penalty()
        assert ("down" in regularizer.layer_penalties()) is is_right
        assert ("down" in regularizer.skipped) is not is_right
        if is_right:
            assert value < 1e-22
        else:
            assert (
                f"(size + 2 padding - kernel) mod stride = 1 at input size ({side}, {side})"
                in regularizer.skipped["down"]
            )
            assert regularizer.layer_penalties()["first"] < 1e-22
            names, last = list(regularizer.layer_penalties()), regularizer.layer_penalties()["last"]
            assert names == ["first", "last"]
            assert value.item() == pytest.approx(last / 2, rel=1e-9)  # weights sum to 1 over the layers compared


def test_a_strided_layer_with_exact_weights_has_a_residual_of_about_1_4_at_the_wrong_size() -> None:
    strided = convolution(lifting_kernel(16, 3), stride=2)
    network = nn.Sequential(strided, nn.Conv2d(64, 3, 1).double())
    for element in (1, 2, 3):
        error = equivariance_error(network, random_images(2, 3, 16, 16), element)["0"]
        assert error == pytest.approx(1.4, abs=0.1)
        assert equivariance_error(network, random_images(2, 3, 17, 17), element)["0"] < 1e-12


def test_each_call_of_a_shared_layer_counts_and_an_alias_is_one_layer() -> None:
    network, images = SharedNetwork(), random_images(4, 3, 6, 6)
    first, second = (_raw_outputs(network, x) for x in (images[:1], loop_rotate(images[:1], 1)))
    expected = {}
    for name, calls in network.calls.items():
        act = loop_rotate if name == "last" else loop_regular
        sizes = [loop_size(b, act(a, 1)) for a, b in zip(first[name], second[name], strict=True)]
        assert len(sizes) == calls
        expected[name] = sum(sizes) / calls
    for penalties in _run(network, images, 1)[1]:
        assert penalties == pytest.approx(expected, rel=1e-7)  # features are small enough for EPSILON to show


@every_turn
def test_several_inputs_by_name_are_turned_together(element: int) -> None:
    image, mask = random_images(4, 3, 6, 6), (random_images(4, 1, 6, 6, seed=8) > 0).double()
    exact, network = AuxiliaryInputNetwork().make_exact(), AuxiliaryInputNetwork()
    values = {}
    for name, each in (("exact", exact), ("random", network)):
        regularizer = EquivarianceRegularizer(each)
        batch = regularizer.pair({"image": image, "mask": mask}, {"clean": image}, element=element)
        each(**batch.inputs)
        regularizer.penalty()
        values[name] = regularizer.layer_penalties()
    assert max(values["exact"].values()) < 1e-24
    joined = torch.cat((image, mask), 1)[:1]  # (B, 3, H, W), (B, 1, H, W) -> (1, 4, H, W)
    a, b = network.first(joined), network.first(loop_rotate(joined, element))
    assert values["random"]["first"] == pytest.approx(loop_size(b, loop_regular(a, element)), rel=1e-9)
