"""``eqreg export``: each file is run as its users run it, on sizes that the command did not try."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from components.networks import build_network
from pipeline import compat
from pipeline.commands.doctor import smooth_images
from pipeline.commands.export import export
from pipeline.commands.exporting.form import KEY
from pipeline.commands.exporting.program import PT2, export_program
from pipeline.commands.exporting.source import Source, load_source
from pipeline.errors import UserError
from pipeline.model_file import model_sha256, save_model
from pipeline.tracking.models.registry import Registry
from pipeline.tracking.store import Store
from tests.pages import python_blocks
from tests.pipeline.conftest import ROOT, Project

pytestmark = pytest.mark.process

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "denoise": ("denoise", {"name": "dncnn", "width": 8, "depth": 8, "norm": "batch"}),
    "plain": ("denoise", {"name": "dncnn", "width": 8, "depth": 9, "norm": "none"}),
    "enlarge": ("super_resolution", {"name": "unet", "width": 4, "depth": 3, "norm": "batch", "scale": 2}),
    "inpaint": ("inpaint", {"name": "unet", "width": 4, "depth": 2, "norm": "none", "in_channels": 4}),
    "ct": ("ct_mar", {"name": "unet", "width": 4, "depth": 2, "norm": "none", "out_channels": 1}),
    "classify": ("classify", {"name": "resnet", "width": 8, "depth": 3, "norm": "batch", "classes": 5}),
    "short": ("denoise", {"name": "dncnn", "width": 4, "depth": 3, "norm": "none"}),
}
"""Model -> its task and the settings of its network."""

CONTRACTS = {
    "denoise": ("image", 3, 3, 1),
    "enlarge": ("image", 3, 3, 2),
    "inpaint": ("masked_image", 4, 3, 1),
    "ct": ("ct", 3, 1, 1),
    "classify": ("labels", 3, 5, 1),
}


def _network(name: str) -> nn.Module:
    """Random weights and statistics, in evaluation mode."""
    network, generator = build_network(**SETTINGS[name][1]), torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1, generator=generator)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)  # type: ignore[arg-type]
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return network.eval()


@pytest.fixture
def models(project: Project) -> Project:
    """A model file for each of ``SETTINGS`` in the working directory."""
    for name, (task, settings) in SETTINGS.items():
        save_model(Path(f"{name}.safetensors"), _network(name), {"network": settings, "task": task})
    return project


def _images(name: str, batch: int, height: int, width: int) -> Tensor:
    channels = int(_network(name).in_channels)  # type: ignore[arg-type]
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(9))


@torch.no_grad()
def _expected(name: str, images: Tensor) -> Tensor:
    output: Tensor = _network(name)(images)
    return output


def _of_onnx(path: str) -> tuple[onnxruntime.InferenceSession, dict[str, Any]]:
    """The session, and the description in the metadata of the model."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session, json.loads(session.get_modelmeta().custom_metadata_map[KEY])


def _equivariance_error(run: Callable[[Tensor], Tensor], name: str) -> float:
    """The formula of `equivariance_error`, for square images: quarter turns of the image and of the output."""
    sizes = []
    for image in smooth_images(CONTRACTS[name][1], 64).split(1):
        output = run(image)
        for turns in (1, 2, 3):
            of_turned = run(torch.rot90(image, turns, (2, 3)).contiguous())
            turned = output if output.ndim == 2 else torch.rot90(output, turns, (2, 3))
            scale = (of_turned.square().mean() + turned.square().mean()) / 2
            sizes.append((of_turned - turned).square().mean() / scale)
    return torch.stack(sizes).mean().sqrt().item()


def _refusal(*arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        export(*arguments)
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------- ONNX


@pytest.mark.parametrize("name", CONTRACTS)
def test_an_onnx_file_computes_what_the_model_does_at_any_size_and_says_what_it_takes(
    models: Project, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    export(f"{name}.safetensors", "onnx", Path("out.onnx"))
    session, description = _of_onnx("out.onnx")
    assert session.get_inputs()[0].shape == ["batch", CONTRACTS[name][1], "height", "width"]
    for size in ((1, 1, 1), (4, 23, 51), (2, 130, 16)):
        images = _images(name, *size)
        output = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        torch.testing.assert_close(output, _expected(name, images), atol=1e-5, rtol=1e-5)
    contract = description["contract"]
    assert tuple(contract[key] for key in ("kind", "inputs", "outputs", "scale")) == CONTRACTS[name]
    assert contract["task"] == SETTINGS[name][0]
    assert description["model_sha256"] == model_sha256(Path(f"{name}.safetensors"))
    assert description["least_side"] == 1
    assert {tuple(size) for size in description["sizes"]} >= {(1, 64, 64), (2, 37, 29)}
    shown = capsys.readouterr().out
    assert f"largest difference to the model: {description['largest_difference']:.1e} (" in shown
    assert 0 < description["largest_difference"] < 1e-5
    by_hand = _equivariance_error(
        lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), name
    )
    assert description["equivariance_error"] == pytest.approx(by_hand, rel=1e-3, abs=1e-6)
    assert description["model_equivariance_error"] == pytest.approx(by_hand, rel=1e-3, abs=1e-6)
    assert f"{description['equivariance_error']:.6f}, of the model" in shown
    assert onnx.load("out.onnx").functions == []


def test_the_export_of_a_classification_names_its_classes_and_the_size_of_its_images(models: Project) -> None:
    task, settings = SETTINGS["classify"]
    about = {"network": settings, "task": task, "classes": list("abcde"), "image_size": [32, 48]}
    save_model(Path("named.safetensors"), _network("classify"), about)
    export("named.safetensors", "onnx", Path("out.onnx"))
    contract = _of_onnx("out.onnx")[1]["contract"]
    assert contract["classes"] == list("abcde")
    assert contract["image_size"] == [32, 48]


def test_two_exports_are_the_same_bytes(models: Project) -> None:
    """Neither time nor path is in them."""
    Path("other").mkdir()
    for model, kind, suffix in (("short", "onnx", "onnx"), ("plain", "chainner", "safetensors")):
        first, second = Path(f"out.{suffix}"), Path(f"other/another.{suffix}")
        for out in (first, second):
            export(f"{model}.safetensors", kind, out)
        assert first.read_bytes() == second.read_bytes()
        assert stat.S_IMODE(first.stat().st_mode) == 0o644


# ---------------------------------------------------------------------------------------------------- programs, AOTI


def test_a_pt2_file_is_loaded_with_torch_alone_and_refuses_what_is_below_its_least_side(models: Project) -> None:
    export("inpaint.safetensors", "pt2", Path("out.pt2"))
    extra = {KEY: ""}
    run = torch.export.load("out.pt2", extra_files=extra).module()
    least = json.loads(extra[KEY])["least_side"]
    assert 1 < least < 9
    for size in ((1, least, least), (3, 41, least), (2, 23, 51)):
        images = _images("inpaint", *size)
        assert torch.equal(run(images), _expected("inpaint", images))
    with pytest.raises(AssertionError, match="Guard failed"):
        run(_images("inpaint", 1, least - 1, least - 1))


def test_a_program_for_another_device_runs_there(models: Project) -> None:
    """On the device that computes nothing, because a GPU is rare."""
    source = load_source("enlarge.safetensors")
    moved = export_program(source, "meta").module()(torch.empty(1, 3, 20, 31, device="meta"))
    assert (moved.device.type, moved.shape) == ("meta", (1, 3, 40, 62))


@pytest.mark.slow
def test_aoti_rounds_up_where_the_network_does(models: Project) -> None:
    """AOTInductor takes the rounding of a pooling from the example: an even one gave wrong scores at odd sizes."""
    found = export("classify.safetensors", "aoti", Path("out.pt2"))
    run = compat.aoti_load_package("out.pt2")
    for size in ((1, 23, 51), (2, 9, 64)):
        images = _images("classify", *size)
        torch.testing.assert_close(run(images), _expected("classify", images), atol=1e-5, rtol=1e-5)
    assert found.comparison.largest_difference < 1e-5


def test_the_example_stays_odd_when_it_is_halved(models: Project) -> None:
    source = load_source("classify.safetensors")
    for smallest in (1, 16, 100):
        for side in replace(source, smallest_side=smallest).example().shape[2:]:
            while side > 2 * -(-side // (2 * smallest)) and side > 3:
                assert side % 2 == 1
                side = -(-side // 2)


# --------------------------------------------------------------------------------------------------------- chaiNNer


def _published(tensors: dict[str, Tensor]) -> nn.Module:
    """The published architecture, from the names and shapes of the weights alone."""
    last = max(int(name.split(".")[1]) for name in tensors)
    layers = []
    for index in range(0, last + 1, 2):
        outputs, inputs = tensors[f"model.{index}.weight"].shape[:2]
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    network = nn.Module()
    network.model = nn.Sequential(*layers[:-1])
    network.load_state_dict(tensors)
    return network


@pytest.mark.parametrize(("name", "most"), [("denoise", 1e-5), ("plain", 0.0)])
def test_the_published_network_with_the_exported_weights_is_the_model(models: Project, name: str, most: float) -> None:
    export(f"{name}.safetensors", "chainner", Path("out.safetensors"))
    model = _published(load_file("out.safetensors")).model
    images = _images(name, 2, 23, 51)
    assert isinstance(model, nn.Module)
    with torch.no_grad():
        assert (images - model(images) - _expected(name, images)).abs().max() <= most
    with safe_open("out.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()[KEY])["format"] == "chainner"


@pytest.mark.parametrize(("name", "most"), [("denoise", 1e-5), ("plain", 0.0)])
def test_the_loader_of_chainner_reads_the_file(models: Project, name: str, most: float, spandrel: Any) -> None:
    export(f"{name}.safetensors", "chainner", Path("out.safetensors"))
    found = spandrel.ModelLoader(device="cpu").load_from_file("out.safetensors")
    assert isinstance(found, spandrel.ImageModelDescriptor)
    assert found.architecture.id == "DnCNN"
    assert (found.input_channels, found.output_channels, found.scale) == (3, 3, 1)
    images = _images(name, 1, 23, 51)
    with torch.no_grad():
        assert (found.model(images) - _expected(name, images)).abs().max() <= most


# --------------------------------------------------------------------------------------------------------- registry


@pytest.fixture
def registry(models: Project, store: Store) -> Registry:
    """Two versions of one model: with its file, and as an exported program alone."""
    registry = Registry(store)
    for file in (Path("denoise.safetensors"), None):
        registry.add(store.begin("run", {}, {}), _network("denoise"), f"sum of {file}", {}, file)
    registry.point("champion", "1")
    return registry


def test_a_registered_version_is_exported_and_its_program_alone_where_the_network_is_not_needed(
    registry: Registry,
) -> None:
    of_network, of_program = (f"models:/eqreg-denoise{which}" for which in ("@champion", "/2"))
    export(of_network, "chainner", Path("out.safetensors"))
    with safe_open("out.safetensors", framework="pt") as file:
        assert "model.14.bias" in file.keys()  # noqa: SIM118 - not a dict
        descriptions = [json.loads(file.metadata()[KEY])]
    export(of_program, "onnx", Path("out.onnx"))
    session, description = _of_onnx("out.onnx")
    images = _images("denoise", 2, 23, 51)
    output = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    torch.testing.assert_close(output, _expected("denoise", images), atol=1e-5, rtol=1e-5)
    descriptions.append(description)
    assert [each["contract"]["task"] for each in descriptions] == ["denoise", "denoise"]
    assert [each["model_sha256"] for each in descriptions] == ["sum of denoise.safetensors", "sum of None"]
    assert _refusal(of_program, "chainner", Path("out.safetensors")) == (
        "models:/eqreg-denoise/2: only its exported program can be used here, and --format chainner needs the network: "
        "export from the commit that registered it, or from its model.safetensors"
    )
    assert "models:/eqreg-denoise@gone: no such model in " in _refusal(
        "models:/eqreg-denoise@gone", "pt2", Path("a.pt2")
    )


def test_a_version_whose_network_this_code_does_not_know_is_exported_as_its_program(
    models: Project, store: Store
) -> None:
    Path("model").mkdir()
    file = Path("model/model.safetensors")
    save_model(file, _network("denoise"), {"network": {"name": "of the past"}, "task": "denoise"})
    Registry(store).add(store.begin("run", {}, {}), _network("denoise"), "aa", {}, file)
    export("models:/eqreg-denoise/1", "pt2", Path("out.pt2"))
    images = _images("denoise", 2, 23, 51)
    torch.testing.assert_close(torch.export.load("out.pt2").module()(images), _expected("denoise", images))


def test_a_model_without_finite_outputs_is_refused(models: Project) -> None:
    network = _network("short")
    nn.init.constant_(next(network.parameters()), float("nan"))
    save_model(Path("nan.safetensors"), network, {"network": SETTINGS["short"][1], "task": "denoise"})
    assert _refusal("nan.safetensors", "pt2", Path("a.pt2")) == (
        "nan.safetensors: gives values that are no finite numbers: its training may have diverged"
    )


def test_a_program_of_another_tool_that_takes_one_size_is_refused(models: Project, store: Store) -> None:
    network = nn.Conv2d(3, 3, 3).eval()
    example = np.zeros((2, 3, 16, 17), dtype=np.float32)
    signature = mlflow.models.infer_signature(example, example)
    mlflow.pytorch.save_model(network, "conv", signature=signature, input_example=example)
    client = store.client
    client.create_registered_model("conv")
    client.create_model_version("conv", Path("conv").absolute().as_uri())
    assert _refusal("models:/conv/1", "onnx", Path("a.onnx")).startswith(
        "models:/conv/1: cannot be exported, it fails on 2 images of 3 channels and 64x64 pixels ("
    )


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("denoise.safetensors", "tflite", "a.tflite"), "--format tflite: use one of onnx, pt2, aoti, chainner"),
        (("denoise.safetensors", "onnx", "a.pt2"), "--out a.pt2: a file of the format onnx is called NAME.onnx"),
        (("denoise.safetensors", "onnx", "no/a.onnx"), "--out no/a.onnx: there is no folder no"),
        (("denoise.safetensors", "onnx", "folder.onnx"), "--out folder.onnx: is a folder"),
        (
            ("denoise.safetensors", "chainner", "./denoise.safetensors"),
            "--out denoise.safetensors: would overwrite the model; name another file",
        ),
        (
            ("denoise.safetensors", "onnx", "a.onnx", "cuda"),
            "--device cuda: a file of the format onnx is for no one device; leave it out",
        ),
        (("denoise.safetensors", "pt2", "a.pt2", "meta"), "--device meta: cannot be used here (it computes nothing)"),
        (("denoise.safetensors", "pt2", "a.pt2", "gpu"), "--device gpu: cannot be used here ("),
        (
            ("gone.safetensors", "pt2", "a.pt2"),
            "gone.safetensors: no such file; give a model.safetensors, models:/NAME@ALIAS or models:/NAME/VERSION",
        ),
        (("params.yaml", "pt2", "a.pt2"), "params.yaml: not a model of eqreg"),
        (("models:/eqreg-denoise@champion", "pt2", "a.pt2"), "models:/eqreg-denoise@champion: there is no sqlite:///"),
        (
            ("inpaint.safetensors", "chainner", "a.safetensors"),
            "inpaint.safetensors: chaiNNer's loader knows no unet; of our networks it reads: dncnn",
        ),
        (
            ("short.safetensors", "chainner", "a.safetensors"),
            "short.safetensors: chaiNNer recognises a dncnn of depth 8 or more; this one has 3",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    models: Project, arguments: tuple[str, ...], message: str
) -> None:
    Path("folder.onnx").mkdir()
    before = sorted(Path().iterdir())
    model, kind, out, *device = arguments
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared
        export(model, kind, Path(out), *device)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) <= 2
    assert sorted(Path().iterdir()) == before


def test_a_missing_library_or_compiler_is_named_with_what_to_install(
    models: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert _refusal("denoise.safetensors", "aoti", Path("a.pt2")) == (
        "--format aoti: needs a C++ compiler, and there is no no-such-compiler: install one (Debian: g++), or set CXX"
    )
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else found(name))
    message = _refusal("denoise.safetensors", "onnx", Path("a.onnx"))
    assert (
        message
        == "--format onnx: needs onnxscript: in the project's folder, .venv/bin/python -m pip install -e '.[export]'"
    )


@pytest.mark.parametrize("wrong", ["values", "shape", "nan", "error", "turned"])
def test_a_file_that_differs_from_the_model_is_not_kept_and_an_older_one_is(
    models: Project, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, source: Source, device: str) -> Any:
        def run(images: Tensor) -> Tensor:
            output: Tensor = source.network(images)
            if wrong == "turned":  # what AOTInductor makes of a view that is not contiguous
                return source.network(images.as_strided(images.shape, torch.empty(images.shape).stride()))
            if wrong == "error":
                raise RuntimeError("a runtime's error\nand its stack")
            return {"values": output + 1e-4, "shape": output[..., 1:], "nan": output * float("nan")}[wrong]

        return run

    form = replace(PT2, read=read, write=lambda source, path, device: path.touch())
    monkeypatch.setattr("pipeline.commands.exporting.program.PT2", form)
    Path("out.pt2").write_text("older")
    message = _refusal("denoise.safetensors", "pt2", Path("out.pt2"))
    if wrong == "error":
        assert message == "denoise.safetensors: cannot be exported as pt2 (a runtime's error)"
    elif wrong == "turned":
        assert message.startswith("denoise.safetensors: as pt2 it has an equivariance error of 0.")
    else:
        amount = "1.0e-04" if wrong == "values" else "inf"
        assert message.startswith(f"denoise.safetensors: as pt2 it differs from the model by {amount}, and its outputs")
        assert message.endswith("\nout.pt2 was not written")
    assert Path("out.pt2").read_text() == "older"
    assert not list(Path().glob(".out*"))


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_full_disk_is_named_and_leaves_the_older_file(models: Project, kind: str) -> None:
    """In a process of its own, which torch would end where it cannot write into a file."""
    out = Path(f"out.{kind}")
    out.write_text("older")
    program = (
        "import resource, signal; from pipeline.cli import main; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); main()"
    )
    command = [sys.executable, "-c", program, "export", "denoise.safetensors", "--format", kind, "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert finished.returncode == 2, finished.stderr
    assert len(finished.stderr.splitlines()) == 1
    assert f"denoise.safetensors: cannot be exported as {kind} (" in finished.stderr
    assert "File too large; make room" in finished.stderr
    assert out.read_text() == "older"
    assert not list(Path().glob(".out*"))


def test_the_command_ends_with_a_code_and_names_the_file(models: Project) -> None:
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "export", "short.safetensors"]
    finished = subprocess.run(
        [*command, "--format", "pt2", "--out", "a.pt2"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert re.match(r"a\.pt2: short\.safetensors as pt2, 0\.\d\d MB\n", finished.stdout)


# ------------------------------------------------------------------------------------------------------------- page


def test_the_python_of_docs_how_to_export_runs_on_the_files_of_its_commands(models: Project) -> None:
    """docs/how-to/export.md: each block names the file of a command above it."""
    for kind in ("onnx", "pt2"):
        export("short.safetensors", kind, Path(f"denoise.{kind}"))
    images = torch.rand(1, 3, 480, 640, generator=torch.Generator().manual_seed(0))
    ran = 0
    for block in python_blocks("docs/how-to/export.md"):
        if block.note.startswith("run by"):
            names: dict[str, Any] = {}
            exec(compile(block.text, "page", "exec", dont_inherit=True), names)
            ran += 1
            assert torch.as_tensor(names["restored"]).shape == images.shape
    assert ran == 2
