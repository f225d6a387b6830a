"""The code computes and says what it did when the fixed point was made; see benchmarks/golden.py."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from benchmarks.golden import PRECISIONS, ROOT, golden, numbers, texts
from components.networks import NETWORKS

pytestmark = pytest.mark.unit

TOLERANCE = {"float64": 1e-8, "float32": 1e-4}
"""Relative; five steps enlarge what processors round differently."""


@pytest.mark.parametrize(("network", "precision"), itertools.product(NETWORKS, PRECISIONS))
def test_five_steps_have_the_losses_penalties_and_gradients_of_the_fixed_point(network: str, precision: str) -> None:
    expected, found = golden("numbers")[f"{network} {precision}"], numbers(network, precision)
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


def test_a_renamed_word_may_differ_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.golden.FOLDER", tmp_path)
    (tmp_path / "texts.json").write_text('{"a": "old words, old.key"}')
    (tmp_path / "renamed.yaml").write_text('{"\\\\bold\\\\.key\\\\b": "new.key"}')
    assert golden("texts") == {"a": "old words, new.key"}
