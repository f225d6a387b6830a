"""Faults of the released code, by their numbers in docs/explanation/method.md, that must not come back.

Fault 13 (the best checkpoint chosen on the test set) is the pipeline's: what is chosen there, a trial, a weight or a
champion, is chosen by validation images alone (test_tune.py and test_register.py in tests/pipeline/stages,
tests/benchmarks/test_does_it_help.py).
"""

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from components.equivariance import EquivarianceRegularizer, PenaltyWeight, equivariance_error
from tests.components.equivariance.exact import loop_rotate, loop_size, plain_network, random_images
from tests.components.equivariance.small_networks import (
    AuxiliaryInputNetwork,
    StridedNetwork,
    SubPixelNetwork,
    WindowAttentionNetwork,
)

pytestmark = pytest.mark.unit

PENALTIES = ["rotation", "channel", "rotation+channel", "regular"]
every_penalty = pytest.mark.parametrize("penalty", PENALTIES)


class UpperHalfLouder(nn.Module):
    """Spoils the symmetry of an image, alike at any size."""

    def forward(self, images: Tensor) -> Tensor:
        upper, lower = images.chunk(2, dim=2)
        return torch.cat((3 * upper, lower), dim=2)


def _pointwise(weight: Tensor, num_layers: int = 1) -> nn.Sequential:
    """Equal 1 x 1 convolutions, "1" .. "n", between two that stand for the image layers."""
    sides = [nn.Conv2d(len(weight), len(weight), 1, bias=False, dtype=torch.float64) for _ in range(2)]
    for side in sides:
        side.weight.data.copy_(torch.eye(len(weight))[:, :, None, None])
    layers = []
    for _ in range(num_layers):
        layers.append(nn.Conv2d(len(weight), len(weight), 1, bias=False, dtype=torch.float64))
        layers[-1].weight.data.copy_(weight)
    return nn.Sequential(nn.Sequential(UpperHalfLouder(), sides[0]), *layers, sides[1])


def _penalty(network: nn.Module, images: Tensor, num_pairs: int, penalty: str, **options: object) -> float:
    regularizer = EquivarianceRegularizer(network, penalty=penalty, **options)  # type: ignore[arg-type]
    network(regularizer.pair(images, images, element=1, shift=1, num_pairs=num_pairs).inputs)
    return regularizer.penalty().item()


@every_penalty
def test_fault_1_lambda_does_not_scale_with_batch_channels_height_or_width(penalty: str) -> None:
    weight, images = random_images(4, 4, 1, 1), random_images(2, 4, 6, 6)
    twice_the_channels = torch.block_diag(weight[:, :, 0, 0], weight[:, :, 0, 0])[:, :, None, None]
    reference = _penalty(_pointwise(weight), images, 2, penalty)
    larger = {
        "batch": _penalty(_pointwise(weight), images.repeat(3, 1, 1, 1), 6, penalty),
        "singles": _penalty(_pointwise(weight), torch.cat((images, 9 * images)), 2, penalty),
        "size": _penalty(_pointwise(weight), images.repeat_interleave(2, 2).repeat_interleave(2, 3), 2, penalty),
        "channels": _penalty(_pointwise(twice_the_channels), images.repeat(1, 2, 1, 1), 2, penalty),
    }
    assert reference > 0.1
    assert larger == pytest.approx(dict.fromkeys(larger, reference), rel=1e-9)


@every_penalty
def test_fault_1_lambda_does_not_scale_with_the_number_of_layers(penalty: str) -> None:
    weight = torch.eye(4, dtype=torch.float64)[[1, 0, 2, 3]][:, :, None, None]  # the same maps, exchanged
    images = random_images(2, 4, 6, 6)
    middle = ["1"], ["1", "3", "5", "7", "9"]  # alike: an even number of exchanges lies between them
    few = _penalty(_pointwise(weight, 9), images, 2, penalty, layers=middle[0])
    many = _penalty(_pointwise(weight, 9), images, 2, penalty, layers=middle[1])
    assert few > 0.1
    assert many == pytest.approx(few, rel=1e-9)


@every_penalty
def test_fault_1_lambda_does_not_scale_with_the_features(penalty: str) -> None:
    weight, images = random_images(4, 4, 1, 1), random_images(2, 4, 6, 6)
    reference = _penalty(_pointwise(weight), images, 2, penalty)
    assert _penalty(_pointwise(weight), 1000 * images, 2, penalty) == pytest.approx(reference, rel=1e-9)


WORKERS = 2


def _gradient_over_workers(network: nn.Module, images: Tensor, workers: int, penalty: str) -> list[Tensor]:
    """The mean of the workers' gradients, each with whole pairs of its own share of the images."""
    regularizer = EquivarianceRegularizer(network, penalty=penalty, pairing="append", pair_fraction=1.0)  # type: ignore[arg-type]
    network.zero_grad()
    for part in images.chunk(workers):
        network(regularizer.pair(part, part, element=1, shift=1).inputs)
        (regularizer.penalty() / workers).backward()
    return [p.grad for p in network.parameters() if p.grad is not None]


@every_penalty
def test_fault_1_lambda_does_not_scale_with_the_number_of_workers(penalty: str) -> None:
    network, images = plain_network(), random_images(4, 3, 6, 6)
    whole, parts = (_gradient_over_workers(network, images, n, penalty) for n in (1, WORKERS))
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


def test_fault_1_the_form_for_parity_has_it() -> None:
    """`paper` is the released formula: a fault that is kept on purpose, to compare with."""
    weight, images = random_images(4, 4, 1, 1), random_images(2, 4, 6, 6)
    reference = _penalty(_pointwise(weight), images, 2, "paper")
    batch = _penalty(_pointwise(weight), images.repeat(3, 1, 1, 1), 6, "paper")
    size = _penalty(_pointwise(weight), images.repeat_interleave(2, 2).repeat_interleave(2, 3), 2, "paper")
    assert batch == pytest.approx(3**0.5 * reference, rel=1e-9)
    assert size == pytest.approx(2 * reference, rel=1e-9)
    equal = torch.eye(4, dtype=torch.float64)[:, :, None, None]
    layers = [_penalty(_pointwise(equal, n), images, 2, "paper", layers=[str(i + 1) for i in range(n)]) for n in (1, 3)]
    assert layers[1] == pytest.approx(3 * layers[0], rel=1e-9)
    network, images = plain_network(), random_images(4, 3, 6, 6)
    norms = [sum(float(g.norm()) for g in _gradient_over_workers(network, images, n, "paper")) for n in (1, WORKERS)]
    assert abs(norms[1] / norms[0] - 1) > 0.1


def test_fault_2_the_released_weight_is_nearly_inert_and_a_weight_of_one_is_not() -> None:
    """Gradients at the parameters, relative to the task's: 1e-6 times `paper` against a weight in the task's unit."""
    network, images = plain_network(32).float(), random_images(8, 3, 24, 24, dtype=torch.float32).abs()
    ratios = {}
    for penalty, weight in (("paper", 1e-6), ("regular", 1.0)):
        regularizer = EquivarianceRegularizer(network, penalty=penalty, pair_fraction=0.5)  # type: ignore[arg-type]
        batch = regularizer.pair(images, images, element=1)
        task = (network(batch.inputs) - batch.targets).abs().mean()
        unit = 1.0 if penalty == "paper" else PenaltyWeight(1.0).at(0, task.item())
        parameters = list(network.parameters())
        own = torch.autograd.grad(weight * unit * regularizer.penalty(), parameters, retain_graph=True)
        from_task = torch.autograd.grad(task, parameters)
        norms = [torch.cat([gradient.flatten() for gradient in each]).norm() for each in (own, from_task)]
        ratios[penalty] = float(norms[0] / norms[1])
    assert ratios["paper"] < 1e-2
    assert 0.05 < ratios["regular"] < 20


def test_fault_3_every_penalty_sees_the_batches_of_the_control_byte_for_byte() -> None:
    images, targets = random_images(8, 3, 6, 9), random_images(8, 3, 12, 18, seed=1)
    batches = {}
    for penalty in ("regular", "rotation", "channel", "rotation+channel", "projection", "paper"):
        for sampled in (None, 1):
            regularizer = EquivarianceRegularizer(plain_network(), penalty=penalty, sample_layers=sampled)  # type: ignore[arg-type]
            generator = torch.Generator().manual_seed(11)
            drawn = [regularizer.pair(images, targets, generator=generator) for _ in range(6)]
            batches[penalty, sampled] = [(b.inputs, b.targets, b.element, b.num_pairs) for b in drawn]
    control = batches["regular", None]  # the arm `pairs` has weight 0 and draws like it
    assert len({element for _, _, element, _ in control}) == 3
    for drawn in batches.values():
        for batch, expected in zip(drawn, control, strict=True):
            assert torch.equal(batch[0], expected[0])
            assert torch.equal(batch[1], expected[1])
            assert batch[2:] == expected[2:]


@pytest.mark.parametrize("element", [1, 2, 3])
@pytest.mark.parametrize("variant", ["hidden", "tail", "head", "both"])
def test_fault_4_perfect_sub_pixel_layers_are_not_penalised(variant: str, element: int) -> None:
    network, images = SubPixelNetwork(variant).make_exact(), random_images(4, 3, 6, 6)  # type: ignore[arg-type]
    regularizer = EquivarianceRegularizer(network)
    output = network(regularizer.pair(images, images, element=element).inputs)
    assert torch.allclose(output[1], loop_rotate(output[0], element))
    assert regularizer.penalty() < 1e-22
    assert regularizer.skipped == {}


@pytest.mark.parametrize("element", [1, 2, 3])
def test_fault_5_perfect_layers_on_shifted_windows_are_not_penalised(element: int) -> None:
    network, images = WindowAttentionNetwork().make_exact(), random_images(4, 3, 8, 8)
    regularizer = EquivarianceRegularizer(network)
    output = network(regularizer.pair(images, images, element=element).inputs)
    assert torch.allclose(output[1], loop_rotate(output[0], element))
    assert regularizer.penalty() < 1e-22
    assert regularizer.skipped == {}


def test_fault_6_a_perfect_strided_layer_is_named_and_not_penalised_where_its_grid_is_not_symmetric() -> None:
    network = StridedNetwork().make_exact()
    regularizer = EquivarianceRegularizer(network)
    for side in (8, 9):
        images = random_images(4, 3, side, side)
        network(regularizer.pair(images, images, element=1).inputs)
        regularizer.penalty()
        assert ("mod stride" in regularizer.skipped.get("down", "")) is (side == 8)
        assert ("down" in regularizer.layer_penalties()) is (side == 9)
        assert regularizer.layer_penalties().get("down", 0.0) < 1e-22


@every_penalty
def test_fault_7_the_network_can_be_copied_at_any_time_and_the_copy_feeds_nobody(penalty: str) -> None:
    network, images = plain_network(), random_images(4, 3, 6, 6)
    regularizer = EquivarianceRegularizer(network, penalty=penalty)
    expected = _step_with_copies(regularizer, network, images, transformed=False)
    assert _step_with_copies(regularizer, network, images, transformed=True) == expected


def _step_with_copies(
    regularizer: EquivarianceRegularizer, network: nn.Module, images: Tensor, transformed: bool
) -> dict[str, float]:
    def copy_and_run() -> None:
        if transformed:
            twin = copy.deepcopy(network)
            assert torch.equal(twin(images), network.eval()(images))
            network.train()
            twin(images).sum().backward()

    copy_and_run()
    batch = regularizer.pair(images, images, element=1, shift=1)
    copy_and_run()
    output = network(batch.inputs)
    copy_and_run()
    value = regularizer.penalty()
    copy_and_run()
    (output.square().mean() + value).backward()
    copy_and_run()
    return regularizer.layer_penalties()


def test_fault_7_nothing_is_stored_on_the_network_and_a_copy_between_steps_has_no_hooks() -> None:
    network, images = plain_network(), random_images(4, 3, 6, 6)
    before = [set(vars(module)) for module in network.modules()]
    regularizer = EquivarianceRegularizer(network)
    network(regularizer.pair(images, images).inputs)
    assert [set(vars(module)) for module in network.modules()] == before
    regularizer.penalty().backward()
    assert [set(vars(module)) for module in network.modules()] == before
    assert not any(module._forward_hooks for module in copy.deepcopy(network).modules())
    torch.save(network, io.BytesIO())  # whole, though only the state is ever stored


class Checkpointed(nn.Module):
    """A network that recomputes its layers in the backward pass."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        for layer in (self.network[:2], self.network[2:4], self.network[4:]):
            images = checkpoint(layer, images, use_reentrant=False)
        return images


@every_penalty
@pytest.mark.parametrize("scale_gradient", [False, True])
def test_fault_7_activation_checkpointing_gives_the_same_gradient(penalty: str, scale_gradient: bool) -> None:
    images = random_images(4, 3, 6, 6)
    gradients = []
    for wrap in (lambda network: network, Checkpointed):
        inner = plain_network(in_place=True)
        network = wrap(inner)
        regularizer = EquivarianceRegularizer(network, penalty=penalty, scale_gradient=scale_gradient)
        batch = regularizer.pair(images, images, element=1, shift=1)
        loss = network(batch.inputs).square().mean() + regularizer.penalty()
        gradients.append(torch.autograd.grad(loss, list(inner.parameters())))
    assert all(torch.allclose(a, b, rtol=1e-12, atol=0) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("channels", [4, 8])
def test_fault_8_an_image_whose_channels_divide_by_four_is_no_regular_field(channels: int) -> None:
    network, images = plain_network(channels=channels), random_images(4, channels, 6, 6)  # RGB and an auxiliary one
    regularizer = EquivarianceRegularizer(network, penalty="channel")
    for _ in range(2):
        network(regularizer.pair(images, images).inputs)
        regularizer.penalty()
        assert list(regularizer.layer_penalties()) == ["2"]
        assert "image" in regularizer.skipped["0"]
        assert "image" in regularizer.skipped["4"]


def test_fault_9_a_part_of_the_batch_is_never_taken_for_pairs() -> None:
    network, images = plain_network(), random_images(8, 3, 6, 6)
    regularizer = EquivarianceRegularizer(network)
    batch = regularizer.pair(images, images)
    network(batch.inputs[:4])  # what DataParallel would hand to one of two replicas
    with pytest.raises(ValueError, match="4 entries on the batch axis, the paired batch 8 images"):
        regularizer.penalty()


def test_fault_9_replicas_do_not_feed_the_regulariser() -> None:
    network, images = plain_network(), random_images(4, 3, 6, 6)
    regularizer = EquivarianceRegularizer(network)
    batch = regularizer.pair(images, images)
    replica = network[0]._replicate_for_data_parallel()  # shares the hooks of the original
    replica.weight, replica.bias = network[0].weight, network[0].bias
    replica(batch.inputs)
    with pytest.raises(RuntimeError, match="DataParallel"):
        regularizer.penalty()


@pytest.mark.parametrize("channels", [1, 3, 4, 5, 8])
def test_fault_8_the_image_and_its_restoration_are_trivial_whatever_their_channels(channels: int) -> None:
    network, images = plain_network(channels=channels), random_images(4, channels, 6, 6)
    regularizer = EquivarianceRegularizer(network)
    for _ in range(2):
        batch = regularizer.pair(images, images, element=1)
        assert torch.equal(batch.inputs[1], loop_rotate(images[0], 1))  # turned, its channels not shifted
        assert torch.equal(batch.targets[1], loop_rotate(images[0], 1))
        output = network(batch.inputs)
        regularizer.penalty()
        expected = loop_size(output[1:2], loop_rotate(output[:1], 1))
        assert regularizer.layer_penalties()["4"] == pytest.approx(expected, rel=1e-9)


def test_fault_8_an_image_and_a_mask_are_no_regular_field_of_four() -> None:
    network = AuxiliaryInputNetwork().make_exact()
    image, mask = random_images(4, 3, 6, 6), (random_images(4, 1, 6, 6, seed=8) > 0).double()
    regularizer = EquivarianceRegularizer(network)
    network(**regularizer.pair({"image": image, "mask": mask}, image, element=3).inputs)
    assert regularizer.penalty() < 1e-24


@pytest.mark.parametrize("num_images", [3, 5, 7])
def test_fault_10_an_odd_batch_can_be_paired(num_images: int) -> None:
    network, images = plain_network(), random_images(num_images, 3, 7, 7)
    regularizer = EquivarianceRegularizer(network, pairing="append", pair_fraction=1.0)
    batch = regularizer.pair(images, images)
    assert len(network(batch.inputs)) == 2 * num_images
    assert 0 < regularizer.penalty() < 4


@pytest.mark.parametrize("non_square", ["crop", "pad"])
@pytest.mark.parametrize("size", [(6, 9), (9, 6), (5, 6)])
def test_fault_10_patches_that_are_not_square_can_be_paired(size: tuple[int, int], non_square: str) -> None:
    network, images = plain_network(), random_images(5, 3, *size)
    regularizer = EquivarianceRegularizer(
        network,
        pairing="append",
        pair_fraction=0.6,
        non_square=non_square,  # type: ignore[arg-type]
    )
    for element in (1, 2, 3, None):
        batch = regularizer.pair(images, images, element=element)
        network(batch.inputs)
        assert 0 < regularizer.penalty() < 4


def test_fault_11_no_step_is_wasted_on_no_turn() -> None:
    regularizer, images = EquivarianceRegularizer(plain_network()), random_images(4, 3, 1, 1)
    generator = torch.Generator().manual_seed(0)
    assert 0 not in [regularizer.pair(images, images, generator=generator).element for _ in range(300)]


def test_fault_12_equivariance_is_measured_without_any_training() -> None:
    errors = equivariance_error(plain_network().eval(), random_images(2, 3, 7, 9))
    assert all(0.1 < error < 2 for error in errors.values())


def test_fault_12_the_error_outside_training_is_the_root_of_the_penalty_in_training() -> None:
    network, images = plain_network(), random_images(1, 3, 6, 6)
    regularizer = EquivarianceRegularizer(network, pairing="append", pair_fraction=1.0)
    for element in (1, 2, 3):
        network(regularizer.pair(images, images, element=element).inputs)
        regularizer.penalty()
        errors = equivariance_error(network.eval(), images, element)
        network.train()
        assert {name: value**0.5 for name, value in regularizer.layer_penalties().items()} == pytest.approx(
            {name: error for name, error in errors.items() if name != "output"}, rel=1e-9
        )
