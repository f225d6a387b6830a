"""The weights of layers."""

import pytest

from components.equivariance import EquivarianceRegularizer
from components.equivariance.layers.weights import check_layer_weights, normalised_layer_weights
from tests.components.equivariance.exact import plain_network

pytestmark = pytest.mark.unit

NAMES = ["head", "body.0", "body.1", "tail"]


def test_uniform_weights_are_alike_and_sum_to_one() -> None:
    assert normalised_layer_weights(NAMES, "uniform") == dict.fromkeys(NAMES, 0.25)


def test_a_geometric_profile_falls_by_the_decay_from_layer_to_layer() -> None:
    weights = normalised_layer_weights(NAMES, {"profile": "geometric", "decay": 0.5})
    assert list(weights) == NAMES
    assert list(weights.values()) == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15])


def test_the_first_pattern_that_fits_a_name_gives_its_weight_and_a_name_that_none_fits_has_none() -> None:
    weights = normalised_layer_weights(NAMES, {"body.1": 3, "body.*": 1, "tail": 4})
    assert weights == pytest.approx({"head": 0, "body.0": 1 / 8, "body.1": 3 / 8, "tail": 4 / 8})


def test_weights_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"none is above 0.*head"):
        normalised_layer_weights(["head"], {"body.*": 1.0})


@pytest.mark.parametrize(
    ("layer_weights", "message"),
    [
        ("unifrom", r"layer_weights: 'unifrom'.*did you mean 'uniform'"),
        ({"profile": "geometrik", "decay": 0.5}, r"profile: 'geometrik'.*did you mean 'geometric'"),
        ({"profile": "geometric", "decay": 1.5}, r"decay: 1.5 is not a number above 0 and at most 1"),
        ({"profile": "geometric"}, r"decay: None"),
        ({"boddy.0": 1.0}, r"'boddy.0' fits no convolution or linear layer; did you mean 'body.0'"),
        ({"head": -1.0}, r"'head'\]: -1.0 is not a number of at least 0"),
        ({"head": float("inf")}, r"'head'\]: inf is not a number of at least 0"),
        ({"head": float("nan")}, r"'head'\]: nan is not a number of at least 0"),
        ({"profile": "geometric", "decay": 0.0}, r"decay: 0.0 is not a number above 0 and at most 1"),
    ],
)
def test_weights_that_can_fit_no_layer_are_refused_with_the_remedy(layer_weights: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_layer_weights(NAMES, layer_weights)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [{"4": 1.0}, {"0": 0.0}])
def test_weights_that_reach_none_of_the_layers_asked_for_are_refused_at_once(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="layer_weights: none is above 0 for the penalised layers"):
        EquivarianceRegularizer(plain_network(), layers=["0", "2"], layer_weights=weights)
