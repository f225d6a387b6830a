"""Layers drawn at random: probabilities, and means over all draws by integrating the position over its breakpoints."""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from components.equivariance import EquivarianceRegularizer
from components.equivariance.layers.sampling import inclusion_probabilities, sample_layers
from tests.components.equivariance.exact import plain_network, random_images

pytestmark = pytest.mark.unit

WEIGHTS: dict[str, dict[str, float]] = {
    "uniform": dict.fromkeys("abcdefg", 1 / 7),
    "geometric": {name: 0.6**i for i, name in enumerate("abcdefg")},
    "with zeros": {"a": 0.0, "b": 2.0, "c": 0.0, "d": 1.0, "e": 0.5},
    "one very large": {"a": 100.0, "b": 1.0, "c": 1.0, "d": 2.0},
    "one": {"a": 0.3},
}
NUMBERS = [1, 1.5, 2, 3, 4.25, 100]
every_weights = pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
every_number = pytest.mark.parametrize("number", NUMBERS)


def stretches(probabilities: Mapping[str, float]) -> list[tuple[float, float]]:
    """(length, middle) of the stretches of positions in which the same layers are taken."""
    breaks, total = {0.0, 1.0}, 0.0
    for probability in probabilities.values():
        total += probability
        breaks.add(total % 1)
    return [(after - before, (before + after) / 2) for before, after in pairwise(sorted(breaks)) if after > before]


@every_number
@every_weights
def test_probabilities_sum_to_the_number_of_layers_and_follow_the_weights(
    weights: dict[str, float], number: float
) -> None:
    probabilities = inclusion_probabilities(weights, number)
    positive = [name for name, weight in weights.items() if weight > 0]
    assert list(probabilities) == list(weights)
    assert sum(probabilities.values()) == pytest.approx(min(number, len(positive)))
    assert all(0 < probabilities[name] <= 1 for name in positive)
    assert all(probabilities[name] == 0 for name in weights if name not in positive)
    below = {name: probabilities[name] / weights[name] for name in positive if probabilities[name] < 1}
    assert below == pytest.approx(dict.fromkeys(below, next(iter(below.values()), 0.0)))
    # a layer is certain only if proportion would have given it 1 or more
    assert all(
        weights[name] * max(below.values(), default=0.0) >= 1 - 1e-9 or not below for name in positive - below.keys()
    )


@every_number
@every_weights
def test_each_layer_is_taken_exactly_with_its_probability(weights: dict[str, float], number: float) -> None:
    probabilities = inclusion_probabilities(weights, number)
    found = dict.fromkeys(weights, 0.0)
    for length, middle in stretches(probabilities):
        taken = sample_layers(probabilities, middle)
        assert math.floor(sum(probabilities.values()) - 1e-9) <= len(taken) <= math.ceil(sum(probabilities.values()))
        for name in taken:
            found[name] += length
    assert found == pytest.approx(probabilities, abs=1e-12)


@every_number
@every_weights
def test_the_mean_over_the_draws_is_the_sum_over_all_layers(weights: dict[str, float], number: float) -> None:
    values = {name: 1 + 3.7 * i for i, name in enumerate(weights)}
    probabilities = inclusion_probabilities(weights, number)
    mean = sum(
        length
        * sum(weights[name] / probabilities[name] * values[name] for name in sample_layers(probabilities, middle))
        for length, middle in stretches(probabilities)
    )
    assert mean == pytest.approx(sum(weights[name] * values[name] for name in weights), rel=1e-12)


def test_a_certain_layer_is_taken_whatever_rounding_does_to_the_sums() -> None:
    probabilities = {"a": 0.1 + 0.2, "b": 1.0, "c": 0.7}
    for position in (0.0, 0.1, 0.3, 0.1 + 0.2, math.nextafter(0.3, 0), math.nextafter(0.3, 1), math.nextafter(1.0, 0)):
        assert "b" in sample_layers(probabilities, position)


# ------------------------------------------------------------------------------------------------- the regulariser


class Deep(nn.Module):
    """Five convolutions, "c0" to "c4", the fourth with a stride of 2 whose grid is symmetric at odd sizes alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        widths = (3, 8, 8, 8, 8, 3)
        for i in range(5):
            stride = 2 if i == 3 else 1
            self.add_module(f"c{i}", nn.Conv2d(widths[i], widths[i + 1], 3, stride, padding=1))
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        for name in ("c0", "c1", "c2", "c3"):
            images = torch.tanh(self.get_submodule(name)(images))
        return self.get_submodule("c4")(images)


def _step(
    regularizer: EquivarianceRegularizer,
    network: nn.Module,
    images: Tensor,
    position: float,
    patch: pytest.MonkeyPatch,
    shift: int = 2,
) -> tuple[Tensor, list[Tensor]]:
    patch.setattr("components.equivariance.regularizer.draw_uniform", lambda number, generator: [position] * number)
    network(regularizer.pair(images, images, element=1, shift=shift).inputs)
    value = regularizer.penalty()
    gradients = torch.autograd.grad(value, list(network.parameters()), allow_unused=True)
    zeros = [torch.zeros_like(parameter) for parameter in network.parameters()]
    return value.detach(), [zero if g is None else g for zero, g in zip(zeros, gradients, strict=True)]


def _mean_over_draws(
    step: Callable[[float], tuple[Tensor, list[Tensor]]], probabilities: list[dict[str, float]]
) -> tuple[Tensor, list[Tensor]]:
    """Over positions, breaking wherever any of these probabilities does."""
    ends = {0.0, 1.0}
    for each in probabilities:
        total = 0.0
        for probability in each.values():
            total += probability
            ends.add(total % 1)
    mean, mean_gradients = torch.zeros((), dtype=torch.float64), None
    for before, after in pairwise(sorted(ends)):
        if after - before < 1e-13:
            continue
        value, gradients = step((before + after) / 2)
        mean = mean + (after - before) * value
        weighted = [(after - before) * gradient for gradient in gradients]
        mean_gradients = (
            weighted if mean_gradients is None else [a + b for a, b in zip(mean_gradients, weighted, strict=True)]
        )
    assert mean_gradients is not None
    return mean, mean_gradients


def _raw_weights(names: list[str], layer_weights: object) -> dict[str, float]:
    if layer_weights == "uniform":
        return dict.fromkeys(names, 1.0)
    if isinstance(layer_weights, dict) and "profile" in layer_weights:
        return {name: 0.5**i for i, name in enumerate(names)}
    return {name: {"c1": 1.0, "c3": 3.0}.get(name, 0.5) for name in names}


@pytest.mark.parametrize("is_first", [True, False], ids=["first step", "later step"])
@pytest.mark.parametrize(
    ("layer_weights", "side"),
    [("uniform", 9), ({"profile": "geometric", "decay": 0.5}, 8), ({"c1": 1.0, "c3": 3.0, "c*": 0.5}, 9)],
)
@pytest.mark.parametrize("number", [1, 0.5])
@pytest.mark.parametrize("penalty", ["regular", "channel", "rotation+channel", "projection", "paper"])
def test_the_mean_over_draws_is_the_full_penalty_in_value_and_gradient(
    penalty: str, number: float, layer_weights: object, is_first: bool, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, images = Deep(), random_images(4, 3, side, side)
    options = {"penalty": penalty, "layer_weights": layer_weights}
    full = EquivarianceRegularizer(network, **options)  # type: ignore[arg-type]
    _step(full, network, images, 0.5, monkeypatch)
    expected, expected_gradients = _step(full, network, images, 0.5, monkeypatch)
    everything, penalised = ["c0", "c1", "c2", "c3", "c4"], list(full.layer_penalties())
    breaks = []  # of whatever layers the regulariser may choose among
    for names in (penalised, everything, everything[1:4], [name for name in everything if name != "c3"]):
        places = number if number >= 1 else max(1.0, number * len(names))
        breaks.append(inclusion_probabilities(dict.fromkeys(names, 1.0), places))
        breaks.append(inclusion_probabilities(_raw_weights(names, layer_weights), places))

    def step(position: float) -> tuple[Tensor, list[Tensor]]:
        regularizer = EquivarianceRegularizer(network, sample_layers=number, **options)  # type: ignore[arg-type]
        if not is_first:
            _step(regularizer, network, images, 0.5, monkeypatch)
        return _step(regularizer, network, images, position, monkeypatch)

    mean, gradients = _mean_over_draws(step, breaks)
    assert mean.item() == pytest.approx(expected.item(), rel=1e-12)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("number", "expected"), [(1, 1), (3, 3), (0.4, 2), (0.01, 1), (9, 5)])
def test_a_number_or_a_share_of_the_layers_is_penalised_in_each_step(number: float, expected: int) -> None:
    network, images = Deep(), random_images(4, 3, 9, 9)
    regularizer = EquivarianceRegularizer(network, sample_layers=number)
    generator = torch.Generator().manual_seed(0)
    seen: set[str] = set()
    for _ in range(30):
        network(regularizer.pair(images, images, element=1, generator=generator).inputs)
        regularizer.penalty()
        assert len(regularizer.layer_penalties()) == expected
        seen |= set(regularizer.layer_penalties())
    assert seen == {"c0", "c1", "c2", "c3", "c4"}  # each has a positive probability


def test_shallower_layers_are_drawn_more_often_under_a_geometric_profile() -> None:
    network, images = Deep(), random_images(4, 3, 9, 9)
    regularizer = EquivarianceRegularizer(
        network, sample_layers=1, layer_weights={"profile": "geometric", "decay": 0.5}
    )
    generator, counts = torch.Generator().manual_seed(0), dict.fromkeys(("c0", "c1", "c2", "c3", "c4"), 0)
    for step in range(201):
        network(regularizer.pair(images, images, element=1, generator=generator).inputs)
        regularizer.penalty()
        for name in regularizer.layer_penalties() if step else ():
            counts[name] += 1
    expected = {f"c{i}": 200 * 16 * 0.5**i / 31 for i in range(5)}
    assert counts == pytest.approx(expected, abs=25)


def test_the_draw_follows_the_generator_and_leaves_turns_and_shifts_alone() -> None:
    images, found = random_images(4, 3, 9, 9), []
    for number in (None, 1, 0.5):
        regularizer, generator = EquivarianceRegularizer(Deep(), sample_layers=number), torch.Generator().manual_seed(5)
        batches = [regularizer.pair(images, images, generator=generator) for _ in range(5)]
        found.append([(batch.element, batch.shift, batch.position) for batch in batches])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("number", [0, -1, 0.0])
def test_no_layer_a_step_is_refused(number: float) -> None:
    with pytest.raises(ValueError, match=r"sample_layers: .* must be a number of layers, a share below 1, or None"):
        EquivarianceRegularizer(Deep(), sample_layers=number)


# ----------------------------------------------------------------------------------------------------------- fields


@pytest.mark.parametrize("is_first", [True, False], ids=["first step", "later step"])
@pytest.mark.parametrize("options", [{}, {"normalise": "none"}, {"group": "D4"}, {"group": "C2"}])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.75])
def test_the_mean_over_the_fields_drawn_is_the_penalty_of_all_in_value_and_gradient(
    share: float, options: dict[str, str], is_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, images = plain_network(32), random_images(4, 3, 6, 6)
    num_fields = 32 // {"D4": 8, "C2": 2}.get(options.get("group", "C4"), 4)
    full = EquivarianceRegularizer(network, layers=["2"], **options)  # type: ignore[arg-type]
    expected, expected_gradients = _step(full, network, images, 0.5, monkeypatch, shift=1)

    def step(position: float) -> tuple[Tensor, list[Tensor]]:
        regularizer = EquivarianceRegularizer(network, layers=["2"], sample_fields=share, **options)  # type: ignore[arg-type]
        if not is_first:
            _step(regularizer, network, images, 0.5, monkeypatch, shift=1)
        return _step(regularizer, network, images, position, monkeypatch, shift=1)

    stretches_of_fields = [dict.fromkeys(map(str, range(num_fields)), 1 / num_fields)]
    mean, gradients = _mean_over_draws(step, stretches_of_fields)
    assert mean.item() == pytest.approx(expected.item(), rel=1e-12)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-13)
    assert abs(step(0.001)[0].item() / expected.item() - 1) > 1e-6  # a part is not the whole
