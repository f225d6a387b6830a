"""Every test module says in which layer it is, and starts what its layer is there for."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import LAYERS

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[1]
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py"))

STARTS = {
    "process": r"subprocess|multiprocessing|torch\.multiprocessing|Workspace|Store|store|start_fetch|Proxy|postgres"
    r"|bucket|socket|git|HTTPServer|tracking|docker",
    "ray": r"shared_ray|ray_session|OwnCluster|\"eqreg\"|\"dvc\"",
    "hosts": r"two_hosts",
}
"""What a module of the layer has at least one of in its text."""


def layers(module: str) -> list[str]:
    """The layers in the module's ``pytestmark``."""
    for node in ast.parse((ROOT / module).read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            return [name for name in LAYERS if f"pytest.mark.{name}" in ast.unparse(node.value).replace("(", " ")]
    return []


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_one_layer_and_starts_what_its_layer_is_there_for(module: str) -> None:
    """That it starts nothing more fails in the test itself (tests/conftest.py)."""
    (layer,) = layers(module)
    if layer != "unit":
        text = (ROOT / module).read_text()
        assert re.search(STARTS[layer], text), f"{module} could be of a lower layer than {layer}"


def test_a_unit_test_that_starts_a_process_or_opens_a_connection_fails(pytester: pytest.Pytester) -> None:
    pytester.makeconftest((ROOT / "tests/conftest.py").read_text())
    pytester.makepyfile(
        """
        import multiprocessing, os, socket, subprocess, sys
        import pytest
        pytestmark = pytest.mark.unit
        def test_run(): subprocess.run([sys.executable, "-c", ""])
        def test_popen(): os.popen("true").close()
        def test_process(): multiprocessing.Process(target=print).start()
        def test_socket(): socket.create_connection(("127.0.0.1", 9))
        def test_nothing(): pass
        """
    )
    outcome = pytester.inline_run("-m", "unit", "-p", "no:cacheprovider")
    outcome.assertoutcome(passed=1, failed=4)


def test_a_test_below_the_layer_ray_cannot_start_one(pytester: pytest.Pytester) -> None:
    pytester.makeconftest((ROOT / "tests/conftest.py").read_text())
    pytester.makepyfile(
        """
        import os
        import pytest
        pytestmark = pytest.mark.process
        def test_records():
            with pytest.raises(NotADirectoryError):
                os.makedirs(os.environ["RAY_TMPDIR"])
        """
    )
    pytester.inline_run("-p", "no:cacheprovider").assertoutcome(passed=1)


def test_a_test_without_a_layer_is_refused(pytester: pytest.Pytester) -> None:
    pytester.makeconftest((ROOT / "tests/conftest.py").read_text())
    pytester.makepyfile("def test_nothing(): pass")
    assert pytester.inline_run("-p", "no:cacheprovider").ret == pytest.ExitCode.USAGE_ERROR
