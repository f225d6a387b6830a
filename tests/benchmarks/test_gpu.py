"""The GPU benchmark, at toy size on the CPU and without the modules that a lent machine does not have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import gpu
from benchmarks.overhead import default_options
from components.equivariance import EquivarianceConfig

pytestmark = [pytest.mark.process, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
ABSENT = ("ray", "mlflow", "dvc", "pydantic", "safetensors", "rich", "yaml", "sklearn", "matplotlib", "pywt", "optuna")
RUN = """
import runpy, sys
for name in sys.argv.pop(1).split(","):
    sys.modules[name] = None  # importing it raises ModuleNotFoundError, as where it is not installed
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
PENALTIES = ("regular", "rotation", "channel", "rotation+channel", "projection", "paper")


def run(folder: Path, *more: str, absent: tuple[str, ...] = ABSENT) -> subprocess.CompletedProcess[str]:
    """The script in a process of its own, with images and results in the folder."""
    command = [sys.executable, "-c", RUN, ",".join(absent), str(ROOT / "benchmarks/gpu.py")]
    command += [
        "--images",
        str(folder / "images"),
        "--out",
        str(folder / "gpu.jsonl"),
        "--device",
        "cpu",
        "--toy",
        *more,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything measured."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "images").mkdir()
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (96, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
    done = run(folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("needs torch, numpy, pillow, scipy, scikit-image\n")
    return folder


def test_every_check_agrees_and_every_line_says_where_it_was_measured(measured: Path) -> None:
    rows = lines(measured)
    assert [row["key"] for row in rows if "error" in row] == []
    checks = [row for row in rows if row["figure"] == "check"]
    assert {row["check"] for row in checks} == {
        *("forward and backward", "cap", "default", "tiles", "tiles, self-ensemble", "exported and moved"),
        *(f"penalty {penalty}" for penalty in PENALTIES),
    }
    assert all(row["ok"] and row["difference"] <= 1e-4 for row in checks)
    for row in rows:
        assert (row["device"], row["torch"], row["sizes"]) == ("cpu", torch.__version__, "toy")


def test_steps_are_measured_in_order_each_beside_a_plain_one(measured: Path) -> None:
    found = [row for row in lines(measured) if row["figure"] == "step"]
    settings = list(dict.fromkeys((row["precision"], row["layout"], row["mode"]) for row in found))
    assert settings == [
        ("bf16", "channels_last", "eager"),
        ("float32", "contiguous", "eager"),
        ("bf16", "channels_last", "compile (eager)"),
    ]
    for row in found:
        (low, high), (plain_low, plain_high) = row["ms_quartiles"], row["plain_ms_quartiles"]
        assert 0 < low <= row["ms"] <= high
        assert 0 < plain_low <= row["plain_ms"] <= plain_high
        assert row["penalty"] > 0
        same = [other for other in found if (other["network"], other["case"]) == (row["network"], row["case"])]
        assert row["loss"] == pytest.approx(same[0]["loss"], rel=0.05)
        assert row["penalty"] == pytest.approx(same[0]["penalty"], rel=0.05)
    assert {(row["network"], row["case"]) for row in found} == {
        (network, case) for network in ("dncnn", "unet", "prenet") for case in ("default", "all layers")
    }


def test_a_profile_lists_operations_by_their_own_time(measured: Path) -> None:
    found = [row for row in lines(measured) if row["figure"] == "profile"]
    assert [(row["network"], row["case"]) for row in found] == [
        (network, case) for network in ("dncnn", "unet") for case in ("plain", "default", "all layers")
    ]
    for row in found:
        times = [operation["ms"] for operation in row["rows"]]
        assert times == sorted(times, reverse=True)
        assert sum(operation["share"] for operation in row["rows"]) <= 1.001
        assert any("conv" in operation["operation"] for operation in row["rows"])


def test_a_run_that_was_cut_goes_on_where_it_was_and_names_what_has_no_time(measured: Path) -> None:
    whole = (measured / "gpu.jsonl").read_text().splitlines(keepends=True)
    kept, cut = [*whole[:10], *whole[12:-1]], [*whole[10:12], whole[-1]]
    missing = [json.loads(row)["key"] for row in cut]
    (measured / "gpu.jsonl").write_text("".join(kept) + cut[-1][:-40])
    assert run(measured, "--minutes", "0").returncode == 0
    *same, skipped = (measured / "gpu.jsonl").read_text().splitlines(keepends=True)
    assert same == kept
    assert (json.loads(skipped)["figure"], json.loads(skipped)["keys"]) == ("skipped", missing)
    assert run(measured).returncode == 0
    again = (measured / "gpu.jsonl").read_text().splitlines(keepends=True)
    assert again[: len(kept) + 1] == [*kept, skipped]
    assert [json.loads(row)["key"] for row in again[len(kept) + 1 :]] == missing


def test_a_second_run_measures_nothing(measured: Path) -> None:
    before = (measured / "gpu.jsonl").read_text()
    assert run(measured).returncode == 0
    assert (measured / "gpu.jsonl").read_text() == before


def test_what_is_missing_is_named_in_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, absent=("skimage", "PIL"))
    assert (done.returncode, done.stderr) == (1, "not installed: pillow, scikit-image\n")
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{tmp_path / 'images'}: no image of at least 16 x 16 pixels there")
    assert len(done.stderr.splitlines()) == 1


def test_an_error_is_a_line_and_is_tried_again(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise RuntimeError("first\n  last of it\n")

    figures = [gpu.Figure("step", {"name": "bad"}, fail), gpu.Figure("step", {"name": "good"}, lambda: {"ok": True})]
    for _ in range(2):
        results = gpu.Results(tmp_path / "out.jsonl", {"device": "none"})
        gpu.measure_all(figures, results, gpu.Clock(1e6, {}), "toy", "cpu")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["name"] for row in found] == ["bad", "good", "bad"]
    assert (found[0]["ok"], found[0]["error"], found[0]["device"]) == (False, "RuntimeError: last of it", "none")


def test_a_difference_is_relative_to_the_tensor_or_for_a_negligible_gradient_to_all_of_them() -> None:
    expected = {"output": torch.tensor([3.0, 4.0]), "g/a": torch.tensor([10.0]), "g/b": torch.tensor([1e-9])}
    found = {"output": torch.tensor([3.0, 4.5]), "g/a": torch.tensor([11.0]), "g/b": torch.tensor([-1e-9])}
    assert gpu.difference(expected, found) == (pytest.approx(0.1), "output")
    assert gpu.difference(expected, found | {"output": expected["output"]}) == (pytest.approx(0.1), "g/a")
    assert gpu.difference(expected, expected | {"g/b": found["g/b"]})[0] == pytest.approx(2e-9 / 1e-2)
    value, where = gpu.difference(expected, expected | {"g/b": torch.tensor([torch.nan])})
    assert where == "g/b"
    assert not value <= gpu.TOLERANCE


def test_its_default_is_that_of_params_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert default_options() == vars(EquivarianceConfig(**gpu.DEFAULT))
