"""Runs in a real MLflow store: found again, nested, and honest when the server is away."""

from __future__ import annotations

import getpass
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

from pipeline.errors import UserError
from pipeline.tracking.store import PARENT_TAG, TRAINING_TAG, Store, answering, flatten, tracking_uri, without_password
from tests.pipeline.conftest import ROOT, Project

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


def test_a_run_has_the_user_the_source_and_the_commit_as_mlflows_pages_show_them(store: Store) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    found = store.tags(store.begin("run", LINEAGE | {"eqreg.git_commit": commit}, {}))
    assert found["mlflow.user"] == getpass.getuser()
    assert (found["mlflow.source.name"], found["mlflow.source.type"]) == (sys.argv[0], "LOCAL")
    assert found["mlflow.source.git.commit"] == commit
    without = store.tags(store.begin("run", LINEAGE | {"eqreg.git_commit": "unknown"}, {}))
    assert "mlflow.source.git.commit" not in without


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


def test_a_server_that_does_not_answer_is_named_without_its_password_within_seconds(closed_port: int) -> None:
    store = Store("denoise", f"http://me:s3cret@127.0.0.1:{closed_port}")
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        store.parent_run(LINEAGE)
    assert time.monotonic() - start < 60
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
    with pytest.raises(type(error)), store.running({"eqreg.lineage": "abc"}) as run_id:
        raise error
    assert store.client.get_run(run_id).info.status == status


def test_an_interrupt_at_the_creation_of_a_run_does_not_leave_it_running(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = store.client.create_run

    def interrupted(*arguments: Any, **named: Any) -> None:
        original(*arguments, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(store.client, "create_run", interrupted)
    with pytest.raises(KeyboardInterrupt), store.running({"eqreg.lineage": "abc"}):
        pass
    (run,) = store.client.search_runs([store.experiment_id])
    assert run.info.status == "KILLED"


def test_an_error_is_not_hidden_by_a_store_that_does_not_answer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr(store.client, "set_terminated", refuse)
    with pytest.raises(ZeroDivisionError), store.running({"eqreg.lineage": "abc"}):
        raise ZeroDivisionError


def test_a_store_that_does_not_answer_at_the_beginning_is_asked_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(*arguments: Any, **named: Any) -> None:
        asked.append(arguments)
        raise OSError("no room")

    monkeypatch.setattr(store.client, "search_runs", refuse)
    with pytest.raises(UserError, match="does not answer"), store.running({"eqreg.lineage": "abc"}):
        pass
    assert len(asked) == 1


def test_a_password_in_a_query_is_not_shown() -> None:
    shown = without_password("postgresql://host/db?user=u&password=geheim&sslmode=on refused")
    assert shown == "postgresql://host/db?user=u&password=...&sslmode=on refused"


def _told(store: Store) -> list[str]:
    """The lines of the refusal of a store that is used."""
    with pytest.raises(UserError) as caught:
        Store(store.task, store.uri).parent_run(LINEAGE)
    return str(caught.value).splitlines()


def test_an_experiment_in_the_bin_is_told_with_the_command_that_restores_it(store: Store) -> None:
    run_id = store.parent_run(LINEAGE)
    store.client.delete_experiment(store.experiment_id)
    first, second = _told(store)
    assert first == f"the MLflow store {store.uri}: experiment eqreg-denoise is in the bin"
    command = second.removeprefix("restore it: ")
    assert command.startswith(f"MLFLOW_TRACKING_URI='{store.uri}' mlflow experiments restore ")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, capture_output=True, env=os.environ | {"PATH": path})
    assert Store("denoise", store.uri).parent_run(LINEAGE) == run_id


def test_a_database_that_another_process_holds_is_told_so(store: Store) -> None:
    file = store.uri.removeprefix("sqlite:///")
    with closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN EXCLUSIVE")
        first, second = _told(store)
    assert first.endswith("does not answer as it should: (sqlite3.OperationalError) database is locked")
    assert second == f"another process writes to it: wait for that to end ('fuser {file}' names it)"


def _sql(*commands: str) -> Callable[[Path], object]:
    def change(file: Path) -> None:
        with closing(sqlite3.connect(file)) as connection:
            for command in commands:
                connection.execute(command)
            connection.commit()

    return change


BROKEN: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "of another version": (
        _sql("UPDATE alembic_version SET version_num = 'f5a4f2784254'"),
        "out-of-date database schema",
        "another version of MLflow made its tables: if none is just changing them, copy the database, then run "
        "'mlflow db upgrade sqlite:///{file}', or install that version",
    ),
    "half made": (
        _sql("DELETE FROM alembic_version", "DROP TABLE webhook_events"),
        "duplicate column name: step",
        "its tables are incomplete: if no other process is just making them, move {file} away",
    ),
    "no database": (
        lambda file: file.write_bytes(b"something else" * 100),
        "file is not a database",
        "{file} is damaged, or no SQLite database: move it away",
    ),
    "a folder": (
        lambda file: (file.unlink(), file.mkdir()),
        "unable to open database file",
        "{file} is not there and cannot be made, or is not yours to read",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_database_that_cannot_be_used_is_told_with_what_to_do(store: Store, project: Project, case: str) -> None:
    change, reason, remedy = BROKEN[case]
    change(project.folder / "mlflow.db")
    first, second = _told(store)
    assert reason in first
    assert "SQL:" not in first
    assert second == remedy.format(file=project.folder / "mlflow.db")


def test_a_file_that_cannot_be_kept_is_named_and_not_the_address(store: Store, project: Project) -> None:
    Path("mlartifacts").write_text("a file where a folder belongs")
    run_id = store.parent_run(LINEAGE)
    with pytest.raises(UserError) as caught:
        store.log_params(run_id, VALUES, "seed: 0\n")
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{project.folder}/mlartifacts")
    assert second == f"it belongs to what the MLflow store {store.uri} keeps"


def test_artifacts_in_s3_that_cannot_be_written_are_told_with_the_variables_of_s3(
    store: Store, aws: pytest.MonkeyPatch, closed_port: int
) -> None:
    aws.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}")
    aws.setenv("AWS_MAX_ATTEMPTS", "1")
    aws.setenv("AWS_ACCESS_KEY_ID", "key")
    aws.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    store.client.create_experiment("eqreg-denoise", artifact_location="s3://bucket/runs")
    run_id = store.parent_run(LINEAGE)
    Path("pictures").mkdir()
    Path("pictures/strip.png").write_bytes(b"png")
    with pytest.raises(UserError) as caught:
        store.log_files(run_id, Path("pictures"), "evaluate")
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"the MLflow store {store.uri} does not answer as it should: ")
    assert str(closed_port) in first
    assert second.startswith("its artifacts are in S3: check the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE), and ")


ANSWERS = [
    (401, "text/html", "it does not let you in: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or"),
    (403, "application/json", "it does not let you in: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or"),
    (404, "text/html", "what answers there is no MLflow server: check MLFLOW_TRACKING_URI"),
    (200, "text/html", "what answers there is no MLflow server: check MLFLOW_TRACKING_URI"),
    (503, "text/html", "the server itself fails, and its log says why: mend that or wait"),
]


@pytest.mark.parametrize(("status", "kind", "remedy"), ANSWERS)
def test_a_server_that_refuses_is_told_apart_from_one_that_is_none_or_fails(
    project: Project, status: int, kind: str, remedy: str
) -> None:
    body = b'{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}' if "json" in kind else b"<html>"

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - named by http.server

        def log_message(self, *arguments: object) -> None:
            """Nothing is printed."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _, second = _told(Store("denoise", f"http://127.0.0.1:{server.server_port}"))
        server.shutdown()
    assert second.startswith(remedy)


@pytest.mark.parametrize("address", ["nonsense://somewhere/x", "postgres:/nothing"])
def test_what_is_no_address_of_a_store_is_told_so(project: Project, address: str) -> None:
    assert "check MLFLOW_TRACKING_URI" in _told(Store("denoise", address))[1]


def test_a_request_that_a_store_rejects_is_not_said_to_have_no_answer(store: Store) -> None:
    with pytest.raises(UserError, match="rejects the request") as caught, answering(store.uri):
        store.client.search_model_versions("name='it's'")
    assert "nobody answers" not in str(caught.value)


def test_a_postgres_that_nobody_runs_is_told_at_once(project: Project, closed_port: int) -> None:
    start = time.monotonic()
    _, second = _told(Store("denoise", f"postgresql://me:s3cret@127.0.0.1:{closed_port}/mlflow"))
    assert second == "nobody answers there: check the address"
    assert time.monotonic() - start < 60


FIRST = """
import sys, time
from pathlib import Path
from pipeline.tracking import store
store.quiet_mlflow()
import mlflow
Path(sys.argv[2]).touch()
while not Path("go").exists():
    time.sleep(0.01)
print(store.Store("denoise", sys.argv[1]).parent_run({"eqreg.lineage": sys.argv[2]}))
"""


def _meet(folder: Path, uri: str, number: int = 8) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of processes that use a store at the same moment."""
    names = [f"p{place}" for place in range(number)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST, uri, name],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    try:
        end = time.monotonic() + 300  # imports of all of them, on few cores
        while not all((folder / name).exists() for name in names) and all(each.poll() is None for each in started):
            assert time.monotonic() < end
            time.sleep(0.01)
        (folder / "go").touch()
        end = time.monotonic() + 300
        outputs = [each.communicate(timeout=end - time.monotonic()) for each in started]
    finally:
        for each in started:
            each.kill()
    return [(each.returncode, *output) for each, output in zip(started, outputs, strict=True)]


@pytest.mark.slow
def test_processes_that_meet_a_fresh_database_make_it_once_and_all_use_it(project: Project) -> None:
    uri = f"sqlite:///{project.folder}/new/mlflow.db"
    ended = _meet(project.folder, uri)
    assert [(code, errors) for code, _, errors in ended] == [(0, "")] * 8
    store = Store("denoise", uri)
    assert {run.info.run_id for run in store.client.search_runs([store.experiment_id])} == {
        output.strip() for _, output, _ in ended
    }
    assert sorted(file.name for file in (project.folder / "new").iterdir()) == ["mlflow.db", "mlflow.db.tables.lock"]


@pytest.mark.slow
def test_processes_that_meet_a_fresh_postgres_make_its_tables_once_and_all_use_them(
    project: Project, postgres: str
) -> None:
    ended = _meet(project.folder, postgres, number=2)
    assert [(code, errors) for code, _, errors in ended] == [(0, "")] * 2
    store = Store("denoise", postgres)
    runs = store.client.search_runs([store.experiment_id])
    assert {run.info.run_id for run in runs} == {output.strip() for _, output, _ in ended}
    assert [each.name for each in store.client.search_experiments()].count("eqreg-denoise") == 1


def test_what_a_process_left_that_was_killed_while_it_made_the_tables_does_not_hinder(project: Project) -> None:
    Path(".mlflow.db.new").write_bytes(b"half")
    store = Store("denoise", f"sqlite:///{project.folder}/mlflow.db")
    assert store.parent_run(LINEAGE)
    assert not Path(".mlflow.db.new").exists()
