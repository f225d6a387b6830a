"""What is measured of a network is what it gives, and the error of its output is what the definition says."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor, nn

from components.data.packs import Entry, Pack, write_pack
from components.equivariance import equivariance_error
from pipeline.measurement import layer_names, measure_rows, validation_errors
from pipeline.stages.evaluate import one_thread
from pipeline.training_job import TrainingJob
from tests.pipeline.conftest import Project

pytestmark = pytest.mark.unit

SIDE = 32


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Noisy pairs: two scenes to test, of two images and one, one other degradation, and two to validate."""
    random = np.random.default_rng(3)
    folder = tmp_path / "packed"
    packs = {
        "train": [("t", "t")],
        "val": [("v1", "v"), ("v2", "v"), ("w1", "w")],
        "test": [("a1", "a"), ("a2", "a"), ("b1", "b")],
        "out_of_distribution/sigma_35": [("a1", "a"), ("b1", "b")],
    }
    for part, names in packs.items():
        clean = [random.integers(30, 225, (3, SIDE, SIDE)).astype(np.uint8) for _ in names]
        noisy = [(image / 255 + random.normal(0, 0.1, image.shape)).astype(np.float32) for image in clean]
        (folder / part).mkdir(parents=True)
        write_pack(folder / part, [Entry(name, scene, SIDE, SIDE) for name, scene in names], clean, noisy)
    return folder


class Shift(nn.Module):
    """Moves the image one pixel to the right, round the edge: as far from equivariant as an image is from its shift."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.pixels, self.gain = pixels, nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return images.roll(self.pixels, -1) * self.gain


def _job(project: Project, packed: Path, **changes: Any) -> TrainingJob:
    return TrainingJob(project.params(**changes), packed)


def test_every_test_image_is_measured_as_it_is_turned_and_out_of_distribution(project: Project, packed: Path) -> None:
    rows = measure_rows(_job(project, packed), Shift(0))
    counted: dict[str, list[tuple[str, str, str]]] = {}
    for row in rows:
        counted.setdefault(row["group"], []).append((row["condition"], row["image"], row["scene"]))
    images = [("a1", "a"), ("a2", "a"), ("b1", "b")]
    assert counted["test"] == [("0", *image) for image in images]
    assert sorted(counted["rotated"]) == sorted((turns, *image) for turns in ("90", "180", "270") for image in images)
    assert counted["out_of_distribution"] == [("sigma_35", "a1", "a"), ("sigma_35", "b1", "b")]
    assert counted["equivariance"] == [("output", "a1", "a"), ("output", "b1", "b")]
    assert json.loads(json.dumps(rows)) == rows


def test_figures_are_those_of_the_image_that_the_network_gives(project: Project, packed: Path) -> None:
    """Oracle: scikit-image's PSNR of the shifted input, rounded as an 8-bit file holds it."""
    rows = measure_rows(_job(project, packed), Shift(1))
    pack = Pack(packed / "test")
    for turns in range(4):
        group = "rotated" if turns else "test"
        found = [row["psnr"] for row in rows if row["group"] == group and row["condition"] == str(90 * turns)]
        for index, psnr in enumerate(found):
            noisy, clean = (np.rot90(image, turns, (-2, -1)) for image in (pack.degraded(index), pack.clean(index)))
            saved = np.round(255 * np.roll(noisy, 1, -1).clip(0, 1)) / 255
            expected = peak_signal_noise_ratio(clean.astype(np.float64), saved.astype(np.float64), data_range=1)
            assert psnr == pytest.approx(expected, abs=1e-4)


def test_the_error_of_the_output_is_that_of_shifting_before_or_after_turning(project: Project, packed: Path) -> None:
    """Oracle: the definition, in numpy. Every scene counts once, by its first image."""
    job = _job(project, packed)
    assert validation_errors(job, Shift(0))["equivariance_error"] == 0

    def relative(image: np.ndarray) -> float:
        sizes = []
        for turns in (1, 2, 3):
            first = np.roll(np.rot90(image, turns, (-2, -1)), 1, -1)
            second = np.rot90(np.roll(image, 1, -1), turns, (-2, -1))
            sizes.append(np.mean((first - second) ** 2) / ((np.mean(first**2) + np.mean(second**2)) / 2))
        return float(np.sqrt(np.mean(sizes)))

    val, test = Pack(packed / "val"), Pack(packed / "test")
    assert validation_errors(job, Shift(1))["equivariance_error"] == pytest.approx(
        (relative(val.degraded(0)) + relative(val.degraded(2))) / 2, rel=1e-4
    )
    found = [row["output_error"] for row in measure_rows(job, Shift(1)) if row["group"] == "equivariance"]
    assert found == pytest.approx([relative(test.degraded(0)), relative(test.degraded(2))], rel=1e-4)


def test_the_network_is_measured_in_evaluation_mode_and_left_as_it_was(project: Project, packed: Path) -> None:
    job = _job(project, packed, network__name="unet", network__width=8, network__depth=2, network__norm="batch")
    network = job.network()
    for is_training in (True, False):
        network.train(is_training)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        first, second = measure_rows(job, network), measure_rows(job, network)
        assert first == second
        assert validation_errors(job, network) == validation_errors(job, network)
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        assert network.training == is_training


def test_the_error_of_the_layers_is_the_mean_over_layers_and_images(project: Project, packed: Path) -> None:
    job = _job(project, packed, network__name="dncnn", network__width=8, network__depth=4)
    network = job.network().eval()
    val = Pack(packed / "val")
    errors = [equivariance_error(network, torch.from_numpy(val.degraded(index))[None]) for index in (0, 2)]
    layers = [error for each in errors for name, error in each.items() if name != "output"]
    assert len(layers) > 4
    assert validation_errors(job, network)["layer_error"] == pytest.approx(np.mean(layers), rel=1e-6)


def test_a_network_that_gives_no_numbers_is_refused(project: Project, packed: Path) -> None:
    network = Shift(0)
    network.gain.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        measure_rows(_job(project, packed), network)


def test_a_choice_of_layers_that_the_network_owns_reaches_the_regulariser(project: Project, packed: Path) -> None:
    changes = {"network__name": "restormer", "network__width": 8, "network__blocks": [1, 1, 1, 1]}
    changes |= {"network__refinement_blocks": 1, "network__heads": [1, 1, 1, 1], "network__hidden_multiple": 4}
    job = _job(project, packed, **changes, equivariance__layers="eqreg-t")
    everywhere = _job(project, packed, **changes, equivariance__layers="auto")
    assert {"patch_embed.proj", "latent.0.ffn.project_in"} <= set(layer_names(job)) < set(layer_names(everywhere))
    left_out = {name.rpartition(".")[2] for name in set(layer_names(everywhere)) - set(layer_names(job))}
    assert left_out == {"qkv", "qkv_dwconv", "dwconv", "output"}


def test_layers_that_are_not_asked_for_are_not_named(project: Project, packed: Path) -> None:
    """A sweep and an ablation name the same layers: the ones of equivariance.layers that the penalty can reach."""
    changes = {"network__name": "dncnn", "network__depth": 4, "equivariance__penalty": "channel"}
    asked = {"model.0": "trivial", "model.5": "regular"}  # channels of a trivial field are not shifted
    assert layer_names(_job(project, packed, **changes, equivariance__layers=asked)) == ["model.5"]
    with pytest.raises(ValueError, match=r"^equivariance\.layers: none can be penalised"):
        layer_names(_job(project, packed, **changes, equivariance__layers=dict.fromkeys(asked, "trivial")))
    plain = {"equivariance__weight": 0.0, "equivariance__pairing": "none"}
    assert layer_names(_job(project, packed, **changes, **plain, equivariance__layers=asked)) == list(asked)


@pytest.mark.parametrize("penalty", ["regular", "channel"])
def test_layers_that_the_penalty_cannot_reach_are_not_named(project: Project, packed: Path, penalty: str) -> None:
    job = _job(project, packed, network__name="dncnn", network__depth=4, equivariance__penalty=penalty)
    names = layer_names(job)
    hidden = ["model.2", "model.5"]
    # The first reads and the last writes the image, whose three channels cannot be shifted in groups of four.
    assert names == (hidden if penalty == "channel" else ["model.0", *hidden, "model.8"])
    weighted = _job(
        project,
        packed,
        network__name="dncnn",
        network__depth=4,
        equivariance__penalty=penalty,
        equivariance__layer_weights=dict.fromkeys(names, 0.5),
    )
    assert weighted.regularizer(weighted.network()) is not None


def test_torch_has_its_threads_again_after_an_error_in_evaluate() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with suppress(ValueError), one_thread():
            found = torch.get_num_threads()
            raise ValueError
        assert (found, torch.get_num_threads()) == (1, 2)
    finally:
        torch.set_num_threads(before)
