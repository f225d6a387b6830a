"""The layers of the tests: what a test of each may start, and in which order they run.

Every module has one marker of ``LAYERS`` (``pytestmark``), and what a layer may not do fails in it:

- ``unit``: no process and no network.
- ``process``: processes and services, but no Ray.
- ``ray``: a Ray on this machine.
- ``hosts``: several hosts, which are network namespaces.

``slow``, beside them, is what ``make test`` leaves to ``.ci/run``.
"""

from __future__ import annotations

import multiprocessing.process
import os
import signal
import socket
import subprocess
from collections.abc import Generator
from typing import Any, NoReturn

import pytest

pytest_plugins = ("pytester",)
LAYERS = ("unit", "process", "ray", "hosts")
NO_RAY = "/dev/null/this-test-must-not-start-ray"
"""A folder that cannot be made, for the records of a Ray that must not be started."""


def pytest_configure() -> None:
    """A shell that starts the tests in the background has them, and all they start, ignore Ctrl-C: not here.

    Beside each other, tests take one core each, and Ray's workers are no less urgent than they (Ray gives them the
    niceness 15, with which they would wait until the unit tests are through).
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("RAY_worker_niceness", "0")
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With pytest-xdist, what starts Ray runs one after the other, and a module of processes stays together.

    The hosts come first, then Ray: they take longest.
    """
    for item in items:
        layer = layer_of(item)
        if layer in ("ray", "hosts"):
            item.add_marker(pytest.mark.xdist_group("ray"))
        elif layer == "process":
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))
    items.sort(key=lambda item: -LAYERS.index(layer_of(item)))


def layer_of(item: pytest.Item) -> str:
    """The marker of the test's module.

    Raises:
        pytest.UsageError: it has none, or several.
    """
    found = {mark.name for mark in item.iter_markers() if mark.name in LAYERS}
    if len(found) != 1:
        raise pytest.UsageError(
            f"{item.nodeid}: has {sorted(found) or 'no layer'}: mark its module with one of {LAYERS}"
        )
    return found.pop()


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> None:
    """The C of the regulariser is compiled at first use, by a process: here, before any test."""
    from components.equivariance import fused

    fused.is_available()


@pytest.fixture(autouse=True)
def _only_what_the_layer_may(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, _compiled: None) -> None:
    layer = layer_of(request.node)
    if layer in ("unit", "process"):
        monkeypatch.setenv("RAY_TMPDIR", NO_RAY)
    if layer != "unit":
        return

    def refuse(*arguments: Any, **keywords: Any) -> NoReturn:
        pytest.fail("a unit test starts no process and opens no connection: mark its module as process")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(os, "fork", refuse)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With ``EQREG_NO_SKIPS`` set, as in CI, a skipped test fails: every service is expected to be there."""
    report = yield
    if report.skipped and os.environ.get("EQREG_NO_SKIPS") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but EQREG_NO_SKIPS is set: {report.longrepr}"
    return report
