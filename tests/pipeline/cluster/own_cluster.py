"""A Ray cluster of a test's own, made by ``ray start --head``: on loopback, with a token; it ends its own processes."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import requests

BIN = Path(sys.executable).parent


class OwnCluster:
    """Attributes: the dashboard's URL, HOST:PORT of the cluster, the token, and the environment of a client with it."""

    def __init__(self, *, dashboard: bool = True, num_cpus: int = 2) -> None:
        # Short: Ray's sockets lie below it, and their paths may have 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="eq-", dir="/tmp"))
        self.home = self.folder / "home"
        self.home.mkdir()
        self.token = secrets.token_hex(32)
        (self.folder / "token").write_text(self.token)
        ports = free_ports(8)
        self.address, self.url = f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
        environment = base_environment(self.home) | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # binds all of it to 127.0.0.1
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
        }
        names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
        names += ("runtime-env-agent-port", "metrics-export-port", "node-manager-port", "ray-client-server-port")
        self._process = subprocess.Popen(
            [
                *(str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1"),
                *(f"--{name}={port}" for name, port in zip(names, ports, strict=True)),
                *(f"--num-cpus={num_cpus}", f"--include-dashboard={str(dashboard).lower()}"),
                *(f"--temp-dir={self.folder / 'r'}", "--object-store-memory=100000000", "--disable-usage-stats"),
            ],
            env=environment,
            stdout=(self.folder / "log").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            self._wait(dashboard)
        except BaseException:
            self.end()
            raise

    def environment(self, **changes: str) -> dict[str, str]:
        """Of a client on another machine, so to say: it has a home without a token, and the token in a variable."""
        return base_environment(self.home) | {"RAY_AUTH_TOKEN": self.token} | changes

    def processes(self) -> list[psutil.Process]:
        """All that run for the cluster now."""
        try:
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def end(self) -> None:
        """Ends the cluster's processes, no others."""
        processes = self.processes()
        for process in processes[:1]:
            process.terminate()
        _, alive = psutil.wait_procs(processes, timeout=15)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=10)
        self._process.wait(timeout=300)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait(self, dashboard: bool) -> None:
        end = time.monotonic() + 300
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            if (dashboard and self._takes_jobs()) or (not dashboard and "Ray runtime started" in self._log()):
                return
            time.sleep(0.3)
        raise AssertionError(f"the cluster did not start:\n{self._log()}")

    def _takes_jobs(self) -> bool:
        try:
            answer = requests.get(f"{self.url}/api/jobs/", headers={"Authorization": f"Bearer {self.token}"}, timeout=5)
        except requests.RequestException:
            return False
        return answer.status_code == 200

    def _log(self) -> str:
        return (self.folder / "log").read_text()


def base_environment(home: Path) -> dict[str, str]:
    """The caller's without its own addresses and tokens, with this Python's commands first."""
    left_out = ("RAY_", "MLFLOW_", "DVC_", "EQREG_", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return environment | {"HOME": str(home), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
