"""What is wrong in params.yaml is refused with the key, the value and what would be right."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from components.degradations.noise import GaussianNoise
from components.equivariance import PenaltyWeight, group_named
from components.inference.tiles import ENSEMBLES
from components.members import NETWORKS
from pipeline.config.schema import Params, check_params, load_params, unreached
from pipeline.config.sections import SELF_ENSEMBLES
from pipeline.config.values import get_value, parse_values, read_values, set_value
from pipeline.errors import UserError
from pipeline.training_job import TrainingJob
from tests.pipeline.conftest import ROOT, Project

pytestmark = pytest.mark.unit


def _checked(changes: dict[str, Any]) -> Params:
    values = read_values(ROOT / "params.yaml")
    for key, value in changes.items():
        set_value(values, key, value)
    return check_params(values, "params.yaml")


def _refusal(changes: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        _checked(changes)
    message = str(caught.value)
    assert message.startswith("params.yaml: ")
    assert len(message.splitlines()) <= 2
    assert all(len(line) < 300 for line in message.splitlines())
    return message.removeprefix("params.yaml: ")


def test_the_shipped_params_are_valid_and_every_comment_promise_holds(project: Project) -> None:
    params = load_params()
    assert params.task == "denoise"
    assert params.rotations is True
    assert project.params(task="derain").rotations is False
    assert project.params(train__rotations=True).rotations is True


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("tunee", "tune"),
        ("train.patch_sise", "patch_size"),
        ("preprocess.splits.tets", "test"),
        ("tasks.denoise.degradation.sgima", "sigma"),
        ("tasks.derain.out_of_distribution.denser.brigthness", "brightness"),
        ("tasks.derian", "derain"),
        ("register.margn", "margin"),
    ],
)
def test_an_unknown_key_comes_with_the_nearest_right_one_at_every_level(key: str, hint: str) -> None:
    assert _refusal({key: 1}) == f"{key}: unknown; did you mean {hint}?"


def test_a_member_without_settings_says_so_and_one_with_a_name_alone_takes_settings() -> None:
    assert _refusal({"train.loss": {"name": "l1", "epsilon": 1}}) == (
        "train.loss.epsilon: unknown; there are no settings here"
    )
    params = _checked({"train.loss": "charbonnier"}).patched({"train.loss.epsilon": 0.5})
    assert params.resolved["train"]["loss"] == {"name": "charbonnier", "epsilon": 0.5}
    assert params.patched({"train.loss.name": "charbonnier"}) == params


@pytest.mark.parametrize("key", [None, True, 1.5, -1, 3])
def test_a_key_that_is_no_text_is_named_as_it_stands(key: object) -> None:
    values = read_values(ROOT / "params.yaml")
    values["fetch"][key] = 1
    shown = {None: "null", True: "true"}.get(key, str(key))  # type: ignore[call-overload]
    with pytest.raises(UserError, match=rf"^params\.yaml: fetch\.{re.escape(shown)}: unknown; known here: source"):
        check_params(values, "params.yaml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed: 0 ", "seed: 2020-13-45 ", r"params\.yaml: not readable as YAML \(month must be in 1\.\.12"),
        (
            "  name: auto\n",
            "  name: auto\n  ? [1, 2]\n  : 3\n",
            r"params\.yaml: a key is not text, or a value contains",
        ),
        ("  name: auto\n", "  name: auto\n  2020-01-01: 3\n", r"params\.yaml: a key is not text, or a value"),
        ("fetch:\n", "fetch: &x\n  x: *x\n", r"params\.yaml: a key is not text, or a value contains itself"),
        (
            "  name: auto\n",
            "  name: unet\n  depth: 20000\n",
            r"network\.depth: 20000: use a whole number of at most 12",
        ),
    ],
)
def test_what_yaml_allows_and_params_do_not_is_one_line(project: Project, old: str, new: str, message: str) -> None:
    path = project.folder / "params.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message) as caught:
        load_params()
    assert len(str(caught.value).splitlines()) == 1


def test_a_mistyped_key_is_one_message_not_also_a_missing_one() -> None:
    values = read_values(ROOT / "params.yaml")
    values["train"]["patch_sise"] = values["train"].pop("patch_size")
    with pytest.raises(UserError) as caught:
        check_params(values, "params.yaml")
    assert str(caught.value) == "params.yaml: train.patch_sise: unknown; did you mean patch_size?"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("preprocess.draws", "preprocess.realizations"),
        ("train.images_at_once", "train.micro_batch_size"),
        ("train.task_on_copies", "train.task_loss_on_transformed"),
        ("evaluate.pictures", "evaluate.comparison_images"),
        ("tasks.inpaint.degradation.holes", "tasks.inpaint.degradation.masks"),
        ("tasks.inpaint.out_of_distribution.boxes.holes", "tasks.inpaint.out_of_distribution.boxes.masks"),
    ],
)
def test_a_key_of_an_older_params_yaml_is_refused_with_its_new_name_alone(old: str, new: str) -> None:
    values = read_values(ROOT / "params.yaml")
    set_value(values, old, get_value(values, new))
    *sections, last = new.split(".")
    section = values
    for name in sections:
        section = section[name]
    del section[last]
    with pytest.raises(UserError) as caught:
        check_params(values, "params.yaml")
    assert str(caught.value) == f"params.yaml: {old}: was renamed to {new}"


def test_a_key_like_no_other_comes_with_those_that_are_known() -> None:
    assert (
        _refusal({"evaluate.zzz": 1})
        == "evaluate.zzz: unknown; known here: tile, overlap, self_ensemble, comparison_images"
    )


def test_a_key_that_is_a_number_is_refused_as_unknown() -> None:
    values = read_values(ROOT / "params.yaml")
    values["register"][3] = 1
    with pytest.raises(UserError, match=r"^params\.yaml: register\.3: unknown; known here: margin, largest_"):
        check_params(values, "params.yaml")


@pytest.mark.parametrize(
    "key", ["seed", "train", "train.patch_size", "tasks.derain.degradation.angle", "register.margin"]
)
def test_a_missing_key_is_named(key: str) -> None:
    values = read_values(ROOT / "params.yaml")
    *sections, last = key.split(".")
    del _section(values, sections)[last]
    with pytest.raises(UserError, match=rf"^params\.yaml: {key}: missing; add it$"):
        check_params(values, "params.yaml")


def _section(values: dict[str, Any], sections: list[str]) -> dict[str, Any]:
    """The mapping at a path."""
    for section in sections:
        values = values[section]
    return values


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.num_workers", "all", "'all': use auto or a whole number of at least 1 or a range [least, most]"),
        ("train.num_workers", 0, "0: use auto or a whole number of at least 1 or a range [least, most]"),
        ("train.num_workers", True, "True: use auto or a whole number of at least 1 or a range [least, most]"),
        ("train.num_workers", 1.5, "1.5: use auto or a whole number of at least 1 or a range [least, most]"),
        ("train.batch_size", "16", "'16': use a whole number of at least 1"),
        ("train.steps", True, "True: use a whole number of at least 1"),
        ("train.steps", 10.0, "10.0: use a whole number of at least 1"),
        ("train.steps", None, "None: use a whole number of at least 1"),
        ("train.learning_rate", 0, "0: use a number above 0"),
        ("train.learning_rate", False, "False: use a number above 0"),
        ("train.learning_rate", float("nan"), "nan: use a number above 0"),
        ("train.learning_rate", float("inf"), "inf: use a number above 0"),
        ("train.ema_decay", 1, "1: use a number of at least 0 and below 1"),
        ("train.task_loss_on_transformed", 1, "1: use true or false"),
        ("train.rotations", "maybe", "'maybe': use auto or true or false"),
        ("train.patch_size", 4, "4: use a whole number of at least 8"),
        ("train.loss", "l2", "'l2': use auto, l1, mse, charbonnier or cross_entropy; did you mean l1?"),
        ("train", None, "None: use a section with the keys steps, batch_size, patch_size, ..."),
        ("train", [1], "[1]: use a section with the keys steps, batch_size, patch_size, ..."),
        (
            "task",
            "denoize",
            "'denoize': use denoise, derain, deblur, super_resolution, inpaint, jpeg, ct_mar or classify; did you mean "
            "denoise?",
        ),
        pytest.param(
            "network.name",
            "unett",
            f"'unett': use auto, {', '.join(sorted(NETWORKS)[:-1])} or unet; did you mean unet?",
            id="network.name-unett-'unett': use auto, dncnn, resnet or unet; did you mean unet?",
        ),
        ("equivariance.weight", -0.1, "-0.1: use a number of at least 0"),
        ("equivariance.pair_fraction", 0, "0: use a number above 0 and of at most 1"),
        ("equivariance.layers", "aut", "'aut': use auto or a mapping; did you mean auto?"),
        ("evaluate.tile", 100, "100: use a whole number of at least 64 and divisible by 16"),
        ("evaluate.overlap", 8, "8: use a whole number of at least 0 and divisible by 16"),
        ("preprocess.splits.train", "astronaut", "'astronaut': use a list"),
        ("tasks.denoise.degradation.sigma", "25", "'25': use a number or a range [lowest, highest]"),
        ("tasks.denoise.degradation.sigma", [1], "[1]: use a number or a range [lowest, highest]"),
        ("train.loss", 5, "5: use a name, or {name: NAME, SETTING: VALUE, ...}"),
        ("network", None, "None: use a name, or {name: NAME, SETTING: VALUE, ...}"),
        ("tasks.denoise.degradation.sigma", [1, 2, 3], "[1, 2, 3]: use a number or a range [lowest, highest]"),
        ("tasks.denoise.degradation.sigma", [1, True], "[1, True]: use a number or a range [lowest, highest]"),
        ("fetch.source", "", "'': use text that is not empty"),
        ("seed", -1, "-1: use a whole number of at least 0 and below 4294967296"),
        ("seed", 2**32, "4294967296: use a whole number of at least 0 and below 4294967296"),
    ],
)
def test_a_wrong_value_is_one_line_that_says_what_would_be_right(key: str, value: object, message: str) -> None:
    assert _refusal({key: value}) == f"{key}: {message}"


def test_a_wrong_item_of_a_list_is_named_by_its_place() -> None:
    assert _refusal({"preprocess.splits.train": ["a", 3]}) == "preprocess.splits.train.1: 3: use text"


def test_a_wrong_field_names_its_pattern() -> None:
    expected = "equivariance.layers.down.*: 'regularr': use regular or trivial; did you mean regular?"
    assert _refusal({"equivariance.layers": {"down.*": "regularr"}}) == expected


@pytest.mark.parametrize("name", ["a/b", "..", "", ".hidden"])
def test_names_that_would_leave_the_pack_folder_are_refused(name: object) -> None:
    message = _refusal({"tasks.denoise.out_of_distribution": {name: {"sigma": 5}}})
    assert message.startswith(f"tasks.denoise.out_of_distribution: name {name!r}: use a name of letters")


def test_keys_of_another_kind_come_with_how_to_replace_the_mapping() -> None:
    """DVC's ``-S`` merges a mapping into the one that is there."""
    values = read_values(ROOT / "params.yaml")
    values["tasks"]["derain"]["degradation"]["streaks"] = "auxiliary"
    with pytest.raises(UserError) as caught:
        check_params(values, "params.yaml")
    assert str(caught.value) == (
        "params.yaml: tasks.derain.degradation: angle, length, width, density, brightness: cannot be used together "
        "with streaks; dvc exp run -S adds keys to a mapping; to replace the mapping: -S '~tasks.derain.degradation' "
        "-S '+tasks.derain.degradation={...}'"
    )


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"profile": "geometrc", "decay": 0.9}, "profile: 'geometrc': use uniform or geometric"),
        ({"profile": "geometric", "decy": 0.9}, "decy: unknown with profile geometric; did you mean decay?"),
        ({"profile": "geometric"}, "decay: None: use a number above 0 and of at most 1"),
        ({"profile": "geometric", "decay": 1.5}, "decay: 1.5: use a number above 0 and of at most 1"),
        (
            {"profile": "uniform", "decay": 0.5},
            "decay: unknown with profile uniform; known here: profile; dvc exp run -S adds keys to a mapping; "
            "to replace the mapping: -S '~equivariance.layer_weights' -S '+equivariance.layer_weights={...}'",
        ),
        ({"down.*": -1}, "down.*: -1: give a profile, or name patterns with a weight of at least 0 each"),
        ({"down.*": "much"}, "down.*: 'much': give a profile, or name patterns with a weight of at least 0 each"),
        ({}, "nothing: give a profile, or name patterns with a weight of at least 0 each"),
        ({"down.*": math.nan}, "down.*: nan: give a profile, or name patterns with a weight of at least 0 each"),
        ({"down.*": 1e40}, "down.*: 1e+40: give a profile, or name patterns with a weight of at least 0 each"),
        ({"profile": ["geometric"]}, "profile: ['geometric']: use uniform or geometric"),
    ],
)
def test_layer_weights_that_mean_nothing_are_refused(weights: dict[str, Any], reason: str) -> None:
    assert _refusal({"equivariance.layer_weights": weights}) == f"equivariance.layer_weights: {reason}"


@pytest.mark.parametrize(
    "weights", [{"profile": "uniform"}, {"profile": "geometric", "decay": 1}, {"down.*": 1, "last": 0.5}]
)
def test_layer_weights_that_mean_something_pass(weights: dict[str, Any]) -> None:
    assert _checked({"equivariance.layer_weights": weights}).equivariance.layer_weights == weights


def test_a_number_is_a_range_of_one_value() -> None:
    for sigma, ends in ((25, (25, 25)), ([5, 50], (5, 50))):
        task = _checked({"tasks.denoise.degradation.sigma": sigma}).build_task()
        assert task.degradation() == GaussianNoise(ends)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"equivariance.weight": 0.1, "equivariance.pairing": "none"},
            ["equivariance.weight: 0.1", "equivariance.pairing", "replace or append, or weight 0"],
        ),
        (
            {"network.width": 22, "equivariance.penalty": "regular"},
            ["network.width: 22", "do not divide by 4", "use 24, or equivariance.penalty: rotation"],
        ),
        (
            {"network.width": 20, "equivariance.group": "D4"},
            ["network.width: 20", "do not divide by 8", "in D4", "use 16, or equivariance.penalty: rotation"],
        ),
        (
            {"equivariance.balance": 0.05, "equivariance.penalty": "channel"},
            ["equivariance.balance: 0.05", "penalty 'channel' has none", "use null"],
        ),
        (
            {"equivariance.balance": 0.05, "equivariance.pairing": "none", "equivariance.weight": 0},
            ["equivariance.balance: 0.05 needs pairs"],
        ),
        (
            {"equivariance.balance": 0.5, "equivariance.max_gradient_ratio": 0.3},
            ["equivariance.balance: 0.5 cannot be reached", "max_gradient_ratio 0.3", "0.23 or less"],
        ),
        ({"equivariance.balance": 0.05, "tune.trials": 3}, ["equivariance.balance: 0.05", "use tune.trials: 0"]),
        (
            {"equivariance.sample_fields": 0.5, "equivariance.penalty": "rotation"},
            ["equivariance.sample_fields: 0.5 has no effect under penalty 'rotation'"],
        ),
        (
            {"equivariance.group": "C8", "equivariance.penalty": "projection"},
            ["equivariance.group: C8", "use C2, C4 or D4"],
        ),
        ({"tune.steps": 40, "tune.grace_steps": 40}, ["tune.grace_steps: 40", "tune.steps 40", "less than 40"]),
        ({"evaluate.tile": 64, "evaluate.overlap": 64}, ["evaluate.overlap: 64", "less than evaluate.tile 64"]),
        ({"preprocess.remaining": {"val": 0.5, "test": 0.5}}, ["preprocess.remaining", "below 1"]),
        ({"train.batch_size": 16, "train.num_workers": 5}, ["train.batch_size: 16", "too few for 5 workers"]),
        ({"train.batch_size": 16, "train.num_workers": [4, 5]}, ["train.batch_size: 16", "too few for 5 workers"]),
        (
            {"train.batch_size": 16, "equivariance.pair_fraction": 0.3},
            ["equivariance.pair_fraction: 0.3", "4.8 pairs", "use 0.3125"],
        ),
        ({"equivariance.pair_fraction": 0.75}, ["equivariance.pair_fraction: 0.75", "'replace'", "at most 0.5"]),
        (
            {"network.name": "unet", "network.depth": 8, "train.patch_size": 64},
            ["train.patch_size: 64", "128 pixels", "a smaller network"],
        ),
        ({"tasks.denoise.degradation.sigma": [30, 20]}, ["tasks.denoise.degradation: sigma 30.0..20.0", "low <= high"]),
        ({"tasks.denoise.out_of_distribution": {"a": {"sigma": 300}}}, ["out_of_distribution.a: sigma 300.0", "255"]),
        ({"tasks.derain.degradation.density": [0.1, 5]}, ["tasks.derain.degradation: density 0.1..5.0", "0 <= low"]),
        ({"task": "inpaint", "preprocess.pairs": "auto"}, ["preprocess.pairs", "reads no pairs", "use none"]),
        ({"task": "classify", "preprocess.colour": "grey"}, ["preprocess.colour: grey", "use rgb"]),
        ({"task": "classify", "network.name": "unet"}, ["network.name: unet does not fit", "auto or resnet"]),
        ({"train.loss": "cross_entropy"}, ["train.loss: cross_entropy does not fit task denoise", "auto or l1, mse"]),
        ({"preprocess.pairs": "polyyu"}, ["preprocess.pairs: 'polyyu': unknown; did you mean polyu?"]),
        (
            {"tasks.denoise.out_of_distribution": {"test": {"sigma": 5}}},
            ["tasks.denoise.out_of_distribution.test: the name of a part"],
        ),
        (
            {"task": "deblur", "tasks.deblur.degradation.kernels": "auxiliary"},
            ["tasks.deblur.degradation: auxiliary needs", "fetch.auxiliary"],
        ),
        (
            {"tasks.deblur.degradation": {"kernels": "auxiliary", "size": 3, "sigma": -5, "boundary": "valid"}},
            ["tasks.deblur.degradation: sigma -5.0"],
        ),
        (
            {"task": "super_resolution", "tasks.super_resolution.out_of_distribution": {"x": {"scale": 3, "sigma": 0}}},
            ["out_of_distribution.x: scale 3, but the network enlarges by 2"],
        ),
        (
            {"task": "super_resolution", "train.patch_size": 47},
            ["train.patch_size: 47 does not divide by the scale 2", "use 48"],
        ),
        ({"task": "super_resolution", "preprocess.crop": 16}, ["preprocess.crop: 16 leaves too little", "use 20 or"]),
        (
            {"task": "ct_mar", "tasks.ct_mar.degradation.size": 32},
            ["train.patch_size: 48 is larger than a slice", "32"],
        ),
        ({"tasks.ct_mar.degradation.materials": {"lead": 1.0}}, ["tasks.ct_mar.degradation: materials 'lead'"]),
        ({"preprocess.scene_pattern": "("}, ["preprocess.scene_pattern: '(' is no regular expression"]),
        (
            {"tasks.super_resolution.degradation": {"scale": 2, "sigma": -1}},
            ["tasks.super_resolution.degradation: sigma -1.0", "use 0 <= low"],
        ),
        (
            {"network": {"name": "acdnet"}},
            [
                "acdnet does not fit task denoise (acdnet needs li and metal_mask, where there is image, noise_level)",
                "use auto or c4_dncnn, c4_unet, d4_dncnn, d4_unet, derainnet, dncnn, drunet, ",
            ],
        ),
        (
            {"task": "super_resolution", "network": {"name": "prenet"}},
            ["prenet gives images of the size of its input, not 2 times as large", "use auto or c4_dncnn, "],
        ),
        (
            {"task": "ct_mar", "network": {"name": "acdnet"}},
            ["network.maps: 6 channels do not divide by 4", "use 8"],
        ),
        ({"network": {"name": "prenet", "width": 30}}, ["network.width: 30 channels do not divide by 4", "use 32"]),
        ({"network": {"name": "prenet", "norm": "none"}}, ["network.norm: unknown"]),
        ({"evaluate.self_ensemble": 3}, ["evaluate.self_ensemble: 3: use one of 1, 4, 8"]),
        (
            {"task": "derain", "network": {"name": "ffdnet"}},
            [
                "ffdnet does not fit task derain (ffdnet needs noise_level, where there is image)",
                "derainnet, dncnn, fbpconvnet, ",
            ],
        ),
        (
            {"tasks.denoise.degradation": {"sigma": 5, "gain": 0.01}, "network": {"name": "ffdnet"}},
            ["ffdnet does not fit task denoise (ffdnet needs noise_level, where there is image)"],
        ),
        (
            {
                "tasks.denoise.out_of_distribution": {"camera": {"sigma": 5, "gain": 0.01}},
                "network": {"name": "ffdnet"},
            },
            ["tasks.denoise.out_of_distribution.camera: has no noise_level, which network ffdnet needs"],
        ),
        (
            {"preprocess.pairs": "auto", "network": {"name": "ffdnet"}},
            ["preprocess.pairs: pairs of image files have no noise_level, which network ffdnet needs: use none"],
        ),
        (
            {"task": "ct_mar", "network": {"name": "acdnet", "maps": 8}},
            ["network.dual_channels + 1: 33 channels do not divide by 4", "use dual_channels + 1 = 32, or"],
        ),
        (
            {"equivariance.layers": "eqreg-t"},
            ["layers: 'eqreg-t': use auto or a mapping (network unet has no choice eqreg-t, as ", "restormer"],
        ),
        (
            {"equivariance.layers": "eqregt", "network": {"name": "restormer"}},
            ["equivariance.layers: 'eqregt': use auto, eqreg-t or a mapping; did you mean eqreg-t?"],
        ),
        ({"equivariance.layers": 3}, ["equivariance.layers: 3: use auto or a mapping"]),
        (
            {"task": "super_resolution", "network": {"name": "swinir", "upsampler": "none"}},
            ["network.upsampler: 'none' does not fit scale 2: use pixelshuffle or pixelshuffledirect, or auto"],
        ),
        (
            {"network": {"name": "swinir", "upsampler": "pixelshuffledirect"}},
            ["network.upsampler: 'pixelshuffledirect' does not fit scale 1: use none, or auto"],
        ),
        ({"network": {"name": "swinir", "heads": 7}}, ["network.heads: 7 do not divide width 180", "175 or 182"]),
        ({"network": {"name": "swinir", "width": 90}}, ["network.width: 90 channels do not divide by 4"]),
        (
            {"task": "derain", "preprocess.colour": "grey", "network": {"name": "rcdnet", "dual_channels": 33}},
            ["network.dual_channels + 1: 34 channels do not divide by 4", "use dual_channels + 1 = 32, or"],
        ),
        (
            {"task": "derain", "network": {"name": "rcdnet", "dual_channels": 35}},
            ["network.dual_channels + 3: 38 channels do not divide by 4"],
        ),
        (
            {"network": {"name": "nafnet"}, "train.patch_size": 40},
            ["train.patch_size: 40: network nafnet cannot turn inputs of 40 pixels exactly", "use 32 or 48"],
        ),
        (
            {"task": "jpeg", "network": {"name": "swinir", "window": 7, "image_range": 255}},
            ["train.patch_size: 48: network swinir cannot turn inputs of 48 pixels", "use 42 or 49"],
        ),
        (
            {"task": "super_resolution", "network": {"name": "swinir"}, "train.patch_size": 40},
            ["train.patch_size: 40: network swinir cannot turn inputs of 20 pixels", "use 32 or 48"],
        ),
    ],
)
def test_values_that_are_impossible_together_are_refused_with_the_keys_and_a_remedy(
    changes: dict[str, Any], parts: list[str]
) -> None:
    message = _refusal(changes)
    assert all(part in message for part in parts), message


def test_a_network_may_be_as_deep_as_the_smallest_image_allows() -> None:
    _checked({"network.name": "unet", "network.depth": 7, "train.patch_size": 64})


@pytest.mark.parametrize("changes", [{"weight": 0, "pairing": "none"}, {"penalty": "projection", "pairing": "none"}])
def test_any_patch_is_fine_where_no_features_are_compared(changes: dict[str, Any]) -> None:
    chosen = {f"equivariance.{key}": value for key, value in changes.items()}
    _checked({"network": {"name": "nafnet"}, "train.patch_size": 40, "tune.trials": 0, **chosen})


def test_a_width_that_does_not_divide_by_4_is_fine_where_no_channels_are_shifted() -> None:
    _checked({"network.width": 22, "equivariance.penalty": "rotation"})
    _checked({"network.width": 22, "equivariance.pairing": "none", "equivariance.weight": 0})


@pytest.mark.parametrize(("colour", "dual_channels"), [("rgb", 33), ("grey", 35)])
def test_the_channels_beside_the_image_fit_its_colours(colour: str, dual_channels: int) -> None:
    network = {"name": "rcdnet", "dual_channels": dual_channels}
    _checked({"task": "derain", "preprocess.colour": colour, "network": network})


def test_projection_compares_kernels_and_needs_no_pairs() -> None:
    _checked({"equivariance.penalty": "projection", "equivariance.pairing": "none", "equivariance.weight": 0.1})


@pytest.mark.parametrize("name", ["C2", "C4", "C8", "C12", "D4"])
def test_every_group_the_regulariser_takes_can_be_asked_for(name: str) -> None:
    chosen = _checked({"equivariance.group": name, "network.width": 24, "equivariance.penalty": "rotation"})
    assert chosen.equivariance.group_order == group_named(name).order


@pytest.mark.parametrize("name", ["C1", "D8", "SO2", "c4", "C04"])
def test_a_group_there_is_not_is_refused_as_by_the_regulariser(name: str) -> None:
    assert "use C2, C4, D4, C8 or another C<N>" in _refusal({"equivariance.group": name})
    with pytest.raises(ValueError, match="group"):
        group_named(name)


def test_two_mistakes_are_two_lines_and_more_are_counted() -> None:
    message = _refusal({"train.steps": 0, "seed": "x", "register.margin": -1, "tune.apply": 3})
    assert message.splitlines() == [
        "seed: 'x': use a whole number of at least 0 and below 4294967296",
        "train.steps: 0: use a whole number of at least 1 (and 2 more)",
    ]


def test_the_hash_changes_with_any_value_and_with_nothing_else() -> None:
    base = {"train.num_workers": "auto", "tune.apply": False, "seed": 0, "task": "denoise", "network.norm": "none"}
    changes: list[tuple[str, Any]] = [
        ("seed", 1),
        ("task", "derain"),
        ("fetch.source", "photographs"),
        ("preprocess.splits.val", ["flower"]),
        ("tasks.denoise.degradation.sigma", [25, 26]),
        ("tasks.derain.rotations", True),
        ("tasks.derain.out_of_distribution.denser.angle", 3),
        ("network.norm", "batch"),
        ("equivariance.weight", 0.123456),
        ("equivariance.layers", {"down.*": "regular"}),
        ("equivariance.layer_weights", {"down.*": 0.123}),
        ("train.learning_rate", 0.00123456),
        ("train.num_workers", 1),
        ("tune.apply", True),
        ("evaluate.comparison_images", 123),
        ("register.margin", 0.123456),
        ("cluster.max_failures", 123),
    ]
    plain = _checked(base).hash
    hashes = {_checked(base | {key: value}).hash for key, value in changes} | {plain}
    assert len(hashes) == len(changes) + 1
    reordered = dict(reversed(read_values(ROOT / "params.yaml").items()))
    assert check_params(reordered, "params.yaml").hash == _checked({}).hash
    assert len(plain) == 12
    assert int(plain, 16) >= 0


def test_params_survive_the_way_to_a_worker() -> None:
    params = _checked({"tasks.denoise.degradation.sigma": [5, 50]})
    assert check_params(params.model_dump(by_alias=True, mode="json"), "params") == params


def test_yaml_is_read_as_dvc_reads_it() -> None:
    assert parse_values("a: 1e-3\nb: no\nc: 010\nd: .5", "x") == {"a": 0.001, "b": "no", "c": 10, "d": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  steps: 1\n  steps: 2\n", r"params\.yaml, line 3: not readable as YAML \(found duplicate key"),
        ("train: [1, 2\nseed: 0\n", r"params\.yaml, line 2: not readable as YAML"),
        ("- a\n- b\n", r"params\.yaml: expected a mapping of sections, found list"),
        ("", r"params\.yaml: expected a mapping of sections, found NoneType"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_with_the_line(project: Project, text: str, message: str) -> None:
    (project.folder / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_params()
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_no_text_or_not_there_is_refused(project: Project) -> None:
    (project.folder / "params.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"params\.yaml: not readable as text"):
        load_params()
    (project.folder / "params.yaml").unlink()
    with pytest.raises(UserError, match=r"params\.yaml: there is no such file; run from the folder that holds"):
        load_params()


def test_a_dotted_key_sets_and_gets_a_nested_value() -> None:
    values: dict[str, Any] = {"a": {"b": {"c": 1}}}
    set_value(values, "a.b.c", 2)
    set_value(values, "a.d", 3)
    assert values == {"a": {"b": {"c": 2}, "d": 3}}
    assert get_value(values, "a.b") == {"c": 2}
    assert get_value(values, "a.b.c.d") is None
    assert get_value(values, "x") is None
    with pytest.raises(UserError, match=r"trian\.steps: there is no section 'trian' .*did you mean train\?"):
        set_value({"train": {}}, "trian.steps", 1)


def test_params_cannot_be_changed_once_checked() -> None:
    with pytest.raises(ValueError, match="frozen"):
        _checked({}).train.steps = 3  # type: ignore[misc]


def test_values_are_read_from_the_file_named(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: {b: 1}")
    assert read_values(tmp_path / "x.yaml") == {"a": {"b": 1}}


@pytest.mark.parametrize("steps", [20, 99, 100, 700])
def test_a_run_that_ends_within_its_warm_up_is_told_what_it_reaches(steps: int) -> None:
    params = _checked({"train.steps": steps})
    rates = TrainingJob(params, Path("/nowhere")).settings()
    reached = max(map(rates.learning_rate_at, range(steps)))
    weights = PenaltyWeight(0.02, 100, unit="none")
    lines = unreached(params)
    if steps >= 100:
        assert lines == []
        assert reached == params.train.learning_rate
        return
    assert lines == [
        f"train.warmup_steps: 100 are more than train.steps {steps}: train.learning_rate reaches {reached:.2g} of "
        f"0.005; use {steps // 4}",
        f"equivariance.warmup_steps: 100 are more than train.steps {steps}: equivariance.weight reaches "
        f"{weights.at(steps - 1, 1.0):.2g} of 0.02; use {steps // 4}",
    ]
    assert unreached(_checked({"train.steps": steps, "equivariance.weight": 0})) == lines[:1]


def test_the_sizes_of_a_self_ensemble_are_those_that_restoring_has() -> None:
    assert SELF_ENSEMBLES == ENSEMBLES


def test_settings_that_are_lists_reach_the_network_and_the_printed_params_as_lists() -> None:
    changes = {"encoder_blocks": [1, 1], "middle_blocks": 1, "decoder_blocks": [1, 1]}
    params = _checked({"network": {"name": "nafnet", "width": 8, **changes}})
    assert params.network_settings.encoder_blocks == (1, 1)
    assert params.resolved["network"] == {"name": "nafnet", "width": 8, **changes}
    assert _refusal({"network": {"name": "nafnet", "encoder_blocks": 2}}) == "network.encoder_blocks: 2: use a list"
    assert "decoder_blocks: [2, 2, 2, 2]: use as many levels as encoder_blocks has, 1" in _refusal(
        {"network": {"name": "nafnet", "encoder_blocks": [2]}}
    )
