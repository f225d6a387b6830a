"""A gradient counts as ours only if nobody else holds it: every other holder must be seen."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from components.equivariance.autograd.aliasing import is_unshared

pytestmark = pytest.mark.unit


class Look(torch.autograd.Function):
    """Passes on, and notes whether the gradient that arrives is unshared."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, notes: list[bool]) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.notes = notes
        ctx.mark_dirty(maps)
        return maps, maps.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, anchor: Tensor | None) -> tuple[Tensor, None]:
        ctx.notes.append(is_unshared(gradient))
        return gradient, None


def maps() -> Tensor:
    return torch.randn(2, 4, 5, 5, requires_grad=True) * 1.0


def look(tensor: Tensor, notes: list[bool]) -> Tensor:
    looked: Tensor = Look.apply(tensor, notes)[0]
    return looked


@pytest.mark.parametrize(
    "after",
    [
        torch.relu,
        lambda x: torch.nn.functional.conv2d(x, torch.randn(4, 4, 3, 3), padding=1),
        lambda x: torch.nn.functional.batch_norm(x, None, None, training=True),
        lambda x: torch.relu_(x * 1.0),
        lambda x: torch.cat((x, x)),
        lambda x: x + 2 * x,  # summed up from two branches into a tensor of its own
    ],
)
def test_a_gradient_that_an_operation_made_is_ours(after: Callable[[Tensor], Tensor]) -> None:
    notes: list[bool] = []
    after(look(maps(), notes)).square().sum().backward()
    assert notes == [True]


def test_a_gradient_that_waits_for_another_branch_is_not_ours() -> None:
    notes: list[bool] = []
    first = look(maps(), [])
    second = look(first * 1.0, notes)  # runs first in backward, while the other still waits
    ((first + second) * 3.0).square().sum().backward()
    assert notes == [False]


def test_a_gradient_that_the_user_brings_or_keeps_is_not_ours() -> None:
    notes: list[bool] = []
    gradient = torch.randn(2, 4, 5, 5)
    look(maps(), notes).backward(gradient)
    (look(maps(), notes) + 1).backward(gradient)
    kept: list[Tensor] = []
    output = look(maps(), notes)
    output.register_hook(kept.append)
    torch.relu(output).square().sum().backward()
    assert notes == [False] * 3


def test_what_autograd_retains_for_the_user_is_a_copy_so_the_gradient_is_ours() -> None:
    notes: list[bool] = []
    retained = look(maps(), notes)
    retained.retain_grad()
    seen: list[int] = []
    retained.register_hook(lambda gradient: seen.append(gradient.data_ptr()))
    torch.relu(retained).square().sum().backward()
    assert notes == [True]
    assert retained.grad is not None
    assert retained.grad.data_ptr() != seen[0]


def _is_ours(given: Callable[[], Tensor]) -> bool:
    """Whether a gradient that a function in Python gives counts as ours."""

    class Giving(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return given()

    notes: list[bool] = []
    Giving.apply(look(maps(), notes)).sum().backward()
    (is_ours,) = notes
    return is_ours


def test_a_gradient_held_by_a_python_function_is_not_ours() -> None:
    held = torch.randn(2, 4, 5, 5)
    assert not _is_ours(lambda: held)


def test_a_gradient_in_memory_of_numpy_is_not_ours() -> None:
    memory = np.ones((2, 4, 5, 5), np.float32)
    assert not _is_ours(lambda: torch.from_numpy(memory))
    assert _is_ours(lambda: torch.ones(2, 4, 5, 5))


def test_a_gradient_that_shares_its_memory_is_not_ours() -> None:
    notes: list[bool] = []
    base = torch.randn(4, 4, 5, 5)

    class Part(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return base[:2]

    Part.apply(look(maps(), notes)).sum().backward()
    look(maps(), notes).sum().backward()  # one number, expanded
    look(maps(), notes).reshape(2, -1).square().sum().backward()  # a view of a gradient of another shape
    assert notes == [False, False, False]
