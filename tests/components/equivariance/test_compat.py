"""Each private part of torch does what the regulariser takes it for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.equivariance.compat import (
    NO_PASS,
    DisableTorchFunction,
    at_end_of_backward,
    backward_pass,
    call_of,
    convolve,
    reference_counts,
    set_call,
    set_version,
    tree_leaves,
    uncompiled,
)

pytestmark = pytest.mark.unit


def test_a_tensor_that_is_held_twice_in_cpp_is_counted_twice() -> None:
    tensor = torch.zeros(2, requires_grad=True) * 1.0
    counts = reference_counts(tensor)
    assert counts is not None
    view = tensor.view(2)  # shares the memory, and holds the tensor as its base
    assert reference_counts(tensor) > counts
    del view
    assert reference_counts(tensor) == counts


def test_a_version_that_is_set_hides_a_change_from_autograd() -> None:
    start = torch.ones(2, requires_grad=True)
    output = start.sigmoid()  # keeps its output for its backward
    version = output._version
    with torch.no_grad():
        output.add_(0.0)
    set_version(output, version)
    output.sum().backward()
    assert start.grad is not None
    assert torch.allclose(start.grad, torch.sigmoid(torch.ones(2)) * (1 - torch.sigmoid(torch.ones(2))))


def test_a_backward_pass_has_a_number_and_calls_back_at_its_end() -> None:
    seen: list[object] = []

    def hook(gradient: Tensor) -> None:
        seen.append(backward_pass() != NO_PASS)
        at_end_of_backward(lambda: seen.append("end"))

    start = torch.ones(2, requires_grad=True)
    product = start * 2.0
    product.register_hook(hook)
    product.sum().backward()
    assert seen == [True, "end"]
    assert backward_pass() == NO_PASS


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_a_convolution_with_another_kernel_keeps_the_padding_of_its_module(mode: str) -> None:
    module = nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode)
    maps, weight, bias = torch.rand(1, 2, 5, 7), torch.rand(3, 2, 3, 3), torch.rand(3)
    padded = F.pad(maps, (1, 1, 1, 1), mode="constant" if mode == "zeros" else mode)
    assert torch.allclose(convolve(module, maps, weight, bias), F.conv2d(padded, weight, bias), atol=1e-6)


def test_a_call_that_is_set_is_made_in_place_of_the_networks_own_and_goes_without_a_trace() -> None:
    network = nn.Linear(2, 2)
    before = dict(network.__dict__)
    assert call_of(network) is None
    set_call(network, lambda images: "traced")
    assert network(torch.zeros(1, 2)) == "traced"
    assert torch.equal(uncompiled(network)(torch.zeros(1, 2)), network.bias[None])
    set_call(network, None)
    assert network.__dict__.keys() == before.keys()
    assert torch.equal(network(torch.zeros(1, 2)), network.bias[None])


def test_modes_of_users_do_not_see_what_runs_without_torch_function() -> None:
    class Loud(Tensor):
        @classmethod
        def __torch_function__(cls, *arguments: object, **keywords: object) -> None:
            raise AssertionError("seen")

    loud = torch.zeros(2).as_subclass(Loud)
    with DisableTorchFunction():
        assert loud.numel() == 2
        assert float((loud + 1.0).sum()) == 2.0


def test_tensors_are_found_among_nested_arguments() -> None:
    tensors = [torch.zeros(n) for n in range(3)]
    leaves = tree_leaves((tensors[0], {"a": [tensors[1], {"b": tensors[2]}]}))
    assert all(leaf is tensor for leaf, tensor in zip(leaves, tensors, strict=True))
