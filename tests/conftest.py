"""The layers of the tests: what a test of each may start, and how they are spread over processes.

Every module has one marker of ``LAYERS`` (``pytestmark``), and what a layer may not do fails in it:

- ``unit``: no process and no network.
- ``process``: processes and services, but no Ray.
- ``ray``: a Ray on this machine.
- ``hosts``: several hosts, which are network namespaces.

``slow``, beside them, is what ``make test`` leaves to ``.ci/run``.
"""

from __future__ import annotations

import ast
import multiprocessing.process
import os
import signal
import sys
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# Beside each other, tests take one core each; torch reads the number when it is imported, which the plugins below do.
# Ray's workers are no less urgent than the tests (Ray gives them the niceness 15, with which they would wait until the
# unit tests are through).
if "PYTEST_XDIST_WORKER" in os.environ:
    assert "torch" not in sys.modules
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")

pytest_plugins = ("pytester", "tests.messages", "tests.chainner", "tests.pipeline.services", "tests.pipeline.databases")
LAYERS = ("unit", "process", "ray", "hosts")
PATIENT = ("tests/pipeline/test_end_to_end.py",)
"""Modules of layer ray that may run beside others of it: commands alone, of which nothing is killed or timed."""

NO_RAY = "/dev/null/this-test-must-not-start-ray"
"""A folder that cannot be made, for the records of a Ray that must not be started."""

STARTING = {"subprocess.Popen", "os.system", "os.posix_spawn", "os.fork", "os.forkpty"}
STARTING |= {"socket.connect", "socket.bind", "socket.sendto"}
"""Audit events of what a unit test may not do."""

_refuses = False


def pytest_configure() -> None:
    """A shell that starts the tests in the background has them, and all they start, ignore Ctrl-C: not here."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


# ------------------------------------------------------------------------------------------------------ which layer


@cache
def layer_of_module(path: Path) -> str:
    """The layer in the module's ``pytestmark``.

    Raises:
        pytest.UsageError: it has none, or several.
    """
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            names = {part.attr for part in ast.walk(node.value) if isinstance(part, ast.Attribute)}
            found = [layer for layer in LAYERS if layer in names]
    if len(found) != 1:
        raise pytest.UsageError(f"{path}: layers {found}: mark the module with one of {LAYERS}")
    return found[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What starts Ray runs one after the other, the tests of a module with processes too, and unit tests anywhere.

    The modules in ``PATIENT`` may run beside Ray, as modules with processes do.

    Groups of pytest-xdist do not do it: 3.8 cannot name them to pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByLayer(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.split("::")[0]
            layer = "process" if module in PATIENT else layer_of_module(config.rootpath / module)
            return {"unit": nodeid, "process": module}.get(layer, "ray")

    config.option.loadscopereorder = False  # the order is that of pytest_collection_modifyitems
    return ByLayer(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The hosts come first, then Ray: they take longest. ``PATIENT`` modules come after the modules with processes."""

    def order(item: pytest.Item) -> float:
        is_patient = item.path.relative_to(item.config.rootpath).as_posix() in PATIENT
        return -0.5 if is_patient else -LAYERS.index(layer_of_module(item.path))

    items.sort(key=order)


# ------------------------------------------------------------------------------------------------- what a layer may


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _refuses and event in STARTING:
        raise pytest.fail.Exception("a unit test starts no process and opens no connection: it is of layer process")


sys.addaudithook(_audit)
_start = multiprocessing.process.BaseProcess.start


def _start_process(self: multiprocessing.process.BaseProcess) -> None:
    _audit("os.fork", ())
    _start(self)


multiprocessing.process.BaseProcess.start = _start_process  # type: ignore[method-assign] # spawning has no event


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Around a test with all its fixtures: below the layer ray no Ray can be started, nor that of others be used."""
    global _refuses
    layer = layer_of_module(item.path)
    with pytest.MonkeyPatch.context() as patch:
        if layer in ("unit", "process"):
            patch.setenv("RAY_TMPDIR", NO_RAY)
            if "pipeline.cluster.session" in sys.modules:
                patch.setattr("pipeline.cluster.session._open", [])
        if fused := sys.modules.get("components.equivariance.autograd.fused"):
            fused.is_available()  # a test before may have had it compiled anew
        _refuses = layer == "unit"
        try:
            return (yield)
        finally:
            _refuses = False


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> None:
    """The C of the regulariser is compiled at first use, by a process: here, before any test."""
    global _refuses
    before, _refuses = _refuses, False
    from components.equivariance.autograd import fused

    fused.is_available()
    _refuses = before


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
