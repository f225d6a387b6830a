"""``eqreg restore``: images in, restored images out, nothing overwritten, errors in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from components.data.readers.images import read_image, to_float
from components.degradations.holes import filled
from components.formats import KEY
from components.inference.contract import Contract
from components.inference.restorer import ImageRestorer
from components.networks import build_network
from pipeline.commands.restore import restore
from pipeline.commands.restoring.model import load_restorer
from pipeline.errors import UserError
from pipeline.model_file import FORMAT, save_model
from pipeline.tracking.models.registry import Registry
from pipeline.tracking.store import Store
from tests.pipeline.conftest import ROOT, Project

pytestmark = pytest.mark.process

NETWORK = {"name": "dncnn", "width": 4, "depth": 2, "norm": "none"}


def _network() -> nn.Module:
    network, generator = build_network(**NETWORK), torch.Generator().manual_seed(0)  # type: ignore[arg-type]
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return network.eval()


@pytest.fixture
def model(project: Project) -> str:
    """A model file with random weights."""
    save_model(Path("model.safetensors"), _network(), {"network": NETWORK, "task": "denoise"})
    return "model.safetensors"


def _save(path: Path, size: tuple[int, int] = (20, 31), mode: str = "RGB", seed: int = 0) -> np.ndarray:
    """Writes a random image and gives its pixels as (3, H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (*size, 3) if mode == "RGB" else size
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels.transpose(2, 0, 1) if mode == "RGB" else np.stack([pixels] * 3)


def _expected(pixels: np.ndarray) -> np.ndarray:
    """The network's answer as (H, W, 3) uint8."""
    with torch.inference_mode():
        restored = _network()(torch.from_numpy(pixels.astype(np.float32) / 255)[None])[0].numpy()
    levels: np.ndarray = np.round(restored.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    return levels


def _read(path: Path | str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def _run(source: str, target: str, model: str, tile: int = 64, overlap: int = 16, self_ensemble: int = 1) -> None:
    restore(Path(source), Path(target), model, tile, overlap, self_ensemble)


def _refusal(source: str, target: str, model: str) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the caller looks at the message
        _run(source, target, model)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_file_becomes_what_the_network_makes_of_it(model: str) -> None:
    pixels = _save(Path("in.png"))
    _run("in.png", "new/folder/out.png", model)
    assert np.abs(_read("new/folder/out.png").astype(int) - _expected(pixels)).max() <= 1
    assert not np.array_equal(_expected(pixels), pixels.transpose(1, 2, 0))
    assert [file.name for file in Path("new/folder").iterdir()] == ["out.png"]


def test_a_model_file_is_loaded_onto_the_device_on_which_images_are_restored(model: str) -> None:
    """A registered one too: see test_registry."""
    restorer, _ = load_restorer(model, "meta", None)
    assert restorer.contract.inputs == 3
    assert restorer.network(torch.empty(1, 3, 20, 31, device="meta")).device.type == "meta"


def test_a_registered_model_is_restored_without_what_exports_and_trains(model: str, store: Store) -> None:
    """In a process of its own: what another test imports stays in this one."""
    pixels = _save(Path("in.png"))
    registry = Registry(store)
    version = registry.add(store.begin("run", {}, {}), _network(), "none", {}, Path(model))
    uri = f"models:/{registry.name}/{version.number}"
    code = "import atexit, sys; atexit.register(lambda: print(*sys.modules)); from pipeline.cli import main; main()"
    finished = subprocess.run(
        [sys.executable, "-c", code, "restore", "in.png", "out.png", "--model", uri],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": store.uri},
    )
    assert finished.returncode == 0, finished.stderr
    assert np.abs(_read("out.png").astype(int) - _expected(pixels)).max() <= 1
    modules = set(finished.stdout.splitlines()[-1].split())
    assert {"mlflow", "torch"} <= modules
    needless = {"torch._dynamo", "torch._inductor", "mlflow.pytorch", "ray", "optuna", "boto3", "matplotlib", "skimage"}
    assert (
        modules & (needless | {"components.equivariance", "pipeline.training_job", "pipeline.config.schema"}) == set()
    )


def test_a_file_restored_into_a_folder_keeps_its_name(model: str) -> None:
    _save(Path("in.jpg"))
    Path("out").mkdir()
    _run("in.jpg", "out", model)
    assert _read("out/in.png").shape == (20, 31, 3)


def test_a_grey_image_comes_out_grey_as_the_luma_of_what_the_network_makes_of_it(model: str) -> None:
    pixels = _save(Path("grey.png"), mode="L")
    _run("grey.png", "out.png", model)
    restored = _read("out.png")
    assert restored.shape == pixels.shape[1:]
    luma = np.asarray(Image.fromarray(_expected(pixels)).convert("L"))
    assert np.abs(restored.astype(int) - luma).max() <= 1


def test_a_large_image_in_tiles_is_the_image_in_one_piece(model: str) -> None:
    pixels = _save(Path("in.png"), (150, 201))
    _run("in.png", "out.png", model, tile=64, overlap=16)
    assert np.abs(_read("out.png").astype(int) - _expected(pixels)).max() <= 1


def test_the_self_ensemble_is_the_mean_over_the_four_rotations(model: str) -> None:
    pixels = _save(Path("in.png"))
    _run("in.png", "out.png", model, self_ensemble=4)
    image, network, answers = torch.from_numpy(pixels.astype(np.float32) / 255)[None], _network(), []
    with torch.inference_mode():
        for turns in range(4):
            answers.append(torch.rot90(network(torch.rot90(image, turns, (2, 3))), -turns, (2, 3)))
    mean = torch.stack(answers).mean(0)[0].clamp(0, 1).numpy().transpose(1, 2, 0) * 255
    assert np.abs(_read("out.png") - mean).max() <= 1
    assert np.abs(_expected(pixels) - mean).max() > 2  # and differs from one pass


def test_a_folder_is_restored_with_its_subfolders(model: str) -> None:
    pixels = {name: _save(Path("in") / name, seed=n) for n, name in enumerate(("a.png", "sub/b.bmp", ".hidden/c.png"))}
    (Path("in") / "notes.txt").write_text("notes")
    _run("in", "out", model)
    written = sorted(file.relative_to("out").as_posix() for file in Path("out").rglob("*") if file.is_file())
    assert written == ["a.png", "sub/b.png"]
    for name in ("a.png", "sub/b.bmp"):
        expected = _expected(pixels[name])
        assert np.abs(_read((Path("out") / name).with_suffix(".png")).astype(int) - expected).max() <= 1


def test_a_second_run_into_a_subfolder_does_not_restore_what_is_restored(model: str) -> None:
    _save(Path("in/a.png"))
    for _ in range(2):
        _run("in", "in/restored", model)
    assert sorted(file.as_posix() for file in Path("in").rglob("*.png")) == ["in/a.png", "in/restored/a.png"]


def test_a_subfolder_can_be_restored_into_the_folder_above(model: str) -> None:
    _save(Path("in/sub/a.png"))
    _run("in/sub", "in", model)
    assert Path("in/a.png").exists()


@pytest.mark.parametrize(
    ("source", "target"), [("a.png", "a.png"), ("a.png", "./x/../a.png"), ("in", "in"), ("a.png", ".")]
)
def test_an_input_is_never_overwritten(model: str, source: str, target: str) -> None:
    Path("x").mkdir()
    for path in (Path("a.png"), Path("in/b.png")):
        _save(path)
    before = {path: path.read_bytes() for path in (Path("a.png"), Path("in/b.png"))}
    assert "would overwrite the input" in _refusal(source, target, model)
    assert {path: path.read_bytes() for path in before} == before


def test_an_input_that_another_would_overwrite_is_refused(model: str) -> None:
    _save(Path("in/sub/sub/a.png"))
    _save(Path("in/sub/a.png"), seed=1)
    before = Path("in/sub/a.png").read_bytes()
    assert "in/sub/a.png: an input would be overwritten" in _refusal("in/sub", "in", model)
    assert Path("in/sub/a.png").read_bytes() == before


def test_two_inputs_of_one_output_are_refused(model: str) -> None:
    _save(Path("in/a.png"))
    _save(Path("in/a.jpg"))
    assert _refusal("in", "out", model) == (
        "out/a.png: in/a.jpg and in/a.png would be written there; rename one of them, or give --format same"
    )
    assert not Path("out").exists()
    assert restore("in", "out", model, form="same") == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.jpg", "a.png"]


def test_of_several_outputs_with_two_inputs_the_first_is_named_and_the_others_are_counted(model: str) -> None:
    for name in ("a.png", "b.png", "c.png"):
        _save(Path("one") / name)
        _save(Path("two") / name)
    with pytest.raises(UserError) as error:
        restore(["one", "two"], "out", model)
    assert str(error.value) == (
        "out/a.png: one/a.png and two/a.png would be written there; rename one of them "
        "(2 other results have this fault, too)"
    )


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("nowhere.png", "out.png", "nowhere.png: there is no such file or folder"),
        ("empty", "out", "empty: no image in this folder"),
        ("in.png", "out.xyz", "out.xyz: its suffix names no image format"),
        ("in.png", "out", "out: its suffix names no image format"),
        ("in.png", "file/out.png", "file: cannot be written"),
        ("in.png", "folder.png/out.png", "folder.png: cannot be written"),
        ("in", "file", "file: is a file; for a folder of images name a folder"),
        ("cut.png", "out.png", "cut.png: not a readable image"),
        ("text.png", "out.png", "text.png: not a readable image"),
    ],
)
def test_what_cannot_be_read_or_written_is_named(model: str, source: str, target: str, message: str) -> None:
    _save(Path("in.png"))
    _save(Path("in/a.png"))
    Path("empty").mkdir()
    for name in ("file", "folder.png"):
        Path(name).write_text("")
    Path("cut.png").write_bytes(Path("in.png").read_bytes()[:500])
    Path("text.png").write_text("text")
    before = set(Path().rglob("*"))
    assert _refusal(source, target, model).startswith(message)
    assert set(Path().rglob("*")) == before


def test_an_output_folder_that_goes_away_while_writing_is_named(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(Path("in.png"))

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "out.png: cannot be written (No space left on device)" in _refusal("in.png", "out.png", model)
    assert not Path("out.png").exists()


class _Choosy(nn.Module):
    """Takes no small images."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("Output size is too small\nand more")


def test_an_image_that_the_network_fails_on_is_named(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    restorer = ImageRestorer(_Choosy(), Contract.of_channels("denoise", 3, 3), "cpu")
    monkeypatch.setattr("pipeline.commands.restore.load_restorer", lambda *arguments: (restorer, "digest"))
    _save(Path("in.png"), (30, 50))
    expected = "in.png: 50x30 pixels, which this model fails on (Output size is too small)"
    assert _refusal("in.png", "out.png", model) == expected


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere.safetensors", "--model nowhere.safetensors: neither models:/NAME@ALIAS nor a file"),
        ("params.yaml", "params.yaml: not a model of eqreg"),
        ("cut.safetensors", "cut.safetensors: not a model of eqreg"),
        ("other.safetensors", "other.safetensors: not a model of eqreg"),
        ("models:/eqreg-denoise@champion", "--model models:/eqreg-denoise@champion: there is no sqlite:///"),
    ],
)
def test_a_model_that_is_none_is_named(project: Project, model: str, message: str) -> None:
    _save(Path("in.png"))
    save_model(Path("whole.safetensors"), _network(), {"network": NETWORK})
    Path("cut.safetensors").write_bytes(Path("whole.safetensors").read_bytes()[:-50])
    about = json.dumps({KEY: FORMAT, "task": "denoise"})  # no network
    save_file(dict(_network().state_dict()), "other.safetensors", {"eqreg": about})
    assert _refusal("in.png", "out.png", model).startswith(message)
    assert not Path("out.png").exists()
    assert not Path("mlflow.db").exists()


@pytest.mark.parametrize(("tile", "overlap"), [(100, 16), (64, 64), (64, 8)])
def test_tiles_that_do_not_fit_are_refused_with_ones_that_do(model: str, tile: int, overlap: int) -> None:
    _save(Path("in.png"))
    with pytest.raises(ValueError, match=rf"tile {tile} and overlap {overlap} must be multiples of 16.*use 512 and 64"):
        _run("in.png", "out.png", model, tile=tile, overlap=overlap)


def test_user_errors_are_of_the_one_kind(model: str) -> None:
    with pytest.raises(UserError):
        _run("nowhere.png", "out.png", model)


def _store_decisions(path: str, **settings: object) -> None:
    """A model whose residual is zero: it gives back its image, enlarged by its scale."""
    chosen = {"name": "dncnn", "width": 4, "depth": 2, "norm": "none", **settings}
    save_model(Path(path), build_network(**chosen), {"network": chosen, "task": "any"})  # type: ignore[arg-type]


def test_a_model_that_enlarges_writes_a_larger_picture(project: Project) -> None:
    _store_decisions("enlarge.safetensors", scale=3)
    _save(Path("in.png"), (90, 130))
    restore(Path("in.png"), Path("out.png"), "enlarge.safetensors", 64, 16, 1)
    whole = torch.nn.functional.interpolate(
        torch.from_numpy(to_float(read_image(Path("in.png"))))[None],
        scale_factor=3,
        mode="bicubic",
        align_corners=False,
    )
    written = to_float(read_image(Path("out.png")))
    assert written.shape == (3, 270, 390)
    assert np.abs(written - whole[0].clamp(0, 1).numpy()).max() < 1 / 255  # tiles have joined without a seam


def test_a_model_of_grey_images_restores_the_channels_of_a_colour_file_one_by_one(project: Project) -> None:
    _store_decisions("grey.safetensors", in_channels=1, out_channels=1)
    _save(Path("in.png"), (20, 30))
    restore(Path("in.png"), Path("out.png"), "grey.safetensors", 64, 16, 1)
    assert np.array_equal(read_image(Path("out.png")), read_image(Path("in.png")))


def test_missing_pixels_are_filled_and_known_ones_kept(project: Project) -> None:
    _store_decisions("fill.safetensors", in_channels=4, out_channels=3)
    _save(Path("in.png"), (20, 30))
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[4:9, 7:21] = 255
    Image.fromarray(mask).save("mask.png")
    restore(Path("in.png"), Path("out.png"), "fill.safetensors", 64, 16, 1, Path("mask.png"))
    before, after = read_image(Path("in.png")), read_image(Path("out.png"))
    assert np.array_equal(after[:, mask == 0], before[:, mask == 0])
    guess = np.rint(filled(to_float(before), mask > 0) * 255)  # which this model keeps
    assert np.abs(after[:, mask > 0] - guess[:, mask > 0]).max() <= 1


def _restore_masked(folder: str) -> None:
    restore(Path("in"), Path("out"), "fill.safetensors", 64, 16, 1, Path(folder))


def test_images_of_one_name_in_two_subfolders_have_a_mask_each(project: Project) -> None:
    _store_decisions("fill.safetensors", in_channels=4, out_channels=3)
    columns = {"a": 3, "b": 11}
    for part, column in columns.items():
        for folder in ("in", "masks", "flat"):
            Path(folder, part).mkdir(parents=True, exist_ok=True)
        _save(Path("in", part, "1.png"), (20, 30))
        mask = np.zeros((20, 30), dtype=np.uint8)
        mask[:, column] = 255
        Image.fromarray(mask).save(f"masks/{part}/1.png")
        Image.fromarray(mask).save("flat/1.png")
    _restore_masked("masks")
    for part, column in columns.items():
        before, after = (read_image(Path(folder, part, "1.png")) for folder in ("in", "out"))
        assert {int(x) for x in np.nonzero(before != after)[2]} == {column}
    with pytest.raises(
        UserError, match=r"a/1\.png is not there, and 2 images are called 1\.png: put masks into the same"
    ):
        _restore_masked("flat")


def test_a_lone_name_may_have_its_mask_directly_in_the_folder(project: Project) -> None:
    _store_decisions("fill.safetensors", in_channels=4, out_channels=3)
    for folder in ("in/a", "masks"):
        Path(folder).mkdir(parents=True)
    _save(Path("in/a/1.png"), (20, 30))
    Image.fromarray(np.full((20, 30), 255, dtype=np.uint8)).save("masks/1.png")
    _restore_masked("masks")
    assert not np.array_equal(read_image(Path("in/a/1.png")), read_image(Path("out/a/1.png")))


@pytest.mark.parametrize(
    ("settings", "mask", "message"),
    [
        ({"in_channels": 4, "out_channels": 3}, None, "it wants an image and a mask: add --mask"),
        ({"in_channels": 3, "out_channels": 1}, None, "in.png: no DICOM file, and the model is for CT"),
        ({"in_channels": 5, "out_channels": 3}, None, "it wants 5 channels: call it from Python"),
        ({}, "mask.png", "--mask mask.png: model odd.safetensors takes an image alone"),
        ({"in_channels": 4, "out_channels": 3}, "small.png", "small.png: 30x20 pixels, its image has 31x21"),
    ],
)
def test_a_model_of_other_inputs_says_what_it_wants(
    project: Project, settings: dict[str, object], mask: str | None, message: str
) -> None:
    _store_decisions("odd.safetensors", **settings)
    _save(Path("in.png"), (21, 31))
    for name in ("mask.png", "small.png"):
        Image.fromarray(np.zeros((20, 30), dtype=np.uint8)).save(name)
    with pytest.raises(UserError) as error:
        restore(Path("in.png"), Path("out.png"), "odd.safetensors", 64, 16, 1, Path(mask) if mask else None)
    assert message in str(error.value)
    assert not Path("out.png").exists()


def test_a_classifier_restores_nothing(project: Project) -> None:
    settings = {"name": "resnet", "width": 8, "depth": 2, "norm": "none", "classes": 5}
    save_model(Path("classes.safetensors"), build_network(**settings), {"network": settings})  # type: ignore[arg-type]
    _save(Path("in.png"), (21, 31))
    with pytest.raises(UserError, match="it recognises images and restores none"):
        restore(Path("in.png"), Path("out.png"), "classes.safetensors", 64, 16, 1)
