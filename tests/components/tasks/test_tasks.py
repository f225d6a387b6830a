"""Each task: what its network is given, what decides, and that its figures are those of its literature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from components.data.packs import Entry, Pack, ShardWriter, write_index
from components.data.sampler import margin_of
from components.tasks import TASKS, Task, build_task, task_class

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
SHIPPED: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())["tasks"]
IMAGE_TASKS = [name for name in TASKS if task_class(name).input_kind == "images"]


def _task(name: str) -> Task:
    return build_task(name, SHIPPED[name]["degradation"])


def _clean(side: int = 60) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side] / side
    smooth = np.stack([rows, columns, (rows + columns) / 2]) * 0.6 + 0.2
    return (smooth + 0.1 * np.sin(20 * rows * columns)).clip(0, 1).astype(np.float32)


def test_every_task_of_params_is_built_and_no_other() -> None:
    assert set(SHIPPED) == set(TASKS)
    with pytest.raises(ValueError, match="task 'dehaze' is unknown: use one of denoise, derain"):
        build_task("dehaze", {})


@pytest.mark.parametrize("name", IMAGE_TASKS)
@pytest.mark.parametrize("is_training", [False, True])
def test_what_a_network_is_given_has_the_channels_and_size_that_the_task_says(name: str, is_training: bool) -> None:
    task = _task(name)
    for colours in (1, 3):
        degradation = task.degradation(is_training=is_training)
        margin, side = margin_of(degradation), 48
        clean = _clean(side + 2 * margin)[:colours]
        inputs = degradation(clean, np.random.default_rng(0))
        given, restored = task.channels(colours)
        assert inputs.shape == (given, side // task.scale, side // task.scale)
        assert inputs.dtype == np.float32
        assert restored == colours
        assert task.as_image(inputs).shape == (colours, side, side)
        again = task.degradation(is_training=is_training)(clean, np.random.default_rng(0))
        assert np.array_equal(inputs, again)


@pytest.mark.parametrize("name", IMAGE_TASKS)
def test_the_score_alone_is_the_first_of_all_figures(name: str) -> None:
    task = _task(name)
    degradation = task.degradation()
    margin, side = margin_of(degradation), 48
    whole = _clean(side + 2 * margin)
    clean = whole[:, margin : margin + side, margin : margin + side]
    inputs = degradation(whole, np.random.default_rng(1))
    tensors = [torch.from_numpy(np.array(each))[None] for each in (task.as_image(inputs), inputs, clean)]
    figures = task.compute_metrics(*tensors)
    assert {metric.key for metric in task.metrics} <= set(figures)
    assert task.compute_score(*tensors).item() == pytest.approx(figures[task.score.key].item(), abs=1e-6)


def test_deraining_and_super_resolution_are_scored_on_the_studio_luma() -> None:
    clean = _clean(48)
    other = (clean + 0.05 * np.random.default_rng(0).standard_normal(clean.shape)).clip(0, 1).astype(np.float32)

    def luma(image: np.ndarray) -> np.ndarray:
        saved = np.rint(image.astype(np.float64) * 255)
        return (16 + (65.481 * saved[0] + 128.553 * saved[1] + 24.966 * saved[2]) / 255).astype(np.float64)

    tensors = [torch.from_numpy(each)[None] for each in (other, other, clean)]
    expected = peak_signal_noise_ratio(luma(clean), luma(other), data_range=255)
    assert _task("derain").compute_score(*tensors).item() == pytest.approx(expected, abs=1e-4)
    inside = peak_signal_noise_ratio(luma(clean)[2:-2, 2:-2], luma(other)[2:-2, 2:-2], data_range=255)
    assert _task("super_resolution").compute_score(*tensors).item() == pytest.approx(inside, abs=1e-4)


def test_inpainting_is_scored_in_the_holes_and_fixed_pairs_always_have_one() -> None:
    task = build_task("inpaint", {"masks": "boxes", "share": (0.01, 0.01)})
    clean = _clean(24)
    for seed in range(40):
        inputs = task.degradation()(clean, np.random.default_rng(seed))
        assert inputs[-1].any()
    assert not all(task.degradation(is_training=True)(clean, np.random.default_rng(s))[-1].any() for s in range(40))
    outputs = np.where(inputs[-1] > 0, clean + 0.1, 0).astype(np.float32)  # known pixels do not count
    tensors = [torch.from_numpy(np.array(each))[None] for each in (outputs, inputs, clean)]
    assert task.compute_score(*tensors).item() == pytest.approx(20, abs=0.2)


def test_classes_are_counted_in_per_cent() -> None:
    task = _task("classify")
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert task.compute_score(scores, scores, torch.tensor([1, 0, 0, 1])).mean().item() == 50


def test_metal_is_left_out_of_the_figures_and_hounsfield_units_are_physical() -> None:
    task = _task("ct_mar")
    clean = torch.full((1, 1, 16, 16), 0.4)
    inputs = torch.zeros(1, 3, 16, 16)
    inputs[:, 2, :4] = 1
    outputs = clean + 0.01
    outputs[:, :, :4] = 9
    figures = task.compute_metrics(outputs, inputs, clean)
    assert figures["psnr"].item() == pytest.approx(40, abs=1e-3)
    assert task.compute_score(outputs, inputs, clean).item() == pytest.approx(40, abs=1e-3)
    # Water is 0.192 / cm (1000 HU above air), and grey value 1 is 0.5 / cm: 0.01 is 26 HU.
    assert figures["rmse"].item() == pytest.approx(0.005 / 0.192 * 1000, rel=0.01)


@pytest.mark.parametrize(("name", "key"), [("derain", "streaks"), ("deblur", "kernels"), ("inpaint", "masks")])
def test_auxiliary_data_that_is_missing_is_asked_for(name: str, key: str) -> None:
    settings = {"streaks": {"streaks": "auxiliary"}, "kernels": SHIPPED["deblur"]["degradation"] | {"sigma": (0, 0)}}
    chosen = settings.get(key, {"share": (0.1, 0.1)}) | {key: "auxiliary"}
    with pytest.raises(ValueError, match=rf"{key}: auxiliary: there are no .* in fetch\.auxiliary"):
        build_task(name, chosen).degradation()


def test_a_task_without_a_use_for_auxiliary_data_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task jpeg has no use for it"):
        list(_task("jpeg").read_auxiliary(tmp_path, ["a.png"]))


def test_streaks_of_given_pairs_are_put_on_other_images(tmp_path: Path) -> None:
    clean = (_clean(40) * 200).astype(np.uint8)
    streak = np.zeros((40, 40), dtype=np.uint8)
    streak[5:30, 10] = 50
    for name, image in (("rain/rain-1.png", clean + streak), ("norain/norain-1.png", clean)):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / name)
    task = build_task("derain", {"streaks": "auxiliary"})
    ((_, layer),) = task.read_auxiliary(tmp_path, ["norain/norain-1.png", "rain/rain-1.png"])
    assert np.array_equal(layer, streak[None])
    other = np.full((3, 40, 40), 0.25, dtype=np.float32)
    light = task.degradation([layer[0]])(other, np.random.default_rng(0)) - other
    assert light.max() == pytest.approx(50 / 255, abs=1e-6)
    assert np.count_nonzero(light[0]) == 25


def test_kernels_and_masks_are_read_from_files(tmp_path: Path) -> None:
    np.save(tmp_path / "kernel.npy", np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]]))
    deblur = build_task("deblur", SHIPPED["deblur"]["degradation"] | {"kernels": "auxiliary", "sigma": (0, 0)})
    ((_, kernel),) = deblur.read_auxiliary(tmp_path, ["kernel.npy", "notes.txt"])
    assert kernel.sum() == pytest.approx(1)
    flat = deblur.degradation([kernel[0]])(np.full((1, 20, 20), 0.5, dtype=np.float32), np.random.default_rng(0))
    assert np.allclose(flat, 0.5, atol=1e-6)
    assert flat.shape == (1, 18, 18)  # the margin of the kernel

    mask = np.zeros((30, 30), dtype=np.uint8)
    mask[10:20, 10:20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    inpaint = build_task("inpaint", {"masks": "auxiliary", "share": (0.1, 0.1)})
    ((_, read),) = inpaint.read_auxiliary(tmp_path, ["mask.png"])
    assert np.array_equal(read[0] > 0, mask > 0)
    degraded = inpaint.degradation([read[0]])(np.zeros((3, 30, 30), dtype=np.float32), np.random.default_rng(0))
    assert degraded[-1].sum() == 100


def test_a_classification_names_its_classes_by_the_training_images(tmp_path: Path) -> None:
    """A class without images has its number for a name."""
    writer = ShardWriter(tmp_path)
    for number, (label, name) in enumerate([(3, "a-b_c"), (0, "apple"), (0, "apple"), (1, "pear")]):
        entry = Entry(f"{name}-{number:06d}", f"{name}-{number:06d}", 24, 32, label)
        writer.add(entry, np.zeros((3, 24, 32), dtype=np.uint8))
    write_index(tmp_path, writer.close())
    found = _task("classify").model_metadata(lambda: Pack(tmp_path))
    assert found == {"classes": ["apple", "pear", "2", "a-b_c"], "image_size": [24, 32]}
    assert _task("denoise").model_metadata(lambda: Pack(tmp_path)) == {}


# ------------------------------------------------------------------------------------------------ the noise level


def _no_pack() -> Pack:
    raise AssertionError("no pack is needed")


class _Needs:
    """What a task asks of a network."""

    def __init__(self, *needs: str) -> None:
        self.needs = needs or None


def _noisy_pack(folder: Path, level: float | None) -> Pack:
    image = np.full((1, 20, 20), 0.5, dtype=np.float32)
    writer = ShardWriter(folder)
    writer.add(Entry("a", "a", 20, 20, noise_level=level), image, image + 0.25)
    write_index(folder, writer.close())
    return Pack(folder)


def test_a_network_that_needs_the_noise_level_gets_it_last_and_nothing_else_sees_it(tmp_path: Path) -> None:
    task = build_task("denoise", {"sigma": (5, 50)}).for_network(_Needs("image", "noise_level"))
    assert task.inputs == ("image", "noise_level")
    assert task.network_shape(1, _no_pack) == {"in_channels": 2, "out_channels": 1, "scale": 1}
    assert task.model_metadata(_no_pack) == {"noise_level": [5, 50]}
    ((_, inputs, clean),) = task.pairs(_noisy_pack(tmp_path, 51))
    assert inputs.shape == (2, 20, 20)
    assert (inputs[1] == np.float32(0.2)).all()
    for shown in (task.as_image(inputs), task.without_optional(inputs), task.untouched(inputs, None)):
        assert np.array_equal(shown, np.full((1, 20, 20), 0.75))
    assert clean.shape == (1, 20, 20)


@pytest.mark.parametrize("needs", [(), ("image",)])
def test_another_network_gets_the_stack_without_the_noise_level(needs: tuple[str, ...], tmp_path: Path) -> None:
    task = build_task("denoise", {"sigma": 25})
    other, pack = task.for_network(_Needs("image", "noise_level")), _noisy_pack(tmp_path, 51)
    for each in (task, other.for_network(_Needs(*needs))):
        assert each.inputs == ("image",)
        assert each.network_shape(3, _no_pack)["in_channels"] == 3
        assert each.model_metadata(_no_pack) == {}
        ((_, inputs, _),) = each.pairs(pack)
        assert inputs.shape == (1, 20, 20)


def test_a_pack_without_the_noise_level_is_refused_for_a_network_that_needs_it(tmp_path: Path) -> None:
    task = build_task("denoise", {"sigma": 25}).for_network(_Needs("image", "noise_level"))
    with pytest.raises(ValueError, match="a has no noise level, which the network needs: run 'eqreg preprocess' again"):
        next(task.pairs(_noisy_pack(tmp_path, None)))


@pytest.mark.parametrize("name", sorted(TASKS))
def test_only_additive_gaussian_noise_alone_has_a_level(name: str) -> None:
    task = _task(name)
    assert (task.noise_levels is not None) == (name == "denoise") == ("noise_level" in task.can_give)
    camera = build_task("denoise", {"sigma": 5, "gain": 0.01})
    assert camera.noise_levels is None
    assert camera.can_give == ("image",)


@pytest.mark.parametrize("name", IMAGE_TASKS)
def test_a_fixed_pair_is_degraded_as_before_and_its_noise_level_is_known(name: str) -> None:
    task = _task(name)
    degradation = task.degradation()
    clean = _clean(48 + 2 * margin_of(degradation))
    inputs, level = task.degrade(degradation, clean, np.random.default_rng(5))
    assert np.array_equal(inputs, degradation(clean, np.random.default_rng(5)))
    assert level == (25 if name == "denoise" else None)
