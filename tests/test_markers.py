"""Every test module says in which layer it is, and starts what its layer is there for."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from tests.conftest import layer_of_module

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[1]
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py"))

STARTS = {
    "process": r"\b(subprocess|multiprocessing|Workspace|[sS]tore|start_\w+|proxy|postgres|database|bucket|socket"
    r"|HTTPServer|spawn|git|_run|project|tracking_uri|CC|compile)\b",
    "ray": r"\b(shared_ray|ray_session|OwnCluster)\b|\"(eqreg|dvc)\"",
    "hosts": r"\btwo_hosts\b",
}
"""What a module of the layer has at least one of in its text."""


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_one_layer_and_starts_what_its_layer_is_there_for(module: str) -> None:
    """That it starts nothing more fails in the test itself (tests/conftest.py)."""
    layer = layer_of_module(ROOT / module)
    if layer != "unit":
        text = (ROOT / module).read_text()
        assert re.search(STARTS[layer], text), f"{module} could be of a lower layer than {layer}"


@pytest.fixture
def with_layers(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder with our conftest.py and its markers."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest((ROOT / "tests/conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers =\n unit:\n process:\n ray:\n hosts:\n slow:\n")
    return pytester


def run(pytester: pytest.Pytester) -> pytest.RunResult:
    """In a process of its own."""
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:xdist")


def test_whatever_starts_a_process_or_opens_a_connection_fails_in_a_unit_test(with_layers: pytest.Pytester) -> None:
    with_layers.makepyfile(
        """
        import multiprocessing, os, socket, subprocess, sys
        import pytest
        pytestmark = pytest.mark.unit
        @pytest.fixture(scope="module")
        def started(): subprocess.run([sys.executable, "-c", ""])
        def test_fixture(started): pass
        def test_run(): subprocess.run([sys.executable, "-c", ""])
        def test_system(): os.system("true")
        def test_spawn(): os.posix_spawn("/bin/true", ["true"], {})
        def test_process(): multiprocessing.get_context("spawn").Process(target=print).start()
        def test_connection(): socket.create_connection(("127.0.0.1", 9))
        def test_datagram(): socket.socket(type=socket.SOCK_DGRAM).sendto(b"", ("127.0.0.1", 9))
        def test_server(): socket.socket().bind(("127.0.0.1", 0))
        def test_nothing(): pass
        """
    )
    run(with_layers).assert_outcomes(passed=1, failed=7, errors=1)


def test_below_the_layer_ray_the_records_of_a_ray_cannot_be_written(with_layers: pytest.Pytester) -> None:
    with_layers.makepyfile(
        """
        import os
        import pytest
        pytestmark = pytest.mark.process
        def test_records():
            with pytest.raises(NotADirectoryError):
                os.makedirs(os.environ["RAY_TMPDIR"])
        """
    )
    run(with_layers).assert_outcomes(passed=1)


def test_a_module_without_a_layer_is_refused(with_layers: pytest.Pytester) -> None:
    with_layers.makepyfile("def test_nothing(): pass")
    assert run(with_layers).ret == pytest.ExitCode.USAGE_ERROR


def test_tests_beside_each_other_take_one_core_each() -> None:
    """With two threads each, two of them wait for each other: some took twenty times as long."""
    assert "PYTEST_XDIST_WORKER" not in os.environ or torch.get_num_threads() == 1
