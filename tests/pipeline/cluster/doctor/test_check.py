"""``eqreg cluster check``: nodes that are well are listed, and whatever is wrong is named by node, with its remedy."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import requests

from pipeline.cluster.doctor.check import _compare, _Node, check
from pipeline.cluster.doctor.node_report import NodeReport, Questions, node_versions, report
from pipeline.provenance.lineage import data_hash
from pipeline.storage.staged_packs import deliver
from tests.pipeline.cluster.hosts import Hosts, two_hosts
from tests.pipeline.cluster.own_cluster import free_ports
from tests.pipeline.conftest import ROOT, Project
from tests.pipeline.packs import make_packs

pytestmark = pytest.mark.hosts

HOST = socket.gethostname()
PYTHON = rf"3\.{sys.version_info[1]}\.\d+"

# As the command does it.
CHECK = """
import sys
from pipeline.cluster.doctor.check import check
from pipeline.errors import UserError
from pipeline.config.schema import load_params
try:
    check(load_params())
except UserError as error:
    print(f"error: {error}")
    sys.exit(2)
"""

# As soon as the command is connected, so before the head gives the host up: the processes whose numbers follow stop.
STOPPING = """
import contextlib, os, signal, sys
import pipeline.cluster.doctor.check as command
connect = command.ray_session
@contextlib.contextmanager
def then_stop(*arguments, **keywords):
    with connect(*arguments, **keywords):
        for number in sys.argv[1:]:
            os.kill(int(number), signal.SIGSTOP)
        yield
command.ray_session = then_stop
"""

# An HTTP server that is well, as MLflow's says it.
SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
http.server.HTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"""


def test_a_local_ray_with_everything_in_place_is_well(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    packed = make_packs(project.folder / "data" / "packed")
    check(project.params())
    output = capsys.readouterr().out
    assert re.search(rf"{HOST}\s+[\d.]+\s+{os.cpu_count()}\s+\d+\s+{PYTHON}\s+2\.13\.\d", output)
    assert f"packs: read in place, {packed}" in output
    assert "mlflow.db (the driver alone writes there)" in output
    assert re.search(r"bandwidth: two workers on [\d.]+: [1-9]\d+ MB/s each way", output)
    assert output.endswith("all is well on 1 node\n")
    assert list((project.folder / ".eqreg").iterdir()) == []


# ----------------------------------------------------------------------------------------------------------- two hosts


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with two_hosts() as hosts:
        yield hosts


def run_check(
    hosts: Hosts, project: Project, stopped: Sequence[psutil.Process] = (), **environment: str
) -> tuple[int, str]:
    """(exit code, output) of the check on host A, which stops some processes when it is connected."""
    # Wide, so that no line is broken.
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", (STOPPING if stopped else "") + CHECK, *(str(each.pid) for each in stopped)]
    process = hosts.start("A", command, project.folder, variables)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def problems(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("node ") and ": " in line]


def test_two_hosts_that_are_well(hosts: Hosts, project: Project, tmp_path: Path) -> None:
    make_packs(project.folder / "data" / "packed")
    project.set({"cluster.address": hosts.address, "cluster.storage": str(tmp_path / "shared")})
    code, output = run_check(hosts, project)
    assert code == 0, output
    for address in ("10.77.0.1", "10.77.0.2"):
        assert re.search(
            rf"{HOST}\s+{address}\s+2\s+\d+\s+{PYTHON}\s+2\.13\.\d\s+2\.\d+\.\d+\s+[0-9a-f]{{8}}\s", output
        )
    assert f"storage: {tmp_path / 'shared'}\n" in output
    assert re.search(r"bandwidth: 10\.77\.0\.1 - 10\.77\.0\.2: [1-9]\d+ MB/s each way", output)
    assert problems(output) == []
    assert output.endswith("all is well on 2 nodes\n")
    assert list((tmp_path / "shared").iterdir()) == []


@pytest.mark.slow
def test_each_problem_of_a_host_is_one_line_with_its_remedy(hosts: Hosts, project: Project, tmp_path: Path) -> None:
    """B has another torch, another folder where the storage is, and no way to a server that listens on A's loopback."""
    shared, other = tmp_path / "shared", tmp_path / "of-b"
    shared.mkdir()
    (other / "torch-9.9.9.dist-info").mkdir(parents=True)
    (other / "torch-9.9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9\n")
    (other / "components").mkdir()
    (other / "components" / "__init__.py").write_text("raise ImportError('an older copy')\n")
    hosts.kill("B")
    records = tempfile.mkdtemp(prefix="eq")
    ray = f"{Path(sys.executable).parent}/ray start --address={hosts.address} --node-ip-address=10.77.0.2 --num-cpus=2"
    # A host's mounts are its own here.
    mount = f"mount -t tmpfs tmpfs {shared} && exec {ray} --temp-dir={records} --disable-usage-stats"
    started = hosts.start("B", ["sh", "-c", mount], tmp_path, {**os.environ, "PYTHONPATH": str(other)})
    output, _ = started.communicate(timeout=300)
    assert started.returncode == 0, output
    server = hosts.start("A", [sys.executable, "-c", SERVER, "127.0.0.1", "5999"], tmp_path, dict(os.environ))
    try:
        project.set({"cluster.address": hosts.address, "cluster.storage": str(shared), "cluster.interface": "lo"})
        code, output = run_check(hosts, project, MLFLOW_TRACKING_URI="http://user:hidden@127.0.0.1:5999")
    finally:
        server.kill()
        hosts.kill("B")
        shutil.rmtree(records, ignore_errors=True)
        hosts.start_ray("B")
    assert code == 2, output
    b = rf"node {HOST} \(10\.77\.0\.2\): "
    lines = [line for line in problems(output) if not any(word in line for word in ("does not answer", "is lost ("))]
    wanted = [
        rf"{b}torch 9\.9\.9, where the driver has 2\.13\.\d: install the same on every node \(constraints\.txt\)",
        rf"{b}cluster\.storage: {shared}: what the driver has written there is not there: .* or use s3://BUCKET/PREFIX",
        rf"{b}MLFLOW_TRACKING_URI: http://127\.0\.0\.1:5999: no answer: look at the address, and at firewalls",
        rf"{b}workers do not reach those of node {HOST} \(10\.77\.0\.1\): "
        r"(they do not meet \(\w+\)|not done within 25 s): open all ports between the nodes, "
        r"or set cluster\.interface to the network that joins them",
    ]  # fmt: skip
    assert len(lines) == len(wanted), output
    for line, pattern in zip(lines, wanted, strict=True):
        assert re.fullmatch(pattern, line), line
    assert re.search(r"error: cluster\.address: [\d.:]+: \d problems on \d nodes, listed above", output)
    assert "hidden" not in output


@pytest.mark.slow
def test_a_host_that_does_not_answer_is_named(hosts: Hosts, project: Project) -> None:
    project.set({"cluster.address": hosts.address, "cluster.wait_s": 12, "cluster.interface": "none0"})
    stopped = hosts.processes("B")
    start = time.monotonic()
    try:
        code, output = run_check(hosts, project, stopped)
    finally:
        for process in stopped:
            process.send_signal(signal.SIGCONT)
    assert code == 2, output
    assert time.monotonic() - start < 90
    assert f"node {HOST} (10.77.0.2): does not answer within 12 s: look whether it is up, restart Ray on it" in output
    assert re.search(r"workers do not reach .*: no network interface is called none0 \(there are lo, eth0\)", output)


# --------------------------------------------------------------------------------------------------- what a node says


def ask(**changes: object) -> list[str]:
    """What is wrong, as this process's own node sees it."""
    nothing: dict[str, object] = dict.fromkeys(("artifact_store", "probe", "staged", "tracking")) | {"secrets": {}}
    return report(Questions(**{**nothing, **changes})).problems  # type: ignore[arg-type]


def test_a_real_mlflow_server_is_reached(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    command = [f"{Path(sys.executable).parent}/mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [f"--backend-store-uri=sqlite:///{tmp_path}/mlflow.db", f"--artifacts-destination={tmp_path}/artifacts"]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        end = time.monotonic() + 300
        while time.monotonic() < end and server.poll() is None:
            try:
                requests.get(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except requests.RequestException:
                time.sleep(0.3)
        assert ask(tracking=f"http://127.0.0.1:{port}") == [], (tmp_path / "log").read_text()
        assert ask(tracking=f"http://127.0.0.1:{port}/") == []
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert ask(tracking=f"http://127.0.0.1:{port}") == [
        f"MLFLOW_TRACKING_URI: http://127.0.0.1:{port}: no answer: look at the address, and at firewalls"
    ]


def test_a_server_that_is_not_mlflow_is_told_from_one(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            found = ask(tracking=f"http://127.0.0.1:{port}")
            if "no answer" not in str(found):
                break
            time.sleep(0.1)
    finally:
        server.kill()
        server.wait()
    assert found == [
        f"MLFLOW_TRACKING_URI: http://127.0.0.1:{port}: it answers 404, which MLflow does not: look at the address, "
        "and at firewalls"
    ]


def test_a_postgres_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    address = os.environ.get("EQREG_TEST_POSTGRES")
    if not address:
        pytest.skip("no Postgres: set EQREG_TEST_POSTGRES and PGPASSWORD; .ci/run starts one")
    for scheme in ("postgresql", "postgresql+psycopg2"):
        assert ask(tracking=address.replace("postgresql", scheme, 1)) == []
    password = os.environ["PGPASSWORD"]
    monkeypatch.delenv("PGPASSWORD")
    assert ask(tracking=address, secrets={"PGPASSWORD": password}) == []
    (found,) = ask(tracking=address, secrets={"PGPASSWORD": "not-the-password"})
    assert re.fullmatch(r"MLFLOW_TRACKING_URI: postgresql://[\w.:]+/postgres: it lets nobody in: .*", found)


def test_packs_that_the_node_does_not_see_are_a_problem(tmp_path: Path) -> None:
    packed = make_packs(tmp_path / "packed")
    staged = deliver(packed, None, str(tmp_path))
    assert ask(staged=staged) == []
    shutil.rmtree(packed)
    assert f"{HOST} sees no folder at {packed}; share that folder" in ask(staged=staged)[0]
    make_packs(packed, seed=1)
    assert f"sees other packs ({data_hash(packed)}, the driver's are {staged.hash})" in ask(staged=staged)[0]


def test_the_code_that_counts_is_the_code_that_is_imported(tmp_path: Path) -> None:
    """Another copy, of which one byte of one file is another, has another sum; caches do not count."""
    for name in ("components", "pipeline"):
        shutil.copytree(ROOT / name, tmp_path / name)

    def version() -> str:
        code = "from pipeline.cluster.doctor.node_report import node_versions; print(node_versions()['eqreg'])"
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert version() == node_versions()["eqreg"]
    with (tmp_path / "components" / "tasks.py").open("a") as file:
        file.write("\n")
    assert version() != node_versions()["eqreg"]


@pytest.mark.parametrize(("ahead", "words"), [(7.4, "7 s ahead of"), (-3600.0, "3600 s behind"), (4.0, None)])
def test_a_clock_that_is_off_is_named(ahead: float, words: str | None) -> None:
    node = _Node("id", "host", "10.0.0.7", {})
    found: list[str] = []
    _compare([node], {"id": (NodeReport(node_versions(), 0.0, []), ahead)}, found)
    assert found == ([f"node host (10.0.0.7): its clock is {words} the driver's: let NTP set both"] if words else [])
