"""The whole pipeline with real DVC, Ray and MLflow processes, in a copy of the repository."""

from __future__ import annotations

import csv
import getpass
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from benchmarks.golden import golden, names
from docs.generate.files import fields_of, files
from pipeline.provenance.same_bytes import SPREAD_DB
from tests.pipeline.workspace import Workspace

pytestmark = pytest.mark.ray
STAGES = ("fetch", "preprocess", "tune", "train", "evaluate", "register")

# Runs without the project: only what the model's own requirements name.
LOAD = """
import sys
sys.modules["components"] = sys.modules["pipeline"] = None
import mlflow, torch
mlflow.set_tracking_uri(sys.argv[1])
network = mlflow.pytorch.load_model("models:/eqreg-denoise@champion")
for size in ((40, 64), (65, 33)):
    images = torch.rand(1, 3, *size)
    with torch.inference_mode():
        restored = network(images)
    assert restored.shape == images.shape and not torch.equal(restored, images)
print("loaded")
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """After one ``dvc repro``."""
    made = Workspace(tmp_path_factory.mktemp("project"))
    output = made.run("dvc", "repro")
    assert [stage for stage in STAGES if f"Running stage '{stage}'" in output] == list(STAGES)
    assert "Warning" not in output
    return made


def rows(workspace: Workspace, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(workspace.folder / "mlflow.db") as database:
        return database.execute(query).fetchall()


def test_every_stage_leaves_what_it_promises(workspace: Workspace) -> None:
    results = workspace.folder / "results"
    metrics = json.loads((results / "evaluate/metrics.json").read_text())
    for group in ("test", "rotated", "out_of_distribution"):
        for method in ("input", "restored", "classical"):
            assert {"psnr", "ssim", "psnr_y", "ssim_y"} <= metrics[group][method].keys()
    assert "output" in metrics["equivariance_error"]
    assert "model.2" in metrics["equivariance_error"]
    assert "equivariance.weight" in yaml.safe_load((results / "tune/best.yaml").read_text())["params"]
    for picture in ("tune/trials.png", "evaluate/equivariance.png"):
        Image.open(results / picture).verify()
    assert len(list((results / "evaluate").glob("comparison-*.png"))) == 1


def test_files_tensors_metrics_and_tags_have_the_names_of_the_fixed_point(workspace: Workspace) -> None:
    """And the summary its words; the numbers are left out."""
    summary = re.sub(r"\d+(\.\d+)?", "N", workspace.run("eqreg", "summary")).splitlines()
    found = {**names(workspace.folder), "summary": summary}
    if folder := os.environ.get("EQREG_GOLDEN"):
        (Path(folder) / "names.json").write_text(json.dumps(found))
        return
    expected = golden("names")
    assert found.keys() == expected.keys()
    for each in (found, expected):  # spaces, line breaks and signs depend on the numbers and on longer words
        each["summary"] = re.sub(r"[+-]N", "N", " ".join(each["summary"])).split()
    for kind in expected:  # sorted again: a renamed word stands elsewhere
        assert sorted(found[kind]) == sorted(expected[kind]), kind
    assert found["model"] == expected["model"]


def test_dvc_shows_eight_numbers_of_the_test_images_and_what_each_stage_does(workspace: Workspace) -> None:
    metrics = json.loads((workspace.folder / "results/evaluate/metrics.json").read_text())
    shown = json.loads(workspace.run("dvc", "metrics", "show", "--json"))[""]["data"]
    over_classical = metrics["test"]["gain"]["psnr"]["over_classical"]
    assert shown["results/evaluate/summary.json"]["data"] == {
        "test_psnr": metrics["test"]["restored"]["psnr"],
        "rotated_psnr": metrics["rotated"]["restored"]["psnr"],
        "out_of_distribution_psnr": metrics["out_of_distribution"]["restored"]["psnr"],
        "gain_over_input": metrics["test"]["gain"]["psnr"]["over_input"]["mean"],
        "gain_over_classical": over_classical["mean"],
        **{f"gain_over_classical_{end}": over_classical[end] for end in ("low", "high") if over_classical[end]},
        "equivariance_error": metrics["equivariance_error"]["output"],
    }
    assert "Trains the network" in workspace.run("dvc", "stage", "list")


def matches(name: str, pattern: str) -> bool:
    """Whether a name is that of a pattern of the reference, in which words in capitals stand for any name."""
    return re.fullmatch(re.sub(r"[A-Z]{2,}", "[^/]+", re.escape(pattern)), name) is not None


def test_the_reference_names_every_file_column_and_key_of_the_outputs(workspace: Workspace) -> None:
    described = files()
    for name, data in outputs(workspace).items():
        (pattern,) = (pattern for pattern in described if matches(name, pattern))
        fields = fields_of(pattern, described[pattern])
        if name.endswith(".csv"):
            found = next(csv.reader(data.decode().splitlines()))
        elif pattern in ("results/train/params.yaml", "results/tune/best.yaml") or name.endswith(".json"):
            found = list(yaml.safe_load(data)) if fields else []
        else:
            continue
        assert [each for each in found if not any(matches(each, field) for field in fields)] == [], name
        if name.endswith(".csv"):
            fixed = {field for field in fields if not re.search(r"[A-Z]{2,}", field)}
            assert fixed - set(found) <= {"step_time"}, name  # a measured time, if it is an objective


def test_the_control_is_among_the_trials_and_ran_to_its_end(workspace: Workspace) -> None:
    lines = (workspace.folder / "results/tune/trials.csv").read_text().splitlines()
    header, *trials = [line.split(",") for line in lines]
    controls = [dict(zip(header, trial, strict=True)) for trial in trials if trial[header.index("control")] == "True"]
    assert len(trials) == 3
    assert [(c["equivariance.weight"], c["steps"], c["stopped_early"]) for c in controls] == [("0.0", "8", "False")]


def test_a_second_repro_changes_nothing(workspace: Workspace) -> None:
    before = rows(workspace, "select count(*) from runs"), rows(workspace, "select count(*) from model_versions")
    output = workspace.run("dvc", "repro")
    assert [stage for stage in STAGES if f"Running stage '{stage}'" in output] == ["register"]
    assert "nothing to do" in output
    assert (
        rows(workspace, "select count(*) from runs"),
        rows(workspace, "select count(*) from model_versions"),
    ) == before


def test_trials_are_nested_under_their_sweep_and_that_under_the_one_pipeline_run(workspace: Workspace) -> None:
    parents = rows(workspace, "select run_uuid from tags where key = 'eqreg.kind' and value = 'pipeline'")
    sweeps = rows(workspace, "select run_uuid from tags where key = 'eqreg.kind' and value = 'sweep'")
    nested = rows(workspace, "select value from tags where key = 'mlflow.parentRunId'")
    assert len(parents) == len(sweeps) == 1
    assert sorted(nested) == sorted(parents + sweeps * 3)
    assert rows(workspace, "select count(*) from tags where key = 'eqreg.git_commit'")[0][0] >= 4


def test_the_history_has_every_report_once(workspace: Workspace) -> None:
    parent = rows(workspace, "select run_uuid from tags where key = 'eqreg.kind' and value = 'pipeline'")[0][0]
    steps = rows(
        workspace, f"select step from metrics where run_uuid = '{parent}' and key = 'train/task_loss' order by step"
    )
    assert [step for (step,) in steps] == list(range(5, 41, 5))


def test_the_run_has_images_of_each_validation_its_data_and_a_note(workspace: Workspace) -> None:
    parent = rows(workspace, "select run_uuid from tags where key = 'eqreg.kind' and value = 'pipeline'")[0][0]
    images = (workspace.folder / f"mlartifacts/{parent}/artifacts/images").glob("*.png")
    shown = sorted(tuple(image.name.split("+")[0:3:2]) for image in images)
    assert shown == [(f"validation~{number}", str(step)) for number in (1, 2) for step in (10, 20, 30, 40)]
    query = f"select value from input_tags join inputs using (input_uuid) where destination_id = '{parent}'"
    contexts = rows(workspace, query)
    assert sorted(contexts) == [("test",), ("train",), ("validation",)]
    (note,) = rows(workspace, f"select value from tags where run_uuid = '{parent}' and key = 'mlflow.note.content'")
    assert "| restored |" in str(note)
    assert "champion (there was no champion)" in str(note)
    linked = rows(workspace, "select dataset_name from logged_model_metrics where metric_name = 'test/restored/psnr'")
    assert linked == [("denoise test",)]


def outputs(workspace: Workspace) -> dict[str, bytes]:
    """Every file of every output of a stage."""
    made = [path for folder in ("data", "results") for path in (workspace.folder / folder).rglob("*")]
    return {path.relative_to(workspace.folder).as_posix(): path.read_bytes() for path in made if path.is_file()}


def test_a_run_from_nothing_at_another_commit_gives_every_byte_again(workspace: Workspace) -> None:
    """And git sees no change; the version that is registered keeps the commit that trained it."""
    before = outputs(workspace)
    assert {name.split("/")[1] for name in before} == {"raw", "packed", "tune", "train", "evaluate"}
    workspace.run("git", "add", "dvc.lock")
    workspace.run("git", "commit", "-qm", "lock")
    workspace.run("git", "commit", "-qm", "empty", "--allow-empty")
    for made in ("data", "results", ".dvc/cache", ".eqreg"):
        shutil.rmtree(workspace.folder / made)
    output = workspace.run("dvc", "repro")
    assert [stage for stage in STAGES if f"Running stage '{stage}'" in output] == list(STAGES)
    after = outputs(workspace)
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == []
    assert workspace.run("git", "status", "--porcelain") == ""
    told = workspace.run("eqreg", "summary")
    assert "dvc.lock is as in the last commit: every output has the same bytes" in told
    assert "sweep: 8 steps each" in told
    assert "times as long as one without" in told
    assert "this model already: nothing to do" in output
    first, _, last = workspace.run("git", "log", "--format=%H").split()[::-1]
    tagged = "select value from model_version_tags where key = 'eqreg.git_commit'"
    assert rows(workspace, tagged) == [(first,)] != [(last,)]


def test_dvc_lends_the_model_of_a_version_by_its_name(workspace: Workspace, tmp_path: Path) -> None:
    """`dvc.lock` was committed by the test above."""
    workspace.run("gto", "register", "restorer")
    workspace.run("dvc", "artifacts", "get", ".", "restorer", "-o", str(tmp_path / "lent.safetensors"))
    model = workspace.folder / "results/train/model.safetensors"
    assert (tmp_path / "lent.safetensors").read_bytes() == model.read_bytes()
    assert workspace.run("git", "status", "--porcelain") == ""


def test_no_output_names_the_commit_the_machine_the_user_or_the_time(workspace: Workspace) -> None:
    commits = workspace.run("git", "log", "--format=%H").split()
    runs = [str(run) for (run,) in rows(workspace, "select run_uuid from runs")]
    words = [*commits, *runs, str(workspace.folder), socket.gethostname(), getpass.getuser() + "@", f"{date.today()}"]
    for name, data in outputs(workspace).items():
        found = [word for word in words if len(word) > 4 and word.encode() in data]  # shorter ones are in any noise
        assert found == [], name


def test_the_model_of_dvcs_cache_is_registered_with_the_commit_that_trained_it(workspace: Workspace) -> None:
    """Train does not run again: its output comes from the cache."""
    with sqlite3.connect(workspace.folder / "mlflow.db") as database:
        for table in ("registered_model_aliases", "model_version_tags", "model_versions", "registered_models"):
            database.execute(f"delete from {table}")
    shutil.rmtree(workspace.folder / "results")
    workspace.run("dvc", "checkout")  # as ``dvc pull`` does it, after it has filled the cache
    workspace.run("git", "commit", "-qm", "empty", "--allow-empty")
    output = workspace.run("dvc", "repro")
    assert [stage for stage in STAGES if f"Running stage '{stage}'" in output] == ["register"], output
    _, trained, *_ = workspace.run("git", "log", "--format=%H").split()
    assert rows(workspace, "select value from model_version_tags where key = 'eqreg.git_commit'") == [(trained,)]


@pytest.mark.slow
def test_with_other_instructions_the_score_is_within_the_spread_that_is_written_down(
    workspace: Workspace, tmp_path: Path
) -> None:
    other = Workspace(tmp_path / "other", packed=workspace.folder)
    other.run("eqreg", "train", ONEDNN_MAX_CPU_ISA="AVX2")
    scores = [
        json.loads((folder / "results/train/metrics.json").read_text())["val_score"]
        for folder in (workspace.folder, other.folder)
    ]
    assert abs(scores[0] - scores[1]) <= SPREAD_DB


def test_the_champion_loads_without_the_project_and_restores_any_size(workspace: Workspace, tmp_path: Path) -> None:
    uri = f"sqlite:///{workspace.folder / 'mlflow.db'}"
    command, environment = [sys.executable, "-c", LOAD, uri], workspace.environment()
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "loaded" in run.stdout, run.stderr


def test_restore_writes_a_cleaner_picture(workspace: Workspace) -> None:
    generator = np.random.default_rng(0)
    picture = workspace.folder / "odd.png"
    Image.fromarray(generator.integers(0, 255, (77, 51, 3), dtype=np.uint8)).save(picture)
    workspace.run("eqreg", "restore", "odd.png", "out.png", "--self-ensemble", "4")
    assert Image.open(workspace.folder / "out.png").size == (51, 77)
    output = workspace.run("eqreg", "restore", "odd.png", "x.png", "--model", "models:/nothing@champion", expect=2)
    assert "eqreg-denoise" in output
    assert "Traceback" not in output


def test_an_emptied_registry_is_filled_by_the_next_repro(workspace: Workspace) -> None:
    (workspace.folder / "mlflow.db").unlink()
    output = workspace.run("dvc", "repro")
    assert [stage for stage in STAGES if f"Running stage '{stage}'" in output] == ["register"]
    assert rows(workspace, "select alias from registered_model_aliases") == [("champion",)]
    steps = rows(workspace, "select step from metrics where key = 'train/task_loss' order by step")
    assert [step for (step,) in steps] == list(range(5, 41, 5))


@pytest.mark.slow
def test_an_experiment_reruns_only_what_depends_on_it_and_logs_to_the_main_checkout(workspace: Workspace) -> None:
    versions = rows(workspace, "select count(*) from model_versions")[0][0]
    output = workspace.run("dvc", "exp", "run", "--temp", "-S", "equivariance.weight=0.01", "-S", "train.steps=20")
    assert [s for s in STAGES if f"Running stage '{s}'" in output] == ["train", "evaluate", "register"], output
    assert rows(workspace, "select count(*) from model_versions")[0][0] == versions + 1
    weights = rows(workspace, "select value from params where key = 'equivariance.weight'")
    assert ("0.01",) in weights
