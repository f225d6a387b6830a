"""A space asks what its file says, in an order that its conditions allow, and is refused if params would refuse it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FixedTrial

from pipeline.config.schema import Params, load_params
from pipeline.errors import UserError
from pipeline.search_space.space import Space, load_space
from pipeline.training_job import TrainingJob
from tests.pipeline.conftest import Project

pytestmark = pytest.mark.unit

WEIGHT = "equivariance.weight: {distribution: log_uniform, low: 1e-3, high: 1}\n"
LAYERS = ["layers.conv1", "layers.conv2", "layers.conv3"]


def _load(project: Project, text: str) -> Space:
    (project.folder / "tune_spaces" / "mine.yaml").write_text(text)
    return load_space("mine", load_params(), lambda: LAYERS)


def _refusal(project: Project, text: str) -> str:
    with pytest.raises(UserError) as caught:
        _load(project, text)
    message = str(caught.value)
    assert message.startswith("tune_spaces/mine.yaml")
    assert len(message.splitlines()) <= 2
    return message


def _shipped(name: str, params: Params | None = None) -> Space:
    return load_space(name, params or load_params(), lambda: LAYERS)


def _sampled(space: Space, number: int, seed: int = 0) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(what was asked and answered, what was chosen) of so many trials of a real study."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    found = []
    for _ in range(number):
        trial = study.ask()
        changes = space.choose(trial)
        found.append((dict(trial.params), changes))
    return found


@pytest.mark.parametrize("name", ["lambda", "layer_weights", "full"])
def test_every_shipped_space_gives_params_that_are_accepted_and_includes_the_weight(
    project: Project, name: str
) -> None:
    params = load_params()
    space = _shipped(name)
    assert space.search == "optuna"
    for _, changes in _sampled(space, 200):
        assert changes["equivariance.weight"] > 0
        params.patched(changes, "sample")


def test_every_shipped_space_fits_every_network(project: Project) -> None:
    """The layers and weights that a space names are there: the regulariser is built for each."""
    for task, network in (
        *(("denoise", name) for name in ("dncnn", "unet", "redcnn", "ffdnet")),
        ("super_resolution", "dncnn"),
        ("derain", "prenet"),
    ):
        params = load_params().patched({"task": task, "network.name": network})
        job = TrainingJob(params, Path("nowhere"))
        names = [name for name, module in job.network().named_modules() if type(module).__name__.startswith("Conv")]
        space = load_space("full", params, lambda names=names: names)  # type: ignore[misc]
        for _, changes in _sampled(space, 25):
            chosen = TrainingJob(params.patched(changes, "sample"), Path("nowhere"))
            assert chosen.regularizer(chosen.network()) is not None


@pytest.mark.filterwarnings("error")  # Optuna warns of a value outside of its distribution
def test_what_was_asked_gives_the_same_choice_again(project: Project) -> None:
    for name in ("lambda", "layer_weights", "full"):
        space = _shipped(name)
        for asked, changes in _sampled(space, 40):
            assert space.given(asked) == changes


def test_a_mapping_is_stored_by_a_study_and_comes_back_as_a_mapping(project: Project, tmp_path: Path) -> None:
    space = _load(
        project,
        WEIGHT + "equivariance.layers: {distribution: choice, values: [auto, {'*conv*': regular}, {'*': trivial}]}\n",
    )
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(study_name="s", storage=storage, sampler=optuna.samplers.RandomSampler(1))
    chosen = []
    for _ in range(12):
        trial = study.ask()
        chosen.append(space.choose(trial))
        study.tell(trial, 0.0)
    layers = [changes["equivariance.layers"] for changes in chosen]
    assert {json.dumps(value) for value in layers} == {'"auto"', '{"*conv*": "regular"}', '{"*": "trivial"}'}
    stored = optuna.load_study(study_name="s", storage=storage).trials
    assert [space.choose(FixedTrial(trial.params)) for trial in stored] == chosen


def test_numbers_stay_within_their_ends_and_on_their_steps(project: Project) -> None:
    space = _load(
        project,
        WEIGHT
        + "network.width: {distribution: integer, low: 8, high: 24, step: 8}\n"
        + "train.warmup_steps: {distribution: integer, low: 1, high: 1000, log: true}\n"
        + "train.ema_decay: {distribution: uniform, low: 0.9, high: 0.99, step: 0.03}\n"
        + "train.learning_rate: {distribution: uniform, low: 0.001, high: 0.003}\n",
    )
    chosen = [changes for _, changes in _sampled(space, 300)]
    assert {changes["network.width"] for changes in chosen} == {8, 16, 24}
    assert {round(changes["train.ema_decay"], 9) for changes in chosen} == {0.9, 0.93, 0.96, 0.99}
    assert all(0.001 <= changes["train.learning_rate"] <= 0.003 for changes in chosen)
    assert all(0.001 <= changes["equivariance.weight"] <= 1 for changes in chosen)
    # Of logarithms uniform in [0, log 1000], a third lies below log 10; of numbers, a hundredth would.
    assert 0.2 < sum(changes["train.warmup_steps"] < 10 for changes in chosen) / len(chosen) < 0.5
    assert 0.2 < sum(changes["equivariance.weight"] < 0.01 for changes in chosen) / len(chosen) < 0.5


CONDITIONAL = """
search: grid
train.learning_rate:
  - {distribution: choice, values: [0.1, 0.2], when: {equivariance.penalty: [rotation, channel], kind: b}}
  - {distribution: choice, values: [0.3], when: {equivariance.penalty: paper}}
equivariance.penalty: {distribution: choice, values: [rotation, channel, paper, regular], when: {kind: [a, b]}}
kind:
  variants:
    a: {train.weight_decay: 0.0}
    b: {train.weight_decay: 0.1, network.width: 8}
    c: {}
"""


def test_a_parameter_is_asked_only_under_its_condition_and_after_what_it_depends_on(project: Project) -> None:
    space = _load(project, CONDITIONAL)
    found = [space.choose(FixedTrial(point)) for point in space.grid()]
    # Worked out by hand: kind a has 4 penalties, of which paper alone has a rate (0.3); kind b has two rates for each
    # of rotation and channel, one for paper and none for regular; kind c asks nothing more.
    a, b = {"train.weight_decay": 0.0}, {"train.weight_decay": 0.1, "network.width": 8}
    penalty, rate = "equivariance.penalty", "train.learning_rate"
    expected = [
        *({**a, penalty: each} for each in ("rotation", "channel", "regular")),
        {**a, penalty: "paper", rate: 0.3},
        *({**b, penalty: each, rate: number} for each in ("rotation", "channel") for number in (0.1, 0.2)),
        {**b, penalty: "paper", rate: 0.3},
        {**b, penalty: "regular"},
        {},
    ]
    assert sorted(map(str, map(sorted, map(dict.items, found)))) == sorted(
        map(str, map(sorted, map(dict.items, expected)))
    )
    # alternatives have names of their own, since a study knows one set of choices by a name
    assert {"kind": "b", penalty: "rotation", f"{rate}/1": 0.2} in space.grid()


@pytest.mark.filterwarnings("error")
def test_a_grid_is_the_whole_product_and_nothing_twice(project: Project) -> None:
    space = _load(
        project,
        "search: grid\n"
        "seed: {distribution: integer, low: 1, high: 3}\n"
        "equivariance.weight: {distribution: uniform, low: 0.0, high: 0.3, step: 0.1}\n"
        "equivariance.layers: {distribution: choice, values: [auto, {'*': trivial}]}\n",
    )
    product = itertools.product((1, 2, 3), (0.0, 0.1, 0.2, 0.3), ("auto", '{"*": "trivial"}'))
    points = [tuple(point.values()) for point in space.grid()]
    assert sorted(map(str, points)) == sorted(map(str, product))
    assert [dict(point) for point in space.only(space.grid()[3:5]).grid()] == space.grid()[3:5]
    layers = {"auto": "auto", '{"*": "trivial"}': {"*": "trivial"}}
    for point in space.grid():
        assert space.given(point) == point | {"equivariance.layers": layers[point["equivariance.layers"]]}


def test_a_grid_is_run_by_optuna_as_it_is_listed(project: Project) -> None:
    """Each point, given to a study beforehand, is what its trial is asked for: no warning, and nothing else sampled."""
    space = _shipped("ablation")
    study = optuna.create_study()
    for point in space.grid():
        study.enqueue_trial(point)
    for point in space.grid():
        trial = study.ask()
        space.choose(trial)
        assert trial.params == point


def test_layers_have_a_weight_each_or_share_one_by_a_pattern(project: Project) -> None:
    key = "equivariance.layer_weights"
    each = _load(project, WEIGHT + key + ": {distribution: weight_per_layer, layers: each, low: 0.1, high: 2}\n")
    answers = {f"{key}/{name}": 0.5 * (index + 1) for index, name in enumerate(LAYERS)}
    chosen = each.choose(FixedTrial({"equivariance.weight": 0.1, **answers}))
    assert chosen[key] == {"layers.conv1": 0.5, "layers.conv2": 1.0, "layers.conv3": 1.5}
    some = _load(
        project, WEIGHT + key + ": {distribution: weight_per_layer, layers: ['down.*', last], low: 0, high: 1}\n"
    )
    answers = {f"{key}/down.*": 0.25, f"{key}/last": 1.0}
    assert some.choose(FixedTrial({"equivariance.weight": 0.1, **answers}))[key] == {"down.*": 0.25, "last": 1.0}


def test_a_part_of_a_mapping_goes_into_the_mapping_whichever_is_written_first(project: Project) -> None:
    lines = [
        "equivariance.layer_weights.decay: {distribution: uniform, low: 0.5, high: 0.9}\n",
        "equivariance.layer_weights: {distribution: choice, values: [{profile: geometric, decay: 1.0}]}\n",
    ]
    for text in ("".join(lines), "".join(reversed(lines))):
        space = _load(project, WEIGHT + text)
        for _, changes in _sampled(space, 5):
            assert set(changes) == {"equivariance.weight", "equivariance.layer_weights"}
            assert changes["equivariance.layer_weights"]["profile"] == "geometric"
            assert 0.5 <= changes["equivariance.layer_weights"]["decay"] <= 0.9


def test_the_identity_changes_with_what_is_asked_and_not_with_the_writing(project: Project) -> None:
    first = _load(project, WEIGHT + "network.width: {distribution: choice, values: [8, 16]}\n")
    same = _load(
        project, "# a remark\nsearch: optuna\n" + WEIGHT + "network.width:\n  values: [8, 16]\n  distribution: choice\n"
    )
    other = _load(project, WEIGHT + "network.width: {distribution: choice, values: [8, 24]}\n")
    assert first.identity == same.identity != other.identity


def test_the_ablation_has_the_arms_of_the_method_and_as_many_weights_for_each_penalty(project: Project) -> None:
    shipped = load_params()
    space = _shipped("ablation", shipped)
    arms: dict[str, list[dict[str, Any]]] = {}
    for point in space.grid():
        arms.setdefault(point["arm"], []).append(space.choose(FixedTrial(point)))
    controls = ["none", "plain", "pairs"]
    penalties = ["rotation", "channel", "rotation+channel", "regular", "projection", "paper"]
    assert list(arms) == controls + penalties
    assert [len(arms[arm]) for arm in arms] == [1] * 3 + [4] * 6
    given = {arm: [shipped.patched(changes, arm) for changes in arms[arm]] for arm in arms}
    assert [given[arm][0].rotations for arm in controls] == [False, True, True]
    assert [given[arm][0].equivariance.pairing for arm in controls] == ["none", "none", "replace"]
    assert [given[arm][0].equivariance.weight for arm in controls] == [0, 0, 0]
    for arm in penalties:
        assert {params.equivariance.penalty for params in given[arm]} == {arm}
        assert len({params.equivariance.weight for params in given[arm]}) == 4
        for params in given[arm]:  # all that decides on the batches is that of the control
            assert params.train == given["pairs"][0].train
            assert (params.equivariance.pairing, params.equivariance.pair_fraction) == (
                given["pairs"][0].equivariance.pairing,
                given["pairs"][0].equivariance.pair_fraction,
            )
            assert params.equivariance.group == given["pairs"][0].equivariance.group
    assert {params.train.steps for arm in given.values() for params in arm} == {shipped.train.steps}


def test_the_ablation_stands_whatever_else_params_say_of_the_penalty(project: Project) -> None:
    changes = {
        "equivariance.balance": 0.1,
        "tune.trials": 0,
        "equivariance.sample_fields": 0.5,
        "equivariance.layer_weights": {"last": 1.0},
        "equivariance.pairing": "append",
        "equivariance.penalty": "regular",
    }
    space = _shipped("ablation", load_params().patched(changes))
    assert len(space.grid()) == 27


def test_an_unknown_space_names_those_there_are(project: Project) -> None:
    with pytest.raises(UserError) as caught:
        load_space("lamda", load_params(), key="ablate.space")
    assert str(caught.value) == (
        "ablate.space: lamda: there is no tune_spaces/lamda.yaml; there are: ablation, full, lambda, layer_weights"
    )


def test_a_space_without_the_weight_is_refused_unless_it_is_a_grid(project: Project) -> None:
    text = "equivariance.penalty: {distribution: choice, values: [regular]}\n"
    assert "equivariance.weight is missing" in _refusal(project, text)
    assert _load(project, "search: grid\n" + text).grid() == [{}]


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("equivariance.wieght: {distribution: uniform, low: 0, high: 1}", ["equivariance.wieght", "mean weight"]),
        ("equivarianse.penalty: {distribution: choice, values: [regular]}", ["'equivarianse'", "mean equivariance"]),
        ("nonsense: {distribution: choice, values: [1]}", ["nonsense", "unknown"]),
        ("equivariance.layer_weights.decy: {distribution: uniform, low: 0.1, high: 0.9}", ["decy", "mean decay"]),
        ("equivariance.layer_weights.decay: {distribution: uniform, low: 0.1, high: 2}", ["decay: 2.0", "at most 1"]),
        ("equivariance.penalty: {distribution: choice, values: [regular, regula]}", ["'regula'", "did you mean"]),
        ("equivariance.penalty: {distribution: choice, values: []}", ["values: []", "use a list that is not empty"]),
        ("equivariance.penalty: {distribution: choice, values: [paper, paper]}", ["'paper' is there twice"]),
        ("equivariance.penalty: []", ["equivariance.penalty: []", "a list of alternatives"]),
        ("train.learning_rate: {distribution: uniform, low: 0, high: 1}", ["train.learning_rate: 0", "above 0"]),
        ("train.learning_rate: {distribution: uniform, low: 1, high: 1}", ["low 1.0 is not below high 1.0"]),
        ("train.learning_rate: {distribution: uniform, low: 1, high: 2, step: 0.3}", ["step 0.3", "never comes to"]),
        ("train.learning_rate: {distribution: log_uniform, low: 0, high: 1}", ["low: 0: use a number above 0"]),
        ("train.learning_rate: {distribution: uniform, low: 0.1, high: .inf}", ["high: inf: use a number"]),
        ("train.learning_rate: {distribution: uniform, low: '0.1', high: 1}", ["low: '0.1': use a number"]),
        ("train.learning_rate: {distribution: uniform, low: 0.1, hihg: 1}", ["hihg: unknown; did you mean high?"]),
        ("train.learning_rate: {distribution: normal, low: 0.1, high: 1}", ["distribution: 'normal': use one of log_"]),
        ("train.learning_rate: 0.1", ["train.learning_rate: 0.1: use a section with"]),
        ("train.learning_rate: {low: 0.1, high: 1}", ["train.learning_rate.distribution: missing; add it"]),
        ("train.learning_rate: [{distribution: choice, values: [1]}, 3]", ["train.learning_rate/2: 3"]),
        ("7: {distribution: uniform, low: 0.1, high: 1}", ["name 7: use text"]),
        ("train.batch_size: {distribution: uniform, low: 8, high: 32}", ["train.batch_size: 8.0", "whole number"]),
        ("network.width: {distribution: choice, values: [8, 10]}", ["network.width: 10", "divide by 4"]),
        ("network.width: {distribution: integer, low: 8, high: 400, step: 2}", ["network.width: 10", "divide by 4"]),
        ("network.width: {distribution: integer, low: 8, high: 21, step: 4}", ["step 4", "never comes to high 21"]),
        ("network.width: {distribution: integer, low: 0, high: 8, log: true}", ["log: needs low of at least 1"]),
        ("network.width: {distribution: integer, low: 1.5, high: 8}", ["network.width.low: 1.5: use a whole number"]),
        ("equivariance.pairing: {distribution: choice, values: [replace, none]}", ["needs pairs"]),
        ("train.steps: {distribution: integer, low: 10, high: 20}", ["train.steps", "set by the sweep"]),
        ("tune.trials: {distribution: integer, low: 10, high: 20}", ["tune.trials: no trial can change it"]),
        ("train.ema_decay: {distribution: weight_per_layer, layers: each, low: 0, high: 1}", ["layer_weights alone"]),
        (
            "equivariance.layer_weights: {distribution: weight_per_layer, layers: [a], low: 0, high: 1}",
            ["layers: ['a']", "use two"],
        ),
        (
            "equivariance.layer_weights: {distribution: weight_per_layer, layers: each, low: -1, high: 1}",
            ["low: -1: use a number of at least 0"],
        ),
        ("train.arm: {variants: {a: {}, b: {}}}", ["train.arm", "a plain name, such as arm"]),
        ("arm: {variants: {}}", ["arm.variants: {}", "not empty"]),
        ("arm: {variants: {a: {network.widht: 8}}}", ["network.widht: unknown; did you mean width?"]),
        ("arm: {variants: {a: {evaluate.tile: 64}}}", ["evaluate.tile: no trial can change it"]),
        ("arm: {variants: {a: {network.width: 8}}, wehn: {}}", ["arm.wehn: unknown; did you mean when?"]),
        ("search: gird", ["search: 'gird': use optuna or grid"]),
        ("search: grid", ["equivariance.weight: log_uniform has no end of values", "use choice"]),
    ],
)
def test_a_distribution_that_does_not_fit_params_is_refused_by_key(
    project: Project, line: str, parts: list[str]
) -> None:
    message = _refusal(project, WEIGHT + line + "\n")
    assert all(part in message for part in parts), message


RATE = "train.learning_rate: {distribution: choice, values: [0.1, 0.2], when: "


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        (
            RATE + "{equivariance.penalti: paper}}",
            ["when: equivariance.penalti: not in this space", "mean equivariance."],
        ),
        (
            RATE + "{equivariance.penalty: papr}}",
            ["when: equivariance.penalty: 'papr': never chosen; did you mean paper"],
        ),
        (RATE + "{equivariance.weight: 0.1}}", ["when: equivariance.weight: a condition needs a choice"]),
        (RATE + "{train.learning_rate: 0.1}}", ["train.learning_rate: each waits for the other's value"]),
        (
            RATE + "{network.width: 8}}\n"
            "network.width: {distribution: choice, values: [8, 16], when: {train.learning_rate: 0.1}}",
            ["train.learning_rate and network.width: each waits for the other's value"],
        ),
    ],
)
def test_a_condition_on_what_never_is_is_refused(project: Project, lines: str, parts: list[str]) -> None:
    penalty = "equivariance.penalty: {distribution: choice, values: [regular, paper]}\n"
    message = _refusal(project, WEIGHT + penalty + lines + "\n")
    assert all(part in message for part in parts), message


def test_values_that_are_refused_only_together_are_named_together(project: Project) -> None:
    width = "network.width: {distribution: choice, values: [8, 10]%s}\n"
    penalty = "equivariance.penalty: {distribution: choice, values: [rotation, regular]}\n"
    rate = "train.learning_rate: {distribution: uniform, low: 0.1, high: 1}\n"
    message = _refusal(project, WEIGHT + penalty + rate + width % "")
    assert "10 channels do not divide by 4" in message
    assert "learning_rate" not in message
    fitting = _load(project, WEIGHT + penalty + rate + width % ", when: {equivariance.penalty: rotation}")
    widths = {(c["equivariance.penalty"], c.get("network.width")) for _, c in _sampled(fitting, 60)}
    assert widths == {("rotation", 8), ("rotation", 10), ("regular", None)}
    order = "equivariance.group: {distribution: choice, values: [C4, D4]}\n"
    message = _refusal(project, WEIGHT + order + rate + width.replace("10", "12") % "")
    assert message.startswith(
        "tune_spaces/mine.yaml: equivariance.group D4, network.width 12: network.width: 12 channels do not divide by 8"
    )


def test_a_refused_value_in_a_space_of_millions_of_combinations_is_found(project: Project) -> None:
    many = "".join(
        f"{key}: {{distribution: choice, values: {values}}}\n"
        for key, values in {
            "train.weight_decay": [0.0, 0.1, 0.2, 0.3, 0.4],
            "train.gradient_clip": [1.0, 2.0, 3.0, 4.0, 5.0],
            "train.ema_decay": [0.1, 0.2, 0.3, 0.4, 0.5],
            "train.warmup_steps": [1, 2, 3, 4, 5],
            "equivariance.warmup_steps": [1, 2, 3, 4, 5],
            "equivariance.penalty": "[rotation, regular, paper]",
            "equivariance.group": "[C4, C2, D4]",
        }.items()
    )
    _load(project, WEIGHT + many + "network.width: {distribution: choice, values: [8, 16]}\n")
    message = _refusal(project, WEIGHT + many + "network.width: {distribution: choice, values: [8, 16, 12]}\n")
    assert "network.width" in message
    assert "12 channels do not divide by 8" in message


def test_two_entries_that_set_one_key_are_refused(project: Project) -> None:
    text = WEIGHT + "arm: {variants: {a: {equivariance.weight: 0.5}, b: {}}}\n"
    assert "equivariance.weight: arm sets it once more" in _refusal(project, text)


def test_a_grid_of_too_many_combinations_is_refused(project: Project) -> None:
    text = "search: grid\nseed: {distribution: integer, low: 0, high: 10000}\n"
    assert "search: grid: more than 10000 combinations" in _refusal(project, text)


def test_every_combination_of_a_grid_is_checked(project: Project) -> None:
    text = "search: grid\nnetwork.width: {distribution: integer, low: 4, high: 200, step: 4}\n"
    assert len(_load(project, text).grid()) == 50
    text = text.replace("high: 200, step: 4", "high: 203, step: 199")
    assert "network.width: 203" in _refusal(project, text)


def test_weights_of_each_layer_need_the_names_of_the_layers(project: Project) -> None:
    with pytest.raises(UserError, match=r"layer_weights: layers: each: no network is given here"):
        load_space("layer_weights", load_params())


def test_a_file_that_is_no_space_is_refused_in_one_line(project: Project) -> None:
    assert "expected a mapping" in _refusal(project, "- equivariance.weight\n")
    assert "expected a mapping" in _refusal(project, "")
    assert "not readable as YAML" in _refusal(project, "a: [1\n")
    assert "holds nothing to search" in _refusal(project, "search: grid\n")
    twice = _refusal(project, WEIGHT + WEIGHT)
    assert "line 2: not readable as YAML" in twice
    assert "duplicate key" in twice
    assert len(twice.splitlines()) == 1
