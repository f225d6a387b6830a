"""``eqreg doctor``: any network in, a table and a verdict out; errors in two lines at most."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from components.data.packs import Entry, write_pack
from components.equivariance import PenaltyWeight
from components.members import NETWORKS
from components.networks import build_network
from components.training.state import TrainingState
from components.training.worker import Worker
from pipeline.commands.doctor import doctor
from pipeline.config.schema import load_params
from pipeline.console import console
from pipeline.errors import UserError
from pipeline.model_file import save_model
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.open_store import open_store
from pipeline.training_job import TrainingJob
from tests.pipeline.conftest import Project

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[3]
NETWORK = {"name": "unet", "width": 8, "depth": 2, "norm": "batch"}


def _network(seed: int = 0) -> nn.Module:
    network, generator = build_network(**NETWORK), torch.Generator().manual_seed(seed)  # type: ignore[arg-type]
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return network.eval()


@pytest.fixture
def model(project: Project) -> str:
    """A model file with random weights."""
    Path("results/train").mkdir(parents=True)
    save_model(Path("results/train/model.safetensors"), _network(), {"network": NETWORK, "task": "denoise"})
    return "results/train/model.safetensors"


def _refusal(name: str, size: int = 16, group: str = "C4") -> str:
    with pytest.raises(UserError) as caught:
        doctor(name, size, group)
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


def test_a_model_file_is_told_layer_by_layer_and_ends_with_a_verdict(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    diagnosis = doctor(model, 16, "C4")
    shown = capsys.readouterr().out
    for layer in diagnosis.layers:
        line = next(line for line in shown.splitlines() if line.split()[:1] == [layer.name])
        assert f"{layer.inputs} > {layer.outputs}" in line
        assert f"{layer.residual:.3f}" in line
    assert "3 random smooth images of 16x16 pixels" in shown
    assert "biases, scales, statistics differ inside regular fields" in shown
    assert "Verdict: the output can be exactly equivariant under C4 at 16x16: nothing" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 100


def test_a_size_that_does_not_fit_is_fatal_with_the_nearest_that_does(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    diagnosis = doctor(model, 17, "C4")
    assert diagnosis.fitting_size == (16, 16)
    shown = " ".join(capsys.readouterr().out.split())
    assert "max_pool2d 2x2 stride 2 after down.0.conv2: FATAL pool (" in shown
    assert "Remedy: kernel 3 with padding 1" in shown
    assert "Verdict: the output cannot be exactly equivariant under C4 at 17x17 because of pool" in shown
    assert shown.endswith("at 16x16 it can.")


@pytest.mark.parametrize("name", ["results/train", "./results/train/model.safetensors"])
def test_a_folder_with_a_model_and_any_path_to_it_are_the_model(model: str, name: str) -> None:
    assert doctor(name, 16, "C4") == doctor(model, 16, "C4")


def test_params_gives_the_network_of_params_yaml_with_initial_weights(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    diagnosis = doctor("params", 16, "D4")
    network = TrainingJob(load_params(), Path.cwd()).network()
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    assert sorted(layer.name for layer in diagnosis.layers) == sorted(names)
    assert diagnosis.group == "D4"
    assert diagnosis.output_residual == 0  # the last layer starts with zeros
    assert "all its outputs are 0" in capsys.readouterr().out


def _save_checkpoint(folder: Path) -> nn.Module:
    """A checkpoint of the network of params.yaml whose averaged weights differ from its own; gives the averaged one."""
    job = TrainingJob(load_params(), Path.cwd())
    state = TrainingState(job.network(), PenaltyWeight(0.1, 0), job.settings(), Worker.current())
    for parameter in state.averaged.module.parameters():
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    Checkpoints(open_store(str(folder.parent)), folder.name, 0).save(7, state.to_bytes(), 25.0)
    averaged: nn.Module = state.averaged.module.eval()
    return averaged


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_checkpoint_is_its_averaged_network(project: Project, is_folder: bool) -> None:
    network = _save_checkpoint(Path("kept/checkpoint"))
    name = "kept/checkpoint" if is_folder else str(next(Path("kept/checkpoint").glob("*.pt")))
    network_params = TrainingJob(load_params(), Path().absolute()).network_settings()
    save_model(Path("averaged.safetensors"), network, {"network": network_params})
    diagnosis = doctor(name, 16, "C4")
    assert diagnosis == doctor("averaged.safetensors", 16, "C4")
    assert diagnosis.output_residual > 0


def test_checkpoints_that_are_damaged_or_of_another_network_are_refused(project: Project) -> None:
    _save_checkpoint(Path("kept"))
    project.set({"network.width": 28})
    (file,) = Path("kept").glob("*.pt")
    assert f"{file}: does not fit the network of params.yaml" in _refusal("kept")
    file.write_bytes(file.read_bytes()[:-10])
    assert _refusal("kept").startswith(f"{file}: damaged or incomplete")


def test_a_pickle_is_not_run(project: Project) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return os.mkdir, ("evil",)

    content = io.BytesIO()
    torch.save({"averaged": Evil()}, content)
    Checkpoints(open_store("."), "bad", 0).save(7, content.getvalue(), None)
    assert "does not fit the network" in _refusal("bad")
    assert not Path("evil").exists()


def test_validation_images_are_used_where_they_are_large_enough(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder, generator = Path("data/packed/val"), np.random.default_rng(0)
    folder.mkdir(parents=True)
    entries = [Entry(f"image{i}", f"image{i}", 20 + i, 24) for i in range(4)]
    clean = [generator.integers(0, 256, (3, entry.height, entry.width), dtype=np.uint8) for entry in entries]
    write_pack(folder, entries, clean, [(image / 255).astype(np.float32) for image in clean])
    doctor(model, 20, "C4")
    assert "3 validation images of 20x20 pixels" in capsys.readouterr().out
    doctor(model, 32, "C4")
    assert "3 random smooth images of 32x32 pixels" in capsys.readouterr().out


def test_a_named_network_of_several_inputs_does_not_see_the_stacks_of_another_task(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """A grey image with the mask of its holes has the two channels of a grey image with its noise level."""
    folder = Path("data/packed/val")
    folder.mkdir(parents=True)
    write_pack(
        folder, [Entry("a", "a", 16, 16)], [np.zeros((1, 16, 16), np.uint8)], [np.zeros((2, 16, 16), np.float32)]
    )
    doctor("ffdnet", 16, "C4")
    assert "3 random smooth images of 16x16 pixels" in capsys.readouterr().out


def test_inputs_that_are_smaller_than_their_targets_are_left_out(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As those of super-resolution: only the first was looked at."""
    folder, generator = Path("data/packed/val"), np.random.default_rng(0)
    folder.mkdir(parents=True)
    entries = [Entry(f"image{i}", f"image{i}", 40, 40) for i in range(3)]
    clean = [generator.integers(0, 256, (3, 40, 40), dtype=np.uint8) for _ in entries]
    write_pack(folder, entries, clean, [np.zeros((3, side, side), dtype=np.float32) for side in (40, 20, 40)])
    doctor(model, 32, "C4")
    assert "2 validation images of 32x32 pixels" in capsys.readouterr().out


class _Deep(nn.Module):
    """Many layers with long names, every third of channels that do not divide, and a stride that does not align."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *(6 if i % 3 == 0 else 8 for i in range(34)), 3]
        self.residual_groups_of_the_body = nn.ModuleList(
            nn.ModuleDict({"convolution_before_attention": nn.Conv2d(a, b, 3, 2 if i == 4 else 1, 1)})
            for i, (a, b) in enumerate(pairwise(widths))
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for group in self.residual_groups_of_the_body:
            images = group["convolution_before_attention"](images)
        return images


@pytest.mark.parametrize("width", [80, 100, 160])
def test_many_layers_with_long_names_are_readable(
    model: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.commands.doctor._load", lambda name: (_Deep().eval(), "deep"))
    monkeypatch.setattr(console, "_width", width)
    diagnosis = doctor("deep", 16, "C4")
    lines = capsys.readouterr().out.splitlines()
    assert len(diagnosis.layers) == 35
    assert max(map(len, lines)) <= min(width, 100)
    assert "…" not in "".join(lines)
    notes = [line[:4] for line in lines if line.startswith(("(1", "(2", "(3"))]
    assert notes == ["(1) ", "(2) "]  # one for all layers with 6 channels, one for the stride
    assert sum(line.rstrip().endswith("channels (1)") for line in lines) == 12
    assert sum(line.rstrip().endswith("FATAL stride (2)") for line in lines) == 1


def test_a_network_is_diagnosed_by_its_name_with_published_settings(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    found = doctor("redcnn", 24, "C4")
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith("redcnn: with its published settings and random weights; C4; ")
    assert [layer.outputs for layer in found.layers] == [96] * 9 + [1]
    assert found.can_be_exact


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nowhere",
            f"nowhere: no such file or folder; give params, a network ({', '.join(sorted(NETWORKS))}), "
            "models:/NAME@ALIAS, results/train/model.safetensors",
        ),
        ("nowhere.safetensors", "nowhere.safetensors: no such file or folder"),
        ("empty", "empty: neither model.safetensors nor step-*.pt in this folder"),
        ("models:/eqreg-denoise@champion", "models:/eqreg-denoise@champion: there is no sqlite:///"),
        ("restormr", "restormr: no such file, folder or network; did you mean restormer?"),
    ],
)
def test_networks_that_are_not_there_are_named(project: Project, name: str, message: str) -> None:
    Path("empty").mkdir()
    assert _refusal(name).startswith(message)
    assert not Path("mlflow.db").exists()


def test_sizes_and_groups_that_are_impossible_are_refused(model: str) -> None:
    assert _refusal(model, 7) == "--size 7: on so few pixels everything looks symmetric, use 8 or more"
    assert _refusal(model, group="C8") == "--group C8: use one of C2, C4, D4"


@pytest.mark.parametrize("error", [RuntimeError("windows of 8 do not fill 20\nand more"), ValueError(""), IndexError()])
def test_a_network_that_fails_on_a_size_is_named(
    project: Project, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Choosy(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise error

    monkeypatch.setattr("pipeline.commands.doctor._load", lambda name: (Choosy(), name))
    reason = str(error).split("\n")[0] or type(error).__name__
    assert _refusal("net", 20) == f"net: it fails on images of 20x20 pixels ({reason})\ntry another --size"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 2, "error: nowhere: no such file or folder; give params"),
        (["params.yaml"], 2, "error: params.yaml: not a model of eqreg"),
        (["params", "--size", "1"], 2, "error: --size 1: on so few pixels"),
        (["results/train", "--size", "12", "--group", "C2"], 0, ""),
    ],
)
def test_the_command_ends_with_a_code_and_without_a_traceback(
    model: str, arguments: list[str], code: int, message: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "EQREG_DEBUG"}
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "doctor", *arguments]
    finished = subprocess.run(
        command, capture_output=True, text=True, env=environment | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    )
    assert finished.returncode == code, finished.stderr
    assert finished.stderr.startswith(message)
    assert len(finished.stderr.splitlines()) <= 2
    assert ("Verdict:" in finished.stdout) == (code == 0)
