"""Losses, schedules and optimisers against their formulas and torch's own classes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from components.training.losses import Charbonnier, CrossEntropy
from components.training.optimizers import SGD, Adam, AdamW
from components.training.schedules import Constant, Cosine, MultiStep

pytestmark = pytest.mark.unit


def test_charbonnier_is_the_root_of_the_square_and_epsilon() -> None:
    outputs, targets = torch.tensor([0.0, 3.0]), torch.zeros(2)
    assert Charbonnier(epsilon=4.0)(outputs, targets).item() == pytest.approx((4 + 5) / 2)


def test_cross_entropy_is_of_classes() -> None:
    assert CrossEntropy.is_for_classes
    scores = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    expected = -(torch.log_softmax(scores, 1)[0, 0] + torch.log_softmax(scores, 1)[1, 1]) / 2
    assert CrossEntropy()(scores, torch.tensor([0, 1])).item() == pytest.approx(expected.item())


def test_schedules_begin_at_the_peak_and_end_where_they_say() -> None:
    assert [Cosine(final=0.1)(progress) for progress in (0, 1)] == pytest.approx([1, 0.1])
    assert [Constant()(progress) for progress in (0, 0.7, 1)] == [1, 1, 1]
    falling = MultiStep(milestones=(0.25, 0.5), factor=0.5)
    assert [falling(progress) for progress in (0, 0.24, 0.25, 0.5, 1)] == [1, 1, 0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Charbonnier(epsilon=0), "epsilon: 0: use a number above 0"),
        (lambda: Cosine(final=1.5), "final: 1.5: use a number of at least 0 and of at most 1"),
        (lambda: MultiStep(milestones=(0.5, 0.2)), r"milestones: \[0.5, 0.2\]: use rising shares"),
        (lambda: MultiStep(milestones=(0.5, 1.0)), r"milestones: \[0.5, 1.0\]: use rising shares"),
        (lambda: MultiStep(factor=1), "factor: 1: use a number above 0 and below 1"),
        (lambda: AdamW(beta2=1), "beta2: 1: use a number of at least 0 and below 1"),
        (lambda: SGD(momentum=-0.1), "momentum: -0.1: use a number"),
    ],
)
def test_impossible_settings_are_refused_by_name(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        build()  # type: ignore[operator]


def test_optimisers_are_torchs_with_the_settings_given() -> None:
    parameters = [nn.Parameter(torch.ones(2))]
    for settings, kind, expected in (
        (AdamW(), torch.optim.AdamW, {"betas": (0.9, 0.99)}),
        (Adam(beta1=0.5), torch.optim.Adam, {"betas": (0.5, 0.999)}),
        (SGD(), torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (SGD(momentum=0), torch.optim.SGD, {"momentum": 0, "nesterov": False}),
    ):
        built = settings.build(parameters, 0.1, 0.01)
        assert type(built) is kind
        group = built.param_groups[0]
        assert {"lr": 0.1, "weight_decay": 0.01, **expected}.items() <= group.items()
