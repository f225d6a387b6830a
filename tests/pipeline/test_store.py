"""Runs in a real MLflow store: found again, nested, and honest when the server is away."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

from pipeline.errors import UserError
from pipeline.tracking.store import PARENT_TAG, TRAINING_TAG, Store, answering, flatten, tracking_uri, without_password
from tests.pipeline.conftest import Project

pytestmark = pytest.mark.process

LINEAGE = {"eqreg.lineage": "0123456789ab", "eqreg.git_commit": "abc"}
VALUES = {"seed": 0, "train": {"steps": 5, "loss": "l1"}, "preprocess": {"splits": {"val": ["a", "b"]}}}


def test_the_parent_run_of_a_lineage_is_found_again_by_another_process(store: Store) -> None:
    run_id = store.parent_run(LINEAGE)
    assert store.parent_run(LINEAGE) == run_id
    assert Store("denoise", store.uri).parent_run(LINEAGE) == run_id
    assert store.parent_run({**LINEAGE, "eqreg.lineage": "another"}) != run_id
    assert store.client.get_run(run_id).data.tags.items() >= {**LINEAGE, "eqreg.kind": "pipeline"}.items()


def test_a_lineage_that_is_trained_with_other_params_has_a_run_for_each(store: Store) -> None:
    swept = store.parent_run(LINEAGE)
    first, second = ({**LINEAGE, TRAINING_TAG: name} for name in ("first", "second"))
    assert store.parent_run(first) == swept
    other = store.parent_run(second)
    assert other != swept
    assert store.parent_run(first) == swept
    assert store.parent_run(second) == other
    assert store.parent_run(LINEAGE) == other


def test_the_params_of_a_run_are_logged_once_under_dotted_keys(store: Store) -> None:
    run_id = store.parent_run(LINEAGE)
    store.log_params(run_id, VALUES, "seed: 0\n")
    store.log_params(run_id, VALUES | {"seed": 1}, "seed: 1\n")  # MLflow's params cannot be changed
    assert store.client.get_run(run_id).data.params == {
        "seed": "0",
        "train.steps": "5",
        "train.loss": "l1",
        "preprocess.splits.val": "['a', 'b']",
    }


def test_the_runs_of_another_task_are_another_experiment(store: Store) -> None:
    other = Store("derain", store.uri)
    assert other.parent_run(LINEAGE) != store.parent_run(LINEAGE)
    assert store.client.get_experiment(other.experiment_id).name == "eqreg-derain"


def test_an_experiment_that_another_process_makes_meanwhile_is_taken(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, late = store.experiment_id, Store("denoise", store.uri)
    look, seen = late.client.get_experiment_by_name, iter([None])  # it looked before the other had made it
    monkeypatch.setattr(late.client, "get_experiment_by_name", lambda name: next(seen, look(name)))
    assert late.experiment_id == made


def test_trials_are_nested_under_their_parent_and_never_taken_for_it(store: Store) -> None:
    parent = store.parent_run(LINEAGE)
    trials = {
        store.begin(f"trial-{n}", {**LINEAGE, "eqreg.kind": "trial", PARENT_TAG: parent}, {"weight": n})
        for n in range(2)
    }
    found = store.client.search_runs([store.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {run.info.run_id for run in found} == trials
    assert store.parent_run(LINEAGE) == parent


def test_the_last_step_is_the_highest_that_was_logged(store: Store) -> None:
    run_id = store.begin("run", {}, {})
    assert store.last_step(run_id, "task_loss") == -1
    for step in (25, 75, 50):
        store.log(run_id, step, {"task_loss": 1 / step, "penalty/down.0.conv1": 1.0})
    assert store.last_step(run_id, "task_loss") == 75
    assert store.last_step(run_id, "val_score") == -1
    history = store.client.get_metric_history(run_id, "penalty/down.0.conv1")
    assert sorted(entry.step for entry in history) == [25, 50, 75]


def test_artifacts_of_the_default_store_lie_beside_its_database(store: Store, project: Project) -> None:
    run_id = store.parent_run(LINEAGE)
    store.log_params(run_id, VALUES, "seed: 0\n")
    (project.folder / "pictures").mkdir()
    (project.folder / "pictures/strip.png").write_bytes(b"png")
    store.log_files(run_id, project.folder / "pictures", "evaluate")
    location = Path(url2pathname(urlsplit(store.client.get_run(run_id).info.artifact_uri).path))
    assert location.is_relative_to(project.folder / "mlartifacts")
    assert (location / "params.yaml").read_text() == "seed: 0\n"
    assert (location / "evaluate/strip.png").read_bytes() == b"png"


def test_a_relative_address_of_a_database_gets_an_absolute_place_for_artifacts(
    project: Project, empty_database: Path
) -> None:
    shutil.copyfile(empty_database, project.folder / "other.db")
    store = Store("denoise", "sqlite:///other.db")
    location = store.client.get_experiment(store.experiment_id).artifact_location
    assert location == (project.folder / "mlartifacts").as_uri()


def test_a_checkout_whose_path_would_be_read_otherwise_in_an_address_has_its_store_in_it(
    project: Project, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = project.folder / "is it? 50%41 'é#b"
    (checkout / "pictures").mkdir(parents=True)
    shutil.copyfile(empty_database, checkout / "mlflow.db")
    monkeypatch.chdir(checkout)
    Path("pictures/strip.png").write_bytes(b"png")
    run_id = Store("denoise").begin("run", {"a": "1"}, {})
    store = Store("denoise", tracking_uri())
    store.log_files(run_id, Path("pictures"), "evaluate")
    assert store.tag(run_id, "a") == "1"
    assert [path.name for path in Path("mlartifacts").rglob("*.png")] == ["strip.png"]
    assert {path.name for path in project.folder.iterdir() if path.is_dir()} == {"tune_spaces", checkout.name}


def test_tags_and_the_end_of_a_run_are_kept(store: Store) -> None:
    run_id = store.begin("run", {"a": "1"}, {})
    assert (store.tag(run_id, "a"), store.tag(run_id, "b")) == ("1", None)
    store.set_tag(run_id, "b", "2")
    assert store.tag(run_id, "b") == "2"
    store.end(run_id, "KILLED")
    assert store.client.get_run(run_id).info.status == "KILLED"


def test_hundreds_of_params_and_patterns_of_layers_can_be_logged(store: Store) -> None:
    values = {f"key{n}": n for n in range(250)} | {"layers": {"down.*.conv?": "regular", "last": "trivial"}}
    run_id = store.parent_run(LINEAGE)
    store.log_params(run_id, values, "")
    params = store.client.get_run(run_id).data.params
    assert len(params) == 251
    assert params["layers"] == "{'down.*.conv?': 'regular', 'last': 'trivial'}"


def test_nested_values_become_dotted_keys() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [1, 2]}, "e": {}}) == {"a.b.c": 1, "a.d": [1, 2], "e": {}}


def test_the_store_is_the_users_server_or_a_database_at_the_root_of_the_main_checkout(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking_uri() == f"sqlite:///{project.folder}/mlflow.db"
    commit = "git -c user.name=test -c user.email=test@localhost commit -qm test"
    for command in ("git init -q", "git add -A", commit, f"git worktree add -q {project.folder.parent}/beside"):
        subprocess.run(command.split(), check=True, capture_output=True)
    assert tracking_uri(project.folder.parent / "beside") == f"sqlite:///{project.folder}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri() == "http://127.0.0.1:5000"


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine that refuses connections: bound, and not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_a_server_that_does_not_answer_is_named_without_its_password_within_seconds(closed_port: int) -> None:
    store = Store("denoise", f"http://me:s3cret@127.0.0.1:{closed_port}")
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        store.parent_run(LINEAGE)
    assert time.monotonic() - start < 20
    message = str(caught.value)
    assert len(message.splitlines()) == 2
    assert f"the MLflow store http://127.0.0.1:{closed_port} does not answer" in message
    assert "check MLFLOW_TRACKING_URI" in message
    assert "s3cret" not in message
    assert "me:" not in message


def test_errors_that_are_not_the_servers_come_through(project: Project) -> None:
    with pytest.raises(ZeroDivisionError), answering("sqlite:///x"):
        raise ZeroDivisionError
    with pytest.raises(UserError, match=r"^mine$"), answering("sqlite:///x"):
        raise UserError("mine")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:pass@host:5000/x", "http://host:5000/x"),
        ("http://me:p@ss@host", "http://host"),
        ("https://token@host/a@b", "https://host/a@b"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("request to http://me:pass@host/api failed", "request to http://host/api failed"),
    ],
)
def test_passwords_are_left_out_of_addresses_and_paths_are_not(text: str, shown: str) -> None:
    assert without_password(text) == shown


@pytest.mark.parametrize(("error", "status"), [(ValueError("diverged"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_run_that_breaks_off_does_not_stay_running(store: Store, error: BaseException, status: str) -> None:
    run_id = store.begin("run", {}, {})
    with pytest.raises(type(error)), store.ended_if_broken_off([run_id]):
        raise error
    assert store.client.get_run(run_id).info.status == status


def test_an_error_is_not_hidden_by_a_store_that_does_not_answer(project: Project) -> None:
    store = Store("denoise", f"sqlite:///{project.folder / 'nowhere' / 'mlflow.db'}")
    with pytest.raises(ZeroDivisionError), store.ended_if_broken_off(["run"]):
        raise ZeroDivisionError


def test_a_password_in_a_query_is_not_shown() -> None:
    shown = without_password("postgresql://host/db?user=u&password=geheim&sslmode=on refused")
    assert shown == "postgresql://host/db?user=u&password=...&sslmode=on refused"
