"""A network that needs the noise level, from files on disk to restored files, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image

from components.data.packs import Pack
from components.networks import build_network
from components.networks.convolutional.ffdnet import FFDNet
from components.training.worker import Worker
from pipeline.commands.import_weights import import_weights
from pipeline.commands.restore import restore
from pipeline.config.schema import load_params
from pipeline.errors import UserError
from pipeline.model_file import load_model, save_model
from pipeline.paths import EVALUATE, MODEL, PACKED, TRAIN, replaced_folder
from pipeline.provenance.lineage import data_hash
from pipeline.provenance.training_fingerprint import TrainingFingerprint
from pipeline.stages.comparison import Validation
from pipeline.stages.evaluate import evaluate
from pipeline.stages.fetch import fetch
from pipeline.stages.preprocess import preprocess
from pipeline.stages.train import write_results
from pipeline.tracking.models.loading import load_version
from pipeline.tracking.models.registry import Registry
from pipeline.tracking.store import Store
from pipeline.training_job import TrainingJob
from tests.pipeline.conftest import Project

pytestmark = pytest.mark.process

SMALL: dict[str, Any] = {
    "task": "denoise",
    "fetch.source": "source",
    "preprocess.crop": 48,
    "preprocess.realizations": {"train": 1, "val": 2, "test": 1},
    "preprocess.splits": {"train": ["train*"], "val": ["val*"], "test": ["test*"]},
    "tasks.denoise.degradation": {"sigma": [5, 55]},
    "network": {"name": "ffdnet", "width": 8, "depth": 4},
    "train.steps": 4,
    "train.batch_size": 4,
    "train.patch_size": 24,
    "train.warmup_steps": 1,
    "train.validate_every": 4,
    "train.report_every": 2,
    "equivariance.warmup_steps": 0,
    "tune.trials": 0,
    "evaluate.comparison_images": 1,
}


@pytest.fixture
def job(project: Project) -> TrainingJob:
    """A job on packs of smooth images of 100 x 90 pixels: two to train, one to validate, one to test."""
    Path("source").mkdir()
    rows, columns = np.mgrid[:100, :90]
    for number, name in enumerate(("train1", "train2", "val1", "test1")):
        waves = [np.sin(rows / (5 + number + c)) * np.cos(columns / (7 + 2 * c - number)) for c in range(3)]
        Image.fromarray((127 + 100 * np.stack(waves, -1)).astype(np.uint8)).save(f"source/{name}.png")
    project.set(SMALL)
    params = load_params()
    fetch(params)
    preprocess(params)
    return TrainingJob(params, PACKED.resolve())


def _trained(job: TrainingJob) -> None:
    job.check([1])
    state = job.run(lambda step, metrics: None, lambda state, metrics: None)
    identity = TrainingFingerprint.of(job.deciding_params(), job.params.modules, data_hash(PACKED))
    with replaced_folder(TRAIN) as folder:
        write_results(folder, job, (1, 1), identity, state.result)


def _read(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_fixed_pairs_say_the_level_of_their_noise(job: TrainingJob) -> None:
    """Oracle: the standard deviation of degraded minus clean."""
    levels = []
    for part in ("val", "test", "out_of_distribution/sigma_15"):
        for entry, degraded, clean in Pack(PACKED / part).pairs():
            assert entry.noise_level is not None
            assert (degraded - clean).std() * 255 == pytest.approx(entry.noise_level, rel=0.05)
            levels.append(entry.noise_level)
    assert levels[-1] == 15
    assert len(set(levels)) == 4
    ((_, stack, _), *_) = job.task.pairs(Pack(PACKED / "val"))
    assert stack.shape == (4, 48, 48)
    assert (stack[3] == np.float32(levels[0] / 255)).all()
    batch, clean_batch = job.sampler().batch(0, range(4))
    assert batch.shape == (4, 4, 24, 24)
    for inputs, clean in zip(batch, clean_batch, strict=True):
        assert (inputs[:3] - clean).std() == pytest.approx(float(inputs[3, 0, 0]), rel=0.1)


def test_a_network_learns_with_the_noise_level_and_restores_by_it(job: TrainingJob, store: Store) -> None:
    _trained(job)
    network, metadata = load_model(MODEL)
    assert metadata["noise_level"] == [5, 55]
    assert metadata["network"]["inputs"] == ["image", "noise_level"]

    evaluate(job.params)
    metrics = json.loads((EVALUATE / "metrics.json").read_text())
    for group in ("test", "rotated", "out_of_distribution"):
        for method in ("input", "classical", "restored"):
            assert np.isfinite(metrics[group][method]["psnr"])
    noisy = Pack(PACKED / "test").degraded(0).clip(0, 1)
    clean = Pack(PACKED / "test").clean(0)
    error = np.mean((np.rint(255 * noisy) / 255 - clean.astype(np.float64)) ** 2)
    assert metrics["test"]["input"]["psnr"] == pytest.approx(-10 * np.log10(error), abs=1e-3)

    image = Image.open("source/test1.png")
    for level in (None, 30, 5, 55):
        restore("source/test1.png", f"{level}.png", str(MODEL), noise_level=level)
    assert np.array_equal(_read("None.png"), _read("30.png"))
    assert not np.array_equal(_read("5.png"), _read("55.png"))
    pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1) / np.float32(255))
    with torch.inference_mode():
        expected = network.eval()(torch.cat((pixels, torch.full_like(pixels[:1], 5 / 255)))[None])[0]
    assert np.abs(_read("5.png") - 255 * expected.clamp(0, 1).permute(1, 2, 0).numpy()).max() < 0.51

    # As a registered version: the image model of mlflow alone, and the exported program that register compares with.
    registry = Registry(store)
    version = registry.add(store.begin("run", {}, {}), network, "none", {}, MODEL)
    uri = f"models:/{registry.name}/{version.number}"
    assert load_version(uri, store.uri, "cpu").contract.noise_level == (5, 55)
    mlflow.set_tracking_uri(store.uri)
    model = mlflow.pyfunc.load_model(uri)
    content = Path("source/test1.png").read_bytes()
    for level in (5, 55):
        Path("served.png").write_bytes(model.predict([content], params={"noise_level": level})[0])
        assert np.abs(_read("served.png").astype(int) - _read(f"{level}.png")).max() <= 1
    Path("served.png").write_bytes(model.predict([content])[0])
    assert np.abs(_read("served.png").astype(int) - _read("None.png")).max() <= 1
    program = registry.load(version)
    assert program is not None
    validation = Validation(job.params)
    own = validation.scores(network)
    assert validation.scores(program) == pytest.approx(own, abs=1e-3)
    assert np.mean(own) == pytest.approx(job.validate(network, Worker.current())["val_score"], abs=1e-6)


def test_a_pack_of_an_earlier_release_is_refused_before_training(job: TrainingJob) -> None:
    index = json.loads((PACKED / "val/index.json").read_text())
    for shard in index["shards"]:
        for entry in shard["entries"]:
            del entry["noise_level"]
    (PACKED / "val/index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="val1-0 has no noise level, which the network needs: run 'eqreg preprocess'"):
        job.check([1])


def test_published_weights_need_a_noise_level(project: Project) -> None:
    settings = ["width=4", "depth=2"]
    torch.save(FFDNet(width=4, depth=2).state_dict(), "published.pth")
    import_weights("ffdnet", Path("published.pth"), Path("own.safetensors"), "denoise", settings)
    Image.fromarray(np.full((20, 31), 100, dtype=np.uint8)).save("in.png")
    with pytest.raises(UserError, match=r"own\.safetensors: this network needs a noise level, .* \(--noise-level\)"):
        restore("in.png", "out.png", "own.safetensors")
    restore("in.png", "out.png", "own.safetensors", noise_level=25)
    with pytest.raises(UserError, match="--noise-level 300: use 0 to 255"):
        restore("in.png", "out.png", "own.safetensors", noise_level=300)
    with pytest.raises(UserError, match=r"ffdnet: does not fit --task derain \(ffdnet needs noise_level, where"):
        import_weights("ffdnet", Path("published.pth"), Path("rain.safetensors"), "derain", settings)


def test_a_level_for_a_network_that_takes_none_is_refused(project: Project) -> None:
    settings: dict[str, Any] = {"name": "dncnn", "width": 4, "depth": 2, "norm": "none"}
    save_model(Path("plain.safetensors"), build_network(**settings), {"network": settings, "task": "denoise"})
    Image.fromarray(np.full((20, 31), 100, dtype=np.uint8)).save("in.png")
    with pytest.raises(UserError, match="noise level 25: this network takes none: leave it out"):
        restore("in.png", "out.png", "plain.safetensors", noise_level=25)
    assert not Path("out.png").exists()
