"""Mixed precision: the penalty is that of single precision within the format, and does not depend on the loss scale."""

import copy

import pytest
import torch
from torch import Tensor, nn

from components.equivariance import EquivarianceRegularizer
from tests.components.equivariance.exact import plain_network, random_images
from tests.components.equivariance.plain_autograd import gradients_of, mean_square_error, plain_step

pytestmark = pytest.mark.unit

WEIGHT = 0.7
FORMATS = {torch.bfloat16: (2e-2, 0.999), torch.float16: (3e-3, 0.99999)}
"""Format -> largest relative error of the value, least cosine of the gradients."""


def half_convolutions_run() -> bool:
    """Whether float16 convolutions run forwards and backwards here."""
    try:
        layer = nn.Conv2d(3, 4, 3, dtype=torch.float16)
        layer(torch.zeros(1, 3, 5, 5, dtype=torch.float16)).sum().backward()
    except RuntimeError:
        return False
    return True


def check_format(dtype: torch.dtype) -> None:
    if dtype == torch.float16 and not half_convolutions_run():
        pytest.skip("this processor has no convolution in float16")


def step(
    network: nn.Module, images: Tensor, dtype: torch.dtype, scale: float = 1.0, **options: object
) -> tuple[float, dict[str, Tensor]]:
    """The penalty and the unscaled gradients of the second step, with all of one step in ``torch.autocast``."""
    regularizer = EquivarianceRegularizer(network, **options)  # type: ignore[arg-type]
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        batch = regularizer.pair(images, 0.5 * images, element=1, num_pairs=2)
        with torch.autocast("cpu", dtype):
            output = network(batch.inputs)
            task = mean_square_error(output.float(), batch.targets)
            penalty = regularizer.penalty()
        scaler.scale(task + WEIGHT * penalty).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update(scale)
    assert penalty.dtype == torch.float32
    return penalty.item(), gradients_of(network)


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten().double() for gradient in gradients.values()])


@pytest.mark.parametrize("options", [{}, {"max_gradient_ratio": 0.1}, {"scale_gradient": True}], ids=str)
@pytest.mark.parametrize("dtype", FORMATS)
def test_value_and_gradients_under_autocast_are_those_of_single_precision(
    dtype: torch.dtype, options: dict[str, object]
) -> None:
    check_format(dtype)
    network, images = plain_network(in_place=True).float(), random_images(6, 3, 12, 12, dtype=torch.float32)
    single = copy.deepcopy(network)
    regularizer = EquivarianceRegularizer(single, **options)  # type: ignore[arg-type]
    batch = regularizer.pair(images, 0.5 * images, element=1, num_pairs=2)
    task = mean_square_error(single(batch.inputs), batch.targets)
    expected = regularizer.penalty()
    (task + WEIGHT * expected).backward()
    if not options:
        torch.testing.assert_close(plain_step(network, batch, WEIGHT)[0], expected.detach())
        torch.testing.assert_close(gradients_of(single), plain_step(network, batch, WEIGHT)[1], rtol=1e-4, atol=1e-6)
    penalty, gradients = step(network, images, dtype, **options)
    relative, cosine = FORMATS[dtype]
    assert penalty == pytest.approx(expected.item(), rel=relative)
    found, reference = flat(gradients), flat(gradients_of(single))
    assert torch.nn.functional.cosine_similarity(found, reference, dim=0) > cosine
    assert found.norm() / reference.norm() == pytest.approx(1, rel=2 * relative)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("max_gradient_ratio", [None, 0.1])
def test_unscaled_gradients_do_not_depend_on_the_loss_scale(
    dtype: torch.dtype, max_gradient_ratio: float | None
) -> None:
    check_format(dtype)
    found = []
    for scale in (1.0, 2.0**12):
        network, images = plain_network(in_place=True).float(), random_images(6, 3, 8, 8, dtype=torch.float32)
        penalty, gradients = step(network, images, dtype, scale, max_gradient_ratio=max_gradient_ratio)
        assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
        found.append((penalty, flat(gradients)))
    assert found[0][0] == found[1][0]
    assert torch.nn.functional.cosine_similarity(found[0][1], found[1][1], dim=0) > FORMATS[dtype][1]
    assert found[0][1].norm() / found[1][1].norm() == pytest.approx(1, rel=FORMATS[dtype][0])


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({}, 2.0**10),
        ({"scale_gradient": True}, 2.0**10),
        ({"normalise": "none"}, 2.0**-8),
    ],
    ids=str,
)
def test_large_features_in_half_precision_overflow_neither_value_nor_gradient(
    options: dict[str, object], scale: float
) -> None:
    """Features of 1e3: their squares are above float16 (65504), and 2 / (size of a map x 1e6) is below it."""
    check_format(torch.float16)
    network, images = plain_network().float(), random_images(6, 3, 24, 24, dtype=torch.float32)
    with torch.no_grad():
        network[0].weight *= 1500
        network[0].bias *= 1500
        assert 1e3 < network[0](images).abs().max() < 1e4
    found = []
    for dtype in (torch.float32, torch.float16):
        network.zero_grad()
        regularizer = EquivarianceRegularizer(network, layers=["0", "2"], **options)  # type: ignore[arg-type]
        for _ in range(2):
            batch = regularizer.pair(images, images, element=1, num_pairs=2)
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                network(batch.inputs)
                penalty = regularizer.penalty()
        (scale * penalty).backward()
        found.append((penalty.item(), gradients_of(network)))
    (expected, references), (value, gradients) = found
    assert value == pytest.approx(expected, rel=5e-3)
    assert set(gradients) == set(references) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    for name, reference in references.items():
        assert torch.isfinite(gradients[name]).all(), name
        cosine = torch.nn.functional.cosine_similarity(gradients[name].flatten(), reference.flatten(), dim=0)
        assert cosine > 0.999, name
        assert gradients[name].norm() / reference.norm() == pytest.approx(1, rel=0.02), name
