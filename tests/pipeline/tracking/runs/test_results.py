"""A store is filled from results/ alone: an empty one wholly, one with a gap by what it lacks."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from components.data.packs import Entry, write_pack
from components.networks import build_network
from pipeline.model_file import model_sha256, save_model
from pipeline.provenance.lineage import Lineage
from pipeline.provenance.training_fingerprint import TrainingFingerprint
from pipeline.tracking.runs.notes import NOTE_TAG
from pipeline.tracking.runs.results import lineage_tags, link_metrics, log_results, training_run
from pipeline.tracking.store import MODEL_TAG, TRAINING_TAG, Store
from tests.pages import blocks, python_blocks
from tests.pipeline.conftest import Project
from tests.pipeline.tracking.runs.test_metric_names import evaluation

pytestmark = pytest.mark.process

IDENTITY = TrainingFingerprint("data", "params", "code")
LINEAGE = Lineage("abc", "", "data", "all-params").tags() | {TRAINING_TAG: IDENTITY.id}


def trained() -> str:
    """results/train with a model, and its SHA-256."""
    folder = Path("results/train")
    folder.mkdir(parents=True)
    settings = {"name": "dncnn", "width": 4, "depth": 2, "norm": "none"}
    metadata = {"network": settings, "task": "denoise", "hashes": asdict(IDENTITY), "steps": 75}
    save_model(folder / "model.safetensors", build_network(**settings), metadata)  # type: ignore[arg-type]
    (folder / "params.yaml").write_text(yaml.safe_dump({"seed": 0}))
    rows = "25,0.5,,0.25\n50,0.25,21.5,0.125\n75,0.125,,0.0625\n"
    (folder / "history.csv").write_text(f"step,task_loss,val_score,penalty\n{rows}")
    return model_sha256(folder / "model.safetensors")


@pytest.mark.parametrize("steps_known", [(), (25,), (25, 50, 75)])
def test_every_step_is_in_the_store_once_whatever_it_knew(
    project: Project, store: Store, steps_known: tuple[int, ...]
) -> None:
    sha256 = trained()
    run_id = store.parent_run(LINEAGE)
    store.set_tag(run_id, MODEL_TAG, sha256)
    for step in steps_known:  # then the server was away
        loss = {25: 0.5, 50: 0.25, 75: 0.125}[step]
        store.log(run_id, step, {"train/task_loss": loss, "train/penalty": loss / 2})
    for _ in range(2):
        assert log_results(store, "builtin") == run_id
    for metric, first in (("train/task_loss", 0.5), ("train/penalty", 0.25)):
        history = store.client.get_metric_history(run_id, metric)
        assert sorted((e.step, e.value) for e in history) == [(25, first), (50, first / 2), (75, first / 4)]


def test_the_run_that_trained_a_model_is_found_by_its_sha256_whatever_was_committed_since(
    project: Project, store: Store
) -> None:
    sha256 = trained()
    run_id = store.parent_run(LINEAGE)
    store.set_tag(run_id, MODEL_TAG, sha256)
    later = LINEAGE | Lineage("def", "", "data", "all-params").tags()
    assert store.parent_run(later) != run_id  # the same training, begun at another commit
    assert training_run(store) == run_id
    assert lineage_tags(store, run_id) == LINEAGE


def test_a_store_that_was_out_of_reach_at_the_end_knows_the_run_by_its_data_params_and_code(
    project: Project, store: Store
) -> None:
    sha256 = trained()
    run_id = store.parent_run(LINEAGE)
    assert training_run(store) == run_id
    assert store.run_of_model(sha256, IDENTITY.id) == run_id


def test_a_model_that_came_from_elsewhere_has_an_unknown_commit(project: Project, store: Store) -> None:
    sha256 = trained()
    other = store.parent_run(LINEAGE)
    store.set_tag(other, MODEL_TAG, "of another model")  # trained from the same, with other workers
    run_id = training_run(store)
    assert run_id not in (other, None)
    assert (store.run_of_model(sha256, IDENTITY.id), training_run(store)) == (run_id, run_id)
    tags = lineage_tags(store, run_id)
    assert (tags["eqreg.git_commit"], tags["eqreg.git_dirty"]) == ("unknown", "unknown")
    assert (tags["eqreg.data_hash"], tags["eqreg.params_hash"]) == ("data", "params")


def evaluated() -> None:
    """results/evaluate with two test images, and data/packed."""
    folder = Path("results/evaluate")
    (folder / "crops").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(evaluation()))
    rows = ["group,condition,image,scene,input_score,classical_score,restored_score"]
    for group in ("test", "rotated"):
        rows += [f"{group},0,{name}-0,{name},20.0,21.0,{score}" for name, score in (("a", 22.5), ("b", 23.0))]
    (folder / "images.csv").write_text("\n".join(rows) + "\n")
    for name in "ab":
        Image.fromarray(np.zeros((4, 28, 3), dtype=np.uint8)).save(folder / f"crops/{name}-0.png")
    for part, number in (("train", 3), ("val", 1), ("test", 2)):
        pack = Path("data/packed", part)
        pack.mkdir(parents=True)
        entries = [Entry(f"{part}-{i}", f"{part}-{i}", 8, 8) for i in range(number)]
        write_pack(pack, entries, [np.zeros((3, 8, 8), dtype=np.uint8)] * number)


def test_a_run_has_its_data_a_table_of_test_images_and_a_note_however_often_it_is_logged(
    project: Project, store: Store
) -> None:
    trained()
    evaluated()
    store.parent_run(LINEAGE)
    for _ in range(2):
        run_id = log_results(store, "s3://user:geheim@bucket/photos")
    run = store.client.get_run(run_id)
    found = [(each.dataset.name, each.dataset.digest, each.tags[0].value) for each in run.inputs.dataset_inputs]
    assert sorted(found) == [
        ("denoise test", "data", "test"),
        ("denoise train", "data", "train"),
        ("denoise validation", "data", "validation"),
    ]
    assert {each.dataset.source for each in run.inputs.dataset_inputs} == {json.dumps({"uri": "s3://bucket/photos"})}
    assert json.loads(run.inputs.dataset_inputs[0].dataset.profile).keys() == {"images", "scenes"}
    (listed,) = json.loads(run.data.tags["mlflow.loggedArtifacts"])
    table = store.client.load_table(store.experiment_id, listed["path"], [run_id])
    assert table[["image", "restored", "gain"]].values.tolist() == [["a-0", 22.5, 2.5], ["b-0", 23.0, 3.0]]
    crop = table["degraded, restored, truth, error"][0]["filepath"]
    assert "| restored | 30.00 | 30.00 | 30.00 |" in run.data.tags[NOTE_TAG]
    artifacts = {each.path for each in store.client.list_artifacts(run_id, "train")}
    assert (artifacts, crop.endswith(".png")) == ({"train/history.csv"}, True)


def test_a_run_of_an_earlier_version_gets_the_present_names_beside_its_own(project: Project, store: Store) -> None:
    trained()
    evaluated()
    run_id = store.parent_run(LINEAGE)
    store.log(run_id, 25, {"task_loss": 0.5, "penalty/down.0.conv1": 0.25})
    store.log(run_id, 0, {"test.restored.psnr": 30.0})
    store.set_tag(run_id, "eqreg.evaluated", "0123456789ab")
    assert log_results(store, "builtin") == run_id
    metrics = store.client.get_run(run_id).data.metrics
    assert (metrics["task_loss"], metrics["test.restored.psnr"], metrics["test/restored/psnr"]) == (0.5, 30.0, 30.0)
    assert [entry.step for entry in store.client.get_metric_history(run_id, "train/task_loss")] == [25, 50, 75]


def test_models_are_sorted_by_the_score_on_the_test_images(project: Project, store: Store) -> None:
    trained()
    evaluated()
    store.parent_run(LINEAGE)
    run_id = log_results(store, "builtin")
    models = [store.client.create_logged_model(store.experiment_id, name, run_id) for name in ("worse", "better")]
    for value, model in zip((10.0, 99.0), models, strict=True):
        store.log(run_id, 80, {"test/restored/psnr": value})
        for _ in range(2):
            link_metrics(store, run_id, model.model_id)
    order = [{"field_name": "metrics.test/restored/psnr", "dataset_name": "denoise test", "ascending": False}]
    found = store.client.search_logged_models([store.experiment_id], order_by=order)
    assert [model.name for model in found] == ["better", "worse"]
    (psnr,) = (metric for metric in found[0].metrics if metric.key == "test/restored/psnr")
    assert (psnr.value, psnr.dataset_name, psnr.dataset_digest) == (99.0, "denoise test", "data")
    history = store.client.get_metric_history(run_id, "test/restored/psnr")
    assert [entry.value for entry in history] == [30.0, 10.0, 99.0]


def test_the_searches_of_the_page_find_what_it_says(project: Project, store: Store) -> None:
    """Of docs/how-to/mlflow.md: the filter strings, and the search for the best model in Python."""
    page = "docs/how-to/mlflow.md"
    trained()
    evaluated()
    pipeline = store.parent_run(LINEAGE)
    assert log_results(store, "builtin") == pipeline
    store.log(pipeline, 90, {"test/restored/psnr": 30.5})
    trial = store.begin("trial-1", {"eqreg.kind": "trial", "eqreg.stopped_early": "false"}, {})
    store.end(trial)
    (filters,) = (block.text.splitlines() for block in blocks(page) if block.language == "text")
    found = [
        [run.info.run_id for run in store.client.search_runs([store.experiment_id], condition)] for condition in filters
    ]
    assert found == [[pipeline], [trial], [pipeline]]
    model = store.client.create_logged_model(store.experiment_id, "model", pipeline)
    link_metrics(store, pipeline, model.model_id)
    names: dict[str, Any] = {}
    (block,) = python_blocks(page)
    exec(block.text, names)
    assert names["best"].model_id == model.model_id
