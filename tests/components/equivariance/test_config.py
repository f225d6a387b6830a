"""The options of the regulariser are one object, and a penalty may be a user's own."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn

from components.equivariance import PENALTIES, EquivarianceConfig, EquivarianceRegularizer, Group, Penalty
from components.equivariance.groups import FieldType
from components.equivariance.penalties import field_residual, pair_scale, relative_mse
from pipeline.config.sections import Equivariance

pytestmark = pytest.mark.unit

OF_WEIGHTING = {"weight", "weight_unit", "warmup_steps", "balance"}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))


def step(regularizer: EquivarianceRegularizer, model: nn.Module) -> tuple[float, list[Tensor]]:
    """The penalty of one seeded step, and the gradients of task loss and penalty."""
    images = torch.rand(8, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    batch = regularizer.pair(images, images, generator=torch.Generator().manual_seed(2))
    loss = (model(batch.inputs) - batch.targets).square().mean()
    penalty = regularizer.penalty()
    (loss + 0.5 * penalty).backward()
    return penalty.item(), [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def test_an_unknown_option_is_named_with_the_one_that_is_like_it() -> None:
    with pytest.raises(TypeError, match=r"^sample_layer: unknown option; did you mean 'sample_layers'"):
        EquivarianceRegularizer(network(), sample_layer=2)
    with pytest.raises(TypeError, match=r"^xyz: unknown option; known: penalty, group, layers, "):
        EquivarianceRegularizer(network(), EquivarianceConfig(), xyz=2)


def test_the_options_of_params_yaml_have_the_names_of_the_regulariser() -> None:
    of_section = set(Equivariance.model_fields) - OF_WEIGHTING
    of_config = {field.name for field in fields(EquivarianceConfig)}
    assert of_section <= of_config
    assert of_config - of_section == {"layouts", "channel_group", "measure_gradients", "non_square"}


def test_a_whole_config_and_its_options_one_by_one_are_the_same() -> None:
    options = {"penalty": "rotation", "pair_fraction": 0.5, "layer_weights": {"profile": "geometric", "decay": 0.5}}
    found = []
    for build in (
        lambda model: EquivarianceRegularizer(model, **options),
        lambda model: EquivarianceRegularizer(model, EquivarianceConfig(**options)),  # type: ignore[arg-type]
        lambda model: EquivarianceRegularizer(model, EquivarianceConfig(pair_fraction=0.125), **options),
    ):
        model = network()
        found.append(step(build(model), model))
    for value, gradients in found[1:]:
        assert value == found[0][0]
        assert all(torch.equal(own, first) for own, first in zip(gradients, found[0][1], strict=True))


def test_the_uniform_profile_is_the_word_uniform() -> None:
    values = [
        step(EquivarianceRegularizer(model, layer_weights=weights), model)[0]
        for weights in ("uniform", {"profile": "uniform"})
        for model in [network()]
    ]
    assert values[0] == values[1]


@pytest.mark.parametrize("cap", [None, 0.1])
def test_a_measure_of_the_user_has_the_value_and_gradient_of_the_same_built_in_one(cap: float | None) -> None:
    calls = []

    def own(originals: Tensor, transformed: Tensor, element: int, field: FieldType, group: Group) -> Tensor:
        calls.append((element, field, group.name))
        scale = pair_scale(originals, transformed).detach()
        return relative_mse(field_residual(originals, transformed, element, field, group), scale)

    first, second = network(), network()
    value, gradients = step(EquivarianceRegularizer(first, max_gradient_ratio=cap), first)
    mine = EquivarianceRegularizer(second, penalty=Penalty(measure=own), max_gradient_ratio=cap)
    own_value, own_gradients = step(mine, second)
    assert own_value == pytest.approx(value, rel=1e-6)
    for found, expected in zip(own_gradients, gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)
    assert {field for _, field, _ in calls} == {"regular", "trivial"}
    assert {name for _, _, name in calls} == {"C4"}


def test_another_measure_is_another_penalty() -> None:
    def absolute(originals: Tensor, transformed: Tensor, element: int, field: FieldType, group: Group) -> Tensor:
        return field_residual(originals, transformed, element, field, group).abs().mean()

    model = network()
    value, _ = step(EquivarianceRegularizer(model, penalty=Penalty(measure=absolute)), model)
    other = network()
    assert value != pytest.approx(step(EquivarianceRegularizer(other), other)[0], rel=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": "regulr"}, "penalty: 'regulr' is not one of .*did you mean 'regular'"),
        ({"penalty": Penalty(), "pairing": "none"}, "pairing: 'none' leaves nothing to compare"),
        ({"penalty": Penalty(is_mean=False), "sample_fields": 0.5}, "sample_fields: the norms of penalty"),
        ({"penalty": Penalty(measure=print), "sample_fields": 0.5}, "sample_fields: 0.5 has no effect on a measure"),
        ({"penalty": ["regular"]}, r"penalty: \['regular'\] is not one of"),
        ({"channel_group": 0}, "channel_group: 0 is not one of 4, all"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EquivarianceConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"comparisons": "rotation"}, "comparisons: 'rotation': use a tuple of names"),
        ({"comparisons": ()}, r"comparisons: \(\): use a tuple of names"),
        ({"comparisons": ("rotation+channel",)}, "comparisons: 'rotation\\+channel' is not one of rotation, regular"),
        ({"comparisons": ("rotation", "regular")}, "use at most one of regular and rotation"),
        ({"comparisons": ("regular", "regular")}, "and each once"),
        ({"comparisons": ("channel",), "measure": print}, "a measure compares outputs"),
        ({"comparisons": ("rotation", "channel"), "measure": print}, "a measure compares outputs"),
        ({"size": "bad"}, "size: 'bad' is not one of relative, none, paper"),
    ],
)
def test_a_penalty_that_would_compare_something_else_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Penalty(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("measure", "found"),
    [
        (lambda originals, *_: None, "NoneType"),
        (lambda originals, *_: 1.0, "float"),
        (lambda originals, *_: originals.mean((1, 2, 3)), r"\(2,\)"),
        (lambda originals, *_: torch.zeros(()), r"\(\)"),
    ],
)
def test_a_measure_that_gives_no_differentiable_scalar_is_named(measure: object, found: str) -> None:
    model = network()
    regularizer = EquivarianceRegularizer(model, penalty=Penalty(measure=measure))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"penalty: the measure gives {found}: it must give a scalar tensor"):
        step(regularizer, model)


def test_every_penalty_says_what_it_needs() -> None:
    assert [name for name, penalty in PENALTIES.items() if not penalty.needs_pairs] == ["projection"]
    assert [name for name, penalty in PENALTIES.items() if not penalty.is_mean] == ["paper"]
    assert [name for name, penalty in PENALTIES.items() if not penalty.has_output_gradient] == ["channel", "projection"]
    for name, penalty in PENALTIES.items():
        model = nn.Sequential(*(nn.Conv2d(*channels, 3, padding=1) for channels in ((1, 8), (8, 8), (8, 1))))
        pairing = "replace" if penalty.needs_pairs else "none"
        regularizer = EquivarianceRegularizer(model, penalty=name, pairing=pairing, measure_gradients=True)
        images = torch.rand(8, 1, 12, 12)
        batch = regularizer.pair(images, images)
        (model(batch.inputs).square().mean() + regularizer.penalty()).backward()
        norms = regularizer.gradient_norms()
        assert (norms is not None and norms.own > 0) == penalty.has_output_gradient, name
