"""``eqreg submit``: a stage sent to a real cluster with token authentication, followed, left and stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipeline.cluster.jobs.entry_point import prepare
from pipeline.cluster.jobs.upload import pack
from pipeline.config.schema import load_params
from pipeline.errors import UserError
from pipeline.paths import PARAMS
from pipeline.provenance.lineage import code_state, committed_text, trace
from tests.pipeline.cluster.own_cluster import OwnCluster
from tests.pipeline.services import read_line
from tests.pipeline.workspace import Workspace

pytestmark = pytest.mark.ray

# As the command does it: an exit code, or one or two lines and 2.
_COMMAND = """
import sys
from pipeline.cluster.jobs.submit import follow, stop, submit
from pipeline.errors import UserError
try:
    sys.exit({call})
except UserError as error:
    print(f"error: {{error}}", file=sys.stderr)
    sys.exit(2)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[OwnCluster]:
    own = OwnCluster()
    yield own
    own.end()


@pytest.fixture(scope="module")
def sender(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Where the user sends from: a checkout that differs from its commit in params.yaml and in a new file."""
    workspace = Workspace(tmp_path_factory.mktemp("sender"))
    workspace.set({"seed": 7})
    (workspace.folder / "pipeline/new.py").write_text("1\n")
    (workspace.folder / "notes.txt").write_text("not of the project\n")
    (workspace.folder / "data").mkdir()
    (workspace.folder / "data/large.bin").write_bytes(b"\0" * 1000)
    return workspace


def _start(call: str, sender: Workspace, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _COMMAND.format(call=call)],
        cwd=sender.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _run(call: str, sender: Workspace, environment: dict[str, str]) -> tuple[int, str, str]:
    process = _start(call, sender, environment)
    try:
        out, errors = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, errors


@pytest.mark.slow
def test_stages_sent_one_after_the_other_find_what_the_one_before_left(
    cluster: OwnCluster, sender: Workspace, tmp_path: Path
) -> None:
    """`fetch`, then `preprocess`, which spreads its work over the cluster: the job's, not one inside the job."""
    folder, environment = tmp_path / "work", cluster.environment()
    for stage in ("fetch", "preprocess"):
        code, out, errors = _run(f"submit({stage!r}, {cluster.url!r}, {str(folder)!r})", sender, environment)
        assert (code, errors) == (0, ""), out
        assert re.search(rf"^{stage}: \d+ s$", out, re.MULTILINE)  # the stage's own last line
    assert json.loads((folder / "data/packed/test/index.json").read_text())
    assert not list(sender.folder.glob("data/packed"))
    # What is the user's and what stays here did not travel.
    assert not (folder / "notes.txt").exists()
    assert not (folder / "data/large.bin").exists()
    assert (folder / "pipeline/new.py").exists()
    assert yaml.safe_load((folder / "params.yaml").read_text())["cluster"]["address"] == "auto"


def test_the_exit_code_is_that_of_the_stage_and_its_error_is_in_the_log(
    cluster: OwnCluster, sender: Workspace, tmp_path: Path
) -> None:
    call = f"submit('evaluate', {cluster.url!r}, {str(tmp_path / 'work')!r})"
    code, out, _ = _run(call, sender, cluster.environment())
    assert code == 2
    assert "error: " in out.splitlines()[-1]
    assert "eqreg" in out.splitlines()[-1]


@pytest.mark.slow
def test_repro_runs_dvc_in_the_folder_and_does_nothing_twice(
    cluster: OwnCluster, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sender = Workspace(tmp_path_factory.mktemp("repro"))
    stages = yaml.safe_load((sender.folder / "dvc.yaml").read_text())
    stages = {"stages": {"fetch": stages["stages"]["fetch"]}}
    (sender.folder / "dvc.yaml").write_text(yaml.safe_dump(stages))
    call = f"submit('repro', {cluster.url!r}, {str(tmp_path / 'work')!r})"
    code, first, _ = _run(call, sender, cluster.environment())
    assert code == 0
    assert "Running stage 'fetch'" in first
    assert (tmp_path / "work/data/raw/manifest.json").exists()
    code, second, _ = _run(call, sender, cluster.environment())
    assert code == 0
    assert "Running stage" not in second


_ENDLESS = """
import time

check = None

def fetch(params):
    print("waiting", flush=True)
    try:
        time.sleep(600)
    finally:
        print("cleared up", flush=True)
"""


@pytest.fixture
def endless(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A checkout whose `fetch` never ends, and says so when it is interrupted."""
    workspace = Workspace(tmp_path_factory.mktemp("endless"))
    command = workspace.folder / "pipeline/stages/fetch.py"
    command.write_text(_ENDLESS)
    return workspace


@pytest.mark.slow
def test_ctrl_c_leaves_the_job_running_and_stop_ends_it_with_its_processes(
    cluster: OwnCluster, endless: Workspace, tmp_path: Path
) -> None:
    environment = cluster.environment()
    process = _start(f"submit('fetch', {cluster.url!r}, {str(tmp_path / 'work')!r})", endless, environment)
    printed = ""
    while "waiting" not in printed:
        line = read_line(process)
        assert line, printed
        printed += line
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (130, "")
    job = printed.split(":")[0]
    assert f"--follow {job}" in out
    assert f"--stop {job}" in out
    assert _stages_in(cluster, tmp_path / "work"), "the job ended with the command that followed it"

    # The folder is taken: a second stage is refused.
    code, out, _ = _run(f"submit('fetch', {cluster.url!r}, {str(tmp_path / 'work')!r})", endless, environment)
    assert code == 2
    assert "another submitted stage runs there" in out

    follower = _start(f"follow({job!r}, {cluster.url!r})", endless, environment)
    code, out, errors = _run(f"stop({job!r}, {cluster.url!r})", endless, environment)
    assert (code, errors) == (0, "")
    assert out == f"{job}: stopped\n"
    log, errors = follower.communicate(timeout=300)
    assert "waiting" in log
    assert "cleared up" in log
    assert follower.returncode not in (0, None)
    assert "stopped" in errors
    assert not _stages_in(cluster, tmp_path / "work")


def _stages_in(cluster: OwnCluster, folder: Path) -> list[int]:
    return [
        process.pid
        for process in cluster.processes()
        if process.is_running()
        and "pipeline.cli" in " ".join(process.cmdline())
        and "stage_folder" not in " ".join(process.cmdline())
        and process.cwd() == str(folder)
    ]


WRONG_CLIENTS = {
    "a wrong token": ({"RAY_AUTH_TOKEN": "0" * 64}, "does not take the token"),
    "token mode without a token": ({"RAY_AUTH_TOKEN": "", "RAY_AUTH_MODE": "token"}, "there is none"),
    "no token": ({"RAY_AUTH_TOKEN": ""}, "asks for a token"),
    "authentication turned off here": ({"RAY_AUTH_MODE": "disabled"}, "asks for a token"),
}


@pytest.mark.parametrize(
    ("by", "who"),
    [*(("dashboard", who) for who in WRONG_CLIENTS), ("cluster", "a wrong token"), ("cluster", "no token")],
)
def test_a_client_without_the_token_is_refused_with_the_remedy(
    cluster: OwnCluster, sender: Workspace, tmp_path: Path, by: str, who: str
) -> None:
    changes, message = WRONG_CLIENTS[who]
    environment = {key: value for key, value in cluster.environment(**changes).items() if value}
    address = cluster.url if by == "dashboard" else None
    if by == "cluster":
        environment["RAY_ADDRESS"] = cluster.address
    call = f"submit('fetch', {address!r}, {str(tmp_path / 'work')!r})"
    code, out, errors = _run(call, sender, environment)
    assert (code, out) == (2, "")
    assert len(errors.splitlines()) == 2, errors
    assert message in errors or by == "cluster"
    assert "RAY_AUTH_TOKEN_PATH" in errors
    assert not (tmp_path / "work").exists()


def test_ray_address_leads_to_the_dashboard(cluster: OwnCluster, sender: Workspace, tmp_path: Path) -> None:
    for address in (cluster.address, cluster.url):
        environment = cluster.environment(RAY_ADDRESS=address)
        code, _, errors = _run("stop('nothing')", sender, environment)
        assert code == 2
        assert f"nothing: {cluster.url} has no such job" in errors


def test_the_address_that_is_given_goes_before_ray_address(cluster: OwnCluster, sender: Workspace) -> None:
    environment = cluster.environment(RAY_ADDRESS="http://127.0.0.1:9")
    _, _, errors = _run(f"stop('nothing', {cluster.url!r})", sender, environment)
    assert f"{cluster.url} has no such job" in errors


NO_DASHBOARD = {
    "nobody listens": ("http://127.0.0.1:9", {}, "no Ray dashboard answers there"),
    "no address": (None, {}, "cluster.address: local: there is no running cluster"),
    "no cluster": (None, {"RAY_ADDRESS": "127.0.0.1:9"}, "RAY_ADDRESS: 127.0.0.1:9: no Ray cluster answers there"),
    "not a port": (None, {"RAY_ADDRESS": "nonsense"}, "RAY_ADDRESS: nonsense: no Ray cluster answers there"),
}


@pytest.mark.parametrize("case", NO_DASHBOARD)
def test_where_no_dashboard_is_one_line_says_so_soon(sender: Workspace, tmp_path: Path, case: str) -> None:
    address, changes, message = NO_DASHBOARD[case]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | changes
    start = time.monotonic()
    code, out, errors = _run(f"submit('fetch', {address!r})", sender, environment | {"HOME": str(tmp_path)})
    assert (code, out) == (2, "")
    assert errors.startswith(f"error: {message}" if address is None else f"error: {address}: {message}")
    assert len(errors.splitlines()) == 1
    assert "--address http://HOST:8265" in errors
    assert time.monotonic() - start < 30


def test_what_listens_and_says_nothing_is_given_up_soon(sender: Workspace) -> None:
    """Ray's own client would wait without end."""
    start = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        code, out, errors = _run(f"submit('fetch', {address!r})", sender, dict(os.environ))
    assert (code, out) == (2, "")
    assert errors.startswith(f"error: {address}: no Ray dashboard answers there (ReadTimeout); name it with --address")
    assert len(errors.splitlines()) == 1
    assert time.monotonic() - start < 30


def test_a_cluster_whose_dashboard_is_off_is_named(sender: Workspace) -> None:
    own = OwnCluster(dashboard=False)
    try:
        code, out, errors = _run("submit('fetch')", sender, own.environment(RAY_ADDRESS=own.address))
    finally:
        own.end()
    assert (code, out) == (2, "")
    assert "runs without its dashboard" in errors
    assert len(errors.splitlines()) == 2


def test_an_unknown_stage_is_refused_before_anything_is_sent(sender: Workspace) -> None:
    code, _, errors = _run("submit('trian', 'http://127.0.0.1:9')", sender, dict(os.environ))
    assert code == 2
    assert errors.startswith("error: submit: trian: no such stage; there are fetch, ")


def test_an_upload_keeps_the_lineage_of_where_it_was_sent_from(
    sender: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sender.folder)
    monkeypatch.delenv("EQREG_CODE", raising=False)
    here, committed = trace(load_params().hash), committed_text(PARAMS)
    assert here.dirty
    commit, difference = code_state()
    upload, folder = tmp_path / "upload", tmp_path / "work"
    upload.mkdir()
    pack(upload)
    os.close(prepare(folder, upload))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert trace(load_params().hash).commit == "none"
    monkeypatch.setenv("EQREG_CODE", f"{commit}+{difference}")
    monkeypatch.setenv("EQREG_COMMITTED", str(upload / ".committed"))
    there = trace(load_params().hash)
    assert (there.commit, there.dirty, there.difference) == (here.commit, True, here.difference)
    assert committed_text(PARAMS) == committed
    assert committed_text(PARAMS) != PARAMS.read_text()
    # The cluster's address apart, the params are those that were sent.
    assert load_params().model_copy(update={"cluster": None}) == _params_of(sender).model_copy(update={"cluster": None})
    monkeypatch.setenv("EQREG_CODE", commit)
    assert not trace(load_params().hash).dirty


def _params_of(sender: Workspace) -> object:
    return load_params(sender.folder / "params.yaml")


def test_a_later_upload_takes_away_what_it_no_longer_has_and_leaves_results(tmp_path: Path) -> None:
    upload, folder = tmp_path / "upload", tmp_path / "work"
    for name in ("params.yaml", "pipeline/old.py", "pipeline/kept.py", "components/data/packs.py"):
        (upload / name).parent.mkdir(parents=True, exist_ok=True)
        (upload / name).write_text(name)
    os.close(prepare(folder, upload))
    assert (folder / "components/data/packs.py").exists()
    (folder / "results/train").mkdir(parents=True)
    (folder / "results/train/model.safetensors").write_text("weights")
    (folder / "dvc.lock").write_text("lock")
    (upload / "pipeline/old.py").unlink()
    (upload / "pipeline/kept.py").write_text("changed")
    os.close(prepare(folder, upload))
    assert not (folder / "pipeline/old.py").exists()
    assert (folder / "pipeline/kept.py").read_text() == "changed"
    assert (folder / "results/train/model.safetensors").read_text() == "weights"
    assert (folder / "dvc.lock").read_text() == "lock"


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "params.yaml").write_text("mine")
    with pytest.raises(UserError, match="holds files, but not of submitted stages"):
        prepare(folder, tmp_path)
    assert [path.name for path in folder.iterdir()] == ["params.yaml"]
    assert (folder / "params.yaml").read_text() == "mine"


def test_a_folder_in_which_a_stage_runs_is_refused_to_others_until_that_ends(tmp_path: Path) -> None:
    upload, folder = tmp_path / "upload", tmp_path / "work"
    upload.mkdir()
    running = prepare(folder, upload)
    os.set_inheritable(running, True)
    # What the stage becomes holds the lock on; the descriptor is all that it has of it.
    stage = subprocess.Popen(["sleep", "600"], close_fds=False)
    os.close(running)
    with pytest.raises(UserError, match="another submitted stage runs there; wait for it, or name another folder"):
        prepare(folder, upload)
    stage.kill()
    stage.wait()
    os.close(prepare(folder, upload))


def test_what_git_does_not_track_stays_at_home_and_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)
    monkeypatch.chdir(workspace.folder)
    large = workspace.folder / "pipeline/weights.bin"
    with large.open("wb") as file:
        file.truncate(65 << 20)
    (tmp_path / "upload").mkdir()
    with pytest.raises(UserError, match=r"the largest is pipeline/weights\.bin"):
        pack(tmp_path / "upload")
    assert not list((tmp_path / "upload").iterdir())
