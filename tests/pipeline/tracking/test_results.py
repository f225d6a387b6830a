"""A store is filled from results/ alone: an empty one wholly, one with a gap by what it lacks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from components.networks import build_network
from pipeline.model_file import model_sha256, save_model
from pipeline.provenance.lineage import Lineage
from pipeline.provenance.training_fingerprint import TrainingFingerprint
from pipeline.tracking.results import lineage_tags, log_results, training_run
from pipeline.tracking.store import MODEL_TAG, TRAINING_TAG, Store
from tests.pipeline.conftest import Project

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
    (folder / "history.csv").write_text(f"step,task_loss,val_score,penalty/down.0.conv1\n{rows}")
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
        store.log(run_id, step, {"task_loss": loss, "penalty/down.0.conv1": loss / 2})
    for _ in range(2):
        assert log_results(store) == run_id
    for metric, first in (("task_loss", 0.5), ("penalty/down.0.conv1", 0.25)):
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
