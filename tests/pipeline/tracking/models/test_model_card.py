"""The model card: what it says is what was measured, it fits where MLflow keeps it, and lacks what nobody measured."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from components.data.packs import Entry, write_pack
from components.inference.contract import Contract
from components.networks import build_network
from pipeline.model_file import load_model, model_metadata, save_model
from pipeline.paths import MODEL
from pipeline.tracking.models.card_facts import collect_facts
from pipeline.tracking.models.model_card import (
    MOST_CHARACTERS,
    facts_as_tags,
    figures,
    model_card,
    model_title,
    read_facts,
)
from tests.pipeline.conftest import Project
from tests.pipeline.small_results import FIGURES, MULTIPLY_ADDS, write_results, write_validation

pytestmark = pytest.mark.unit

GAIN = {"mean": 10.0, "low": 8.5, "high": 11.25}
NO_INTERVAL = {"mean": -1.0, "low": None, "high": None}
FULL: dict[str, Any] = {
    "test": {**FIGURES["test"], "scenes": 3, "gain": {"psnr": {"over_input": GAIN, "over_classical": NO_INTERVAL}}},
    "rotated": FIGURES["test"],
    "out_of_distribution": {**FIGURES["test"], "conditions": {"sigma_15": FIGURES["test"]}},
    "classical_method": {"name": "non_local_means", "strength": 0.6},
    "equivariance_error": {"layers.conv1": 0.25, "layers.conv2": 0.5, "output": 0.0625},
}
LINEAGE = {"eqreg.git_commit": "0123456789abcdef", "eqreg.lineage": "aabbcc"}


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The facts of `FULL`, measured once."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("project")
        patch.chdir(folder)
        params = Project(folder).params()
        write_validation([0, 1, 2])
        write_results(10, FULL)
        return collect_facts(params, load_model(MODEL)[0], FULL)


@pytest.fixture
def facts(collected: dict[str, Any]) -> dict[str, Any]:
    """A copy, which the test may change."""
    return copy.deepcopy(collected)


def _rows(card: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line[:1] == "|"]


def test_the_card_holds_the_figures_with_intervals_of_each_group(facts: dict[str, Any]) -> None:
    rows = _rows(model_card(facts, "eqreg-denoise", "4", LINEAGE))
    assert ["test", "PSNR, dB", "20.00", "20.00", "30.00", "+10.00 [8.50, 11.25]", "-1.00"] in rows
    assert ["test, turned", "PSNR, dB", "20.00", "20.00", "30.00", "", ""] in rows
    assert ["out of distribution: sigma_15", "SSIM", "0.500", "0.500", "0.500", "", ""] in rows


def test_the_card_says_what_for_how_dear_from_where_and_what_was_not_tested(facts: dict[str, Any]) -> None:
    card = model_card(facts, "eqreg-denoise", "4", LINEAGE)
    assert card.startswith("# eqreg-denoise, version 4\n\nTask `denoise`. Network `dncnn` (")
    assert "**Trained for**: `sigma: 25`" in card
    assert "3 validation images of 3 scenes" in card
    assert "output **0.0625** Layers" not in card
    assert "output **0.0625**. Layers: `layers.conv1` 0.250, `layers.conv2` 0.500." in card
    assert ["multiply-adds a pixel", str(MULTIPLY_ADDS)] in _rows(card)
    assert ["parameters", str(MULTIPLY_ADDS + 4 + 3)] in _rows(card)  # and the biases
    assert "commit `0123456789abcdef`, lineage `aabbcc`" in card
    untested = card.partition("## Not tested")[2].partition("##")[0]
    assert "degradations other than the one of training, sigma_15, sigma_35" in untested
    assert "grey images" in untested
    for line in Contract(task="denoise", kind="image", inputs=3, outputs=3).text().splitlines():
        assert line in card


def test_the_card_of_a_classification_names_its_classes_and_the_size_of_its_images(project: Project) -> None:
    settings: dict[str, Any] = {"name": "resnet", "width": 4, "depth": 2, "norm": "none", "classes": 2}
    write_results(10)
    about = model_metadata(MODEL) | {"task": "classify", "network": settings}
    save_model(MODEL, build_network(**settings), about | {"classes": ["cat", "dog"], "image_size": [32, 48]})
    params = project.params(task="classify")
    facts = collect_facts(params, load_model(MODEL)[0], {"test": {}})
    card = model_card(facts | {"titles": []}, "eqreg-classify", "4", {})
    assert "The classes, in the order of the scores: cat, dog." in card
    assert "another size than 48x32 pixels" in card


def test_a_card_with_very_many_classes_still_says_how_to_use_the_model(facts: dict[str, Any]) -> None:
    names = tuple(f"class_{n}_of_a_long_name" for n in range(1000))
    contract = Contract(task="classify", kind="labels", inputs=3, outputs=1000, classes=names)
    card = model_card(facts | {"contract": contract.as_dict()}, "eqreg-classify", "4", LINEAGE)
    assert f"{names[19]} and 980 more" in card
    assert names[20] not in card
    assert "## Use" in card
    assert len(card) <= MOST_CHARACTERS


def test_sizes_and_given_pairs_are_those_of_the_packs(project: Project) -> None:
    import numpy as np

    for split, side in (("train", 16), ("test", 24)):
        folder = Path("data/packed") / split
        folder.mkdir(parents=True)
        image = np.zeros((3, side, side + 8), dtype=np.uint8)
        write_pack(folder, [Entry("a", "s", side, side + 8)], [image], [image.astype(np.float32)])
    write_results(10)
    facts = collect_facts(project.params(), load_model(MODEL)[0], FIGURES)
    card = model_card(facts, "eqreg-denoise", "4", {})
    assert "sides of less than 24 or more than 32 pixels" in card
    assert "scenes other than the 1 of the test images" in card
    assert "pairs of given files" in card
    assert "simulated" not in card


def test_what_was_not_measured_is_left_out(facts: dict[str, Any]) -> None:
    card = model_card(facts | {"metrics": FIGURES}, "eqreg-denoise", "4", {})
    for absent in ("## Equivariance", "## Origin", "turned |", "out of distribution |"):
        assert absent not in card
    assert "## Quality" in card


@pytest.mark.parametrize("layers", [30, 3000])
def test_a_card_of_a_deep_network_fits_and_names_the_layers_of_largest_error(
    facts: dict[str, Any], layers: int
) -> None:
    """MLflow keeps descriptions of at most 5000 characters."""
    errors = {f"encoder.stage{n}.attention.projection": n / layers for n in range(layers)} | {"output": 0.5}
    facts["metrics"] = facts["metrics"] | {"equivariance_error": errors}
    card = model_card(facts, "eqreg-denoise", "4", LINEAGE)
    assert len(card) <= MOST_CHARACTERS
    shown = re.findall(r"`encoder\.stage(\d+)\.", card)
    assert shown == [str(n) for n in range(layers - len(shown), layers)]
    assert f"{layers - len(shown)} layers with smaller errors are left out" in card
    assert "## Use" in card


def test_a_card_of_very_many_conditions_is_cut(facts: dict[str, Any]) -> None:
    many = {f"condition_{n}": FIGURES["test"] for n in range(100)}
    metrics = facts["metrics"]
    metrics["out_of_distribution"]["conditions"] = many
    card = model_card(facts | {"metrics": metrics}, "eqreg-denoise", "4", LINEAGE)
    assert len(card) <= MOST_CHARACTERS
    assert card.endswith("\n...\n")


def test_facts_come_back_from_the_tags_as_they_were(facts: dict[str, Any]) -> None:
    tags = facts_as_tags(facts)
    assert read_facts(tags) == json.loads(json.dumps(facts))
    assert (tags["eqreg.equivariance_error"], tags["eqreg.multiply_adds_per_pixel"]) == ("0.062500", str(MULTIPLY_ADDS))
    assert read_facts({}) is None
    assert read_facts({"eqreg.facts": "spoilt"}) is None
    assert read_facts({"eqreg.facts": json.dumps(facts | {"format": 99})}) is None  # of a later eqreg


def test_only_metrics_that_were_measured_have_rows(facts: dict[str, Any]) -> None:
    del facts["metrics"]["test"]["restored"]["ssim"]
    _, rows = figures(facts)
    assert ["test", "SSIM"] not in [row[:2] for row in rows]


def test_the_line_of_the_model_is_one_line_and_names_the_task() -> None:
    assert "derain" in model_title("derain")
    assert "\n" not in model_title("derain")
