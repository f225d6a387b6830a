"""Which layers are penalised, in which field, and why others are not."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from components.equivariance import EquivarianceRegularizer
from tests.components.equivariance.exact import loop_regular, loop_rotate, loop_size, plain_network, random_images

pytestmark = pytest.mark.unit


def _step(network: nn.Module, images: Tensor, element: int = 1, **options: object) -> EquivarianceRegularizer:
    """A regulariser of the network after one step."""
    regularizer = EquivarianceRegularizer(network, **options)  # type: ignore[arg-type]
    network(regularizer.pair(images, images, element=element).inputs)
    regularizer.penalty()
    return regularizer


def _size_of(output: Tensor, field: str, element: int = 1) -> float:
    """The size of the residual of the first image and its copy, the second."""
    act = loop_regular if field == "regular" else loop_rotate
    return loop_size(output[1:2], act(output[:1], element))


class Backwards(nn.Module):
    """Registered in another order than executed; the last layer's channels divide by 4."""

    def __init__(self) -> None:
        super().__init__()
        self.tail = nn.Conv2d(8, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 8, 3, padding=1)
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        return self.tail(self.head(images))


@pytest.mark.parametrize("num_steps", [1, 2])
def test_the_last_layer_is_the_last_executed_whatever_its_channels_and_its_place(num_steps: int) -> None:
    network, images = Backwards(), random_images(4, 4, 6, 6)
    regularizer = EquivarianceRegularizer(network)
    for _ in range(num_steps):
        batch = regularizer.pair(images, images, element=1)
        output = network(batch.inputs)
        regularizer.penalty()
    penalties = regularizer.layer_penalties()
    assert list(penalties) == ["head", "tail"]
    assert penalties["head"] == pytest.approx(_size_of(network.head(batch.inputs), "regular"))
    assert penalties["tail"] == pytest.approx(_size_of(output, "trivial"))


@pytest.mark.parametrize("selection", [["head"], {"head": "regular"}])
def test_a_layer_chosen_by_name_is_regular_though_it_is_the_last_of_the_chosen(selection: object) -> None:
    network, images = Backwards(), random_images(4, 4, 6, 6)
    regularizer = _step(network, images, layers=selection)
    batch = regularizer.pair(images, images, element=1)
    assert regularizer.layer_penalties() == {"head": pytest.approx(_size_of(network.head(batch.inputs), "regular"))}


def test_a_mapping_gives_the_field_of_each_layer() -> None:
    network, images = Backwards(), random_images(4, 4, 6, 6)
    regularizer = _step(network, images, layers={"h*": "trivial", "tail": "regular"})
    batch = regularizer.pair(images, images, element=1)
    penalties = regularizer.layer_penalties()
    assert penalties["head"] == pytest.approx(_size_of(network.head(batch.inputs), "trivial"))
    assert penalties["tail"] == pytest.approx(_size_of(network(batch.inputs), "regular"))


def _sequence(*channels: int) -> nn.Sequential:
    """Convolutions with these numbers of channels, of kernel 3."""
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(channels)]
    return nn.Sequential(*layers).double()


def test_channels_that_do_not_divide_are_named_and_only_in_hidden_layers() -> None:
    regularizer = _step(_sequence(3, 6, 8, 3), random_images(4, 3, 6, 6))
    assert list(regularizer.layer_penalties()) == ["1", "2"]
    assert list(regularizer.skipped) == ["0"]
    assert "6 output channels do not divide by 4" in regularizer.skipped["0"]


def test_channels_need_not_divide_under_rotation_nor_in_a_declared_trivial_field() -> None:
    images = random_images(4, 3, 6, 6)
    for options in ({"penalty": "rotation"}, {"layers": {"*": "trivial"}}):
        regularizer = _step(_sequence(3, 6, 8, 3), images, **options)
        assert list(regularizer.layer_penalties()) == ["0", "1", "2"]
        assert regularizer.skipped == {}


def test_the_channel_penalty_names_layers_whose_input_or_output_does_not_divide() -> None:
    regularizer = _step(_sequence(3, 8, 8, 6, 8, 8, 3), random_images(4, 3, 6, 6), penalty="channel")
    assert list(regularizer.layer_penalties()) == ["1", "4"]
    assert list(regularizer.skipped) == ["0", "2", "3", "5"]
    assert "8 input and 6 output channels must divide by 4" in regularizer.skipped["2"]


def test_shifting_all_channels_needs_as_many_at_the_input_as_at_the_output() -> None:
    network, images = _sequence(3, 6, 6, 8, 3), random_images(4, 3, 6, 6)
    regularizer = _step(network, images, penalty="channel", channel_group="all")
    assert list(regularizer.layer_penalties()) == ["1"]
    assert "must be the same number above 1" in regularizer.skipped["2"]


def test_rotation_and_channel_names_what_only_one_of_them_penalises() -> None:
    network, images = _sequence(3, 8, 8, 3), random_images(4, 3, 6, 6)
    regularizer = _step(network, images, penalty="rotation+channel")
    assert list(regularizer.layer_penalties()) == ["0", "1", "2"]
    assert list(regularizer.skipped) == ["0", "2"]
    assert all(reason.startswith("channel shift") for reason in regularizer.skipped.values())


def test_a_declared_trivial_field_is_not_shifted_and_a_declared_regular_one_is() -> None:
    network, images = _sequence(4, 8, 8, 4), random_images(4, 4, 6, 6)
    regularizer = _step(network, images, penalty="channel", layers={"0": "regular", "1": "trivial"})
    assert list(regularizer.layer_penalties()) == ["0"]
    assert "declared a trivial field" in regularizer.skipped["1"]


@pytest.mark.parametrize("penalty", ["rotation", "regular"])
def test_stride_parity_is_checked_at_the_size_that_arrives(penalty: str) -> None:
    down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), down, nn.Conv2d(8, 3, 3, padding=1)).double()
    regularizer = _step(network, random_images(4, 3, 8, 8), penalty=penalty)
    assert list(regularizer.layer_penalties()) == ["0", "2"]
    assert "mod stride = 1 at input size (8, 8)" in regularizer.skipped["1"]
    images = random_images(4, 3, 9, 9)
    network(regularizer.pair(images, images).inputs)
    regularizer.penalty()
    assert list(regularizer.layer_penalties()) == ["0", "1", "2"]
    assert regularizer.skipped == {}


def test_stride_parity_does_not_matter_to_the_channel_penalty() -> None:
    down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), down, nn.Conv2d(8, 3, 3)).double()
    assert list(_step(network, random_images(4, 3, 9, 9), penalty="channel").layer_penalties()) == ["1"]
    both = _step(network, random_images(4, 3, 10, 10), penalty="rotation+channel")
    assert list(both.layer_penalties()) == ["0", "1", "2"]
    assert "mod stride" in both.skipped["1"]


def test_a_transposed_convolution_with_output_padding_is_named() -> None:
    def network(output_padding: int) -> nn.Sequential:
        up = nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=output_padding)
        return nn.Sequential(nn.Conv2d(3, 8, 3), up, nn.Conv2d(8, 3, 3)).double()

    images = random_images(4, 3, 8, 8)
    assert _step(network(0), images).skipped == {}
    assert "output padding 1" in _step(network(1), images).skipped["1"]


def test_arguments_of_a_call_reach_the_shifted_call_too() -> None:
    class Upsampling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(3, 8, 3, padding=1)
            self.up = nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1)
            self.tail = nn.Conv2d(8, 3, 3, padding=1)
            self.double()

        def forward(self, images: Tensor) -> Tensor:
            height, width = images.shape[-2:]
            return self.tail(self.up(input=self.head(images), output_size=(2 * height, 2 * width)))

    network, images = Upsampling(), random_images(4, 3, 6, 6)
    shift, regularizer = 1, EquivarianceRegularizer(network, penalty="channel")
    network(regularizer.pair(images, images, element=1, shift=shift).inputs)
    regularizer.penalty()
    hidden, order = network.head(images[:1]), [3, 0, 1, 2, 7, 4, 5, 6]
    plain, shifted = (network.up(h, output_size=(12, 12)) for h in (hidden, hidden[:, order]))
    assert regularizer.layer_penalties() == {"up": pytest.approx(loop_size(shifted, plain[:, order]))}


def test_which_layer_reads_the_image_is_seen_by_execution_not_by_registration() -> None:
    class BodyFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(8, 8, 3)
            self.head = nn.Conv2d(4, 8, 3)
            self.tail = nn.Conv2d(8, 3, 3)
            self.double()

        def forward(self, images: Tensor) -> Tensor:
            return self.tail(self.body(self.head(images)))

    for layers in ("auto", ["body"]):
        regularizer = _step(BodyFirst(), random_images(4, 4, 9, 9), penalty="channel", layers=layers)
        assert list(regularizer.layer_penalties()) == ["body"]


def test_windows_that_are_not_square_are_named() -> None:
    flat = nn.Conv2d(8, 8, (1, 3), padding=(0, 1))
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), flat, nn.Conv2d(8, 3, 3, padding=1)).double()
    assert "kernel_size (1, 3) is not square" in _step(network, random_images(4, 3, 6, 6)).skipped["1"]


def test_a_layer_whose_batch_axis_holds_something_else_is_named() -> None:
    class Framewise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frames = nn.Conv2d(1, 4, 3, padding=1)
            self.tail = nn.Conv2d(12, 3, 3, padding=1)
            self.double()

        def forward(self, images: Tensor) -> Tensor:
            frames = images.flatten(0, 1)[:, None]  # (B, 3, H, W) -> (3B, 1, H, W)
            return self.tail(self.frames(frames).unflatten(0, (-1, 3)).flatten(1, 2))  # -> (B, 12, H, W)

    regularizer = _step(Framewise(), random_images(4, 3, 6, 6))
    assert list(regularizer.layer_penalties()) == ["tail"]
    assert "12 entries on the batch axis, the paired batch 4 images" in regularizer.skipped["frames"]


def test_a_lone_convolution_is_the_layer_named_network() -> None:
    regularizer = _step(nn.Conv2d(3, 3, 3).double(), random_images(4, 3, 6, 6))
    assert list(regularizer.layer_penalties()) == ["network"]


def test_a_step_without_any_layer_to_penalise_says_why() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1)).double()
    with pytest.raises(ValueError, match=r"none could be penalised \(0: .*mod stride = 1"):
        _step(network, random_images(4, 3, 8, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "body"}, r"layers: 'body' is neither 'auto' nor a list.*use \['body'\]"),
        ({"layers": ["0", "7"]}, r"layers: '7' fits no convolution.*there are 0, 2, 4"),
        ({"layers": {"0": "regualr"}}, r"layers\['0'\]: 'regualr'.*did you mean 'regular'"),
        ({"layers": ["0"], "penalty": "channel"}, r"none can be penalised.*3 input and 8 output"),
    ],
)
def test_a_selection_that_cannot_be_is_refused_before_training(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EquivarianceRegularizer(plain_network(), **options)  # type: ignore[arg-type]


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="the network has none"):
        EquivarianceRegularizer(nn.ReLU())


class _TwoOutputs(nn.Conv2d):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        output = super().forward(images)
        return output, output.mean()


class _WithTwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.two, self.last = nn.Conv2d(3, 8, 3, padding=1), _TwoOutputs(8, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.last(self.two(self.first(images))[0])
        return output


def test_a_layer_that_was_not_asked_for_may_give_whatever_it_likes() -> None:
    network = _WithTwoOutputs()
    regularizer = EquivarianceRegularizer(network, layers={"first": "regular"})
    images = torch.rand(4, 3, 6, 6)
    for _ in range(2):
        network(regularizer.pair(images, images).inputs)
        assert regularizer.penalty() > 0


def test_layer_weights_are_those_of_the_beginning() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1))
    weights = {"0": 1.0, "1": 0.0}
    regularizer = EquivarianceRegularizer(network, layer_weights=weights)
    weights.update({"0": 0.0, "1": 1.0})
    images = torch.rand(4, 3, 6, 6)
    network(regularizer.pair(images, images).inputs)
    assert regularizer.penalty().item() == pytest.approx(regularizer.layer_penalties()["0"])
