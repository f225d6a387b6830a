"""Batches with pairs: their order, their bytes, what is drawn, what comes of it, and what is refused."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from components.equivariance import EquivarianceRegularizer
from tests.components.equivariance.exact import loop_regular, loop_rotate, loop_size, plain_network, random_images

pytestmark = pytest.mark.unit


def _regularizer(**options: object) -> EquivarianceRegularizer:
    return EquivarianceRegularizer(plain_network(), **options)  # type: ignore[arg-type]


def _batch(num_images: int, height: int = 6, width: int = 6) -> tuple[Tensor, Tensor]:
    return random_images(num_images, 3, height, width), random_images(num_images, 3, height, width, seed=11)


@pytest.mark.parametrize("element", [1, 2, 3])
def test_replace_gives_up_the_second_k_images_for_copies_of_the_first(element: int) -> None:
    inputs, targets = _batch(8)
    batch = _regularizer(pairing="replace", pair_fraction=0.25).pair(inputs, targets, element=element)
    for paired, images in ((batch.inputs, inputs), (batch.targets, targets)):
        assert torch.equal(paired, torch.cat((images[:2], loop_rotate(images[:2], element), images[4:])))
    assert (batch.element, batch.num_pairs, batch.transformed) == (element, 2, slice(2, 4))


@pytest.mark.parametrize("element", [1, 2, 3])
def test_append_keeps_every_image(element: int) -> None:
    inputs, targets = _batch(5)
    batch = _regularizer(pairing="append", pair_fraction=0.4).pair(inputs, targets, element=element)
    for paired, images in ((batch.inputs, inputs), (batch.targets, targets)):
        assert torch.equal(paired, torch.cat((images[:2], loop_rotate(images[:2], element), images[2:])))


@pytest.mark.parametrize("element", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("pairing", "pair_fraction"), [("replace", 1 / 3), ("replace", 0.5), ("append", 1.0)])
def test_a_batch_keeps_its_memory_format(
    pairing: str, pair_fraction: float, memory_format: torch.memory_format, element: int
) -> None:
    images = random_images(6, 3, 6, 6).to(memory_format=memory_format)
    batch = _regularizer(pairing=pairing, pair_fraction=pair_fraction).pair(images, images, element=element)
    assert batch.inputs.is_contiguous(memory_format=memory_format)
    assert batch.targets.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("pairing", ["replace", "append"])
def test_an_explicit_number_of_pairs_keeps_every_image(pairing: str) -> None:
    inputs, targets = _batch(5)
    batch = _regularizer(pairing=pairing, pair_fraction=0.25).pair(inputs, targets, element=3, num_pairs=2)
    for paired, images in ((batch.inputs, inputs), (batch.targets, targets)):
        assert torch.equal(paired, torch.cat((images[:2], loop_rotate(images[:2], 3), images[2:])))
    assert torch.equal(batch.inputs[batch.transformed], loop_rotate(inputs[:2], 3))


def test_half_of_a_replaced_and_all_of_an_appended_batch_can_be_copies() -> None:
    inputs, targets = _batch(4)
    replaced = _regularizer(pairing="replace", pair_fraction=0.5).pair(inputs, targets, element=1)
    appended = _regularizer(pairing="append", pair_fraction=1.0).pair(inputs, targets, element=1)
    assert torch.equal(replaced.inputs, torch.cat((inputs[:2], loop_rotate(inputs[:2], 1))))
    assert torch.equal(appended.inputs, torch.cat((inputs, loop_rotate(inputs, 1))))


def test_targets_are_turned_at_their_own_size() -> None:
    inputs, targets = random_images(4, 3, 6, 6), random_images(4, 1, 12, 12)
    batch = _regularizer().pair(inputs, targets, element=1)
    assert torch.equal(batch.targets[batch.transformed], loop_rotate(targets[:1], 1))


def test_turns_and_shift_come_from_the_generator_and_every_penalty_draws_alike() -> None:
    inputs, targets = _batch(4)
    draws = []
    for penalty in ("rotation", "channel", "rotation+channel", "regular"):
        regularizer, generator = _regularizer(penalty=penalty), torch.Generator().manual_seed(3)
        batches = [regularizer.pair(inputs, targets, generator=generator) for _ in range(20)]
        draws.append([(batch.element, batch.shift) for batch in batches])
    assert draws.count(draws[0]) == 4


def test_every_turn_and_shift_but_none_at_all_is_drawn_alike_often() -> None:
    inputs, targets = _batch(4, 1, 1)
    regularizer, generator = _regularizer(), torch.Generator().manual_seed(0)
    batches = [regularizer.pair(inputs, targets, generator=generator) for _ in range(900)]
    for drawn in (Counter(batch.element for batch in batches), Counter(batch.shift for batch in batches)):
        assert set(drawn) == {1, 2, 3}
        assert min(drawn.values()) > 240


def test_shifts_over_all_channels_stay_below_the_narrowest_layer() -> None:
    regularizer = _regularizer(penalty="channel", channel_group="all")  # the one hidden layer has 8 channels
    batches = [regularizer.pair(*_batch(4, 1, 1)) for _ in range(200)]
    assert {batch.shift for batch in batches} == set(range(1, 8))


def test_half_turns_of_images_that_are_not_square_are_paired() -> None:
    inputs, targets = _batch(4, 5, 7)
    batch = _regularizer().pair(inputs, targets, element=2)
    assert torch.equal(batch.inputs[batch.transformed], loop_rotate(inputs[:1], 2))


@pytest.mark.parametrize("element", [1, 3])
def test_odd_turns_crop_images_that_are_not_square_to_their_middle(element: int) -> None:
    inputs, targets = _batch(4, 5, 8)
    batch = _regularizer().pair(inputs, targets, element=element)
    middle = inputs[..., 1:6]  # of 3 columns left over, 1 goes at the left and 2 at the right
    assert torch.equal(batch.inputs, torch.cat((middle[:1], loop_rotate(middle[:1], element), middle[2:])))


def test_drawn_turns_crop_images_that_are_not_square_whatever_is_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [_regularizer().pair(*_batch(4, 8, 5), generator=generator) for _ in range(20)]
    assert {batch.element for batch in batches} == {1, 2, 3}
    assert {tuple(batch.inputs.shape) for batch in batches} == {(4, 3, 5, 5)}


def test_padding_keeps_every_pixel_in_the_middle_of_a_square() -> None:
    inputs, targets = _batch(4, 5, 8)
    batch = _regularizer(non_square="pad").pair(inputs, targets, element=1)
    assert batch.inputs.shape == (4, 3, 8, 8)
    assert torch.equal(batch.inputs[0][:, 1:6], inputs[0])
    assert not batch.inputs[0][:, :1].any()
    assert not batch.inputs[0][:, 6:].any()
    assert torch.equal(batch.inputs[1], loop_rotate(batch.inputs[0], 1))


@pytest.mark.parametrize("non_square", ["crop", "pad"])
def test_a_target_of_twice_the_size_is_cropped_or_padded_at_the_same_place_of_the_scene(non_square: str) -> None:
    inputs = random_images(4, 3, 6, 9)
    targets = inputs.repeat_interleave(2, -1).repeat_interleave(2, -2)
    batch = _regularizer(non_square=non_square).pair(inputs, targets, element=3)
    assert torch.equal(batch.targets, batch.inputs.repeat_interleave(2, -1).repeat_interleave(2, -2))


def test_sizes_that_are_no_multiples_cannot_be_cropped_alike() -> None:
    with pytest.raises(ValueError, match="targets: 9 x 12 pixels are no whole multiple of 6 x 9"):
        _regularizer().pair(random_images(4, 3, 6, 9), random_images(4, 3, 9, 12))


def test_several_entries_are_turned_or_copied_as_declared() -> None:
    image, mask, label = random_images(4, 3, 6, 6), random_images(4, 1, 3, 3), torch.arange(4)
    batch = _regularizer().pair(
        {"image": image, "mask": mask}, {"clean": image, "label": label}, fields={"label": "invariant"}, element=1
    )
    assert batch.num_images == 4
    assert torch.equal(batch.inputs["image"][1], loop_rotate(image[0], 1))
    assert torch.equal(batch.inputs["mask"][1], loop_rotate(mask[0], 1))
    assert torch.equal(batch.targets["clean"], batch.inputs["image"])
    assert batch.targets["label"].tolist() == [0, 0, 2, 3]


def test_a_lone_label_is_declared_by_the_name_targets() -> None:
    batch = _regularizer().pair(random_images(4, 3, 6, 6), torch.arange(4), fields={"targets": "invariant"}, element=1)
    assert batch.targets.tolist() == [0, 0, 2, 3]


@pytest.mark.parametrize(
    ("targets", "fields", "message"),
    [
        (torch.arange(4), {}, r"targets: \(4,\) is no image.*fields=\{'targets': 'invariant'\}"),
        (torch.arange(4), {"target": "invariant"}, r"'target' is no entry of the batch; did you mean 'targets'"),
        (torch.zeros(4, 3, 6, 6), {"targets": "invarient"}, r"'invarient' is not one of.*did you mean 'invariant'"),
        ({}, {}, "must each hold at least one tensor"),
    ],
)
def test_entries_without_a_place_need_a_declaration(targets: object, fields: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _regularizer().pair(random_images(4, 3, 6, 6), targets, fields=fields)


@pytest.mark.parametrize(
    ("num_images", "fraction", "message"),
    [
        (6, 0.25, r"0.25 of a batch of 6 is 1.5 pairs.*batch of 4 or 8, or a pair_fraction of 1/6"),
        (2, 0.25, r"0.25 of a batch of 2 is 0.5 pairs.*batch of 4, or a pair_fraction of 1/2"),
        (7, 0.4, r"0.4 of a batch of 7 is 2.8 pairs.*batch of 5 or 10, or a pair_fraction of 2/7"),
    ],
)
def test_a_fraction_of_a_pair_is_refused_with_what_would_fit(num_images: int, fraction: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _regularizer(pair_fraction=fraction).pair(*_batch(num_images), element=1)


@pytest.mark.parametrize("num_images", [3, 6, 9, 30])
def test_a_third_of_a_batch_is_a_whole_number_of_pairs(num_images: int) -> None:
    assert _regularizer(pair_fraction=1 / 3).pair(*_batch(num_images), element=1).num_pairs == num_images // 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"element": 0}, r"element: 0 is not one of 1, 2, 3"),
        ({"element": 4}, r"element: 4"),
        ({"shift": 0}, r"shift: 0 is not one of 1, 2, 3"),
        ({"num_pairs": 0}, r"num_pairs: 0 is not in 1..4"),
        ({"num_pairs": 5}, r"num_pairs: 5 is not in 1..4"),
    ],
)
def test_values_that_do_not_fit_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _regularizer().pair(*_batch(4), **options)


def test_inputs_and_targets_of_different_number_are_refused_with_their_shapes() -> None:
    inputs, targets = _batch(4)
    with pytest.raises(ValueError, match=r"as many images each, not inputs \(4, 3, 6, 6\), targets \(3, "):
        _regularizer().pair(inputs, targets[:3])


@pytest.mark.parametrize(("pairing", "fraction"), [("replace", 0.6), ("append", 1.5), ("append", 0.0)])
def test_a_pair_fraction_beyond_the_pairing_is_refused(pairing: str, fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"pair_fraction: {fraction} .*{pairing}"):
        _regularizer(pairing=pairing, pair_fraction=fraction)


def _penalties_by_loops(network: torch.nn.Sequential, originals: Tensor, element: int) -> dict[str, float]:
    """The penalty "regular" of pairs of these images and their copies."""
    expected, transformed = {}, loop_rotate(originals, element)
    with torch.no_grad():
        for name, module in network.named_children():
            originals, transformed = module(originals), module(transformed)
            if name in ("0", "2", "4"):
                expected[name] = loop_size(
                    transformed, (loop_rotate if name == "4" else loop_regular)(originals, element)
                )
    return expected


@pytest.mark.parametrize(
    ("pairing", "fraction", "num_images", "num_pairs"),
    [
        ("append", 1.0, 1, 1),
        ("append", 1.0, 3, 3),
        ("append", 0.2, 5, 1),
        ("replace", 1 / 3, 3, 1),
        ("replace", 0.5, 4, 2),
    ],
)
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", [(5, 5), (6, 6), (5, 7)])
def test_images_of_any_channels_size_and_number_are_compared_pair_by_pair(
    size: tuple[int, int], channels: int, pairing: str, fraction: float, num_images: int, num_pairs: int
) -> None:
    network, images = plain_network(channels=channels), random_images(num_images, channels, *size)
    regularizer = EquivarianceRegularizer(network, pairing=pairing, pair_fraction=fraction)
    square = images[..., (size[1] - size[0]) // 2 :][..., : size[0]]  # the middle
    for element in (1, 2, 3):
        batch = regularizer.pair(images, images, element=element)
        assert batch.num_pairs == num_pairs
        assert batch.num_images == (num_images if pairing == "replace" else num_images + num_pairs)
        network(batch.inputs)
        regularizer.penalty()
        originals = (images if element == 2 else square)[:num_pairs]  # half turns keep the shape
        expected = _penalties_by_loops(network, originals, element)
        assert regularizer.layer_penalties() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"non_square": "cut"}, r"non_square: 'cut' is not one of crop, pad"),
        ({"group": "D3"}, r"group: 'D3' is not one of C2, C4, D4, C8 or C<N>"),
        ({"group": "D4", "channel_group": 4}, r"channel_group: 4 is not one of 8, all"),
        ({"pair_fraction": -0.25}, r"pair_fraction: -0.25 is not above 0"),
        ({"layer_weights": {"1": 1.0}}, r"layer_weights: '1' fits no convolution or linear layer.*there are 0, 2, 4"),
        ({"layouts": {"body": None}}, r"layouts: 'body' fits no convolution"),
        ({"max_gradient_ratio": -1.0}, r"max_gradient_ratio: -1.0 must be above 0"),
    ],
)
def test_an_option_that_cannot_be_is_refused_at_once(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _regularizer(**options)


@pytest.mark.parametrize("group", ["C2", "D4", "C8"])
def test_elements_of_other_groups_are_drawn_without_the_identity_and_others_refused(group: str) -> None:
    order = {"C2": 2, "D4": 8, "C8": 8}[group]
    regularizer = EquivarianceRegularizer(plain_network(8), group=group)
    inputs, generator = random_images(4, 3, 2, 2), torch.Generator().manual_seed(0)
    drawn = Counter(regularizer.pair(inputs, inputs, generator=generator).element for _ in range(80 * (order - 1)))
    assert set(drawn) == set(range(1, order))
    assert min(drawn.values()) > 50
    for element in (0, order):
        with pytest.raises(ValueError, match=f"element: {element} is not one of 1"):
            regularizer.pair(inputs, inputs, element=element)


def test_no_pair_is_made_after_detach() -> None:
    regularizer = _regularizer()
    regularizer.detach()
    with pytest.raises(RuntimeError, match="build a new EquivarianceRegularizer"):
        regularizer.pair(*_batch(4))
