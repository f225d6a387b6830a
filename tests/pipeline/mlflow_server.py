"""A server of MLflow as a process: ``mlflow server`` (runs and models), or ``mlflow models serve`` (one model)."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

START = 600.0
"""Seconds in which a server answers, also on a machine that is busy."""


class MlflowServer:
    """Runs while it is entered, on a free port of this machine, and answers from then on.

    Attributes:
        address: ``http://127.0.0.1:PORT``.
        process: the first of its process group.

    Args:
        arguments: after ``mlflow``, without host and port.
        folder: in which it runs; ``log`` there is what it prints.
        environment: its variables.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self._log = folder / "log"
        where = ["--host", "127.0.0.1", "--port", str(port)]
        programs = Path(sys.executable).parent  # MLflow starts uvicorn by its name
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *arguments, *where],
                cwd=folder,
                env={**environment, "PATH": f"{programs}:{os.environ['PATH']}", "MLFLOW_DISABLE_TELEMETRY": "true"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        try:
            self._wait()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def end(self) -> None:
        """Ends it at once: uvicorn would first finish what it computes."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def _wait(self) -> None:
        end = time.monotonic() + START
        while True:
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=5):
                    return
            except (OSError, http.client.HTTPException):  # nobody yet, or somebody else
                assert self.process.poll() is None, self._log.read_text()
                assert time.monotonic() < end, self._log.read_text()
                time.sleep(0.2)
