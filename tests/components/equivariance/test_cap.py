"""The cap on penalty gradients: against a backward pass written out by hand, and against plain autograd without it."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from components.equivariance import EquivarianceRegularizer, act, pair_scale, relative_mse
from tests.components.equivariance.exact import loop_regular, loop_rotate, random_images
from tests.components.equivariance.exact_groups import D4
from tests.components.equivariance.small_networks import window_partition, window_reverse

pytestmark = pytest.mark.unit

NUM_PAIRS = 2


class Branching(nn.Module):
    """Two hidden convolutions with a skip connection, ReLUs in place, and a last convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images)
        skip = hidden
        hidden = self.second(hidden)
        return images - self.last(torch.relu_(hidden + skip))


def network_and_batch() -> tuple[Branching, Tensor, Tensor]:
    torch.manual_seed(0)
    return Branching().double(), torch.rand(6, 3, 9, 9).double(), torch.rand(6, 3, 9, 9).double()


def gradients(max_gradient_ratio: float | None, weight: float = 0.7) -> dict[str, Tensor]:
    """Of all parameters, by the regulariser."""
    network, images, targets = network_and_batch()
    regularizer = EquivarianceRegularizer(network, max_gradient_ratio=max_gradient_ratio)
    batch = regularizer.pair(images, targets, element=1, shift=1, num_pairs=NUM_PAIRS)
    loss = (network(batch.inputs) - batch.targets).square().mean() + weight * regularizer.penalty()
    loss.backward()
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}


def gradients_by_hand(max_gradient_ratio: float, weight: float = 0.7) -> dict[str, Tensor]:
    """The same, layer by layer from the end, each layer's penalty gradient capped where it enters."""
    network, images, targets = network_and_batch()
    batch = EquivarianceRegularizer(network).pair(images, targets, element=1, shift=1, num_pairs=NUM_PAIRS)
    first = network.first(batch.inputs)
    second = network.second(first)
    last = network.last(torch.relu(second + first))
    task = (batch.inputs - last - batch.targets).square().mean()

    def own(maps: Tensor, field: str) -> Tensor:
        leaf = maps.detach().clone().requires_grad_()
        originals, transformed = leaf[:NUM_PAIRS], leaf[NUM_PAIRS : 2 * NUM_PAIRS]
        scale = pair_scale(originals, transformed).detach()
        value = relative_mse(transformed - act(originals, 1, field), scale)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(weight / 3 * value, leaf)
        return gradient

    def with_own(arriving: Tensor, maps: Tensor, field: str) -> Tensor:
        total, added = arriving.clone(), own(maps, field)
        for pair in range(NUM_PAIRS):
            both = [pair, NUM_PAIRS + pair]
            norms = [float(torch.linalg.vector_norm(gradient[both])) for gradient in (arriving, added)]
            total[both] += added[both] * min(1.0, max_gradient_ratio * norms[0] / norms[1])
        return total

    (at_last,) = torch.autograd.grad(task, last, retain_graph=True)
    at_last = with_own(at_last, last, "trivial")
    (at_second,) = torch.autograd.grad(last, second, at_last, retain_graph=True)
    (skipped,) = torch.autograd.grad(last, first, at_last, retain_graph=True)  # through the skip and through second
    (through,) = torch.autograd.grad(second, first, at_second, retain_graph=True)
    at_second = with_own(at_second, second, "regular")
    (through_with_own,) = torch.autograd.grad(second, first, at_second, retain_graph=True)
    at_first = with_own(skipped - through + through_with_own, first, "regular")
    found = {}
    for name, output, gradient in (("first", first, at_first), ("second", second, at_second), ("last", last, at_last)):
        layer = getattr(network, name)
        for part in ("weight", "bias"):
            (value,) = torch.autograd.grad(output, getattr(layer, part), gradient, retain_graph=True)
            found[f"{name}.{part}"] = value
    return found


@pytest.mark.parametrize("max_gradient_ratio", [0.01, 0.3, 2.0])
def test_capped_gradients_equal_those_written_out_by_hand(max_gradient_ratio: float) -> None:
    torch.testing.assert_close(gradients(max_gradient_ratio), gradients_by_hand(max_gradient_ratio))


def test_a_cap_out_of_reach_changes_nothing() -> None:
    torch.testing.assert_close(gradients(1e9), gradients(None))


def test_the_cap_bites_here() -> None:
    """Else the tests above would prove nothing."""
    free, capped = gradients(None), gradients(0.01)
    assert (free["first.weight"] - capped["first.weight"]).norm() > 0.1 * free["first.weight"].norm()


def test_a_small_cap_leaves_the_task_alone() -> None:
    torch.testing.assert_close(gradients(1e-9), gradients(None, weight=0.0), rtol=1e-6, atol=1e-9)


def test_the_value_is_the_same_with_and_without_a_cap() -> None:
    values = []
    for max_gradient_ratio in (None, 0.1):
        network, images, targets = network_and_batch()
        regularizer = EquivarianceRegularizer(network, max_gradient_ratio=max_gradient_ratio)
        network(regularizer.pair(images, targets, element=3, num_pairs=NUM_PAIRS).inputs)
        values.append(regularizer.penalty())
    torch.testing.assert_close(values[0], values[1])


@pytest.mark.parametrize("options", [{"scale_gradient": True}, {"normalise": "none"}, {"penalty": "rotation"}])
def test_every_kind_of_size_is_free_under_a_cap_out_of_reach(options: dict[str, object]) -> None:
    found = []
    for max_gradient_ratio in (None, 1e9):
        network, images, targets = network_and_batch()
        regularizer = EquivarianceRegularizer(network, max_gradient_ratio=max_gradient_ratio, **options)  # type: ignore[arg-type]
        batch = regularizer.pair(images, targets, element=2, num_pairs=NUM_PAIRS)
        ((network(batch.inputs) - batch.targets).square().mean() + regularizer.penalty()).backward()
        found.append([parameter.grad for parameter in network.parameters()])
    torch.testing.assert_close(found[0], found[1])


def test_a_copy_of_a_network_watched_with_a_cap_is_whole() -> None:
    network, images, targets = network_and_batch()
    regularizer = EquivarianceRegularizer(network, max_gradient_ratio=0.3)
    batch = regularizer.pair(images, targets, num_pairs=NUM_PAIRS)
    twin = copy.deepcopy(network)
    torch.testing.assert_close(twin(batch.inputs), network(batch.inputs))
    regularizer.penalty()


def test_a_cap_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="max_gradient_ratio: 0 must be above 0"):
        EquivarianceRegularizer(Branching(), max_gradient_ratio=0)


# ---------------------------------------------------------------------------------- other layouts, groups and sizes

Act = Callable[[Tensor], Tensor]
SIDE = 8


class Windowed(nn.Module):
    """A convolution, a linear layer on shifted windows, and a last convolution; each output is kept in `seen`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.linear = nn.Linear(8, 8)
        self.last = nn.Conv2d(8, 3, 3, padding=1)
        self.double()

    def forward(self, images: Tensor, change: Callable[[str, Tensor], Tensor] = lambda _, output: output) -> Tensor:
        maps = change("first", self.first(images))
        tokens = torch.roll(torch.tanh(maps).permute(0, 2, 3, 1), (-2, -2), (1, 2))  # (B, C, H, W) -> (B, H, W, C)
        windows = change("linear", self.linear(window_partition(tokens, 4)))
        tokens = torch.roll(window_reverse(torch.tanh(windows), 4, SIDE, SIDE), (2, 2), (1, 2))
        return change("last", self.last(tokens.permute(0, 3, 1, 2)))  # (B, H, W, C) -> (B, C, H, W)


class Plain(nn.Module):
    """Three convolutions; 8 channels make one field of D4 and two of C4."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.last = (nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 8), (8, 8), (8, 3)))
        self.double()

    def forward(self, images: Tensor, change: Callable[[str, Tensor], Tensor] = lambda _, output: output) -> Tensor:
        hidden = change("first", self.first(images))
        hidden = change("second", self.second(torch.tanh(hidden)))
        return change("last", self.last(torch.tanh(hidden)))


def _maps_of(name: str, output: Tensor) -> Tensor:
    if name != "linear":
        return output
    return torch.roll(window_reverse(output, 4, SIDE, SIDE), (2, 2), (1, 2)).permute(0, 3, 1, 2)


def _d4_regular(maps: Tensor, element: int) -> Tensor:
    order = [8 * (c // 8) + D4.relative(element, c % 8) for c in range(maps.shape[1])]
    return _d4_trivial(maps[:, order], element)


def _d4_trivial(maps: Tensor, element: int) -> Tensor:
    return torch.rot90(maps.flip(-1) if element >= 4 else maps, element % 4, (-2, -1))


CASES: dict[str, tuple[type[nn.Module], str, int, Callable[[Tensor, int], Tensor], Callable[[Tensor, int], Tensor]]] = {
    "windows": (Windowed, "C4", 1, loop_regular, loop_rotate),
    "convolutions": (Plain, "C4", 3, loop_regular, loop_rotate),
    "a turn of D4": (Plain, "D4", 3, _d4_regular, _d4_trivial),
    "a mirror of D4": (Plain, "D4", 6, _d4_regular, _d4_trivial),
}
KINDS: dict[str, dict[str, object]] = {
    "relative": {},
    "moving scale": {"scale_gradient": True},
    "not normalised": {"normalise": "none"},
    "paper": {"penalty": "paper"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("max_gradient_ratio", [0.05, 0.6])
def test_caps_agree_with_a_backward_pass_that_is_changed_layer_by_layer(
    max_gradient_ratio: float, case: str, kind: str
) -> None:
    build, group, element, regular, trivial = CASES[case]
    images, targets = random_images(6, 3, SIDE, SIDE), random_images(6, 3, SIDE, SIDE, seed=7)
    network, weight = build(), 0.7
    regularizer = EquivarianceRegularizer(network, group=group, max_gradient_ratio=max_gradient_ratio, **KINDS[kind])  # type: ignore[arg-type]

    def own_gradient(name: str, output: Tensor) -> Tensor:
        """Of the weighted penalty of one layer, at its output."""
        leaf = output.detach().clone().requires_grad_()
        a, b = _maps_of(name, leaf)[: 2 * NUM_PAIRS].chunk(2)
        difference = b - (trivial if name == "last" else regular)(a, element)
        squares, scale = (difference**2).mean((1, 2, 3)), ((a**2).mean((1, 2, 3)) + (b**2).mean((1, 2, 3))) / 2
        if kind == "relative":
            value = (squares / scale.detach()).mean() / 3
        elif kind == "moving scale":
            value = (squares / scale).mean() / 3
        else:
            value = squares.mean() / 3 if kind == "not normalised" else (difference**2).sum().sqrt()
        return torch.autograd.grad(weight * value, leaf)[0]

    def with_cap(name: str, output: Tensor) -> Tensor:
        added = own_gradient(name, output)

        def enter(arriving: Tensor) -> Tensor:
            """The gradient arriving, with the penalty's own."""
            total = arriving.clone()
            per_image = len(arriving) // len(images_of_batch)  # windows
            for pair in range(NUM_PAIRS):
                rows = [per_image * image + window for image in (pair, NUM_PAIRS + pair) for window in range(per_image)]
                allowed = max_gradient_ratio * float(arriving[rows].norm()) / float(added[rows].norm())
                total[rows] += min(1.0, allowed) * added[rows]
            return total

        output.register_hook(enter)
        return output

    for _ in range(2):  # the first forward is traced
        batch = regularizer.pair(images, targets, element=element, num_pairs=NUM_PAIRS)
        images_of_batch = batch.inputs
        network.zero_grad()
        ((network(batch.inputs) - batch.targets).square().mean() + weight * regularizer.penalty()).backward()
        found = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
        network.zero_grad()
        (network(batch.inputs, with_cap) - batch.targets).square().mean().backward()
        expected = {name: parameter.grad for name, parameter in network.named_parameters()}
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


def test_the_cap_of_a_sampled_layer_is_such_that_the_mean_over_draws_is_the_capped_gradient_of_all() -> None:
    network, images, targets = network_and_batch()
    ratio = 0.05

    def mean_gradient(num_steps: int, **options: float) -> Tensor:
        regularizer = EquivarianceRegularizer(network, max_gradient_ratio=ratio, **options)  # type: ignore[arg-type]
        generator, total = torch.Generator().manual_seed(1), torch.zeros(())
        for _ in range(num_steps):
            batch = regularizer.pair(images, targets, element=1, num_pairs=NUM_PAIRS, generator=generator)
            loss = (network(batch.inputs) - batch.targets).square().mean() + 0.7 * regularizer.penalty()
            (gradient,) = torch.autograd.grad(loss, network.last.weight)
            total = total + gradient / num_steps
        return total

    torch.testing.assert_close(mean_gradient(900, sample_layers=1), mean_gradient(1), rtol=0.05, atol=2e-3)
