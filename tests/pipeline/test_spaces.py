"""A search space is refused before the sweep if any of its ends would be."""

from __future__ import annotations

import pytest

from pipeline.errors import UserError
from pipeline.params import read_values
from pipeline.paths import PARAMS
from pipeline.spaces import Choice, LogUniform, Space, Uniform, load_space
from tests.pipeline.conftest import Project

WEIGHT = "equivariance.weight: {distribution: log_uniform, low: 1e-3, high: 1}\n"


def _load(project: Project, text: str) -> Space:
    (project.folder / "tune_spaces" / "mine.yaml").write_text(text)
    return load_space("mine", read_values(PARAMS))


def _refusal(project: Project, text: str) -> str:
    with pytest.raises(UserError) as caught:
        _load(project, text)
    message = str(caught.value)
    assert message.startswith("tune_spaces/mine.yaml")
    assert len(message.splitlines()) <= 2
    return message


def test_every_shipped_space_fits_the_shipped_params(project: Project) -> None:
    names = [file.stem for file in (project.folder / "tune_spaces").glob("*.yaml")]
    assert "lambda" in names
    for name in names:
        assert "equivariance.weight" in load_space(name, read_values(PARAMS))


def test_a_space_gives_a_distribution_for_each_key(project: Project) -> None:
    space = _load(
        project,
        WEIGHT
        + "equivariance.layer_weights.decay: {distribution: uniform, low: 0.5, high: 1}\n"
        + "equivariance.penalty: {distribution: choice, values: [regular, rotation]}\n",
    )
    assert space == {
        "equivariance.weight": LogUniform(distribution="log_uniform", low=0.001, high=1),
        "equivariance.layer_weights.decay": Uniform(distribution="uniform", low=0.5, high=1),
        "equivariance.penalty": Choice(distribution="choice", values=["regular", "rotation"]),
    }


def test_an_unknown_space_names_those_there_are(project: Project) -> None:
    (project.folder / "tune_spaces" / "wide.yaml").write_text(WEIGHT)
    with pytest.raises(UserError, match=r"tune\.space: lamda: there is no tune_spaces/lamda\.yaml; .*: lambda, wide$"):
        load_space("lamda", read_values(PARAMS))


def test_a_space_without_the_weight_is_refused(project: Project) -> None:
    text = "equivariance.penalty: {distribution: choice, values: [regular]}\n"
    assert "equivariance.weight is missing" in _refusal(project, text)


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("equivariance.wieght: {distribution: uniform, low: 0, high: 1}", ["equivariance.wieght", "mean weight"]),
        ("equivarianse.penalty: {distribution: choice, values: [regular]}", ["equivarianse.penalty", "no such key"]),
        ("nonsense: {distribution: choice, values: [1]}", ["nonsense", "no such key"]),
        ("equivariance.layer_weights.decy: {distribution: uniform, low: 0.1, high: 0.9}", ["decy", "mean decay"]),
        ("equivariance.layer_weights.decay: {distribution: uniform, low: 0.1, high: 2}", ["decay: 2.0", "at most 1"]),
        ("equivariance.penalty: {distribution: choice, values: [regular, regula]}", ["'regula'", "did you mean"]),
        ("equivariance.penalty: {distribution: choice, values: []}", ["values: []", "use a list that is not empty"]),
        ("train.learning_rate: {distribution: uniform, low: 0, high: 1}", ["train.learning_rate: 0", "above 0"]),
        ("train.learning_rate: {distribution: uniform, low: 1, high: 1}", ["low 1.0 is not below high 1.0"]),
        ("train.learning_rate: {distribution: log_uniform, low: 0, high: 1}", ["low: 0: use a number above 0"]),
        ("train.learning_rate: {distribution: uniform, low: 0.1, high: .inf}", ["high: inf: use a number"]),
        ("train.learning_rate: {distribution: uniform, low: '0.1', high: 1}", ["low: '0.1': use a number"]),
        ("train.learning_rate: {distribution: uniform, low: 0.1, hihg: 1}", ["hihg: unknown; did you mean high?"]),
        (
            "train.learning_rate: {distribution: normal, low: 0.1, high: 1}",
            ["distribution: 'normal': use one of log_uniform, uniform, choice"],
        ),
        ("train.learning_rate: 0.1", ["train.learning_rate: 0.1: use a section of"]),
        ("train.learning_rate: {low: 0.1, high: 1}", ["train.learning_rate.distribution: missing; add it"]),
        ("7: {distribution: uniform, low: 0.1, high: 1}", ["name 7: use text"]),
        ("train.batch_size: {distribution: uniform, low: 8, high: 32}", ["train.batch_size: 8.0", "whole number"]),
        ("network.width: {distribution: choice, values: [8, 10]}", ["network.width: 10", "divide by 4"]),
        ("equivariance.pairing: {distribution: choice, values: [replace, none]}", ["needs pairs"]),
    ],
)
def test_a_distribution_that_does_not_fit_params_is_refused_by_key(
    project: Project, line: str, parts: list[str]
) -> None:
    message = _refusal(project, WEIGHT + line + "\n")
    assert all(part in message for part in parts), message


def test_a_space_that_is_no_mapping_is_refused(project: Project) -> None:
    assert "expected a mapping" in _refusal(project, "- equivariance.weight\n")
    assert "not readable as YAML" in _refusal(project, "a: [1\n")
