"""Which values training uses, and where each came from."""

from __future__ import annotations

import subprocess

import pytest
import yaml

from pipeline.config.resolve import resolve
from pipeline.config.schema import check_params
from pipeline.config.values import parse_values
from pipeline.errors import UserError
from tests.pipeline.conftest import Project

pytestmark = pytest.mark.process

BEST = {"equivariance.weight": 0.0123, "equivariance.layer_weights.decay": 0.75, "equivariance.penalty": "rotation"}


@pytest.fixture
def tuned(project: Project) -> Project:
    """A project in git whose sweep is over and whose params.yaml, with tune.apply, is committed."""
    project.set({"tune.apply": True, "equivariance.weight": 0.5})
    (project.folder / "results/tune").mkdir(parents=True)
    (project.folder / "results/tune/best.yaml").write_text(yaml.safe_dump({"params": BEST, "note": "one seed"}))
    commit = "git -c user.name=test -c user.email=test@localhost commit -qm test"
    for command in ("git init -q", "git add params.yaml", commit):
        subprocess.run(command.split(), cwd=project.folder, check=True)
    return project


def test_best_yaml_overrules_params_yaml_where_tune_apply_is_true(tuned: Project) -> None:
    resolved = resolve()
    assert resolved.params.equivariance.weight == 0.0123
    assert resolved.params.equivariance.penalty == "rotation"
    assert resolved.params.equivariance.layer_weights == {"profile": "geometric", "decay": 0.75}
    assert resolved.origins == dict.fromkeys(BEST, "results/tune/best.yaml")
    assert resolved.params.equivariance.weight == 0.0123


def test_params_yaml_stands_where_tune_apply_is_false(tuned: Project) -> None:
    params = tuned.params(tune__apply=False)
    resolved = resolve()
    assert resolved.params == params
    assert resolved.params.equivariance.weight == 0.5
    assert resolved.origins == {}


def test_the_resolved_yaml_names_the_origin_of_each_overruled_value_and_reads_back_the_same(tuned: Project) -> None:
    resolved = resolve()
    text = resolved.as_yaml()
    assert check_params(parse_values(text, "text"), "text").resolved == resolved.params.resolved
    notes = [line for line in text.splitlines() if line.startswith("#")]
    assert notes == [f"# {key}: from results/tune/best.yaml" for key in sorted(BEST)]


def test_an_override_of_a_key_that_best_yaml_would_overrule_is_refused_with_the_remedy(tuned: Project) -> None:
    tuned.set({"equivariance.weight": 0.3})
    with pytest.raises(UserError) as caught:
        resolve()
    first, second = str(caught.value).splitlines()
    assert first.startswith("equivariance.weight: 0.3 was set for this run")
    assert "results/tune/best.yaml has 0.0123" in first
    assert "-S tune.apply=false" in second
    tuned.set({"tune.apply": False})
    assert resolve().params.equivariance.weight == 0.3


def test_an_override_of_another_key_passes(tuned: Project) -> None:
    tuned.set({"train.steps": 77})
    resolved = resolve()
    assert (resolved.params.train.steps, resolved.params.equivariance.weight) == (77, 0.0123)


def test_an_override_that_says_what_best_yaml_says_passes(tuned: Project) -> None:
    tuned.set({"equivariance.weight": 0.0123})
    assert resolve().params.equivariance.weight == 0.0123


def test_outside_git_best_yaml_overrules(project: Project) -> None:
    project.set({"tune.apply": True})
    (project.folder / "results/tune").mkdir(parents=True)
    (project.folder / "results/tune/best.yaml").write_text(yaml.safe_dump({"params": BEST}))
    assert resolve().params.equivariance.weight == 0.0123


def test_a_sweep_that_was_turned_off_leaves_params_yaml_as_it_is(project: Project) -> None:
    params = project.params(tune__apply=True)
    (project.folder / "results/tune").mkdir(parents=True)
    (project.folder / "results/tune/best.yaml").write_text(yaml.safe_dump({"params": {}, "note": "no sweep"}))
    assert resolve().params == params


def test_a_missing_best_yaml_says_what_to_do(project: Project) -> None:
    project.set({"tune.apply": True})
    with pytest.raises(UserError, match=r"results/tune/best\.yaml is not there: run 'eqreg tune', or set tune\.apply"):
        resolve()


def test_values_of_best_yaml_are_checked_and_named(tuned: Project) -> None:
    best = {"params": {"equivariance.weight": -1.0}}
    (tuned.folder / "results/tune/best.yaml").write_text(yaml.safe_dump(best))
    with pytest.raises(UserError, match=r"^results/tune/best\.yaml: equivariance\.weight: -1\.0: use a number of at"):
        resolve()
