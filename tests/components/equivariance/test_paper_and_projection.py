"""The penalties "paper" and "projection" of a network, written again by other means."""

import re

import pytest
import torch
from torch import Tensor, nn

from components.equivariance import EquivarianceRegularizer
from tests.components.equivariance.exact import (
    convolution,
    plain_network,
    projection_kernel,
    random_images,
    symmetric_kernel,
)
from tests.components.equivariance.exact_groups import C2, C4, D4
from tests.components.equivariance.small_networks import Layout, averaged_kernel, seeded

pytestmark = pytest.mark.unit

# ----------------------------------------------------------------------------------------------------------- paper


def released_loss(network: nn.Sequential, inputs: Tensor, num_pairs: int, element: int) -> Tensor:
    """``sum_l || f_l(x') - roll(rot(f_l(x))) ||_2``, each over the whole tensor, as the released code has it."""
    total, maps = inputs.new_zeros(()), inputs
    for name, module in network.named_children():
        maps = module(maps)
        if not isinstance(module, nn.Conv2d):
            continue
        expected = maps[:num_pairs]
        for _ in range(element):
            expected = expected.transpose(-2, -1).flip(-2)  # one quarter turn counter-clockwise
        if name != "4":  # hidden: t = 4 is the fast axis
            fields = expected.unflatten(1, (-1, 4))  # (P, C, H, W) -> (P, C / 4, 4, H, W)
            expected = torch.roll(fields, element, dims=2).flatten(1, 2)
        total = total + torch.norm(maps[num_pairs : 2 * num_pairs] - expected, p=2)
    return total


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("num_pairs", [1, 3])
@pytest.mark.parametrize("element", [1, 2, 3])
def test_paper_is_the_released_formula_in_value_and_gradient(element: int, num_pairs: int, dtype: torch.dtype) -> None:
    network, images = plain_network().to(dtype), random_images(4, 3, 6, 6, dtype=dtype)
    regularizer = EquivarianceRegularizer(network, penalty="paper")
    for _ in range(2):
        batch = regularizer.pair(images, images, element=element, num_pairs=num_pairs)
        network(batch.inputs)
        value, expected = regularizer.penalty(), released_loss(network, batch.inputs, num_pairs, element)
        assert value.item() == pytest.approx(expected.item(), rel=1e-12 if dtype == torch.float64 else 1e-5)
        found, wanted = (torch.autograd.grad(v, list(network.parameters())) for v in (value, expected))
        for gradient, reference in zip(found, wanted, strict=True):
            rtol, atol = (1e-10, 1e-12) if dtype == torch.float64 else (1e-4, 1e-5)
            torch.testing.assert_close(gradient, reference, rtol=rtol, atol=atol)


def test_paper_with_layer_weights_keeps_a_mean_weight_of_one() -> None:
    network, images = plain_network(), random_images(4, 3, 6, 6)
    regularizer = EquivarianceRegularizer(network, penalty="paper", layer_weights={"0": 1.0, "*": 2.5})
    network(regularizer.pair(images, images, element=1).inputs)
    value = regularizer.penalty().item()
    first, second, third = regularizer.layer_penalties().values()
    assert value == pytest.approx(3 * (first + 2.5 * second + 2.5 * third) / 6, rel=1e-12)


def test_paper_at_exactly_zero_has_a_gradient_of_zero_and_not_nan() -> None:
    network = nn.Sequential(*(nn.Conv2d(4, 4, 1, bias=False) for _ in range(2)))
    for parameter in network.parameters():
        parameter.data.zero_()
    images = random_images(4, 4, 6, 6, dtype=torch.float32)
    regularizer = EquivarianceRegularizer(network, penalty="paper")
    network(regularizer.pair(images, images, element=1).inputs)
    value = regularizer.penalty()
    value.backward()
    assert value.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in network.parameters())


# ------------------------------------------------------------------------------------------------------ projection


class EveryKind(nn.Module):
    """One layer of each kind: lifting, group, in two groups, depthwise, linear, transposed, last."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(4):
            self.head = nn.Conv2d(3, 8, 3, padding=1)
            self.body = nn.Conv2d(8, 8, 3, padding=1)
            self.halves = nn.Conv2d(8, 16, 3, padding=1, groups=2)
            self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
            self.linear = nn.Linear(16, 8)
            self.up = nn.ConvTranspose2d(8, 4, 3, 2, padding=1)
            self.tail = nn.Conv2d(4, 3, 3, padding=1)
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.tanh(self.depthwise(self.halves(torch.tanh(self.body(self.head(images))))))
        tokens = self.linear(maps.permute(0, 2, 3, 1))  # (B, C, H, W) -> (B, H, W, C)
        return self.tail(torch.tanh(self.up(tokens.permute(0, 3, 1, 2))))  # (B, H, W, C) -> (B, C, H, W)


FIELDS: dict[str, tuple[Layout, Layout]] = {
    "head": ("trivial", "regular"),
    "body": ("regular", "regular"),
    "halves": ("regular", "regular"),
    "depthwise": ("regular", "regular"),
    "linear": ("regular", "regular"),
    "up": ("regular", "regular"),
    "tail": ("regular", "trivial"),
}


def dense_kernel(module: nn.Module) -> Tensor:
    """The kernel ``(O, I, a, b)`` with zeros between the groups of channels."""
    weight = module.weight.detach()
    if isinstance(module, nn.Linear):
        return weight[:, :, None, None]
    if isinstance(module, nn.ConvTranspose2d):
        return weight.transpose(0, 1)
    dense = weight.new_zeros(module.out_channels, module.in_channels, *weight.shape[2:])
    outputs, inputs = module.out_channels // module.groups, module.in_channels // module.groups
    for o in range(module.out_channels):
        first = o // outputs * inputs
        dense[o, first : first + inputs] = weight[o]
    return dense


def sparse_kernel(dense: Tensor, module: nn.Module) -> Tensor:
    """What of a dense kernel the module's weight holds, in its own shape."""
    if isinstance(module, nn.Linear):
        return dense[:, :, 0, 0]
    if isinstance(module, nn.ConvTranspose2d):
        return dense.transpose(0, 1)
    outputs, inputs = module.out_channels // module.groups, module.in_channels // module.groups
    starts = [o // outputs * inputs for o in range(module.out_channels)]
    return torch.stack([dense[o, first : first + inputs] for o, first in enumerate(starts)])


@pytest.mark.parametrize("pairing", ["none", "replace"])
@pytest.mark.parametrize("scale_gradient", [False, True])
def test_projection_is_the_distance_to_the_averaged_kernel_in_value_and_gradient(
    scale_gradient: bool, pairing: str
) -> None:
    network, images = EveryKind(), random_images(4, 3, 6, 6)
    regularizer = EquivarianceRegularizer(network, penalty="projection", pairing=pairing, scale_gradient=scale_gradient)
    for _ in range(2):
        batch = regularizer.pair(images, images)
        if pairing == "none":
            assert torch.equal(batch.inputs, images)
        network(batch.inputs)
        value = regularizer.penalty()
        expected, gradients = {}, {}
        for name, (field_in, field_out) in FIELDS.items():
            module = network.get_submodule(name)
            kernel = dense_kernel(module)
            residual = kernel - averaged_kernel(kernel, field_in, field_out)
            square, scale = residual.square().sum(), kernel.square().sum()
            expected[name] = (square / scale).item()
            # P is an orthogonal projection, so the gradient of |W - P W|^2 is 2 (W - P W)
            gradient = 2 * residual / scale
            if scale_gradient:
                gradient = gradient - 2 * kernel * square / scale**2
            gradients[name] = sparse_kernel(gradient, module) / len(FIELDS)
        assert regularizer.skipped == {}
        assert regularizer.layer_penalties() == pytest.approx(expected, rel=1e-9)
        assert value.item() == pytest.approx(sum(expected.values()) / len(expected), rel=1e-9)
        network.zero_grad()
        value.backward()
        for name, parameter in network.named_parameters():
            layer, kind = name.rsplit(".", 1)
            if kind == "weight":
                torch.testing.assert_close(parameter.grad, gradients[layer], rtol=1e-9, atol=1e-12)
            else:
                assert parameter.grad is None or not parameter.grad.any()


@pytest.mark.parametrize("oracle", [C2, C4, D4], ids=["C2", "C4", "D4"])
def test_projection_of_exact_networks_is_zero_and_of_random_ones_one_minus_one_over_t(oracle: object) -> None:
    name = {C2: "C2", C4: "C4", D4: "D4"}[oracle]  # type: ignore[index]
    images = random_images(2, 3, 6, 6)
    for network, expected in ((oracle.exact_network(), 0.0), (plain_network(32), 1 - 1 / oracle.order)):  # type: ignore[attr-defined]
        regularizer = EquivarianceRegularizer(network, penalty="projection", group=name, pairing="none")
        network(regularizer.pair(images, images).inputs)
        regularizer.penalty()
        assert regularizer.layer_penalties()["2"] == pytest.approx(expected, abs=0.03 if expected else 1e-24)


def _skipped(layer: nn.Module, channels: int, width: int) -> dict[str, str]:
    network = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), layer, nn.Conv2d(width, 3, 3, padding=1))
    regularizer = EquivarianceRegularizer(network, penalty="projection", pairing="none")
    images = random_images(2, 3, 6, 6, dtype=torch.float32)
    for _ in range(2):
        network(regularizer.pair(images, images).inputs)
        regularizer.penalty()
    return regularizer.skipped


@pytest.mark.parametrize(
    ("layer", "channels", "width", "reason"),
    [
        (nn.Conv2d(8, 8, 3, padding=1, groups=4), 8, 8, "4 groups of channels cut through regular fields"),
        (nn.Conv2d(16, 8, 3, padding=1, groups=4), 16, 8, "4 groups of channels cut through regular fields"),
        (nn.Conv2d(4, 8, 3, padding=1, groups=4), 4, 8, "4 groups of channels cut through regular fields"),
        (nn.ConvTranspose2d(8, 8, 3, padding=1, groups=8), 8, 8, "a transposed convolution with 8 groups"),
        (nn.Conv2d(8, 8, (1, 3), padding=(0, 1)), 8, 8, r"kernel_size (1, 3) is not square"),
        (nn.Conv2d(8, 6, 3, padding=1), 8, 6, "6 output channels do not divide by 4"),
    ],
)
def test_kernels_that_no_average_over_the_group_fits_are_named(
    layer: nn.Module, channels: int, width: int, reason: str
) -> None:
    assert reason in _skipped(layer, channels, width)["1"]


def test_a_depthwise_kernel_of_the_image_is_no_lifting_one() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 4, 3, padding=1))
    images = random_images(2, 4, 6, 6, dtype=torch.float32)
    regularizer = EquivarianceRegularizer(network, penalty="projection", pairing="none")
    network(regularizer.pair(images, images).inputs)
    regularizer.penalty()
    assert list(regularizer.layer_penalties()) == ["1"]
    assert "cut through regular fields" in regularizer.skipped["0"]


def test_a_convolution_that_lifts_each_image_channel_by_itself_can_be_exact() -> None:
    lifting = nn.Conv2d(3, 12, 3, padding=1, groups=3, bias=False).double()
    base = random_images(3, 3, 3)
    lifting.weight.data.copy_(torch.stack([torch.rot90(w, k) for w in base for k in range(4)])[:, None])  # (12, 1, ..)
    network = nn.Sequential(lifting, convolution(projection_kernel(3, 3)))
    images = random_images(2, 3, 6, 6)
    for penalty in ("projection", "regular"):
        regularizer = EquivarianceRegularizer(network, penalty=penalty, pair_fraction=0.5)
        network(regularizer.pair(images, images, element=1).inputs)
        regularizer.penalty()
        assert list(regularizer.layer_penalties()) == ["0", "1"]
        assert max(regularizer.layer_penalties().values()) < 1e-24


def test_projection_is_off_the_grid_named_and_refused() -> None:
    with pytest.raises(ValueError, match=r"none can be penalised.*kernels cannot be turned exactly by C8"):
        EquivarianceRegularizer(plain_network(), penalty="projection", group="C8")


@pytest.mark.parametrize("penalty", ["rotation", "channel", "rotation+channel", "regular", "paper"])
def test_only_the_projection_can_do_without_pairs(penalty: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"leaves nothing to compare under penalty {penalty!r}")):
        EquivarianceRegularizer(plain_network(), penalty=penalty, pairing="none")  # type: ignore[arg-type]


def test_where_trivial_fields_alone_are_declared_the_inputs_of_kernels_are_trivial_too() -> None:
    images = random_images(2, 3, 6, 6)
    symmetric = nn.Sequential(*(convolution(symmetric_kernel(o, i)) for o, i in ((8, 3), (8, 8), (3, 8))))
    for network, are_exact in ((symmetric, True), (plain_network(), False)):
        regularizer = EquivarianceRegularizer(network, penalty="projection", layers={"*": "trivial"}, pairing="none")
        for _ in range(2):
            network(regularizer.pair(images, images).inputs)
            regularizer.penalty()
            for name, value in regularizer.layer_penalties().items():
                kernel = network.get_submodule(name).weight.detach()
                residual = kernel - averaged_kernel(kernel, "trivial", "trivial")
                expected = (residual.square().sum() / kernel.square().sum()).item()
                assert value == pytest.approx(expected, rel=1e-9, abs=1e-28)
                assert (value < 1e-24) is are_exact
