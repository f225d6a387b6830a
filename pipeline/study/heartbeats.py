"""The drivers of a study: each has a name that says where it runs, and sends heartbeats as long as it is alive."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import optuna
import psutil

BEAT_S = 10.0
SILENT_S = 60.0
"""Seconds without a heartbeat after which a driver on another machine counts as dead."""

_ENDED = "ended"


class Driver:
    """This process as a driver of a study, and the state of the other drivers."""

    def __init__(self, study: optuna.Study) -> None:
        process = psutil.Process()
        self._study, self._token = study, secrets.token_hex(8)
        self.name = f"{_machine()}:{process.pid}:{process.create_time():.2f}:{self._token}"
        self._over = threading.Event()
        self._beating: threading.Thread | None = None
        self._heard: dict[str, tuple[object, float]] = {}

    def begin(self) -> None:
        """Starts the thread that sends heartbeats."""
        self._study.set_user_attr(self._key(self._token), 0)
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()

    def end(self) -> None:
        """Ends the heartbeats. Other drivers can now take over the trials of this driver."""
        self._over.set()
        if self._beating:
            self._beating.join()
        with suppress(Exception):  # an error here must not replace that of the block
            self._study.set_user_attr(self._key(self._token), _ENDED)

    def is_mine(self, name: str | None) -> bool:
        """Whether it is this driver's name."""
        return name == self.name

    def is_alive(self, name: str) -> bool:
        """Whether another driver is alive: by its process on this machine, otherwise by its heartbeats.

        A heartbeat is a counter in the study. Its age is measured with this machine's clock, because the clocks of two
        machines may differ.
        """
        machine, pid, started, token = name.rsplit(":", 3)
        beats = self._study.user_attrs.get(self._key(token))
        if beats == _ENDED:
            return False
        if machine == _machine():
            try:
                return abs(psutil.Process(int(pid)).create_time() - float(started)) < 2
            except psutil.NoSuchProcess:
                return False
        now = time.monotonic()
        last, since = self._heard.get(token, (None, now))
        if last != beats:
            since = now
        self._heard[token] = beats, since
        return now - since < SILENT_S

    def _beat(self) -> None:
        count = 0
        while not self._over.wait(BEAT_S):
            count += 1
            try:
                self._study.set_user_attr(self._key(self._token), count)
            except Exception:  # the database may be down for a while; the sweep reports it
                continue

    @staticmethod
    def _key(token: str) -> str:
        return f"driver/{token}"


def _machine() -> str:
    """The host name and the PID namespace: containers have PID namespaces of their own."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{namespace.readlink() if namespace.exists() else ''}"
