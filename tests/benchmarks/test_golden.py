"""The code computes and says what it did when the fixed point was made; see benchmarks/golden.py."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

import pytest

from benchmarks.golden import PRECISIONS, ROOT, SMALL, golden, numbers, texts
from tests import messages

pytestmark = pytest.mark.unit

TOLERANCE = {"float64": 1e-8, "float32": 1e-2}
"""Relative. Five steps enlarge what processors round differently: one thread and two differ by 1e-3 in float32."""


@pytest.mark.parametrize(("network", "precision"), itertools.product(SMALL, PRECISIONS))
def test_five_steps_have_the_losses_penalties_and_gradients_of_the_fixed_point(network: str, precision: str) -> None:
    pair = f"{network} {precision} "
    expected = {name.removeprefix(pair): row for name, row in golden("numbers").items() if name.startswith(pair)}
    found = numbers(network, precision)
    assert found.keys() == expected.keys()
    for case, rows in expected.items():
        if isinstance(rows, str):
            assert found[case] == rows, case
            continue
        for name, values in rows.items():
            assert found[case][name] == pytest.approx(values, rel=TOLERANCE[precision], abs=1e-9), (case, name)


def test_commands_explain_themselves_and_params_as_they_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    expected, found = golden("texts"), texts()
    assert found.keys() == expected.keys()
    for command, text in expected.items():
        assert found[command] == text, command


def test_every_message_of_the_fixed_point_is_of_a_test_that_is_there() -> None:
    """One that is gone would not be compared, without a word."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py")]
    there = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert {test.partition("[")[0] for test in golden("messages")} <= there


def test_another_message_than_that_of_the_fixed_point_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "_golden", lambda: {"test_a": ["ValueError: width: 0 is too small"]})
    messages.compare("test_a", ["ValueError: width: 0 is too small"])
    messages.compare("test_of_later", ["ValueError: new"])
    with pytest.raises(AssertionError, match="another message"):
        messages.compare("test_a", ["ValueError: width is too small"])


def test_what_differs_between_runs_is_no_difference(tmp_path: Path) -> None:
    found = messages.lasting(f"{tmp_path}/images/a.png: no such file; sum {'0ab1' * 16}; at 127.0.0.1:4711")
    assert found == "TMP: no such file; sum HEX; at HOST:PORT"


def test_a_renamed_word_may_differ_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.golden.FOLDER", tmp_path)
    (tmp_path / "texts.json").write_text('{"a": "old words, old.key"}')
    (tmp_path / "renamed.yaml").write_text('{"\\\\bold\\\\.key\\\\b": "new.key"}')
    assert golden("texts") == {"a": "old words, new.key"}
