"""Nothing of a local session can be reached from another machine, nor without the token."""

from __future__ import annotations

import ipaddress
import json
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.pipeline.cluster.own_cluster import base_environment
from tests.pipeline.services import read_line

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[3]

# Starts what a stage starts, does some work in it, says what is open, and waits.
_SESSION = """
import json, socket, sys, psutil
from pipeline.cluster.session import ray_session
from pipeline.config.schema import load_params
cluster = load_params().cluster.model_copy(update={"address": "local"})
import os
before = dict(os.environ)
with ray_session(cluster, dashboard=sys.argv[1] == "dashboard"):
    import ray
    WORK
    me = psutil.Process()
    found = {"gcs": ray.get_runtime_context().gcs_address, "listening": []}
    for process in [me, *me.children(recursive=True)]:
        for each in process.net_connections("inet"):
            if each.status == psutil.CONN_LISTEN or each.type == socket.SOCK_DGRAM:
                found["listening"].append([process.name(), each.laddr.ip, each.laddr.port])
    from ray._private.worker import global_worker
    found["dashboard"] = global_worker.node.webui_url
    found["set"] = sorted(name for name, value in os.environ.items() if before.get(name) != value)
    print(json.dumps(found), flush=True)
    sys.stdin.read()
left = {name: os.environ.get(name) for name in before.keys() | os.environ.keys()}
print(json.dumps({name: value for name, value in left.items() if before.get(name) != value}))
"""
_TASKS = "ray.get([ray.remote(lambda: 1).remote() for _ in range(4)])"
_TRAINING = """
    import threading, time, ray.train
    folder = sys.argv[2]
    from ray.train import RunConfig, ScalingConfig
    from pipeline.cluster.process_group import ProcessGroupConfig
    from pipeline.cluster.quick_trainer import QuickTrainer
    def train():
        import time, torch
        torch.distributed.all_reduce(torch.ones(3))
        open(folder + "/reduced", "w").close()
        time.sleep(60)
    trainer = QuickTrainer(
        train,
        is_local=True,
        torch_config=ProcessGroupConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=folder),
    )
    threading.Thread(target=trainer.fit, daemon=True).start()
    import pathlib
    while not pathlib.Path(folder, "reduced").exists():
        time.sleep(0.2)
"""


class Session:
    """A local session in a process of its own, with a home without a token."""

    def __init__(self, folder: Path, dashboard: bool, work: str = _TASKS) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", _SESSION.replace("WORK", work.strip())),
                *("dashboard" if dashboard else "none", str(folder)),
            ],
            cwd=ROOT,
            env=base_environment(self.home) | {"RAY_worker_niceness": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        timer = threading.Timer(180, self.process.kill)
        timer.start()
        line = read_line(self.process)
        timer.cancel()
        assert line, "the session did not start"
        self.found: dict[str, Any] = json.loads(line)

    def end(self) -> None:
        """As its block ends; then what is left of it, if something is. Once is enough.

        Sets ``left``: the environment variables that are others than before the block.
        """
        if self.process.poll() is not None:
            return
        children = psutil.Process(self.process.pid).children(recursive=True)
        try:
            output, _ = self.process.communicate("", timeout=300)
            if output:  # a Ray that ends on a busy machine may end the process before it tells
                self.left: dict[str, str | None] = json.loads(output)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for process in psutil.wait_procs(children, timeout=15)[1]:
            process.kill()


@pytest.fixture
def session(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Session]:
    started = Session(tmp_path, **request.param)
    yield started
    started.end()


def _with(**how: Any) -> Callable[..., Any]:
    return pytest.mark.parametrize("session", [how], indirect=True, ids=[""])


def _own_addresses() -> list[str]:
    """Of this machine, on its networks."""
    return [
        each.address
        for addresses in psutil.net_if_addrs().values()
        for each in addresses
        if each.family == socket.AF_INET and not ipaddress.ip_address(each.address).is_loopback
    ]


def _is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


def _assert_closed(found: dict[str, Any]) -> None:
    open_to_others = [each for each in found["listening"] if not _is_loopback(each[1])]
    assert not open_to_others
    # Ray has two fixed ports, on which other Rays of this machine may listen, too.
    shared = {
        each.laddr.port
        for each in psutil.net_connections("inet")
        if each.status == psutil.CONN_LISTEN and not _is_loopback(each.laddr.ip)
    }
    for port in {port for _, _, port in found["listening"]} - shared:
        for address in _own_addresses():
            with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
                socket.create_connection((address, port), timeout=2).close()


@pytest.mark.parametrize(
    "session", [{"dashboard": False}, {"dashboard": True}], indirect=True, ids=["without dashboard", "with dashboard"]
)
def test_a_local_session_listens_on_loopback_alone(session: Session) -> None:
    names = {name for name, _, _ in session.found["listening"]}
    assert {"gcs_server", "raylet"} <= names
    assert any(name.startswith("ray::") for name in names), "the workers and agents were not seen"
    _assert_closed(session.found)
    session.end()
    assert {"PYTHONPATH", "PYTHONWARNINGS", "RAY_AUTH_MODE"} <= set(session.found["set"])
    assert session.left == {}


@pytest.mark.slow
@_with(dashboard=False, work=_TRAINING)
def test_workers_that_train_together_on_this_machine_meet_on_loopback(session: Session) -> None:
    assert any("TrainWorker" in name for name, _, _ in session.found["listening"]), "the workers were not seen"
    _assert_closed(session.found)


@pytest.mark.slow
@_with(dashboard=True)
def test_a_local_session_refuses_who_has_not_its_token(session: Session) -> None:
    token_file = session.home / ".ray/auth_token"
    token = token_file.read_text()
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    url = f"http://{session.found['dashboard']}/api/jobs/"
    assert requests.get(url, timeout=10).status_code == 401
    assert requests.get(url, headers={"Authorization": f"Bearer {'0' * 64}"}, timeout=10).status_code == 403
    assert requests.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=10).status_code == 200
    connect = f"import ray; ray.init({session.found['gcs']!r}); print(len(ray.nodes()))"

    def try_with(variables: dict[str, str]) -> subprocess.Popen[str]:
        environment = base_environment(session.home) | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} | variables
        return subprocess.Popen(
            [sys.executable, "-c", connect], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    tries = [  # at once: who is refused takes its time to believe it
        (try_with({"RAY_AUTH_MODE": "disabled"}), False),
        (try_with({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}), False),
        (try_with({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}), True),
    ]
    for process, is_let_in in tries:
        output, complaint = process.communicate(timeout=300)
        assert (process.returncode == 0 and output.strip() == "1") == is_let_in, complaint
        assert is_let_in or "token" in complaint.lower()


@pytest.mark.slow
def test_workers_start_with_a_python_whose_path_a_shell_would_split(tmp_path: Path) -> None:
    """As that of a clone in ``/home/me/eq reg ü``: Ray hands the path to a shell."""
    (tmp_path / "eq reg ü").symlink_to(Path(sys.prefix).absolute())
    python = tmp_path / "eq reg ü/bin/python"
    (tmp_path / "home").mkdir()
    work = "print(ray.get(ray.remote(lambda: __import__('sys').executable).remote()))"
    code = _SESSION[: _SESSION.index("    me = ")].replace("WORK", work)
    environment = base_environment(tmp_path / "home") | {"PYTHONUTF8": "1"}
    done = subprocess.run(
        [python, "-c", code, "none"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == str(python), done.stderr
