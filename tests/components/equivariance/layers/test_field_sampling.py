"""Fields drawn at random: probabilities, and means over all draws by integrating the position over its breakpoints."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from components.equivariance import C4, EquivarianceRegularizer, group_named
from components.equivariance.autograd.comparison import ComparisonRule
from tests.components.equivariance.exact import random_images
from tests.components.equivariance.small_networks import WindowAttentionNetwork

pytestmark = pytest.mark.unit

SHARES = [0.1, 1 / 3, 0.4, 0.5, 0.75, 0.99]
NUM_FIELDS = [1, 2, 3, 5, 8, 12]
GOLDEN = (5**0.5 - 1) / 2


def _chosen(share: float, num_fields: int, position: float, group: str = "C4") -> list[int]:
    comparing = ComparisonRule(
        group=group_named(group), element=1, num_pairs=1, size="relative", scale_gradient=False, field_share=share
    )
    order = comparing.group.order
    channels = comparing.chosen_channels(num_fields * order, "regular", position)
    channels = list(range(num_fields * order)) if channels is None else channels
    fields = channels[::order]
    assert channels == [first + channel for first in fields for channel in range(order)]
    return [field // order for field in fields]


@pytest.mark.parametrize("num_fields", NUM_FIELDS)
@pytest.mark.parametrize("share", SHARES)
def test_every_field_is_compared_with_the_same_positive_probability(share: float, num_fields: int) -> None:
    ends = sorted({0.0, 1.0} | {f * m / num_fields % 1 for f in range(num_fields) for m in range(num_fields + 1)})
    found = [0.0] * num_fields
    sizes = set()
    for before, after in pairwise(ends):
        fields = _chosen(share, num_fields, (before + after) / 2)
        sizes.add(len(fields))
        for field in fields:
            found[field] += after - before
    (number,) = sizes
    assert number == max(1, round(share * num_fields))
    assert found == pytest.approx([number / num_fields] * num_fields)


def test_fields_are_whole_in_every_group() -> None:
    assert _chosen(0.5, 4, 0.3, "D4") == _chosen(0.5, 4, 0.3, "C2") == [0, 2]


@pytest.mark.parametrize("position", [0.0, 0.999999])
def test_the_ends_of_the_position_choose_the_first_and_the_last_fields(position: float) -> None:
    assert _chosen(0.25, 8, position) == ([0, 4] if position == 0 else [3, 7])


class Deep(nn.Module):
    """Convolutions of 3, 2 and 4 fields, and one that writes the image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        widths = (3, 12, 8, 16, 3)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)).double()

    def forward(self, images: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            images = torch.tanh(layer(images))
        return self.layers[-1](images)


def _step(
    network: nn.Module, regularizer: EquivarianceRegularizer, images: Tensor, position: float, patch: pytest.MonkeyPatch
) -> tuple[Tensor, list[Tensor]]:
    patch.setattr("components.equivariance.regularizer.draw_uniform", lambda number, generator: [position] * number)
    network(regularizer.pair(images, images, element=3).inputs)
    value = regularizer.penalty()
    gradients = torch.autograd.grad(value, list(network.parameters()), allow_unused=True)
    return value.detach(), [torch.zeros(()) if gradient is None else gradient for gradient in gradients]


@pytest.mark.parametrize("normalise", ["relative", "none"])
@pytest.mark.parametrize("is_first_step", [True, False])
def test_the_mean_over_the_draws_is_the_penalty_of_all_fields_and_its_gradient(
    is_first_step: bool, normalise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, images = Deep(), random_images(4, 3, 6, 6)
    expected, expected_gradients = _step(
        network, EquivarianceRegularizer(network, normalise=normalise), images, 0.0, monkeypatch
    )
    sampled = EquivarianceRegularizer(network, sample_fields=0.5, normalise=normalise)
    if not is_first_step:
        _step(network, sampled, images, 0.0, monkeypatch)
    ends = {0.0, 1.0}
    for order in range(4):  # each layer has its own choice of the position
        ends |= {(f * m / fields - GOLDEN * order) % 1 for fields in (2, 3, 4) for f in range(5) for m in range(5)}
    mean, mean_gradients = torch.zeros(()), [torch.zeros_like(gradient) for gradient in expected_gradients]
    num_values = set()
    for before, after in pairwise(sorted(ends)):
        regularizer = sampled
        if is_first_step:
            regularizer = EquivarianceRegularizer(network, sample_fields=0.5, normalise=normalise)
        value, gradients = _step(network, regularizer, images, (before + after) / 2, monkeypatch)
        num_values.add(round(value.item(), 9))
        mean = mean + (after - before) * value
        for total, gradient in zip(mean_gradients, gradients, strict=True):
            total += (after - before) * gradient
    assert len(num_values) > 4  # else nothing would have been drawn
    assert mean.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(mean_gradients, expected_gradients, rtol=1e-8, atol=1e-12)


def test_a_share_of_the_fields_of_tokens_and_windows_has_the_gradient_of_its_value() -> None:
    """The reference is the same share by finite differences of the value, along a random direction."""
    network, images = WindowAttentionNetwork(), random_images(2, 3, 8, 8)
    regularizer = EquivarianceRegularizer(network, sample_fields=0.5, pair_fraction=0.5, normalise="none")
    generator = torch.Generator().manual_seed(4)

    def value() -> Tensor:
        network(regularizer.pair(images, images, element=1, generator=generator.manual_seed(4)).inputs)
        return regularizer.penalty()

    value()  # the first forward
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(value(), parameters, allow_unused=True)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True) if g is not None)
    ends = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for parameter, along in zip(parameters, direction, strict=True):
                parameter += step * along
        ends.append(value().item())
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-5)


def test_whole_layers_are_compared_where_the_gradient_has_no_closed_form() -> None:
    comparing = ComparisonRule(group=C4, element=1, num_pairs=1, size="relative", scale_gradient=True, field_share=0.5)
    assert comparing.chosen_channels(16, "regular", 0.3) is None
    closed = ComparisonRule(group=C4, element=1, num_pairs=1, size="relative", scale_gradient=False, field_share=0.5)
    assert closed.chosen_channels(16, "trivial", 0.3) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_fields": 0.0}, "sample_fields: 0.0 must be a share above 0"),
        ({"sample_fields": 1.5}, "sample_fields: 1.5"),
        ({"sample_fields": 0.5, "penalty": "paper"}, "sample_fields: the norms of penalty 'paper' are no means"),
    ],
)
def test_a_share_that_is_none_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EquivarianceRegularizer(Deep(), **options)  # type: ignore[arg-type]
