"""The penalty of a network: its value and its gradient, against autograd written out by hand."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.equivariance import EquivarianceRegularizer, PairedBatch
from tests.components.equivariance.exact import (
    circulant_kernel,
    convolution,
    exact_network,
    loop_regular,
    loop_rotate,
    plain_network,
    projection_kernel,
    random_images,
)

pytestmark = pytest.mark.unit

PENALTIES = ["rotation", "channel", "rotation+channel", "regular"]
LAYERS = ("0", "2", "4")


def _gradients(network: nn.Module, value: Tensor) -> dict[str, Tensor]:
    """The gradient of a value by parameter name; zeros where it does not reach."""
    parameters = dict(network.named_parameters())
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
    }


def _size_by_hand(first: Tensor, second: Tensor, relative: bool, scale_gradient: bool) -> Tensor:
    total = first.new_zeros(())
    for a, b in zip(first, second, strict=True):
        difference = ((a - b) ** 2).sum() / a.numel()
        scale = ((a**2).sum() + (b**2).sum()) / (2 * a.numel()) + 1e-12
        total = total + (difference / (scale if scale_gradient else scale.detach()) if relative else difference)
    return total / len(first)


def _layer_penalties_by_hand(
    network: nn.Sequential, batch: PairedBatch, penalty: str, relative: bool = True, scale_gradient: bool = False
) -> dict[str, Tensor]:
    """L_l of the convolutions "0", "2" and "4", in a forward of its own."""
    pairs, maps = batch.num_pairs, batch.inputs
    values = {}
    for name in LAYERS:
        layer, hidden = network.get_submodule(name), maps
        output = F.conv2d(hidden, layer.weight, layer.bias, padding=1)
        original, copied = output[:pairs], output[pairs : 2 * pairs]
        terms = []
        if "rotation" in penalty:
            terms.append((copied, loop_rotate(original, batch.element)))
        if penalty == "regular":
            act = loop_rotate if name == "4" else loop_regular
            terms.append((copied, act(original, batch.element)))
        if "channel" in penalty and name == "2":  # the others read or write the image
            h = hidden[:pairs].detach()
            plain = F.conv2d(h, layer.weight, layer.bias, padding=1)
            shifted = F.conv2d(_shifted(h, batch.shift), layer.weight, layer.bias, padding=1)
            terms.append((shifted, _shifted(plain, batch.shift)))
        if terms:
            values[name] = sum(_size_by_hand(a, b, relative, scale_gradient) for a, b in terms)
        maps = F.relu(output)
    return values


def _shifted(maps: Tensor, shift: int) -> Tensor:
    order = [start + (k - shift) % 4 for start in range(0, maps.shape[1], 4) for k in range(4)]
    return maps[:, order]


def _assert_equal_gradients(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    for name, gradient in first.items():
        assert torch.allclose(gradient, second[name], rtol=1e-9, atol=tolerance), name


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("normalise", "scale_gradient"), [("relative", False), ("relative", True), ("none", False)])
@pytest.mark.parametrize("element", [1, 2, 3])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_value_and_gradient_are_those_of_autograd_written_out_by_hand(
    penalty: str, element: int, normalise: str, scale_gradient: bool, in_place: bool
) -> None:
    network = plain_network(in_place=in_place)
    regularizer = EquivarianceRegularizer(network, penalty=penalty, normalise=normalise, scale_gradient=scale_gradient)
    images = random_images(8, 3, 5, 5)
    for _ in range(2):  # the first forward is the one that shows which layer is last
        batch = regularizer.pair(images, images, element=element, shift=4 - element)
        network(batch.inputs)
        value = regularizer.penalty()
        by_hand = _layer_penalties_by_hand(network, batch, penalty, normalise == "relative", scale_gradient)
        assert regularizer.layer_penalties() == pytest.approx({n: v.item() for n, v in by_hand.items()})
        expected = sum(by_hand.values()) / len(by_hand)
        assert value.item() == pytest.approx(expected.item(), rel=1e-12)
        _assert_equal_gradients(_gradients(network, value), _gradients(network, expected))


def test_layer_weights_multiply_the_layers_in_order_of_execution() -> None:
    network, images = plain_network(), random_images(4, 3, 6, 6)
    regularizer = EquivarianceRegularizer(network, layer_weights={"profile": "geometric", "decay": 0.5})
    batch = regularizer.pair(images, images, element=1)
    network(batch.inputs)
    value = regularizer.penalty().item()
    first, second, third = regularizer.layer_penalties().values()
    assert value == pytest.approx((4 * first + 2 * second + third) / 7, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("element", [1, 2, 3])
def test_an_exact_network_has_no_penalty_with_the_image_layer_trivial(
    element: int, size: int, dtype: torch.dtype
) -> None:
    network = exact_network(dtype, in_place=True)
    regularizer = EquivarianceRegularizer(network)
    images = random_images(4, 3, size, size, dtype=dtype)
    network(regularizer.pair(images, images, element=element).inputs)
    assert regularizer.penalty() < (1e-24 if dtype == torch.float64 else 1e-10)
    assert list(regularizer.layer_penalties()) == ["0", "2", "4"]


def test_half_turns_of_images_that_are_not_square_have_no_penalty_in_an_exact_network() -> None:
    network = exact_network()
    regularizer = EquivarianceRegularizer(network)
    images = random_images(4, 3, 6, 9)
    network(regularizer.pair(images, images, element=2).inputs)
    assert regularizer.penalty() < 1e-24


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_circulant_layers_have_no_channel_penalty(shift: int) -> None:
    body = [convolution(circulant_kernel(2, 2, seed=seed)) for seed in (1, 2)]
    network = nn.Sequential(convolution(random_images(8, 3, 3, 3)), *body, convolution(random_images(3, 8, 3, 3)))
    regularizer = EquivarianceRegularizer(network, penalty="channel")
    images = random_images(4, 3, 6, 6)
    network(regularizer.pair(images, images, shift=shift).inputs)
    assert regularizer.penalty() < 1e-24
    assert list(regularizer.layer_penalties()) == ["1", "2"]


def test_the_channel_penalty_reaches_the_parameters_of_its_own_layer_alone() -> None:
    network = plain_network()
    regularizer = EquivarianceRegularizer(network, penalty="channel")
    images = random_images(4, 3, 6, 6)
    network(regularizer.pair(images, images).inputs)
    gradients = _gradients(network, regularizer.penalty())
    assert {name for name, gradient in gradients.items() if gradient.any()} == {"2.weight", "2.bias"}


def test_the_channel_penalty_applies_the_layer_without_its_hooks() -> None:
    network, calls = plain_network(), []
    network[2].register_forward_hook(lambda *_: calls.append("called"))
    regularizer = EquivarianceRegularizer(network, penalty="channel")
    images = random_images(4, 3, 6, 6)
    network(regularizer.pair(images, images).inputs)
    regularizer.penalty()
    assert calls == ["called"]


def test_a_layer_called_several_times_is_penalised_by_the_mean_of_its_calls() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = convolution(random_images(4, 4, 3, 3) / 6)
            self.tail = convolution(projection_kernel(3, 1))

        def forward(self, maps: Tensor) -> Tensor:
            return self.tail(self.body(self.body(maps)))

    network = Recurrent()
    regularizer = EquivarianceRegularizer(network)
    images = random_images(4, 4, 6, 6)
    batch = regularizer.pair(images, images, element=1)
    network(batch.inputs)
    regularizer.penalty()
    once = network.body(batch.inputs)
    sizes = [
        _size_by_hand(maps[1:2], loop_regular(maps[:1], 1), relative=True, scale_gradient=False)
        for maps in (once, network.body(once))
    ]
    assert regularizer.layer_penalties()["body"] == pytest.approx((sizes[0] + sizes[1]).item() / 2, rel=1e-9)


@pytest.mark.parametrize("penalty", [*PENALTIES, "projection"])
def test_whole_pairs_split_over_micro_batches_give_the_same_value_and_gradient(penalty: str) -> None:
    network, images = plain_network(), random_images(8, 3, 6, 6)
    regularizer = EquivarianceRegularizer(network, penalty=penalty)

    def step(part: Tensor, num_pairs: int) -> Tensor:
        network(regularizer.pair(part, part, element=3, shift=1, num_pairs=num_pairs).inputs)
        return regularizer.penalty()

    whole = step(images, 4)
    parts = (step(images[:2], 2) + step(images[2:6], 2)) / 2  # with singles or without
    assert parts.item() == pytest.approx(whole.item(), rel=1e-12)
    _assert_equal_gradients(_gradients(network, whole), _gradients(network, parts))


def test_the_penalty_is_exact_before_backward_and_leaves_the_output_alone() -> None:
    network, images = plain_network(), random_images(4, 3, 6, 6)
    regularizer = EquivarianceRegularizer(network)
    batch = regularizer.pair(images, images, element=1)
    output = network(batch.inputs)
    assert torch.equal(output, copy.deepcopy(network)(batch.inputs))
    value = regularizer.penalty()
    before = value.item()
    (output.square().mean() + value).backward()
    assert value.item() == before


def test_under_autocast_the_penalty_is_in_single_precision_and_near_the_exact_one() -> None:
    network, images = plain_network().float(), random_images(4, 3, 8, 8, dtype=torch.float32)
    regularizer = EquivarianceRegularizer(network)
    values = []
    for enabled in (False, True):
        batch = regularizer.pair(images, images, element=1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            network(batch.inputs)
        values.append(regularizer.penalty())
    assert values[1].dtype == torch.float32
    assert values[1].item() == pytest.approx(values[0].item(), rel=0.01)


def test_nothing_is_kept_alive_after_the_penalty() -> None:
    network, images = plain_network(), random_images(4, 3, 6, 6)
    regularizer = EquivarianceRegularizer(network)
    features: list[weakref.ref[Tensor]] = []
    network[2].register_forward_hook(lambda module, arguments, output: features.append(weakref.ref(output)))
    batch = regularizer.pair(images, images)
    features.append(weakref.ref(batch.inputs))
    output = network(batch.inputs)
    value = regularizer.penalty()
    del batch, output, value
    gc.collect()
    assert [reference() for reference in features] == [None, None]


@pytest.mark.parametrize("incompatibility", ["no pair", "no forward", "evaluation", "no grad", "twice"])
def test_a_penalty_without_a_forward_in_training_is_refused_with_the_remedy(incompatibility: str) -> None:
    network, images = plain_network(), random_images(4, 3, 6, 6)
    regularizer = EquivarianceRegularizer(network)
    if incompatibility != "no pair":
        batch = regularizer.pair(images, images)
        network.train(incompatibility != "evaluation")
        if incompatibility != "no forward":
            with torch.set_grad_enabled(incompatibility != "no grad"):
                network(batch.inputs)
    if incompatibility == "twice":
        regularizer.penalty()
    hint = "comes after pair" if incompatibility in ("no pair", "twice") else r"run network\(batch.inputs\) first"
    with pytest.raises(RuntimeError, match=hint):
        regularizer.penalty()


def test_validating_between_pair_and_penalty_changes_nothing() -> None:
    network, images = plain_network(), random_images(4, 3, 6, 6)
    regularizer = EquivarianceRegularizer(network)
    values = []
    for validates in (False, True):
        batch = regularizer.pair(images, images, element=1)
        network(batch.inputs)
        if validates:
            network.eval()
            network(random_images(2, 3, 9, 7))
            network.train()
        values.append(regularizer.penalty().item())
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": "regulr"}, r"penalty: 'regulr' is not one of rotation, .*did you mean 'regular'"),
        ({"normalise": "relativ"}, r"normalise: 'relativ'.*did you mean 'relative'"),
        ({"pairing": "replaced"}, r"pairing: 'replaced'.*did you mean 'replace'"),
        ({"channel_group": 3}, r"channel_group: 3 is not one of 4, all"),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EquivarianceRegularizer(plain_network(), **options)  # type: ignore[arg-type]
