"""Two hosts on one machine: network namespaces A and B, joined by a cable, with a Ray cluster across them.

They share files, as hosts with a shared file system do, but for a folder that only A sees. Each has its own network and
processes of its own, which can be killed all at once.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

ADDRESSES = {"A": "10.77.0.1", "B": "10.77.0.2"}
PORT = 6391


class Hosts:
    """A runs the head of the cluster. Ray's token authentication is on.

    Args:
        cpus: of each host.
        hidden: a folder that is empty for B.

    Attributes:
        address: of the cluster, as ``cluster.address``.
    """

    address = f"{ADDRESSES['A']}:{PORT}"

    def __init__(self, cpus: int = 2, hidden: Path | None = None) -> None:
        self.cpus, self.hidden = cpus, hidden
        self._folder = Path(tempfile.mkdtemp(prefix="eq"))  # a short path: Ray's sockets lie below it
        self._mark = secrets.token_hex(2)
        (self._folder / "token").write_text(secrets.token_hex(32))

    def __enter__(self) -> Hosts:
        a, b = self._namespace("A"), self._namespace("B")
        left, right = f"v{self._mark}A", f"v{self._mark}B"
        for command in (
            f"ip netns add {a}",
            f"ip netns add {b}",
            f"ip link add {left} type veth peer name {right}",
            f"ip link set {left} netns {a}",
            f"ip link set {right} netns {b}",
            f"ip -n {a} link set {left} name eth0",
            f"ip -n {b} link set {right} name eth0",
        ):
            subprocess.run(command.split(), check=True)
        for host, address in ADDRESSES.items():
            for command in (f"addr add {address}/24 dev eth0", "link set lo up", "link set eth0 up"):
                subprocess.run(["ip", "-n", self._namespace(host), *command.split()], check=True)
        self.start_ray("A")
        self.start_ray("B")
        return self

    def __exit__(self, *error: object) -> None:
        for host in ADDRESSES:
            self.kill(host)
            subprocess.run(["ip", "netns", "del", self._namespace(host)], check=False)
        shutil.rmtree(self._folder, ignore_errors=True)

    def environment(self, base: dict[str, str] | None = None) -> dict[str, str]:
        """What processes of both hosts have: the same token."""
        environment = {name: value for name, value in (base or os.environ).items() if not name.startswith("RAY_")}
        return environment | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            # How fast the head notices that a host is gone; the default is 15 s.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "5",
        }

    def start_ray(self, host: str) -> None:
        """The host joins the cluster, or begins it."""
        where = (
            ["--head", f"--port={PORT}", "--include-dashboard=false"] if host == "A" else [f"--address={self.address}"]
        )
        command = [f"{Path(sys.executable).parent}/ray", "start", *where, f"--node-ip-address={ADDRESSES[host]}"]
        command += [f"--temp-dir={self._folder / host}", f"--num-cpus={self.cpus}", "--object-store-memory=100000000"]
        command += ["--disable-usage-stats"]
        if host == "B" and self.hidden:  # each command of a namespace has mounts of its own
            command = ["sh", "-c", 'mount -t tmpfs tmpfs "$0" && exec "$@"', str(self.hidden), *command]
        started = subprocess.run(
            self._on(host, command), env=self.environment(), capture_output=True, text=True, timeout=300
        )
        assert started.returncode == 0, started.stdout + started.stderr

    def start(self, host: str, command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
        """Starts a command on a host, in a session of its own."""
        return subprocess.Popen(
            self._on(host, command),
            cwd=folder,
            env=self.environment(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def processes(self, host: str) -> list[psutil.Process]:
        """All of a host."""
        listed = subprocess.run(["ip", "netns", "pids", self._namespace(host)], capture_output=True, text=True)
        return [psutil.Process(int(pid)) for pid in listed.stdout.split() if psutil.pid_exists(int(pid))]

    def workers(self, host: str) -> list[psutil.Process]:
        """The training processes of a host."""
        return [process for process in self.processes(host) if is_training(process)]

    def kill(self, host: str) -> None:
        """SIGKILL to every process of a host, as if its power failed."""
        for _ in range(5):  # some are being started meanwhile
            for process in self.processes(host):
                try:
                    process.send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.1)

    def _namespace(self, host: str) -> str:
        return f"eq{self._mark}{host}"

    def _on(self, host: str, command: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self._namespace(host), *command]


def is_training(process: psutil.Process) -> bool:
    """Whether it is a worker of Ray Train: Ray names its processes after what they run."""
    try:
        return "RayTrainWorker" in process.name() or any("RayTrainWorker" in part for part in process.cmdline())
    except psutil.Error:
        return False


@contextmanager
def two_hosts(cpus: int = 2, hidden: Path | None = None) -> Iterator[Hosts]:
    """Skips, and says why, where there can be none."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("two hosts: network namespaces need root and iproute2")
    with Hosts(cpus, hidden) as hosts:
        yield hosts
