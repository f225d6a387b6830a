"""The actions of section 2 of METHOD.md."""

import pytest
import torch

from components.equivariance import act, act_regular, rotate, shift_channels
from tests.components.equivariance.exact import loop_regular, loop_rotate, random_images

SIZES = [(6, 6), (5, 5), (4, 7)]


def test_one_turn_is_counter_clockwise() -> None:
    image = torch.tensor([[[[1, 2], [3, 4]]]])
    assert rotate(image, 1).tolist() == [[[[2, 4], [1, 3]]]]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_actions_agree_with_explicit_loops(turns: int, size: tuple[int, int]) -> None:
    maps = random_images(2, 8, *size)
    assert torch.equal(rotate(maps, turns), loop_rotate(maps, turns))
    assert torch.equal(act_regular(maps, turns), loop_regular(maps, turns))
    assert torch.equal(act(maps, turns, "regular"), loop_regular(maps, turns))
    assert torch.equal(act(maps, turns, "trivial"), loop_rotate(maps, turns))


@pytest.mark.parametrize("first", [1, 2, 3])
@pytest.mark.parametrize("second", [1, 2, 3])
def test_acting_twice_is_acting_with_the_sum(first: int, second: int) -> None:
    maps = random_images(1, 8, 5, 6)
    assert torch.equal(act_regular(act_regular(maps, first), second), act_regular(maps, (first + second) % 4))


def test_channels_are_shifted_within_their_group_and_t_is_the_fast_axis() -> None:
    maps = torch.arange(8.0).reshape(1, 8, 1, 1)  # the values are the channels' numbers: (8,) -> (1, 8, 1, 1)
    assert shift_channels(maps, 1).flatten().tolist() == [3, 0, 1, 2, 7, 4, 5, 6]
    assert shift_channels(maps, 1, "all").flatten().tolist() == [7, 0, 1, 2, 3, 4, 5, 6]
    assert shift_channels(maps, 1, 2).flatten().tolist() == [1, 0, 3, 2, 5, 4, 7, 6]


def test_a_whole_group_of_shifts_is_the_identity() -> None:
    maps = random_images(2, 12, 3, 5)
    assert torch.equal(shift_channels(shift_channels(maps, 3), 1), maps)
    assert torch.equal(shift_channels(shift_channels(maps, 5, "all"), 7, "all"), maps)


def test_channels_that_do_not_divide_into_groups_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"6 channels.*groups of 4"):
        shift_channels(random_images(1, 6, 2, 2), 1)
